"""Claims of a bundle that its evidence doesn't bear out, though all is sealed as if it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forging import Check, Forgery, edited, reasons
from small_bundle import small_bundle

from metabench.plugins import registry
from metabench.publishing.published import SUBMISSION
from metabench.publishing.verify import Report, plausible, verify_files
from metabench.registry import Registry
from metabench.runner.resolve import settings_of
from metabench.store.results import EpisodeResults


def left_open(report: Report, check: str) -> str:
    """Why a check can't be told."""
    found = [f.why for f in report.findings if (f.check, f.state) == (check, "not checked")]
    assert found, report.wrong()
    return "; ".join(found)


def no_change(identity: dict[str, Any]) -> None:
    """As it is."""


def copied(
    forgery: Forgery,
    *,
    labels: dict[str, str],
    identity: Callable[[dict[str, Any]], object] = no_change,
    flip: int = 0,
    result: dict[str, Any] | None = None,
) -> None:
    """The trained row once more, with so many predictions of each seed made right."""
    row = forgery.row_of("protonet")
    again = json.loads(json.dumps(forgery.table["rows"][row]))
    again["labels"].update(labels)
    for seed in range(3):
        again["cells"][str(seed)] = forgery.replace(
            row,
            seed,
            identity=identity,
            episodes=edited(forgery.proof(row, seed).episodes, flip),
            result=result,
            keep_old=True,
        )
    forgery.change("small.json", lambda table: table["rows"].append(again))


def as_transductive(identity: dict[str, Any]) -> None:
    hp = settings_of(registry().get("algorithm", "maml"), {"batch_norm": "batch"})
    identity["algorithm"].update(name="maml", hp=hp.model_dump(mode="json"))


def test_a_transductive_algorithm_as_an_inductive_one(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("protonet")
    for seed in range(3):
        forgery.replace(row, seed, identity=as_transductive)
    forgery.change_row(lambda r: r["labels"].update(algorithm="maml"), row)
    report = check(forgery.renumbered().resealed())
    assert "it is transductive, its record says otherwise" in reasons(report, "settings")


def test_what_was_found_to_be_transductive_may_say_so(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("protonet")
    for seed in range(3):
        forgery.replace(row, seed, inference="transductive")
    report = check(forgery.renumbered().resealed())
    assert {f.state for f in report.findings if f.check == "settings"} == {"holds"}


def with_codes(results: EpisodeResults, **codes: int) -> EpisodeResults:
    """The first wrong prediction with other codes."""
    episode, query = np.argwhere(results.predictions != results.targets)[0]
    changed = {}
    for name, code in codes.items():
        array = getattr(results, name).copy()
        array[episode, query] = code
        changed[name] = array
    return replace(results, **changed)


def all_sure(results: EpisodeResults) -> EpisodeResults:
    """No error of calibration at all, for what is wrong too."""
    nothing = np.zeros_like(results.targets, dtype=np.uint8)
    return replace(results, surprise=nothing, confidence=nothing)


def sure_where_right(results: EpisodeResults) -> EpisodeResults:
    assert results.surprise is not None
    right = results.predictions == results.targets
    return replace(results, surprise=np.where(right, 0, results.surprise).astype(np.uint8))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (all_sure, "come to more than 1"),
        (sure_where_right, "another probability than its target"),
        (lambda r: with_codes(r, confidence=20, surprise=19), "less likely than its target"),
        (lambda r: with_codes(r, confidence=27, surprise=255), "one of 5 by chance"),
        (lambda r: with_codes(r, confidence=10, surprise=15), "come to more than 1"),
        (lambda r: replace(r, confidence=None, surprise=None), "gives probabilities"),
    ],
)
def test_probabilities_that_cannot_be(
    check: Check,
    forgery: Forgery,
    change: Callable[[EpisodeResults], EpisodeResults],
    why: str,
) -> None:
    row = forgery.row_of("protonet")
    for seed in range(3):
        # Those of the disjoint episodes stay: a file has codes for both, or for none.
        told = change(forgery.proof(row, seed).episodes)
        forgery.replace(row, seed, episodes=told, unsure_apart=told.confidence is None)
    report = check(forgery.renumbered().resealed())
    assert why in reasons(report, "probabilities")


