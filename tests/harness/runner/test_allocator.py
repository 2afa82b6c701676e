"""A worker keeps its freed memory: pages are touched once, not in every step."""

from __future__ import annotations

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
    # 40 MB each: glibc maps whatever is over 32 MB by itself, and unmaps it when it's freed.
    held = [torch.full((10_000_000,), 1.0) for _ in range(3)]
    return sum(float(x[0]) for x in held)

for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator only")
def test_freed_memory_is_used_again() -> None:
    given_back, kept = faults("as it is"), faults("keep")
    # 120 MB are 29,000 pages, in each of the five steps. The first ones may leave holes, which one
    # of the later ones fills.
    assert kept < 0.5 * given_back
