"""Bundles and folders that were tampered with: each is refused, and the finding says why."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forging import Check, Forgery, edited, first_episodes, reasons

from metabench.episodes.protocol import Protocol
from metabench.publishing.verify import episodes


def test_what_was_not_tampered_with_holds(check: Check, forgery: Forgery) -> None:
    report = check(forgery.given())
    assert report.ok
    assert {finding.state for finding in report.findings} == {"holds"}
    before = dict(forgery.files)
    assert forgery.renumbered().resealed().content == before


def test_anything_changed_and_not_resealed(check: Check, forgery: Forgery) -> None:
    forgery.change_cell(lambda cell: cell["run"].update(python="3.11.99"))
    assert "was changed after the bundle was made" in reasons(check(forgery.given()), "submission")


def test_an_edited_score(check: Check, forgery: Forgery) -> None:
    forgery.change_row(lambda row: row["numbers"].update(score=0.99))
    assert "its score is 0.99, and its evidence gives 0.24" in reasons(
        check(forgery.resealed()), "numbers"
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("rank", 2), ("seeds", 30), ("adapt_ms", 1e-6), ("train_s", 0.0), ("status", "nan")),
        *(("inference", "transductive"), ("device", "cuda"), ("code_version", "c-00000000")),
        *(("ci95", None), ("episodes", 10.5), ("suite", "fewshot")),
    ],
)
def test_any_other_number_of_a_row(
    check: Check, forgery: Forgery, column: str, value: object
) -> None:
    forgery.change_row(lambda row: row["numbers"].update({column: value}))
    assert f"its {column} is" in reasons(check(forgery.resealed()), "numbers")


def test_a_row_that_says_it_was_checked(check: Check, forgery: Forgery) -> None:
    forgery.renumbered(trust=None)
    assert "its trust is recomputed, and its evidence gives self-reported" in reasons(
        check(forgery.resealed()), "numbers"
    )


def test_columns_that_no_table_has(check: Check, forgery: Forgery) -> None:
    forgery.change_row(lambda row: row["numbers"].update(best=[]))
    assert "rows.0.numbers.best" in reasons(check(forgery.resealed()), "tables")
    forgery.change_row(lambda row: row["numbers"].update(best=1))
    assert "its columns" in reasons(check(forgery.resealed()), "numbers")
    forgery.change_row(lambda row: row["numbers"].pop("best"))
    forgery.change_row(lambda row: row["numbers"].pop("trust"))
    assert "its columns" in reasons(check(forgery.resealed()), "numbers")


def test_rows_in_another_order(check: Check, forgery: Forgery) -> None:
    forgery.change("small.json", lambda table: table["rows"].reverse())
    assert "order of their numbers" in reasons(check(forgery.resealed()), "rows")


def test_an_edited_prediction(check: Check, forgery: Forgery) -> None:
    """In the file of predictions, its record as it was."""
    old = forgery.proof()
    name = f"evidence/cells/{old.record.key}.parquet"
    forgery.files |= {name: replace(old, episodes=edited(old.episodes)).files()[name]}
    assert "are not those of its record" in reasons(check(forgery.resealed()), "evidence")


def test_an_edited_prediction_with_its_record_sealed_anew(check: Check, forgery: Forgery) -> None:
    forgery.replace(episodes=edited(forgery.proof().episodes, 20), follows=False)
    report = check(forgery.renumbered().resealed())
    assert "its record says 0.226667, its predictions give 0.36" in reasons(report, "scores")


def test_a_record_that_was_edited(check: Check, forgery: Forgery) -> None:
    forgery.change_cell(lambda cell: cell["record"]["result"].update(budget=1))
    assert "its digest is of another content" in reasons(check(forgery.resealed()), "evidence")


def test_a_record_under_another_key(check: Check, forgery: Forgery) -> None:
    key, other = forgery.key(0, 0), forgery.key(0, 1)
    for ending in ("json", "parquet"):
        name = "evidence/cells/{}." + ending
        forgery.files[name.format(key)] = forgery.files[name.format(other)]
    assert "is the record of another cell" in reasons(check(forgery.resealed()), "evidence")


def test_a_swapped_data_set(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        forgery.replace(0, seed, identity=lambda i: i["dataset"].update(digest="0" * 32))
    report = check(forgery.renumbered().resealed())
    assert "its data is d-00000000, that of quickdraw is d-" in reasons(report, "data")


def test_a_data_set_under_the_name_of_another(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        forgery.replace(0, seed, identity=lambda i: i["dataset"].update(name="omniglot"))
    report = check(forgery.renumbered().resealed())
    assert "its dataset is called quickdraw, its records are of omniglot" in reasons(
        report, "names"
    )


def test_another_split_of_the_classes(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        forgery.replace(0, seed, identity=lambda i: i["dataset"].update(classes="0" * 32))
    report = check(forgery.renumbered().resealed())
    assert "its classes are split otherwise" in reasons(report, "data")


def test_fewer_episodes(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        forgery.replace(0, seed, episodes=first_episodes(forgery.proof(0, seed).episodes, 6))
    report = check(forgery.resealed())
    assert "it has 6 test episodes, its protocol 10" in reasons(report, "protocol")


def under(forgery: Forgery, row: int = 0, **changes: Any) -> None:
    """Say that a row is of another protocol, in its records and its labels."""
    for seed in range(3):
        forgery.replace(row, seed, identity=lambda i: i["protocol"].update(changes))
    told = forgery.proof(row).record.identity.protocol
    protocol = Protocol.model_validate(told)
    forgery.change_row(
        lambda r: r["labels"].update(protocol=protocol.name, protocol_digest=protocol.digest), row
    )


def test_another_protocol_in_its_records(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        forgery.replace(0, seed, identity=lambda i: i["protocol"].update(shots=5))
    assert "not of the row's" in reasons(check(forgery.resealed()), "protocol")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shots": 5}, "is not the one that the protocol draws"),
        ({"episode_seed": 1}, "is not the one that the protocol draws"),
    ],
)
def test_another_protocol_in_its_labels_too(
    check: Check, forgery: Forgery, changes: dict[str, Any], why: str
) -> None:
    under(forgery, **changes)
    assert why in reasons(check(forgery.renumbered().resealed()), "episodes")


def test_a_protocol_that_is_none(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        forgery.replace(0, seed, identity=lambda i: i["protocol"].update(metric="luck"))
    assert "its protocol is none: metric" in reasons(check(forgery.resealed()), "protocol")


@pytest.mark.parametrize("value", [10**6, 10**9, 10**15])
def test_a_protocol_that_asks_for_too_much_draws_nothing(
    check: Check, forgery: Forgery, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(episodes, "_drawn", lambda *asked: drawn.append(asked))
    for row in range(2):
        if value == 10**6:  # a protocol still
            under(forgery, row, episodes=value)
        else:
            for seed in range(3):
                change = {"episodes": value}
                forgery.replace(row, seed, identity=lambda i, c=change: i["protocol"].update(c))
    report = check(forgery.resealed())
    assert "10 test episodes" in reasons(report, "protocol") or value > 10**6
    assert not report.ok
    assert not drawn


def test_a_recipe_that_is_none(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        forgery.replace(0, seed, identity=lambda i: i["recipe"].update(optimizer="luck"))
    assert "its recipe is none: optimizer" in reasons(check(forgery.resealed()), "recipe")


def test_an_episode_that_stands_there_twice(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        old = forgery.proof(0, seed).episodes
        order = np.array([0, 0, *range(2, len(old.targets))])
        arrays = {n: getattr(old, n)[order] for n in ("targets", "predictions", "classes")}
        codes = {
            n: getattr(old, n)[order]
            for n in ("surprise", "confidence")
            if getattr(old, n) is not None
        }
        forgery.replace(0, seed, episodes=type(old)(**arrays, **codes))
    report = check(forgery.renumbered().resealed())
    assert "its test episode 0 stands there twice" in reasons(report, "labels")
    assert "its test episode 1 is not the one" in reasons(report, "episodes")


def test_a_row_under_another_name(check: Check, forgery: Forgery) -> None:
    forgery.change_row(lambda row: row["labels"].update(algorithm="maml"))
    report = check(forgery.renumbered().resealed())
    assert "its records are of algorithm nearest-centroid" in reasons(report, "names")


@pytest.mark.parametrize("kind", ["backbone", "dataset"])
def test_a_row_of_another_backbone_or_data_set(check: Check, forgery: Forgery, kind: str) -> None:
    label = {"backbone": "resnet12-64", "dataset": "omniglot"}[kind]
    forgery.change_row(lambda row: row["labels"].update({kind: label}))
    report = check(forgery.renumbered().resealed())
    assert f"its {kind} is called {label}" in reasons(report, "names")


def test_a_variant_of_other_settings(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("nearest-centroid")
    forgery.change_row(lambda r: r["labels"].update(variant="normalisation=l2"), row)
    report = check(forgery.renumbered().resealed())
    assert "its records have normalisation=" in reasons(report, "names")


def copied(forgery: Forgery, name: str) -> None:
    """The trained row once more, its records sealed under another algorithm's name."""
    row = forgery.row_of("protonet")
    again = json.loads(json.dumps(forgery.table["rows"][row]))
    again["labels"]["algorithm"] = name
    again["command"] = again["command"].replace("protonet", name)
    for seed in range(3):
        again["cells"][str(seed)] = forgery.replace(
            row, seed, identity=lambda i: i["algorithm"].update(name=name), keep_old=True
        )
    forgery.change("small.json", lambda table: table["rows"].append(again))


