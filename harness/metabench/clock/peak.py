"""The arithmetic that this machine reaches at most: the best of a matrix product and a convolution.

Measured with the process's own threads, once a process. It is what users could get here from the
kernels that PyTorch has, not what the processor's data sheet says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from metabench.clock.stopwatch import stopwatch
from metabench.engine.precision import Precision, computing_in

SECONDS = 0.2
"""What each of the two may take, warm-up apart."""
FEWEST = 5
_SIDE = {"cpu": 1024, "cuda": 8192}
_IMAGES = {"cpu": (16, 64, 56), "cuda": (64, 256, 56)}
"""Images, channels in and out, and side: a 3 x 3 convolution."""

Source = Literal["matrix product", "convolution"]


class Peak(NamedTuple):
    """FLOP/s, and what reached it."""

    flops: float
    source: Source


def measured_peak(device: torch.device, precision: Precision = "float32") -> Peak:
    """The peak of this machine in a precision, with as many threads as PyTorch has now."""
    return _measured(str(device), precision, torch.get_num_threads())


@functools.cache
def _measured(device_name: str, precision: Precision, threads: int) -> Peak:
    device = torch.device(device_name)
    with torch.no_grad(), computing_in(precision, device.type):
        product = Peak(_rate(*_matrix_product(device), device), "matrix product")
        convolved = Peak(_rate(*_convolution(device), device), "convolution")
    return max(product, convolved)


def _rate(call: Callable[[], object], flops: float, device: torch.device) -> float:
    """FLOP/s of the fastest of several calls."""
    watch = stopwatch(device)
    for _ in range(2):
        watch.read(call)
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < SECONDS:
        times.append(watch.read(call).total)
    return flops / min(times)


def _matrix_product(device: torch.device) -> tuple[Callable[[], object], float]:
    side = _SIDE[device.type]
    one, other = (torch.full((side, side), 0.5, device=device) for _ in range(2))
    return (lambda: one @ other), 2.0 * side**3


def _convolution(device: torch.device) -> tuple[Callable[[], object], float]:
    images, channels, side = _IMAGES[device.type]
    data = torch.full((images, channels, side, side), 0.5, device=device)
    weight = torch.full((channels, channels, 3, 3), 0.5, device=device)
    data, weight = (x.to(memory_format=torch.channels_last) for x in (data, weight))
    flops = 2.0 * images * side**2 * channels**2 * 9
    return (lambda: F.conv2d(data, weight, padding=1)), flops
