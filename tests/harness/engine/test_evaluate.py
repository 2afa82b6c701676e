"""Evaluation: the same predictions by any path and chunk size, and never a query target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context
from metabench.api.items import Items, PyTree, Support
from metabench.engine import chunks
from metabench.engine import evaluate as module
from metabench.engine.evaluate import evaluate
from metabench.engine.probabilities import decode, encode
from metabench.episodes.protocol import Rotation
from metabench.episodes.source import EpisodeIndices, EpisodeSource
from metabench.errors import NotANumberError


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All logits that evaluation turns into predictions."""
    seen: list[Tensor] = []
    told = module._told
    monkeypatch.setattr(module, "_told", lambda x, *rest: (seen.append(x), told(x, *rest))[1])
    return seen


@pytest.mark.parametrize("rotation", Rotation)
def test_embeddings_give_what_raw_items_give(
    world, logits: list[Tensor], rotation: Rotation
) -> None:
    world = world.turned(rotation)
    by_embeddings = world.evaluate(world.make(world.Nearest), 60)
    first = torch.cat(logits)
    logits.clear()
    by_items = world.evaluate(world.make(world.NearestRaw), 60)
    torch.testing.assert_close(first, torch.cat(logits), rtol=1e-6, atol=1e-6)
    assert np.array_equal(by_embeddings.predicted, by_items.predicted)
    assert 0.3 < by_items.scores("accuracy").mean() < 1


