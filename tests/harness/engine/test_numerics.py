"""What decides the last digits is set for a run, whatever the process had, and put back after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from metabench.engine.numerics import process_kept, set_up_process

CPU = torch.device("cpu")
READ: dict[str, Callable[[], Any]] = {
    "threads": torch.get_num_threads,
    "dtype": torch.get_default_dtype,
    "device": torch.get_default_device,
    "autocast": lambda: torch.is_autocast_enabled("cpu"),
    "precision": torch.get_float32_matmul_precision,
    "grad": torch.is_grad_enabled,
    "deterministic": torch.get_deterministic_debug_mode,
    "benchmark": lambda: torch.backends.cudnn.benchmark,
}


def facts() -> dict[str, Any]:
    return {name: read() for name, read in READ.items()}


@pytest.fixture
def upset() -> Iterator[None]:
    """A process in which somebody has set everything otherwise."""
    with process_kept():
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_autocast_enabled("cpu", True)
        torch.set_float32_matmul_precision("medium")
        torch.set_grad_enabled(False)
        torch.backends.cudnn.benchmark = True
        yield


def test_a_run_finds_the_same_process_everywhere(upset: None) -> None:
    before = facts()
    with process_kept():
        set_up_process(CPU)
        assert facts() == {
            "threads": 1,
            "dtype": torch.float32,
            "device": CPU,
            "autocast": False,
            "precision": "highest",
            "grad": True,
            "deterministic": 1,
            "benchmark": False,
        }
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert facts() == before
