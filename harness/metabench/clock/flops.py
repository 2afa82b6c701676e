"""Floating-point operations of a call, and the operators whose arithmetic was not counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from metabench.engine.modes import using_engine

log = logging.getLogger("metabench.clock")

# fmt: off
HEAVY = (
    "linalg_", "_linalg_", "lu_", "cholesky", "triangular_solve", "ormqr", "geqrf", "orgqr",
    "_cdist_", "_pdist_", "_euclidean_dist",
    "mkldnn_rnn", "_cudnn_rnn", "miopen_rnn", "_thnn_fused_", "lstm", "gru", "rnn_",
    "_fft_", "_trilinear", "_sparse_", "sparse_", "_grouped_mm", "grid_sampler", "mkldnn_linear",
    "_addmm_activation", "_int_mm", "histc", "_ctc_loss", "_embedding_bag",
    "_scaled_dot_product_", "_flash_attention", "_efficient_attention",
)
# fmt: on
"""Beginnings of names in `aten` that stand for more arithmetic than an operation an element.

Element-wise operations, reductions, normalisation and pooling aren't among them: by custom FLOPs
are those of matrix products and convolutions, and the others are bound by memory.
"""
LIGHT = ("linalg_vector_norm", "linalg_diagonal", "linalg_cross")
"""Of these the exceptions."""
_OWN = ("aten", "prim", "prims", "profiler")


@dataclass(frozen=True)
class Flops:
    """What was counted.

    Attributes:
        counted: operations; a multiply-add is two.
        uncounted: operators that ran and stand for work which is not in `counted`, by name.
    """

    counted: int
    uncounted: tuple[str, ...]


def count_flops(call: Callable[[], object]) -> Flops | None:
    """Count the operations of a call, on the looped eager form of the inner loop.

    The vmapped form would count grouped convolutions as full ones. The call is made once.

    Returns:
        None where an operator of it can't be counted at all, which is logged.
    """
    counter, uncounted = FlopCounterMode(display=False), _Uncounted()
    try:
        # The counter takes operators apart, so it stands before the other, which sees the parts.
        with using_engine("loop"), uncounted, counter:
            call()
    except Exception as error:
        log.info("FLOPs can't be counted: %s: %s", type(error).__name__, error)
        return None
    return Flops(int(counter.get_total_flops()), tuple(sorted(uncounted.names)))


class _Uncounted(TorchDispatchMode):
    """Notes which operators ran that the counter has no formula for."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", func)
        if packet not in flop_registry and is_heavy(str(packet)):
            self.names.add(str(packet))
        return func(*args, **(kwargs or {}))


def is_heavy(name: str) -> bool:
    """Whether an operator such as `aten.linalg_solve` stands for work that has to be counted.

    Operators of other namespaces are anybody's own kernels.
    """
    namespace, _, operator = name.partition(".")
    return namespace not in _OWN or (operator.startswith(HEAVY) and operator not in LIGHT)
