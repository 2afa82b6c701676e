"""What decides the last digits of a number: device type, dtype, threads, engine, chunk sizes.

Every value follows from shapes and the device type by the tables here, never from free memory,
load, a worker count or a timed trial, and all of it is part of a cell's identity.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metabench.engine import chunks
from metabench.engine.precision import Precision
from metabench.episodes.random import stream_key
from metabench.errors import UsageError

THREADS = {"cpu": 1, "cuda": 1}
"""PyTorch threads a worker. One: two workers of one thread do more than one of two."""

_AUTOCAST = ("cpu", "cuda")

ITEMS_A_CHUNK = 256
"""Items that a `Fit` phase is handed at once."""


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device.

    Raises:
        UsageError: CUDA asked for where there is none, or no device of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"there is no device called {name!r}", "use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(
                f"device {name!r} asked for, but PyTorch sees {count} CUDA devices",
                "use --device cpu, or install a PyTorch build with CUDA and its driver",
            )
    elif device.type != "cpu":
        raise UsageError(f"device {name!r} is not supported", "use auto, cpu, cuda or cuda:N")
    return device


def numerics(
    device_type: str, engine: str = "loop", precision: Precision = "float32"
) -> dict[str, Any]:
    """The part of a cell's identity that is about arithmetic.

    Args:
        engine: how the inner loop is run, as `Engines` writes it.
        precision: in which networks are computed.
    """
    return {
        "device": device_type,
        "dtype": precision,
        "threads": THREADS[device_type],
        "engine": engine,
        "chunks": {**chunks.table(device_type), "fit_items": ITEMS_A_CHUNK},
        "torch": ".".join(torch.__version__.split(".")[:2]),
    }


def set_up_process(device: torch.device) -> None:
    """Make this process compute the same digits as any other on the same kind of device."""
    torch.set_num_threads(THREADS[device.type])
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)
    torch.set_grad_enabled(True)
    for kind in _AUTOCAST:  # a notebook may have switched it on, or chosen another device
        torch.set_autocast_enabled(kind, False)
    _set_default_device(None)
    # As `use_deterministic_algorithms(True, warn_only=True)`, which imports the compiler: seconds.
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may vary
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def process_kept() -> Iterator[None]:
    """Put back, at the end, all that `set_up_process` and `seed_all` change."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    precision, grad = torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    deterministic = torch.get_deterministic_debug_mode()
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in _AUTOCAST}
    place = torch.get_default_device()
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.allow_tf32
    numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.set_grad_enabled(grad)
        for kind, enabled in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
        _set_default_device(place)
        torch.set_deterministic_debug_mode(deterministic)
        cudnn.benchmark, cudnn.allow_tf32 = flags
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])


def _set_default_device(device: torch.device | None) -> None:
    """Where tensors go that are made without saying where; None: the CPU."""
    if torch.get_default_device() != (device or torch.device("cpu")):  # costs at every operation
        torch.set_default_device(device)


def seed_all(*parts: object) -> None:
    """Seed the global generators from anything that has a canonical form.

    PyTorch's is what networks and dropout use. Python's and NumPy's are for plugins that should
    draw from `ctx.rng` and do not: they get the same numbers again, at least.
    """
    seed = int.from_bytes(stream_key(*parts)[:8], "little")
    torch.manual_seed(seed >> 1)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def one_thread_a_kernel() -> Iterator[None]:
    """PyTorch's kernels each run in one thread; Python's threads may be several all the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generator_states() -> tuple[Tensor, Any, Any]:
    """The states of the generators that `seed_all` seeds, those of devices left out."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def set_generators(states: tuple[Tensor, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])


def same_states(one: tuple[Tensor, Any, Any], other: tuple[Tensor, Any, Any]) -> bool:
    of_numpy = zip(one[2], other[2], strict=True)
    return (
        torch.equal(one[0], other[0])
        and one[1] == other[1]
        and all(np.array_equal(a, b) for a, b in of_numpy)
    )
