"""In which precision networks are computed: named, and a part of what a cell is.

- `float32`: as PyTorch computes it, TensorFloat-32 switched off.
- `tf32`: products of matrices and convolutions on CUDA's TensorFloat-32 units: 10 bits of a factor
  count, sums stay float32.
- `bf16`: `torch.autocast` in bfloat16 around training, adaptation and prediction: 8 bits of a
  factor count; parameters, losses and optimisers stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from metabench.errors import UsageError, unknown_name

Precision = Literal["float32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def resolve_precision(name: str, device_type: str) -> Precision:
    """The precision of a name that a user gave.

    Raises:
        UnknownNameError: there is none of that name.
        UsageError: the device hasn't got it.
    """
    for known in PRECISIONS:
        if known != name:
            continue
        if known == "tf32" and device_type != "cuda":
            raise UsageError(
                f"precision tf32 is CUDA's own, and this would run on {device_type}",
                "use --device cuda, or --precision float32 or bf16",
            )
        return known
    raise unknown_name("precision", name, PRECISIONS)


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits as losses, argmax and differences are taken of them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def computing_in(precision: Precision, device_type: str) -> Iterator[None]:
    """Compute in this precision for the duration, on a device of this type."""
    if precision == "bf16":
        # Without the cache of cast weights: an optimiser's step inside would not be seen.
        with torch.autocast(device_type, torch.bfloat16, cache_enabled=False):
            yield
    elif precision == "tf32":
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
    else:
        yield
