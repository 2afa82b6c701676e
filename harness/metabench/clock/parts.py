"""The parts of a cell that are timed: adapt, predict, and a step of its own training.

`adapt` and `predict` work on one episode of the meta-test split at a time, from raw items: an
algorithm of embeddings embeds within them, what the evaluation of a whole split would do once.
`train_step` is a step of the first phase that the algorithm trains for itself: its batch is
gathered, gradients are computed, the optimiser steps. Episodes are drawn 64 at a time, so that most
steps draw none, and the median doesn't hold it; drawing is some microseconds an episode. What a
phase learns from that others collect is made beforehand, in part, and not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import Items, PyTree, Support
from metabench.api.phases import Learn, Phase
from metabench.clock.stopwatch import Call
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.collect import examples_for
from metabench.engine.descent import Descends, Descent, TrainingResult
from metabench.engine.feed import TrainingData
from metabench.engine.gather import ItemStore, queries_of, support_of
from metabench.engine.progress import silent
from metabench.engine.train import is_shared, planned_phases
from metabench.engine.trial import Trial
from metabench.episodes.bank import ClassBank

PartName = Literal["adapt", "predict", "train_step"]
PARTS: tuple[PartName, ...] = ("adapt", "predict", "train_step")

EPISODES = 4
"""Different episodes that are adapted to in turn; more of them would hold more memory."""


@dataclass(frozen=True)
class Part:
    """Something to be timed.

    Attributes:
        name: what it is called.
        at: makes ready the call of a number; that is not timed, the call is.
        grad: whether gradients are recorded.
    """

    name: PartName
    at: Callable[[int], Call]
    grad: bool = False


def parts_of(trial: Trial, algorithm: Algorithm, bank: ClassBank) -> Iterator[Part]:
    """The parts, one after the other; the last one changes the algorithm's weights.

    Args:
        bank: what the algorithm was built to be trained on.
    """
    algorithm.eval()
    episodes = Episodes(trial, algorithm)
    yield Part("adapt", episodes.adapting)
    yield Part("predict", episodes.predicting)
    step = own_step(trial, algorithm, bank)
    if step is not None:
        yield Part("train_step", step.at, grad=True)


class Episodes:
    """A few episodes of the meta-test split, and what an algorithm does with them."""

    def __init__(self, trial: Trial, algorithm: Algorithm) -> None:
        source, store = trial.episodes("test"), trial.items("test")
        self._algorithm, self._device, self._key = algorithm, trial.device, source.key
        drawn = [source.draw([number]) for number in range(EPISODES)]
        self._support = [support_of(one, store, source.shape.ways) for one in drawn]
        self._queries = [queries_of(one, store) for one in drawn]
        self._states: dict[int, PyTree] = {}

    def adapting(self, number: int) -> Call:
        """Adapt to one support set."""
        episode = number % EPISODES
        return partial(_adapt, self._algorithm, self._support[episode], self._context(episode))

    def predicting(self, number: int) -> Call:
        """Predict all queries of one episode, to whose support set was adapted before."""
        episode = number % EPISODES
        if episode not in self._states:
            self._states[episode] = self.adapting(episode)()
        state, queries = self._states[episode], self._queries[episode]
        return partial(_predict, self._algorithm, state, queries, self._context(episode))

    def _context(self, episode: int) -> Context:
        return Context("test", EpisodeRandom(self._key, [episode], self._device))


class Steps(Descent):
    """A phase of training of which single steps can be called."""

    def at(self, number: int) -> Call:
        """The step of that number; after the last one comes the first again."""
        return partial(self._step, number % self.recipe.steps)


def own_step(trial: Trial, algorithm: Algorithm, bank: ClassBank) -> Steps | None:
    """The first phase of descent that the algorithm trains for itself, if it has one."""
    seed = trial.blueprint.seed
    phases = planned_phases(algorithm, trial.recipe, seed)
    for phase in phases:
        if isinstance(phase, Descends) and phase.recipe.steps and not is_shared(phase):
            data = TrainingData(ItemStore(bank, trial.item, trial.device), trial.protocol)
            with trial.computing(trial.engines.train):
                return steps_of(algorithm, phase, phases, data, seed)
    return None


def steps_of(
    algorithm: Algorithm, phase: Descends, phases: Sequence[Phase], data: TrainingData, seed: int
) -> Steps:
    """Single steps of a phase, which is one of the algorithm's `phases`."""
    examples = None
    if isinstance(phase, Learn):
        examples = examples_for(algorithm, phase, phases, data, seed)
    number, result = phases.index(phase), TrainingResult()
    return Steps(algorithm, phase, number, data, seed, result, None, silent, examples)


def _adapt(algorithm: Algorithm, support: Support, ctx: Context) -> PyTree:
    if isinstance(algorithm, EmbeddingAlgorithm):
        support = support._replace(items=algorithm.embed_sets(support.items))
    return algorithm.adapt(support, ctx)


def _predict(algorithm: Algorithm, state: PyTree, queries: Items, ctx: Context) -> PyTree:
    if isinstance(algorithm, EmbeddingAlgorithm):
        queries = algorithm.embed_sets(queries)
    return algorithm.predict(state, queries, ctx)