def test_a_row_copied_under_another_name(check: Check, forgery: Forgery) -> None:
    copied(forgery, "matching-networks")
    report = check(forgery.renumbered().resealed())
    why = reasons(report, "predictions are its own")
    assert "it predicts the same as small: quickdraw/5w1s3q/protonet/conv4-4" in why


def test_the_same_cells_under_two_names(check: Check, forgery: Forgery) -> None:
    again = json.loads(json.dumps(forgery.table["rows"][0]))
    again["labels"]["variant"] = "other"
    forgery.change("small.json", lambda table: table["rows"].append(again))
    report = check(forgery.renumbered().resealed())
    assert "is one of nearest-centroid" in reasons(report, "no cell twice")


def test_one_training_under_several_seeds(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("protonet")
    first = forgery.proof(row, 0).episodes
    forgery.replace(row, 1, episodes=first)
    report = check(forgery.renumbered().resealed())
    assert "its seeds 0 and 1 predict the same" in reasons(report, "predictions are its own")


def test_a_cell_of_another_seed(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("protonet")
    forgery.replace(row, 1, identity=lambda i: i.update(seed=7))
    report = check(forgery.renumbered().resealed())
    assert "its cell of seed 1 was trained with seed 7" in reasons(report, "seeds")


def test_cells_that_differ_in_more_than_the_seed(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("protonet")
    forgery.replace(row, 1, identity=lambda i: i["recipe"].update(steps=4000))
    report = check(forgery.resealed())
    assert "differ in more than the seed: recipe.steps" in reasons(report, "seeds")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda cell: cell["times"].update(adapt_ms=1e-9), "operations take"),
        (lambda cell: cell["times"].update(adapt_ms=0.0), "adapt_ms is 0"),
        (lambda cell: cell["times"].update(predict_ms=-1.0), "predict_ms is -1"),
        (lambda cell: cell["run"].update(started="2999-01-01T00:00:00+00:00"), "is to come"),
        (lambda cell: cell["run"].update(started="yesterday"), "which is no time"),
        (lambda cell: cell["run"].update(test_s=-1.0), "its test_s is -1"),
        (lambda cell: cell.update(train_s=0.0), "its train_s is 0"),
    ],
)
def test_times_that_cannot_be(
    check: Check, forgery: Forgery, change: Callable[[Any], object], why: str
) -> None:
    row = forgery.row_of("protonet")
    timed = next(s for s in range(3) if forgery.proof(row, s).cell.times is not None)
    forgery.change_cell(change, row, timed)
    assert why in reasons(check(forgery.renumbered().resealed()), "times")


