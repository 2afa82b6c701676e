"""How times are taken: what is inside the window, what is left out, what comes back after it."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from metabench.api.algorithm import Algorithm
from metabench.api.backbone import Backbone
from metabench.api.phases import Batches, Collect, Learn
from metabench.api.recipe import Recipe
from metabench.clock import measure as measuring
from metabench.clock import window as windows
from metabench.clock.measure import IN_RUN, TimingPlan, measure, plan_for
from metabench.clock.parts import EPISODES
from metabench.clock.peak import Peak
from metabench.clock.timer import ClockError
from metabench.clock.times import Times
from metabench.engine.bases import EmbeddingAlgorithm

IMAGE = (1, 4, 4)
PLAN = TimingPlan(seconds=0.2, most=15)
SAMPLES = 15


@pytest.fixture
def measured(ticking, trial_of):
    """Times of an algorithm of a kind that only tells the clock that it was called."""

    def times(base: type[Algorithm], steps: int = 0, **options: Any) -> Times:
        class Telling(Backbone):
            name = "telling"
            feature_dim = 16

            def forward(self, data: Any) -> Any:
                ticking.call("embed", self, data)
                return data.flatten(1)

        class Called(base):  # type: ignore[misc, valid-type]
            name = "called"

            def adapt(self, support: Any, ctx: Any) -> Any:
                ticking.call("adapt", self, support.items.data)
                return support.items.data.flatten(2).mean(1)

            def predict(self, state: Any, queries: Any, ctx: Any) -> Any:
                ticking.call("predict", self, queries.data)
                return torch.zeros(*queries.data.shape[:2], 3)

            def training_step(self, batch: Any, ctx: Any) -> Any:
                ticking.call("train", self, batch.support.items.data)
                return torch.zeros(())

        recipe = Recipe(steps=steps, meta_batch=2)
        trial, algorithm = trial_of(Called, recipe, Telling)
        return measure(trial, algorithm.train(), plan=PLAN, **options)

    return times


def test_times_are_medians_of_the_calls_after_the_warm_up(measured, ticking) -> None:
    times = measured(Algorithm)
    adapt, predict = times.parts["adapt"], times.parts["predict"]
    # The last of each was to count its operations; states for `predict` came after `adapt`'s.
    took = [1e3 * s for s in ticking.took["adapt"][measuring.WARM_UP :][:SAMPLES]]
    assert adapt.ms.samples == SAMPLES
    assert adapt.ms.median == pytest.approx(statistics.median(took))
    quarters = np.quantile(took, [0.25, 0.75], method="weibull")
    assert adapt.ms.iqr == pytest.approx(np.diff(quarters).item())
    assert adapt.ms.high <= max(took) < 30  # nothing of the 100 s of the first call
    assert adapt.first_ms == pytest.approx(100e3)
    assert predict.first_ms == pytest.approx(300e3)
    assert predict.ms.median == pytest.approx(3 * statistics.median(took), rel=0.5)


def test_one_episode_at_a_time_and_predictions_from_its_own_state(measured, ticking) -> None:
    measured(Algorithm)
    names = [name for name, _ in ticking.calls]
    adapts = names.index("predict") - 1
    assert ticking.calls[:adapts] == [("adapt", (1, 6, *IMAGE))] * adapts
    assert adapts == measuring.WARM_UP + SAMPLES + 1
    rest = ticking.calls[adapts:]
    assert rest.count(("adapt", (1, 6, *IMAGE))) == EPISODES
    assert {shape for name, shape in rest if name == "predict"} == {(1, 12, *IMAGE)}


def test_embedding_is_part_of_both_times_and_never_done_ahead(measured, ticking) -> None:
    times = measured(EmbeddingAlgorithm)
    assert ticking.calls[:2] == [("embed", (6, *IMAGE)), ("adapt", (1, 6, 16))]
    assert ticking.calls[-2:] == [("embed", (12, *IMAGE)), ("predict", (1, 12, 16))]
    assert times.parts["adapt"].ms.median > 1000
    assert times.parts["predict"].ms.median > 1000


def test_a_step_of_training_is_timed_on_the_recipes_batch(measured, ticking) -> None:
    times = measured(Algorithm, steps=4)
    shapes = {shape for name, shape in ticking.calls if name == "train"}
    assert shapes == {(2, 6, *IMAGE)}
    step = times.parts["train_step"]
    assert step.first_ms == pytest.approx(100e3)
    assert step.ms.median < 30


def test_an_algorithm_that_trains_nothing_has_no_such_time(measured) -> None:
    assert set(measured(Algorithm, steps=0).parts) == {"adapt", "predict"}


def test_what_others_share_is_no_training_of_its_own(trial_of, linear, flat) -> None:
    class Sharing(linear):
        def phases(self, recipe):
            module = torch.nn.Sequential(self.backbone, torch.nn.Linear(16, 5))
            return [Batches(recipe, module, _loss, shared=True)]

    trial, algorithm = trial_of(Sharing, Recipe(steps=3))
    assert "train_step" not in measure(trial, algorithm, plan=PLAN).parts


def test_a_step_of_learning_from_what_was_collected_is_one_of_the_recipes_batch(
    trial_of, linear
) -> None:
    """Though a step of collecting makes less than that; and no more of it is made."""
    batches, collected, store = [], [], []

    class Learner(linear):
        def phases(self, recipe):
            few = Recipe(steps=20, meta_batch=3)
            return [Collect(self.means, few, store.append), Learn(recipe, self.error)]

        def means(self, batch, ctx):
            collected.append(ctx.step)
            return {"mean": self.embed(batch.support.items).mean(1)}

        def error(self, examples, ctx):
            batches.append(len(examples["mean"]))
            return self.layer.weight.square().mean() + examples["mean"].mean()

    trial, algorithm = trial_of(Learner, Recipe(steps=4, batch_size=8))
    times = measure(trial, algorithm, plan=PLAN)
    assert times.parts["train_step"].ms.median > 0
    assert set(batches) == {8}
    assert (collected, store) == ([0], [])


def _loss(module: Any, batch: Any, ctx: Any) -> Any:
    return torch.nn.functional.cross_entropy(module(batch.data), batch.classes)


@pytest.mark.parametrize("was_on", [True, False])
def test_nothing_is_collected_meanwhile_and_the_collector_is_as_it_was(
    measured, ticking, was_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Counting comes after the times, outside of their window.
    monkeypatch.setattr(measuring, "count_flops", lambda call: None)
    before = gc.isenabled()
    (gc.enable if was_on else gc.disable)()
    try:
        measured(Algorithm, steps=4)
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert after is was_on
    # No collector; gradients and a model in training for the step of training only.
    assert ticking.process == {(False, False, 1, False), (False, True, 1, True)}


def test_collector_and_gradients_come_back_after_an_error_too(measured, ticking) -> None:
    class BrokenError(Exception):
        pass

    def broken(*_: object) -> None:
        raise BrokenError

    ticking.call = broken
    assert gc.isenabled()
    with pytest.raises(BrokenError):
        measured(Algorithm)
    assert gc.isenabled()
    assert torch.is_grad_enabled()


def test_a_time_that_the_machine_cannot_reach_is_refused(
    ticking, trial_of, linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quick(linear):
        def adapt(self, support, ctx):
            ticking.now += 1e-6
            return super().adapt(support, ctx)

        def predict(self, state, queries, ctx):
            ticking.now += 1.0
            return super().predict(state, queries, ctx)

    # 6 items x 16 x 8 and 3 ways x 6 items x 8, two operations each, in a microsecond.
    counted = 2 * (6 * 16 * 8 + 3 * 6 * 8)
    trial = trial_of(Quick, Recipe(steps=0))
    for times_as_fast, believed in ((3.9, True), (4.1, False)):
        peak = Peak(counted / 1e-6 / times_as_fast, "convolution")
        monkeypatch.setattr(measuring, "measured_peak", lambda *asked, peak=peak: peak)
        if believed:
            adapt = measure(*trial).parts["adapt"]
            assert adapt.flops == counted
            assert adapt.share_of_peak == pytest.approx(times_as_fast)
        else:
            with pytest.raises(ClockError, match=r"adapt took 0\.001 ms for .* 4\.1 times what"):
                measure(*trial)


def test_threads_are_pinned_inside_the_window_and_free_after_it(one_thread) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    before = os.sched_getaffinity(0)
    with windows.window(torch.device("cpu")) as conditions:
        inside = os.sched_getaffinity(0)
    assert os.sched_getaffinity(0) == before
    assert conditions.threads == 1
    assert set(conditions.cores) == inside
    assert len(inside) == 1
    assert conditions.load_before is not None
    assert conditions.load_after is not None


def test_what_other_processes_use_meanwhile_is_noted() -> None:
    busy = "import time; end = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"
    with windows.window(torch.device("cpu")) as conditions:
        subprocess.run([sys.executable, "-c", busy], check=True)
    assert conditions.others > 0.2


@pytest.mark.parametrize(
    ("cost", "samples"), [(1e-5, 50), (0.01, 25), (0.05, 7), (0.4, 7), (0.6, 3), (60.0, 3)]
)
def test_how_often_follows_from_what_a_call_costs(cost: float, samples: int) -> None:
    assert IN_RUN.samples(cost) == samples
    assert plan_for(30).samples(cost) >= samples


def test_real_times_are_complete_and_can_be_kept(trial_of, linear, one_thread) -> None:
    trial, algorithm = trial_of(linear, Recipe(steps=5))
    times = measure(trial, algorithm, plan=TimingPlan(seconds=0.01, most=5, fewest=5), kernels=True)
    table = times.to_json()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    old = {"adapt_ms", "predict_ms", "adapt_iqr_ms", "predict_iqr_ms", "episodes"}
    assert old < set(table)
    assert set(table["parts"]) == {"adapt", "predict", "train_step"}
    for part in table["parts"].values():
        assert 0 < part["low_ms"] <= part["ms"] <= part["high_ms"]
        assert part["samples"] == 5
        assert 0 < part["share_of_peak"] < 4
        assert {"aten::mm", "aten::addmm", "aten::bmm"} & {k["name"] for k in part["kernels"]}
        assert sum(k["share"] for k in part["kernels"]) == pytest.approx(1)
    here = table["conditions"]
    assert (here["threads"], here["engine"]) == (1, "loop")
    assert here["peak_flops"] > 1e8
