"""An algorithm on small tasks: built, trained for some steps, asked for predictions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.backbone import Backbone
from metabench.api.context import Context, EpisodeRandom, Stage
from metabench.api.items import EpisodeBatch, Items, Support, Targets, tree_map
from metabench.api.phases import Episodic
from metabench.api.recipe import Hyperparameters, Recipe
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.build import Blueprint, training_bank
from metabench.engine.evaluate import evaluate
from metabench.engine.feed import TrainingData
from metabench.engine.gather import ItemStore, training_batch
from metabench.engine.numerics import seed_all
from metabench.engine.train import planned_phases, train
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key
from metabench.registry import Entry
from metabench.testing.conformance.finding import NonconformityError
from metabench.testing.conformance.tasks import IMAGE, PROTOCOL, SmallNet, bank

CPU = torch.device("cpu")
STEPS, META_BATCH, BATCH_SIZE = 3, 2, 16
VALIDATED = 4
"""Episodes of a validation, however many are asked for."""


@dataclass(frozen=True)
class AlgorithmSubject:
    """An algorithm that is checked.

    Attributes:
        entry: what is registered, or would be.
        cls: the class.
        target: by which another process finds it, see `target.py`.
        hp: its hyper-parameters.
        backbone: on which it stands.
    """

    entry: Entry
    cls: type[Algorithm]
    target: str = ""
    hp: Hyperparameters = field(default_factory=Hyperparameters)
    backbone: type[Backbone] = SmallNet

    @property
    def recipe(self) -> Recipe:
        """The algorithm's own, cut down to a few small steps."""
        own = self.cls.recipe
        few = {
            "steps": STEPS,
            "meta_batch": min(own.meta_batch, META_BATCH),
            "batch_size": min(own.batch_size, BATCH_SIZE),
            "warmup": 0,
            "ways": None,
            "shots": None,
            "queries": PROTOCOL.queries,
            "validate_every": 0,
            "select": "last",
            "refit": False,
        }
        return own.model_copy(update=few)

    def build(self, protocol: Protocol = PROTOCOL, seed: int = 0) -> Algorithm:
        """The algorithm, untrained."""
        blueprint = Blueprint(
            algorithm=self.cls,
            algorithm_hp=self.hp,
            backbone=self.backbone,
            backbone_hp=self.backbone.hyperparameters(),
            recipe=self.recipe,
            protocol=protocol,
            seed=seed,
        )
        return blueprint.build(IMAGE, self.training_bank, CPU).eval()

    @property
    def training_bank(self) -> ClassBank:
        return training_bank(bank("train"), self.recipe, PROTOCOL)

    def train(self, seed: int = 0) -> Algorithm:
        """The algorithm, trained for a few steps."""
        algorithm = self.build(seed=seed)
        data = TrainingData(ItemStore(self.training_bank, IMAGE, CPU), PROTOCOL)
        data.held_out = lambda: ItemStore(bank("validation"), IMAGE, CPU)
        data.validate = partial(_validated, algorithm)
        train(algorithm, self.recipe, data, seed)
        return algorithm.eval()

    @property
    def episodic(self) -> bool:
        """Whether it meta-trains on episodes."""
        phases = planned_phases(self.build(), self.recipe, seed=0)
        return any(isinstance(phase, Episodic) for phase in phases)

    @cached_property
    def _trained(self) -> Algorithm:
        try:
            return self.train()
        except Exception:  # which the check of training tells of
            return self.build()

    def trained(self) -> Algorithm:
        """A copy of the algorithm after a few steps; untrained if it can't be trained."""
        return copy.deepcopy(self._trained)


def _validated(algorithm: Algorithm, asked: int) -> float:
    """The mean accuracy of an algorithm as it stands on a few episodes of meta-validation."""
    here = bank("validation")
    items, count = ItemStore(here, IMAGE, CPU), min(asked, VALIDATED)
    outcome = evaluate(algorithm, source_of(of=here), items, count, "validation")
    return outcome.score(PROTOCOL.metric)


def episodes(
    numbers: Sequence[int] = (0, 1),
    protocol: Protocol = PROTOCOL,
    of: ClassBank | None = None,
) -> EpisodeBatch:
    """Episodes of the test split, or of another bank, with their query targets."""
    here = of or bank("test")
    return training_batch(
        source_of(protocol, here).draw(numbers), ItemStore(here, IMAGE, CPU), protocol.ways
    )


def source_of(protocol: Protocol = PROTOCOL, of: ClassBank | None = None) -> EpisodeSource:
    here = of or bank("test")
    return EpisodeSource(here, protocol.shape, protocol_key(here, protocol))


def context(
    numbers: Sequence[int] = (0, 1),
    stage: Stage = "test",
    device: torch.device = CPU,
) -> Context:
    """That of a call on the episodes of these numbers."""
    total = STEPS if stage == "train" else 0
    return Context(stage, EpisodeRandom(b"conformance kit!", list(numbers), device), 0, total)


def adapted(algorithm: Algorithm, support: Support, ctx: Context) -> object:
    """The state, from raw items."""
    return algorithm.adapt(support._replace(items=_seen(algorithm, support.items)), ctx)


def predictions(
    algorithm: Algorithm,
    support: Support,
    queries: Items,
    numbers: Sequence[int] = (0, 1),
) -> Tensor:
    """(B, Q, ways) as in a test: from raw items, without gradients, the generators seeded."""
    device = support.targets.values.device
    ctx = context(numbers, device=device)
    seed_all("conformance")
    with torch.no_grad():
        return asked(algorithm, adapted(algorithm, support, ctx), queries, ctx)


def asked(algorithm: Algorithm, state: object, queries: Items, ctx: Context) -> Tensor:
    """What `predict` returns of raw queries."""
    found: object = algorithm.predict(state, _seen(algorithm, queries), ctx)
    if not isinstance(found, Tensor):
        raise NonconformityError(
            "predict returns a tensor (B, Q, ways)",
            f"it returned {type(found).__name__}",
            type(algorithm).predict,
        )
    return found


def _seen(algorithm: Algorithm, items: Items) -> Items:
    """Items as `adapt` and `predict` get them: as embeddings where it is one of those."""
    return algorithm.embed_sets(items) if isinstance(algorithm, EmbeddingAlgorithm) else items


def some_queries(queries: Items, index: Sequence[int]) -> Items:
    """Those at these places of each episode."""
    part: Items = tree_map(lambda x: x[:, list(index)], queries)
    return part


def some_episodes(batch: EpisodeBatch, index: Sequence[int]) -> EpisodeBatch:
    """Those of these places in a batch."""
    part: EpisodeBatch = tree_map(lambda x: x[list(index)] if isinstance(x, Tensor) else x, batch)
    return part


def reordered(support: Support, order: Sequence[int]) -> Support:
    """The same support sets, their items in another order."""
    items, targets = tree_map(lambda x: x[:, list(order)], (support.items, support.targets))
    return Support(items, targets, support.ways)


def relabelled(support: Support) -> Support:
    """The same support sets, class c called c + 1, and the last one 0."""
    renamed = (support.targets.values + 1) % support.ways
    return support._replace(targets=Targets(renamed, support.targets.mask))


def share_of_range(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors, as a share of the first one's range."""
    one, other = one.detach(), other.detach()
    scale = float(one.max() - one.min()) or 1.0
    return float((one - other).abs().max()) / scale