@pytest.mark.parametrize("kind", ["Nearest", "NearestRaw"])
def test_chunk_sizes_change_no_prediction(
    world, logits: list[Tensor], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    algorithm = world.make(getattr(world, kind))
    expected = world.evaluate(algorithm, 30).predicted
    whole = torch.cat(logits)
    for episodes, items in ((1, 5), (7, 1), (64, 1000)):
        logits.clear()
        algorithm = world.make(getattr(world, kind))  # what fits is looked for once
        sizes = {module.MOST_EPISODES: episodes, -1: items}
        monkeypatch.setattr(module, "MOST_ITEMS", -1)
        monkeypatch.setattr(
            module, "that_fit", lambda *asked, sizes=sizes: sizes.get(asked[-1], asked[-1])
        )
        assert np.array_equal(world.evaluate(algorithm, 30).predicted, expected)
        assert len(logits) == -(-30 // episodes)
        torch.testing.assert_close(torch.cat(logits), whole, rtol=1e-6, atol=1e-6)


def test_probabilities_are_kept_of_logits_and_not_of_scores(world, logits: list[Tensor]) -> None:
    outcome = world.evaluate(world.make(world.Nearest), 20)
    p = torch.softmax(torch.cat(logits).double(), dim=-1).numpy()
    for codes, labels in (
        (outcome.surprise, outcome.targets),
        (outcome.confidence, outcome.predicted),
    ):
        expected = -np.log(np.take_along_axis(p, labels[..., None], axis=-1)[..., 0])
        # Half a code off at the most.
        assert np.abs(np.sqrt(decode(codes)) - np.sqrt(expected)).max() < 0.5 / 20 + 1e-3
    assert (outcome.confidence <= outcome.surprise).all()
    right = outcome.predicted == outcome.targets
    assert np.array_equal(outcome.confidence[right], outcome.surprise[right])

    class Scores(world.Nearest):  # type: ignore[misc, name-defined]
        name = "nearest-scores"
        output = "scores"

    outcome = world.evaluate(world.make(Scores), 20)
    assert outcome.surprise is outcome.confidence is None


def test_codes_stand_for_likelihoods_from_sure_to_impossible() -> None:
    nll = np.array([0.0, 1e-4, 0.5, 2.0, 100.0, 1e6])
    assert np.allclose(decode(encode(nll))[2:5], nll[2:5], rtol=0.08)
    assert encode(nll)[0] == encode(nll)[1] == 0
    assert encode(nll)[-1] == 255
    assert np.array_equal(encode(decode(np.arange(256, dtype=np.uint8))), np.arange(256))


class PartsNoted(Algorithm):
    """Predicts a query by its own pixels; notes how many it is handed at a time."""

    name = "parts-noted"

    def build(self) -> None:
        self.handed: list[int] = []

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        return {"weights": torch.linspace(-1, 1, support.ways).expand(len(support.items.data), -1)}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        self.handed.append(queries.data.shape[1])
        return queries.data.flatten(2).mean(-1, keepdim=True) * state["weights"].unsqueeze(1)


class AllAtOnce(PartsNoted):
    inference = "transductive"


def test_queries_that_do_not_fit_are_predicted_in_parts(
    world, logits: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = world.make(PartsNoted)
    expected = world.evaluate(algorithm, 5).predicted
    queries = expected.shape[1]
    whole = torch.cat(logits)
    logits.clear()
    algorithm.handed.clear()
    state = {"weights": torch.ones(1, 4)}
    two = Items(world.store().gather(np.array([[0, 1]])))
    held = chunks.most_held(lambda: algorithm.predict(state, two, Context("test", None)))
    monkeypatch.setitem(chunks.AT_ONCE, "cpu", held * 3 // 2)  # 3 fit, so 2 go at a time
    algorithm.handed.clear()
    assert np.array_equal(world.evaluate(algorithm, 5).predicted, expected)
    assert max(algorithm.handed) == 2
    assert sum(algorithm.handed) == 2 + 5 * queries  # two for a look
    assert torch.equal(torch.cat(logits), whole)


def test_what_fits_is_looked_for_once(world) -> None:
    algorithm = world.make(PartsNoted)
    queries = world.evaluate(algorithm, 2).predicted.shape[1]
    # Two queries and an episode for a look, and all of both episodes.
    assert algorithm.handed == [2, queries, queries]
    algorithm.handed.clear()
    world.evaluate(algorithm, 2)
    assert algorithm.handed == [queries]


def test_a_transductive_algorithm_gets_all_queries_at_once(
    world, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = world.make(AllAtOnce)
    monkeypatch.setitem(chunks.AT_ONCE, "cpu", 1)
    queries = world.evaluate(algorithm, 3).predicted.shape[1]
    assert algorithm.handed == [queries] * 4  # the first once more for a look


def test_each_item_is_embedded_once(world, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = world.make(world.Nearest)
    passed: list[int] = []
    embed = type(algorithm).embed

    def counted(self: Any, data: Tensor) -> Tensor:
        passed.append(len(data))
        return embed(self, data)

    monkeypatch.setattr(module, "that_fit", lambda *asked: 16)
    monkeypatch.setattr(type(algorithm), "embed", counted)
    world.evaluate(algorithm, 100)  # of 4 x (2 + 3) items each
    kept = [16] * 4 + [8]
    assert passed[-5:] == kept  # before, an episode and an item: how large is what they take?
    assert sum(kept) == world.banks["test"].n_items == 72


def test_where_not_all_embeddings_can_be_kept_groups_of_episodes_are_embedded(
    world, logits: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = world.make(world.Nearest)
    expected = world.evaluate(algorithm, 30).predicted
    whole = torch.cat(logits)
    monkeypatch.setattr(module, "KEPT", 70 * 16 * 4)  # 70 of the 72 embeddings of 16 numbers
    made: list[int] = []
    embed = module.embedded_split
    monkeypatch.setattr(
        module,
        "embedded_split",
        lambda a, s, codes: (made.append(len(codes)), embed(a, s, codes))[1],
    )
    logits.clear()
    assert np.array_equal(world.evaluate(algorithm, 30).predicted, expected)
    torch.testing.assert_close(torch.cat(logits), whole, rtol=1e-6, atol=1e-6)
    groups = made[2:]  # behind the first episode and the first item
    assert len(groups) == 10  # of 3 episodes, 20 items each
    assert max(groups) <= 60


class Spy(Algorithm):
    """Keeps what it is handed; predicts from its random numbers alone."""

    name = "spy"

    def build(self) -> None:
        self.seen: list[tuple[str, Any, Context]] = []

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        self.seen.append(("adapt", support, ctx))
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"draw": ctx.rng.normal(support.ways)}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        self.seen.append(("predict", queries, ctx))
        return state["draw"].unsqueeze(1).expand(-1, queries.data.shape[1], -1)


def test_no_query_target_reaches_an_algorithm(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is handed the drawn support sets and query items, a stage, and random numbers."""
    spy = world.make(Spy)
    monkeypatch.setattr(module, "that_fit", lambda *asked: 16)
    world.evaluate(spy, 30)  # two chunks
    assert spy.seen.pop(0)[0] == "adapt"  # for a look at what predicting holds
    drawn, store, start = world.source().draw(range(30)), world.store(), 0
    assert [what for what, _, _ in spy.seen] == ["adapt", "predict"] * 2
    for what, handed, ctx in spy.seen:
        assert isinstance(ctx, Context)
        assert vars(ctx).keys() == {"stage", "rng", "step", "total", "phase"}
        assert (ctx.stage, ctx.step, ctx.total) == ("test", 0, 0)
        rows = slice(start, start + len(ctx.rng))
        if what == "adapt":
            data = store.gather(drawn.support_items[rows])
            assert torch.equal(handed.items.data, data)
            assert handed.targets.values.tolist() == drawn.support_labels[rows].tolist()
        else:
            assert type(handed) is Items
            assert handed.mask is None
            assert torch.equal(handed.data, store.gather(drawn.query_items[rows]))
            start += len(ctx.rng)


class Mislabelled(EpisodeSource):
    """The same episodes, whose query labels are wrong."""

    def draw(self, indices: Any) -> EpisodeIndices:
        drawn = super().draw(indices)
        return drawn._replace(query_labels=(drawn.query_labels + 1) % self.shape.ways)


@pytest.mark.parametrize("kind", ["Nearest", "NearestRaw"])
def test_other_query_labels_change_no_prediction(world, kind: str) -> None:
    algorithm, source = world.make(getattr(world, kind)), world.source()
    wrong = Mislabelled(source.bank, source.shape, source.key)
    right = evaluate(algorithm, source, world.store(), 40, "test")
    outcome = evaluate(algorithm, wrong, world.store(), 40, "test")
    assert np.array_equal(outcome.predicted, right.predicted)
    assert np.array_equal(outcome.targets, (right.targets + 1) % 4)


def test_random_numbers_belong_to_the_episode(world, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = world.evaluate(world.make(Spy), 50).predicted
    assert len(np.unique(expected[:, 0])) == 4
    for size in (1, 13):
        monkeypatch.setattr(module, "that_fit", lambda *asked, size=size: size)
        assert np.array_equal(world.evaluate(world.make(Spy), 50).predicted, expected)


def test_the_first_episodes_do_not_depend_on_how_many_follow(world) -> None:
    algorithm = world.make()
    few, many = world.evaluate(algorithm, 10), world.evaluate(algorithm, 120)
    for field, longer in zip(few, many, strict=True):
        assert np.array_equal(field, longer[:10])


def test_an_outcome_says_what_was_asked_and_answered(world) -> None:
    algorithm = world.make()
    outcome = world.evaluate(algorithm, 20)
    drawn = world.source().draw(range(20))
    assert outcome.targets.shape == outcome.predicted.shape == outcome.classes.shape == (20, 12)
    assert np.array_equal(outcome.targets, drawn.query_labels)
    assert np.array_equal(outcome.classes, drawn.query_items // 12)  # 12 items a class
    right = [
        sum(p == t for p, t in zip(*rows, strict=True)) / 12
        for rows in zip(outcome.predicted, outcome.targets, strict=True)
    ]
    assert outcome.scores("accuracy").tolist() == pytest.approx(right)


def test_evaluation_leaves_the_algorithm_as_it_was(world) -> None:
    algorithm = world.make()
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    for mode in (True, False):
        algorithm.train(mode)
        world.evaluate(algorithm, 5)
        assert algorithm.training is mode
    assert all(torch.equal(value, before[name]) for name, value in algorithm.state_dict().items())


def test_progress_is_told_in_episodes(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "that_fit", lambda *asked: 25)
    told: list[tuple[int, int]] = []
    evaluate(
        world.make(world.NearestRaw),
        world.source(),
        world.store(),
        60,
        "test",
        lambda done, total: told.append((done, total)),
    )
    assert told == [(25, 60), (50, 60), (60, 60)]


def test_predictions_that_are_no_numbers_are_an_error(world) -> None:
    algorithm = world.make().train()
    with torch.no_grad():
        algorithm.backbone.net[1].weight[0, 0] = torch.nan
    with pytest.raises(NotANumberError, match="nearest predicted values that are not finite"):
        world.evaluate(algorithm, 5)
    assert algorithm.training
