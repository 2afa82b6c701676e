"""A worker keeps its freed memory: pages are touched once, not in every step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from metabench.runner.allocator import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    held = [torch.full((4_000_000,), 1.0) for _ in range(8)]  # 16 MB each
    return sum(float(x[0]) for x in held)

for _ in range(12):  # it takes a few until all holes are of one size
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how],
        capture_output=True,
        text=True,
        check=True,
        # glibc adapts this to what was freed; set, it stays, and each block is given back.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator only")
def test_freed_memory_is_used_again() -> None:
    given_back, kept = faults("as it is"), faults("keep")
    # 128 MB are 31,000 pages, in each of the five steps.
    assert kept < 2_000
    assert given_back > 150_000
