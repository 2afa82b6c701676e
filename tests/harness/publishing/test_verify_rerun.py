"""`publishing.rerun`: only training again tells what was made up from what was trained."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist, fmean

import numpy as np
import pytest
import torch
from forging import Forgery, edited
from small_bundle import small_bundle

from metabench.plugins import registry
from metabench.publishing import rerun as module
from metabench.publishing.evidence import Proof
from metabench.publishing.published import PublishedSource
from metabench.publishing.rerun import Reruns, Where, prediction_interval, rerun
from metabench.publishing.verify import verify_files
from metabench.registry import Registry


@pytest.fixture
def forgery(data: Path) -> Forgery:
    return Forgery(small_bundle(data))


def run(forgery: Forgery, data: Path, count: int, known: Registry | None = None) -> Reruns:
    source = PublishedSource.read(forgery.given())
    where = Where(data, torch.device("cpu"))
    return rerun(source, known or registry(), where, count)


def test_what_was_trained_comes_out_again(forgery: Forgery, data: Path) -> None:
    found = run(forgery, data, 2)
    assert found.report.ok, found.report.wrong()
    assert [finding.state for finding in found.report.findings] == ["holds"] * 3
    assert [finding.check for finding in found.report.findings].count("another seed") == 1
    assert len(found.reproductions) == 2
    for key, again in found.reproductions.items():
        assert again.holds
        assert again.agreement == 1
        assert again.key == key
        old = Proof.read(forgery.given(), key)
        assert again.published == old.record.result.predictions


def test_predictions_made_up_in_every_respect(forgery: Forgery, data: Path) -> None:
    """Everything follows from everything else: only running it again can tell."""
    row = forgery.row_of("protonet")
    for seed in range(3):
        # Not one training would be as good.
        forgery.replace(row, seed, episodes=edited(forgery.proof(row, seed).episodes, 60 + seed))
    forged = forgery.renumbered().resealed()
    assert verify_files(forged, registry(), data).ok
    found = run(forgery, data, 6)
    wrong = [finding for finding in found.report.wrong() if finding.check == "run again"]
    assert len(wrong) == 3
    assert all("protonet" in finding.what for finding in wrong)
    assert all("of its predictions are the same, its score moved by -0." in f.why for f in wrong)
    keys = set(forgery.table["rows"][forgery.row_of("protonet")]["cells"].values())
    assert {key for key, again in found.reproductions.items() if not again.holds} == keys


def test_a_seed_that_nobody_knew_tells_too(
    forgery: Forgery, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that were made up lie too close together, and too high."""
    row = forgery.row_of("protonet")
    for seed in range(3):
        forgery.replace(row, seed, episodes=edited(forgery.proof(row, seed).episodes, 90))
    forgery.renumbered()
    keep = [r for r in module._rows(PublishedSource.read(forgery.given())) if "proto" in r.what]
    monkeypatch.setattr(module, "_rows", lambda source: keep)
    found = run(forgery, data, 1)
    wrong = {finding.check: finding.why for finding in found.report.wrong()}
    assert "where 99% of the other seeds' kind lie" in wrong["another seed"]


def test_draws_are_no_seeds_of_the_bundle_and_differ(forgery: Forgery) -> None:
    rows = module._rows(PublishedSource.read(forgery.given()))
    draws = [module._draw(rows, 2) for _ in range(30)]
    assert all(len(drawn) == 3 for drawn in draws)
    assert all(drawn[2][2] not in (0, 1, 2) for drawn in draws)
    assert all(drawn[2][0] in (drawn[0][0], drawn[1][0]) for drawn in draws)
    assert len({drawn[2][2] for drawn in draws}) == 30
    assert len({(drawn[0][0].what, drawn[0][2]) for drawn in draws}) > 3
    assert len(module._draw(rows, 100)) == 7


def test_the_noted_command_is_never_used(forgery: Forgery, data: Path, tmp_path: Path) -> None:
    forgery.change_row(lambda row: row.update(command=f"touch {tmp_path / 'executed'}"))
    assert run(forgery, data, 1).report.ok
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_not_run(forgery: Forgery, data: Path) -> None:
    found = run(forgery, data, 2, Registry())
    assert {finding.state for finding in found.report.findings} == {"not checked"}
    assert not found.reproductions


def test_other_code_is_named(forgery: Forgery, data: Path) -> None:
    for row in range(2):
        for seed in range(3):
            forgery.replace(row, seed, identity=lambda i: i["algorithm"].update(code="0" * 32))
    found = run(forgery, data, 6)
    assert found.report.ok  # the same predictions all the same
    assert len(found.reproductions) == 6
    row = forgery.row_of("protonet")
    # One of 150: nobody can tell whether other code makes that difference.
    forgery.replace(row, 1, episodes=edited(forgery.proof(row, 1).episodes, 1))
    near = run(forgery, data, 6)
    assert near.report.ok
    (told,) = [finding for finding in near.report.findings if finding.state == "not checked"]
    assert told.why.startswith("other code is installed here")
    assert told.why.endswith("within 0.01")
    assert forgery.key(row, 1) not in near.reproductions
    assert len(near.reproductions) == 5
    forgery.replace(row, 0, episodes=edited(forgery.proof(row, 0).episodes, 30))
    wrong = run(forgery, data, 6).report.wrong()
    assert any(finding.why.startswith("other code is installed here") for finding in wrong)


@pytest.mark.parametrize("name", ["budget", "train_items", "parameters"])
def test_what_a_training_cost_comes_out_again(forgery: Forgery, data: Path, name: str) -> None:
    row = forgery.row_of("protonet")
    for seed in range(3):
        forgery.replace(row, seed, result={name: 1})
    found = run(forgery, data, 6)
    wrong = [finding for finding in found.report.wrong() if finding.check == "run again"]
    assert len(wrong) == 3
    assert all(finding.why.startswith(f"its {name} is 1, and ") for finding in wrong)


def test_the_inference_mode_comes_out_again(forgery: Forgery, data: Path) -> None:
    """Of a seed of the row, and of another one."""
    for row in range(2):
        for seed in range(3):
            forgery.replace(row, seed, inference="transductive")
    found = run(forgery, data, 6)
    why = "its record says transductive, it was found to be inductive here"
    assert [finding.why for finding in found.report.wrong()] == [why] * 7


def test_the_prediction_interval_covers_what_it_says() -> None:
    """Simulated; and for very many scores that of the normal distribution."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        *own, new = rng.normal(0.5, 0.02, 4)
        low, high = prediction_interval(own)
        inside += low <= new <= high
    assert abs(inside / 4000 - 0.99) < 4 * np.sqrt(0.99 * 0.01 / 4000)
    many = list(rng.normal(0.5, 0.02, 20_000))
    low, high = prediction_interval(many)
    assert high - low == pytest.approx(2 * NormalDist().inv_cdf(0.995) * np.std(many), rel=1e-3)
    assert (low + high) / 2 == pytest.approx(fmean(many))
