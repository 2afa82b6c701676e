"""Phases of training: what an algorithm asks the engine to do, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metabench.api.context import Context
    from metabench.api.items import EpisodeBatch, ItemBatch
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
            code of `module` and `loss`; the algorithm's hyper-parameters must not reach it, but by
            what `module` is made of.
        labels: whether the batches have class ids; without, `classes` is None.
    """

    recipe: Recipe
    module: nn.Module
    loss: Callable[[Any, ItemBatch, Context], Tensor]
    shared: bool = False
    name: str = "pretrain"
    labels: bool = True


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
        fn: `fn(batch, ctx)` -> tensors (n, ...) by name, n the same in all, called on batches of
            episodes. Where the algorithm reads only embeddings they hold embeddings, and each item
            is embedded once, however many tasks it is part of.
        recipe: `steps` batches of `meta_batch` episodes.
        store: takes what all calls returned, end to end. What it finds (a mean, a scale) belongs
            into parameters or buffers; the artefact itself is kept by the engine for `Learn`.
        whole_classes: the queries are all items of the episode's classes that are not in its
            support set, whatever the recipe says; with a mask where classes differ in size.
    """

    fn: Callable[[EpisodeBatch, Context], Mapping[str, Tensor]]
    recipe: Recipe
    store: Callable[[Mapping[str, Tensor]], None] | None = None
    whole_classes: bool = False
    name: str = "collect"


@dataclass(frozen=True)
class Learn:
    """Supervised training on what a `Collect` phase before it made.

    Attributes:
        recipe: `steps` batches of `batch_size` examples, optimiser, schedule.
        loss: `loss(examples, ctx)` -> scalar, with tensors (n, ...) of n examples by name, each
            epoch of which is a random permutation of all.
        collected: the name of the phase that collected them.
    """

    recipe: Recipe
    loss: Callable[[Mapping[str, Tensor], Context], Tensor]
    collected: str = "collect"
    name: str = "learn"


@dataclass(frozen=True)
class Measure:
    """Figures that an algorithm states of itself, on tasks of the meta-validation split.

    They stand in the cell's record beside its score, and decide nothing. Left out where there is no
    meta-validation split; after a refit they are those of the training before it, which held the
    split out.

    Attributes:
        fn: `fn(batch, ctx)` -> tensors (B,) by name, one value a task, of which the mean is
            recorded. Its batches are as those of `Collect`; it may change no weight.
        recipe: `steps` batches of `meta_batch` episodes.
        whole_classes: as of `Collect`.
    """

    fn: Callable[[EpisodeBatch, Context], Mapping[str, Tensor]]
    recipe: Recipe
    whole_classes: bool = False
    name: str = "measure"


@dataclass(frozen=True)
class Choose:
    """A setting that is chosen on meta-validation, such as the number of steps of fine-tuning.

    Where there is no meta-validation split, the first candidate is taken.

    Attributes:
        put: `put(number)` puts the candidate of that number, from 0 on, in place. What it sets must
            be in the `state_dict`, as all that training changes. It is called for each in turn, and
            then for the best, of equal ones the first.
        candidates: how many there are.
        episodes: how many episodes of meta-validation each is tried on.
    """

    put: Callable[[int], None]
    candidates: int
    episodes: int = 200
    name: str = "choose"


Phase = Episodic | Batches | Fit | Collect | Learn | Measure | Choose
