"""The base of gradient-based algorithms: its batch-norm options, each against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from metabench.api.algorithm import Problem
from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.context import Context, EpisodeRandom, Stage
from metabench.api.items import EpisodeBatch, Items, Support, Targets
from metabench.api.recipe import Hyperparameters
from metabench.engine.gradient import GradientAlgorithm, GradientHyperparameters
from metabench.engine.norm import BatchNorm, convert
from metabench.errors import UsageError

torch.set_num_threads(1)

WAYS, SIZE, QUERIES = 3, 6, 7
OPTIONS = ["support", "support+1", "running", "batch"]


class Dense(Backbone):
    """Five numbers to four, batch norm, tanh."""

    name = "dense"

    def __init__(self, item: ItemSpec, hp: Hyperparameters) -> None:
        super().__init__(item, hp)
        self.net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Tanh())
        self.feature_dim = 4

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = self.net(data)
        return out


class Learner(GradientAlgorithm):
    name = "learner"


class HeadLearner(GradientAlgorithm):
    name = "head-learner"

    def adapted_names(self) -> list[str]:
        return ["head.weight", "head.bias"]


def make(
    kind: type[GradientAlgorithm] = Learner, train_ways: int = WAYS, **hp: Any
) -> GradientAlgorithm:
    torch.manual_seed(0)
    item = ItemSpec("vector", (5,))
    backbone = Dense(item, Hyperparameters())
    convert(backbone)
    settings = GradientHyperparameters(**{"inner_lr": 0.5, "inner_steps": 2, **hp})
    problem = Problem(item, WAYS, SIZE // WAYS, train_ways, 10)
    algorithm = kind(backbone, settings, problem).double()
    norm = algorithm.backbone.net[1]
    assert isinstance(norm, BatchNorm)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return algorithm


def episodes(tasks: int = 2) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(3)
    items = torch.randn(tasks, SIZE, 5, generator=generator, dtype=torch.float64)
    queries = torch.randn(tasks, QUERIES, 5, generator=generator, dtype=torch.float64)
    known = torch.arange(SIZE).remainder(WAYS).expand(tasks, -1)
    asked = torch.randint(WAYS, (tasks, QUERIES), generator=generator)
    support = Support(Items(items), Targets(known), WAYS)
    classes = torch.arange(WAYS).expand(tasks, -1)
    return EpisodeBatch(support, Items(queries), Targets(asked), classes)


def context(stage: Stage, tasks: int = 2) -> Context:
    return Context(stage, EpisodeRandom(b"0" * 16, list(range(tasks))))


def by_hand(
    algorithm: GradientAlgorithm,
    params: dict[str, Tensor],
    x: Tensor,
    moments: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Logits written out, and the moments of what enters the batch norm."""
    p = {name.removeprefix("backbone.net."): value for name, value in params.items()}
    z = x @ p["0.weight"].T + p["0.bias"]
    own = (z.mean(0), z.var(0, correction=0))
    mean, variance = own if moments is None else moments
    z = (z - mean) / (variance + algorithm.backbone.net[1].eps).sqrt()
    z = torch.tanh(z * p["1.weight"] + p["1.bias"])
    return z @ p["head.weight"].T + p["head.bias"], own


