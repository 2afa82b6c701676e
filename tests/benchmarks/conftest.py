"""Benchmarks in the tests' own run: each once, untimed (see `addopts`), so that none can rot."""

from metabench.testing.benchmarks.hooks import pytest_benchmark_update_machine_info

__all__ = ["pytest_benchmark_update_machine_info"]