def test_probabilities_of_what_gives_none(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("nearest-centroid")
    for seed in range(3):
        forgery.replace(row, seed, sure=True)
    report = check(forgery.renumbered().resealed())
    assert "gives no probabilities" in reasons(report, "probabilities")


def test_probabilities_of_softmaxes_hold() -> None:
    """Whatever the logits are, ties and infinitely sure ones among them."""
    import torch

    from metabench.engine.probabilities import codes_of

    generator = torch.Generator().manual_seed(0)
    for ways in (2, 5, 200):
        for scale in (0.0, 1e-3, 1.0, 30.0, 1e4):
            logits = scale * torch.randn(20, 50, ways, generator=generator)
            targets = torch.randint(ways, (20, 50), generator=generator)
            predicted, log_p = logits.argmax(-1), torch.log_softmax(logits, -1)
            codes = codes_of(log_p, targets), codes_of(log_p, predicted)
            asked = targets.numpy()
            plausible._likeliest(EpisodeResults(asked, predicted.numpy(), asked, *codes), ways)


def other_recipe(identity: dict[str, Any]) -> None:
    identity["recipe"].update(lr=0.0123)


def other_backbone(identity: dict[str, Any]) -> None:
    identity["backbone"]["hp"].update(width=8)


def other_algorithm(identity: dict[str, Any]) -> None:
    identity["algorithm"].update(name="matching-networks")


COPIES = [
    (other_recipe, {"variant": "faster"}),
    (other_backbone, {"backbone": "conv4-8"}),
    (other_algorithm, {"algorithm": "matching-networks"}),
]


@pytest.mark.parametrize(("identity", "labels"), COPIES)
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("result", [{}, {"budget": 0}])
def test_a_copied_row(
    check: Check,
    forgery: Forgery,
    identity: Callable[[dict[str, Any]], object],
    labels: dict[str, str],
    flip: int,
    result: dict[str, Any],
) -> None:
    copied(forgery, labels=labels, identity=identity, flip=flip, result=result)
    report = check(forgery.renumbered().resealed())
    why = reasons(report, "predictions are its own")
    assert why.count("it predicts the same as small: ") == 2


def test_a_copy_that_says_it_was_not_trained(check: Check, forgery: Forgery) -> None:
    untrained = {"steps": 0, "validate_every": 0, "select": "last"}
    copied(
        forgery,
        labels={"variant": "untrained"},
        identity=lambda i: i["recipe"].update(untrained),
        result={"budget": 0},
    )
    report = check(forgery.renumbered().resealed())
    assert "it predicts the same as" in reasons(report, "predictions are its own")


def test_one_training_under_several_seeds_but_for_a_prediction(
    check: Check, forgery: Forgery
) -> None:
    row = forgery.row_of("protonet")
    first = forgery.proof(row, 0).episodes
    forgery.replace(row, 1, episodes=edited(first), result={"budget": 0})
    report = check(forgery.renumbered().resealed())
    assert "its seeds 0 and 1 predict the same" in reasons(report, "predictions are its own")


def test_settings_that_decide_nothing_or_a_copy(check: Check, forgery: Forgery) -> None:
    """One training, twice, under another temperature: distances have the same order."""
    copied(
        forgery,
        labels={"variant": "warmer"},
        identity=lambda i: i["algorithm"]["hp"].update(temperature=2.0),
        flip=1,
    )
    report = check(forgery.renumbered().resealed())
    assert "settings that decide nothing, or a copy" in left_open(report, "predictions are its own")


def test_models_without_parameters_may_predict_the_same(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("protonet")
    first = forgery.proof(row, 0).episodes
    for seed in range(3):
        nothing = {"parameters": 0, "budget": 0}
        forgery.replace(row, seed, episodes=first, result=nothing)
    report = check(forgery.renumbered().resealed())
    assert "nothing to train" in left_open(report, "predictions are its own")


def test_a_collapsed_model_may_predict_the_same(check: Check, forgery: Forgery) -> None:
    row = forgery.row_of("protonet")
    for seed in range(3):
        old = forgery.proof(row, seed).episodes
        constant = replace(old, predictions=np.zeros_like(old.targets))
        forgery.replace(row, seed, episodes=constant)
    report = check(forgery.renumbered().resealed())
    own = {f.state for f in report.findings if f.check == "predictions are its own"}
    assert own == {"holds"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda cell: cell["times"].update(peak_flops=1e17), "reaches 1e+17 FLOP/s"),
        (lambda cell: cell.update(train_s=2e-6), "it was trained in 2e-06 s, for"),
    ],
)
def test_times_that_no_machine_reaches(
    check: Check, forgery: Forgery, change: Callable[[Any], object], why: str
) -> None:
    row = forgery.row_of("protonet")
    timed = next(s for s in range(3) if forgery.proof(row, s).cell.times is not None)

    def changed(cell: Any) -> None:
        cell["run"].update(train_s=None)
        change(cell)

    forgery.change_cell(changed, row, timed)
    assert why in reasons(check(forgery.renumbered().resealed()), "times")


