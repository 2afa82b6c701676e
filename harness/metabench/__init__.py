"""metabench: every few-shot algorithm on the same episodes, under one protocol, honestly timed.

This file is the public API, for plugin authors and notebooks; `__all__` is the contract. Names are
imported when they are first used (PEP 562), so `import metabench` alone imports no PyTorch. To add
a name: import it below for type checkers, list it in `__all__`, and say in `_EXPORTS` which module
it comes from; a test holds the three together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import Field

    from metabench.api.algorithm import (
        Algorithm,
        Equivariance,
        Inference,
        Output,
        Problem,
        query_cross_entropy,
    )
    from metabench.api.backbone import Backbone, BatchNormOption, ItemSpec, channels_last
    from metabench.api.context import Context, EpisodeRandom
    from metabench.api.dataset import Availability, Dataset, Report, no_report
    from metabench.api.items import (
        EpisodeBatch,
        ItemBatch,
        Items,
        PyTree,
        Support,
        Targets,
        flatten_sets,
        leading_size,
        tree_map,
        unflatten_sets,
    )
    from metabench.api.phases import (
        Batches,
        Choose,
        Collect,
        Episodic,
        Fit,
        Learn,
        Measure,
        Phase,
    )
    from metabench.api.recipe import Hyperparameters, Recipe
    from metabench.data.archives import ZipLimits, open_zip
    from metabench.data.arrays import ArrayCache, Arrays, content_digest
    from metabench.data.folder import DataHome
    from metabench.data.splits import digest_order, split_banks, split_groups
    from metabench.data.weights import load_weights
    from metabench.engine.bases import EmbeddingAlgorithm, EpisodeFunction
    from metabench.engine.gradient import GradientAlgorithm, GradientHyperparameters
    from metabench.engine.inner import sgd, unroll
    from metabench.engine.lift import over_tasks
    from metabench.engine.norm import BatchNorm, norm_and_pool
    from metabench.engine.supervised import SupervisedClassifier, pretraining, supervised_loss
    from metabench.episodes.bank import SPLITS, ClassBank, assert_disjoint
    from metabench.episodes.protocol import EpisodeShape, Protocol, Rotation
    from metabench.errors import (
        DataCorruptError,
        DataMissingError,
        MetabenchError,
        ProtocolError,
        UsageError,
    )
    from metabench.experiment import run
    from metabench.hookspecs import Lazy, hookimpl

    __version__: str

__all__ = [
    "SPLITS",
    "Algorithm",
    "ArrayCache",
    "Arrays",
    "Availability",
    "Backbone",
    "BatchNorm",
    "BatchNormOption",
    "Batches",
    "Choose",
    "ClassBank",
    "Collect",
    "Context",
    "DataCorruptError",
    "DataHome",
    "DataMissingError",
    "Dataset",
    "EmbeddingAlgorithm",
    "EpisodeBatch",
    "EpisodeFunction",
    "EpisodeRandom",
    "EpisodeShape",
    "Episodic",
    "Equivariance",
    "Field",
    "Fit",
    "GradientAlgorithm",
    "GradientHyperparameters",
    "Hyperparameters",
    "Inference",
    "ItemBatch",
    "ItemSpec",
    "Items",
    "Lazy",
    "Learn",
    "Measure",
    "MetabenchError",
    "Output",
    "Phase",
    "Problem",
    "Protocol",
    "ProtocolError",
    "PyTree",
    "Recipe",
    "Report",
    "Rotation",
    "SupervisedClassifier",
    "Support",
    "Targets",
    "UsageError",
    "ZipLimits",
    "__version__",
    "assert_disjoint",
    "channels_last",
    "content_digest",
    "digest_order",
    "flatten_sets",
    "hookimpl",
    "leading_size",
    "load_weights",
    "no_report",
    "norm_and_pool",
    "open_zip",
    "over_tasks",
    "pretraining",
    "query_cross_entropy",
    "run",
    "sgd",
    "split_banks",
    "split_groups",
    "supervised_loss",
    "tree_map",
    "unflatten_sets",
    "unroll",
]

_EXPORTS = {
    "metabench.api.algorithm": (
        "Algorithm Equivariance Inference Output Problem query_cross_entropy"
    ),
    "metabench.api.backbone": "Backbone BatchNormOption ItemSpec channels_last",
    "metabench.api.context": "Context EpisodeRandom",
    "metabench.api.dataset": "Availability Dataset Report no_report",
    "metabench.api.items": (
        "EpisodeBatch ItemBatch Items PyTree Support Targets"
        " flatten_sets leading_size tree_map unflatten_sets"
    ),
    "metabench.api.phases": "Batches Choose Collect Episodic Fit Learn Measure Phase",
    "metabench.api.recipe": "Hyperparameters Recipe",
    "metabench.data.archives": "ZipLimits open_zip",
    "metabench.data.arrays": "ArrayCache Arrays content_digest",
    "metabench.data.folder": "DataHome",
    "metabench.data.splits": "digest_order split_banks split_groups",
    "metabench.data.weights": "load_weights",
    "metabench.engine.bases": "EmbeddingAlgorithm EpisodeFunction",
    "metabench.engine.gradient": "GradientAlgorithm GradientHyperparameters",
    "metabench.engine.inner": "sgd unroll",
    "metabench.engine.lift": "over_tasks",
    "metabench.engine.norm": "BatchNorm norm_and_pool",
    "metabench.engine.supervised": "SupervisedClassifier pretraining supervised_loss",
    "metabench.episodes.bank": "ClassBank SPLITS assert_disjoint",
    "metabench.episodes.protocol": "EpisodeShape Protocol Rotation",
    "metabench.errors": (
        "DataCorruptError DataMissingError MetabenchError ProtocolError UsageError"
    ),
    "metabench.hookspecs": "Lazy hookimpl",
    "metabench.experiment": "run",
    "pydantic": "Field",
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}

if not TYPE_CHECKING:  # or a type checker would believe that every name exists

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value: object = version("metabench")
        elif name in _MODULE_OF:
            value = getattr(import_module(_MODULE_OF[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
