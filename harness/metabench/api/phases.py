"""Phases of training: what an algorithm asks the engine to do, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metabench.api.context import Context
    from metabench.api.items import ItemBatch
    from metabench.api.recipe import Recipe


@dataclass(frozen=True)
class Episodic:
    """Meta-training on episodes: the engine calls `training_step` once a meta-step.

    Attributes:
        recipe: budget, shape of the episodes (None fields: the protocol's), optimiser, schedule.
        name: stands in logs and training curves.
    """

    recipe: Recipe
    name: str = "episodic"


@dataclass(frozen=True)
class Batches:
    """Plain supervised training on batches of items with the training classes' global ids.

    Attributes:
        recipe: `steps` batches of `batch_size`, optimiser, schedule.
        module: what is trained; its state after the phase is the phase's artefact. It may hold
            modules of the algorithm (usually the backbone), which are trained in place.
        loss: `loss(module, batch, ctx)` -> scalar.
        shared: trained once, content-addressed, used by every cell that asks for the same phase.
            Then the artefact may depend on nothing but data set, backbone, recipe, seed, and the
            code of `module` and `loss`; the algorithm's hyper-parameters must not reach it.
    """

    recipe: Recipe
    module: nn.Module
    loss: Callable[[Any, ItemBatch, Context], Tensor]
    shared: bool = False
    name: str = "pretrain"


@dataclass(frozen=True)
class Fit:
    """One call on the whole training split (PCA, statistics of features).

    Attributes:
        fn: `fn(batches, ctx)` with an iterator over the whole split, each item once, with its
            rotations where these are classes. It stores what it finds in parameters or buffers.
        labels: whether the batches have class ids; without, `classes` is None.
    """

    fn: Callable[[Iterator[ItemBatch], Context], None]
    labels: bool = False
    name: str = "fit"


@dataclass(frozen=True)
class Collect:
    """An artefact made once from many training tasks (pairs of data and solution).

    Attributes:
        fn: `fn(batch, ctx)` -> pytree of tensors (B, ...), called on batches of episodes; the
            engine concatenates what it returns and hands it to `store`.
        recipe: `steps` batches of `meta_batch` episodes.
        store: takes the concatenated pytree.
    """

    fn: Callable[[Any, Context], Any]
    recipe: Recipe
    store: Callable[[Any], None]
    name: str = "collect"


Phase = Episodic | Batches | Fit | Collect