def test_a_negative_time_of_training(check: Check, forgery: Forgery) -> None:
    forgery.change_cell(lambda cell: cell.update(train_s=-1.0))
    assert "train_s" in reasons(check(forgery.resealed()), "evidence")


def test_missing_evidence_and_stray_files(check: Check, forgery: Forgery) -> None:
    key = forgery.key()
    kept = forgery.files.pop(f"evidence/cells/{key}.parquet")
    assert f"{key}.parquet is missing" in reasons(check(forgery.resealed()), "evidence")
    forgery.files[f"evidence/cells/{key}.parquet"] = kept
    forgery.files[f"evidence/cells/{'0' * 32}.json"] = b"{}"
    assert "is of no table here" in reasons(check(forgery.resealed()), "no other files")


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf ~",
        "metabench run --suite small.toml; rm -rf ~",
        "metabench run --suite other.toml --dataset quickdraw --protocol 5w1s3q"
        " --algorithm protonet --backbone conv4-4 --seed 0",
        "metabench run --suite small.toml --dataset quickdraw --protocol 5w1s3q"
        " --algorithm protonet --backbone conv4-4 --seed 9",
        "metabench run --suite small.toml --dataset quickdraw --protocol 5w1s3q"
        " --algorithm protonet --backbone conv4-4 --seed 0 --out ../../etc",
        "__import__('os').system('true')",
    ],
)
def test_a_line_that_runs_something_else(check: Check, forgery: Forgery, command: str) -> None:
    row = forgery.row_of("protonet")
    forgery.change_row(lambda r: r.update(command=command), row)
    reasons(check(forgery.resealed()), "command")


