"""One cell: what it leaves in the result folder, and what a refit does."""

from __future__ import annotations

import csv

import torch

from metabench.engine.numerics import seed_all
from metabench.runner.bench import Workbench
from metabench.runner.cell import TimedCheckpoints
from metabench.store.partial import claim
from metabench.store.record import CHECKPOINT, CURVE, DISJOINT, EPISODES, LOG, RECORD, RUN
from metabench.store.tensors import read_tensors

REFIT = 'name = "protonet"\nrecipe = {refit = true}'


def test_a_cell_leaves_what_tables_and_people_need(ask, classes) -> None:
    experiment = ask(classes["prototypes"]).run()
    [key] = experiment.outcome.plan.keys
    folder, record = experiment.store.folder(key), experiment.store.find(key)
    assert record is not None
    assert set(record.files) == {EPISODES, DISJOINT, CHECKPOINT, CURVE}
    assert {p.name for p in folder.iterdir()} == {*record.files, RECORD, RUN, LOG, "timing"}
    result = record.result
    assert result.score == experiment.store.episodes(key).scores("accuracy").mean()
    assert result.predictions == experiment.store.episodes(key).digest
    disjoint = experiment.store.disjoint(key)
    assert disjoint is not None
    assert result.disjoint == disjoint.digest != result.predictions
    assert (result.episodes, result.budget) == (10, 12)
    assert result.train_items == 12 * 5 * (1 + 3)
    with (folder / CURVE).open() as file:
        scores = {int(r["step"]): r["validation"] for r in csv.DictReader(file) if r["validation"]}
    assert set(scores) == {4, 8, 12}
    assert result.validation_score == max(map(float, scores.values()))
    assert float(scores[result.selected_step]) == result.validation_score
    info = experiment.store.run_info(key)
    assert (info.device, info.threads) == ("cpu", 1)
    assert info.train_s is not None
    assert info.train_s > 0
    assert "trained in" in (folder / LOG).read_text()


def test_the_checkpoint_is_the_one_that_was_tested(ask, classes) -> None:
    asked = ask(classes["prototypes"])
    experiment = asked.run()
    [key], [cell] = experiment.outcome.plan.keys, asked.cells
    bench = Workbench(asked.registry, asked.options.data_folder, torch.device("cpu"))
    trial = bench.trial(cell)
    algorithm = trial.build()
    algorithm.load_state_dict(read_tensors(experiment.store.folder(key) / CHECKPOINT)[0])
    from metabench.engine.evaluate import evaluate

    outcome = evaluate(algorithm, trial.episodes("test"), trial.items("test"), 10, "test")
    assert (outcome.predicted == experiment.store.episodes(key).predictions).all()


def test_a_refit_trains_anew_on_both_splits_for_the_selected_steps(ask) -> None:
    plain = ask('name = "protonet"', out="plain").run()
    refitted = ask(REFIT, out="refitted").run()
    [before], [after] = plain.outcome.plan.keys, refitted.outcome.plan.keys
    first, second = plain.store.find(before), refitted.store.find(after)
    assert first is not None
    assert second is not None
    chosen = first.result.selected_step
    assert second.result.budget == 12 + chosen
    assert second.result.selected_step == chosen
    assert second.result.validation_score == first.result.validation_score
    assert second.files[CHECKPOINT] != first.files[CHECKPOINT]
    assert not list(refitted.results.glob("partial/*/*"))


def test_a_run_puts_the_process_back_as_it_was(ask, classes) -> None:
    torch.set_num_threads(2)
    seed_all("test")
    expected = torch.rand(3)
    seed_all("test")
    ask(classes["prototypes"]).run()
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)


def test_the_seconds_of_interrupted_attempts_are_counted(tmp_path) -> None:
    with claim(tmp_path, "0" * 32) as partial:
        first = TimedCheckpoints(partial)
        assert first.load() is None
        first.save(3, {"x": torch.zeros(1)}, {"phase": 0, "train_s": -1.0})
        meta, tensors = partial.load()
        partial.save(3, tensors, {**meta, "train_s": meta["train_s"] + 100.0})
        second = TimedCheckpoints(partial)
        assert second.load() is not None
        second.save(5, tensors, {"phase": 0})
        meta, _ = partial.load()
        partial.keep("collect", tensors, {"train_s": 300.0})
        third = TimedCheckpoints(partial)
        assert third.load() is not None
        assert third.kept("collect") is not None
        assert third.earlier_s == 300.0
        third.keep("later", tensors, {})
        kept = third.kept("later")
        assert kept is not None
        assert 300.0 < kept[0]["train_s"] < 360.0
    assert 100.0 < second.earlier_s < meta["train_s"] < second.earlier_s + 60.0