def adapted_by_hand(
    algorithm: GradientAlgorithm, x: Tensor, y: Tensor, moments: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    params = dict(algorithm.named_parameters())
    names = algorithm.adapted_names()
    for _ in range(algorithm.hp.inner_steps):
        loss = F.cross_entropy(by_hand(algorithm, params, x, moments)[0], y)
        grads = torch.autograd.grad(loss, [params[n] for n in names])
        step = {n: params[n] - algorithm.hp.inner_lr * g for n, g in zip(names, grads, strict=True)}
        params = {**params, **step}
    return params


@pytest.mark.parametrize("kind", [Learner, HeadLearner])
@pytest.mark.parametrize("option", OPTIONS)
def test_predictions_at_test_are_the_options_definition(
    kind: type[GradientAlgorithm], option: str
) -> None:
    algorithm, batch = make(kind, batch_norm=option).eval(), episodes()
    ctx = context("test")
    with torch.no_grad():
        logits = algorithm.predict(algorithm.adapt(batch.support, ctx), batch.queries, ctx)
    norm = algorithm.backbone.net[1]
    running = (norm.running_mean, norm.running_var)
    for task in range(2):
        x, y = batch.support.items.data[task], batch.support.targets.values[task]
        queries = batch.queries.data[task]
        params = adapted_by_hand(algorithm, x, y, running if option == "running" else None)
        if option == "support":  # MetaBN: the support set's moments under the adapted weights
            _, moments = by_hand(algorithm, params, x)
            expected = by_hand(algorithm, params, queries, moments)[0]
        elif option == "running":
            expected = by_hand(algorithm, params, queries, running)[0]
        elif option == "batch":
            expected = by_hand(algorithm, params, queries)[0]
        else:  # each query in a batch with the support set, one after the other
            rows = [by_hand(algorithm, params, torch.cat([x, q[None]]))[0][-1] for q in queries]
            expected = torch.stack(rows)
        torch.testing.assert_close(logits[task], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("option", OPTIONS)
def test_only_running_changes_the_stored_moments_and_only_in_training(option: str) -> None:
    algorithm, batch = make(batch_norm=option), episodes()
    before = {name: value.clone() for name, value in algorithm.norm_buffers().items()}
    for stage in ("validation", "test", "train"):
        ctx = context(stage)
        algorithm.predict(algorithm.adapt(batch.support, ctx), batch.queries, ctx)
        same = all(torch.equal(v, before[n]) for n, v in algorithm.norm_buffers().items())
        assert same == (option != "running" or stage != "train"), stage


def test_running_moves_the_stored_moments_by_the_mean_over_tasks_of_the_queries() -> None:
    algorithm, batch = make(batch_norm="running", inner_steps=1), episodes()
    norm = algorithm.backbone.net[1]
    before = (norm.running_mean.clone(), norm.running_var.clone())
    ctx = context("train")
    logits = algorithm.predict(algorithm.adapt(batch.support, ctx), batch.queries, ctx)
    seen = []
    for task in range(2):
        x, y = batch.support.items.data[task], batch.support.targets.values[task]
        params = adapted_by_hand(algorithm, x, y, None)
        expected, (mean, variance) = by_hand(algorithm, params, batch.queries.data[task])
        torch.testing.assert_close(logits[task], expected)
        count = batch.queries.data.shape[1]
        seen.append((mean, variance * count / (count - 1)))  # the running one is unbiased
    for stored, old, parts in zip(
        (norm.running_mean, norm.running_var), before, zip(*seen, strict=True), strict=True
    ):
        torch.testing.assert_close(stored, 0.7 * old + 0.3 * torch.stack(parts).mean(0))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("stage", ["train", "test"])
def test_a_task_is_adapted_as_if_it_were_alone(option: str, stage: Stage) -> None:
    algorithm, batch = make(batch_norm=option).eval(), episodes(3)
    state = algorithm.adapt(batch.support, context(stage, 3))
    for task in range(3):
        items = Items(batch.support.items.data[task : task + 1])
        targets = Targets(batch.support.targets.values[task : task + 1])
        alone = algorithm.adapt(Support(items, targets, WAYS), context(stage, 1))
        assert alone.keys() == state.keys()
        for name, value in alone["params"].items():
            torch.testing.assert_close(value[0], state["params"][name][task])


@pytest.mark.parametrize(
    ("option", "keys"),
    [
        ("support", {"params", "buffers"}),
        ("support+1", {"params", "support"}),
        ("running", {"params"}),
        ("batch", {"params"}),
    ],
)
def test_the_state_holds_what_prediction_needs_task_by_task(option: str, keys: set[str]) -> None:
    algorithm, batch = make(HeadLearner, batch_norm=option).eval(), episodes(3)
    with torch.no_grad():
        state = algorithm.adapt(batch.support, context("test", 3))
    assert state.keys() == keys
    assert state["params"].keys() == {"head.weight", "head.bias"}
    assert state["params"]["head.weight"].shape == (3, WAYS, 4)
    if "buffers" in state:
        assert state["buffers"]["backbone.net.1.running_mean"].shape == (3, 4)


def test_padding_in_the_support_set_changes_nothing_without_batch_norm_statistics() -> None:
    algorithm, batch = make(batch_norm="running").eval(), episodes()
    mask = torch.ones(2, SIZE, dtype=torch.bool)
    mask[:, -2:] = False
    padded = batch.support._replace(items=batch.support.items._replace(mask=mask))
    short = Support(
        Items(batch.support.items.data[:, :-2]),
        Targets(batch.support.targets.values[:, :-2]),
        WAYS,
    )
    found = algorithm.adapt(padded, context("test"))["params"]
    expected = algorithm.adapt(short, context("test"))["params"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_steps_at_test_follow_training_unless_said_otherwise() -> None:
    stages: list[Stage] = ["train", "validation", "test"]
    same = make(inner_steps=3)
    assert [same.inner_steps(context(stage)) for stage in stages] == [3, 3, 3]
    other = make(inner_steps=3, inner_steps_test=8)
    assert [other.inner_steps(context(stage)) for stage in stages] == [3, 8, 8]
    none = make(inner_steps=3, inner_steps_test=0)
    assert [none.inner_steps(context(stage)) for stage in stages] == [3, 0, 0]


def test_features_are_what_the_head_is_given() -> None:
    algorithm, batch = make(), episodes()
    data = batch.queries.data[0]
    for mode in ("fresh", "record", "stored"):
        buffers = algorithm.norm_buffers()
        features, moments = algorithm.features(buffers, data, mode)
        logits, after = algorithm.run({}, buffers, data, mode)
        torch.testing.assert_close(algorithm.head(features), logits)
        assert moments.keys() == after.keys() == buffers.keys()
        for name, value in after.items():
            torch.testing.assert_close(moments[name], value)
            assert torch.equal(algorithm.norm_buffers()[name], buffers[name])


def test_the_inference_mode_follows_the_batch_norm_option() -> None:
    modes = {o: Learner.inference_mode(GradientHyperparameters(batch_norm=o)) for o in OPTIONS}
    assert modes == {
        "support": "inductive",
        "support+1": "inductive",
        "running": "inductive",
        "batch": "transductive",
    }


def test_other_training_ways_are_refused_in_two_lines() -> None:
    with pytest.raises(UsageError, match="cannot train with 10 ways") as caught:
        make(train_ways=10)
    assert "recipe" in caught.value.hint


@pytest.mark.parametrize(
    "wrong", [{"inner_lr": 0}, {"inner_steps": -1}, {"batch_norm": "none"}, {"alpha": 0.1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GradientHyperparameters(**wrong)