@pytest.mark.parametrize("name", ["adapt_flops", "predict_flops", "peak_flops"])
def test_a_time_with_nothing_to_compare_it_with(check: Check, forgery: Forgery, name: str) -> None:
    row = forgery.row_of("protonet")
    timed = next(s for s in range(3) if forgery.proof(row, s).cell.times is not None)
    forgery.change_cell(lambda cell: cell["times"].update({name: None}), row, timed)
    report = check(forgery.renumbered().resealed())
    assert report.ok
    assert "without operations, or without a peak" in left_open(report, "times")


def test_a_device_that_is_none(check: Check, forgery: Forgery) -> None:
    for seed in range(3):
        forgery.replace(0, seed, identity=lambda i: i["numerics"].update(device="luck"))
    report = check(forgery.renumbered().resealed())
    assert "'luck' is no type of device" in reasons(report, "names are plain")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t["plugins"].pop(), "are not those of its records"),
        (lambda t: t["plugins"][0].update(code=["0" * 32]), "are not those of its records"),
        (lambda t: t["plugins"][0].update(name="other"), "are not those of its records"),
        (lambda t: t["environments"][0].update(torch="9.9"), "its environments"),
        (lambda t: t.update(environments=[]), "its environments"),
        (lambda t: t.update(suite="other"), "it is of suite other"),
        (lambda t: t["plugins"][0].update(install="other==1.0"), "does not install"),
    ],
)
def test_a_submission_of_other_cells(
    check: Check, forgery: Forgery, change: Callable[[Any], object], why: str
) -> None:
    forgery.change(SUBMISSION, change)
    assert why in reasons(check(forgery.resealed()), "submission")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("install", "--index-url=https://example.org x"),
        ("install", "name==1.0 --pre"),
        ("install", "name==1.0; rm -rf ~"),
        ("install", "name"),
        ("install", "https://example.org/x.whl"),
        ("install", "git+file:///tmp/x@0"),
        ("install", "git+https://user:secret@example.org/x@0"),
        ("install", "git+https://example.org/x@0 -r other"),
        ("distribution", "-r other"),
        ("version", "1.0 --pre"),
    ],
)
def test_lines_for_pip_that_are_more_than_that(
    check: Check, forgery: Forgery, field: str, value: str
) -> None:
    told = forgery.json(SUBMISSION)
    told["plugins"][0][field] = value
    forgery.files[SUBMISSION] = json.dumps(told).encode()
    assert f"plugins.0.{field}: String should match" in reasons(
        check(forgery.given()), "submission"
    )


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("metabench.run('other.toml', algorithms=[Mine], seeds=[0])", "its suite"),
        ("metabench.run(Mine)", "its suite"),
        ("metabench.run(suite='small')", "its suite"),
        ("metabench.run('small', 'small')", "its suite"),
        ("metabench.run('small', out='/etc')", "it sets out"),
        ("metabench.run('small', **settings)", "it sets None"),
        ("metabench.run('small', jobs=99, data_dir='x')", "it sets jobs, data_dir"),
    ],
)
def test_a_call_that_does_something_else(
    check: Check, forgery: Forgery, command: str, why: str
) -> None:
    forgery.change_row(lambda row: row.update(command=command))
    assert why in reasons(check(forgery.resealed()), "command")


@pytest.mark.parametrize(
    "command",
    [
        "metabench.run('small', algorithms=[Mine], seeds=[0])",
        "metabench.run('small.toml', algorithms=[Mine], seeds=[0], settings=['Mine.lr=1'],"
        " datasets=['quickdraw'], protocols=['5w1s3q'], backbones=['conv4-4'], precision='tf32')",
    ],
)
def test_a_call_that_runs_the_row(check: Check, forgery: Forgery, command: str) -> None:
    forgery.change_row(lambda row: row.update(command=command))
    report = check(forgery.resealed())
    assert {f.state for f in report.findings if f.check == "command"} == {"holds"}


def test_a_row_without_a_line(check: Check, forgery: Forgery) -> None:
    forgery.change_row(lambda row: row.update(command=""))
    report = check(forgery.resealed())
    assert report.ok
    assert "no line" in left_open(report, "command")


def test_probabilities_without_the_plugin(data: Path, forgery: Forgery) -> None:
    """What can be told of them is, whoever gave them."""
    row = forgery.row_of("protonet")
    assert verify_files(Forgery(small_bundle(data)).given(), Registry(), data).ok
    for seed in range(3):
        forgery.replace(row, seed, episodes=all_sure(forgery.proof(row, seed).episodes))
    report = verify_files(forgery.renumbered().resealed(), Registry(), data)
    assert "come to more than 1" in reasons(report, "probabilities")