@pytest.mark.parametrize(
    "name",
    [
        "[/b]",
        "[red]x",
        "<script>alert(1)</script>",
        "x\x1b[2Jy",
        "a\u202eb",
        "=HYPERLINK(1)",
        "`x`",
    ],
)
def test_markup_in_names(check: Check, forgery: Forgery, name: str) -> None:
    for seed in range(3):
        forgery.replace(0, seed, identity=lambda i: i["algorithm"].update(name=name))
    forgery.change_row(lambda row: row["labels"].update(algorithm=name))
    report = check(forgery.resealed())
    assert "holds markup, a formula or what can't be seen" in reasons(report, "names are plain")
    other = Forgery(forgery.files)
    other.change_row(lambda row: row["labels"].update(algorithm="harmless"))
    assert "is no name of a plugin" in reasons(check(other.resealed()), "names are plain")


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 1, "suite": "small", "rows": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"format": 1, "suite": "small", "rows": ' + "[" * 60 + "]" * 60 + "}",
        '{"format": 1, "suite": "small", "rows": [NaN]}',
        '{"format": 1, "suite": "small", "rows": [Infinity]}',
        '{"format": 1, "suite": "small", "rows": [1e999]}',
        '{"format": 1, "suite": "small", "suite": "small", "rows": []}',
        '{"format": 1, "suite": "small\\ud800", "rows": []}',
        '{"format": ' + "9" * 5000 + "}",
        "",
        "\x00",
    ],
    ids=["deep", "too deep", "nan", "inf", "1e999", "twice", "surrogate", "long", "empty", "nul"],
)
def test_json_that_is_not_taken(check: Check, forgery: Forgery, text: str) -> None:
    forgery.files["small.json"] = text.encode()
    assert "small.json is no JSON" in reasons(check(forgery.resealed()), "tables")


def test_a_pickle_is_not_unpickled(check: Check, forgery: Forgery, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "executed"), "w")

    key = forgery.key()
    for name in (f"evidence/cells/{key}.parquet", f"evidence/cells/{key}.json"):
        forged = Forgery(forgery.files)
        forged.files[name] = pickle.dumps(Payload())
        reasons(check(forged.resealed()), "evidence")
    assert not (tmp_path / "executed").exists()
