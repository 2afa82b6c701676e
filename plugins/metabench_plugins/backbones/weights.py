"""Weights from a file: what the backbones' hyper-parameter `weights` means, and loading them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from metabench import Field, Hyperparameters, UsageError, load_weights

FILES = (".safetensors", ".pth", ".pt")
COUNTER = "num_batches_tracked"
"""PyTorch's batch norm counts batches, which decides nothing; metabench's doesn't."""

WeightsFile = Annotated[
    str | None,
    Field(description="a file STEM-HASH.safetensors, or .pth, in the data folder's folder weights"),
]


class WithWeights(Hyperparameters):
    """The hyper-parameters of a backbone that may begin with the weights of a file."""

    weights: WeightsFile = None


def load_file(backbone: nn.Module, name: str | None, leave_out: Collection[str] = ()) -> None:
    """Replace a backbone's new weights by those of a file, where one is given.

    Args:
        leave_out: see `load_into`.

    Raises:
        MetabenchError: there is no such file, it isn't what its name says, or isn't of this
            backbone under these hyper-parameters.
    """
    if name is not None:
        load_into(backbone, load_weights(name), f"the weights {name}", leave_out)


def load_into(
    network: nn.Module, tensors: Mapping[str, Tensor], what: str, leave_out: Collection[str] = ()
) -> None:
    """Copy tensors into the parameters and buffers of a network that have their names.

    Each of the network's must be there, in its shape, and nothing else but counters. On the `meta`
    device all that is checked too, and nothing copied.

    Args:
        what: stands in the message.
        leave_out: beginnings of names that may stand there and aren't taken: a classifier's.

    Raises:
        UsageError: they don't fit.
    """
    own = {n: t for n, t in network.state_dict().items() if not n.endswith(COUNTER)}
    given = {
        n: t
        for n, t in tensors.items()
        if not n.endswith(COUNTER) and not n.startswith(tuple(leave_out))
    }
    missing = [n for n in own if n not in given]
    foreign = sorted(n for n in given if n not in own)  # a file's order is chance
    if missing or foreign:
        told = [_told("lack", missing), _told("have beside them", foreign)]
        raise _unfit(what, " and ".join(filter(None, told)))
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            shapes = [" x ".join(map(str, t.shape)) or "one" for t in (given[name], tensor)]
            raise _unfit(what, f"have {name} of {shapes[0]} values, and here it has {shapes[1]}")
    with torch.no_grad():
        for name, tensor in own.items():
            if not tensor.is_meta:
                tensor.copy_(given[name])


def _told(what: str, names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{what} {names[0]}{more}" if names else ""


def _unfit(what: str, why: str) -> UsageError:
    return UsageError(
        f"{what} don't fit: they {why}",
        "take those of this network, and set the hyper-parameters that they were trained with",
    )
