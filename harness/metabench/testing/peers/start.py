"""What it costs to look: `metabench list` beside importing PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from metabench.testing.peers.fair import compared
from metabench.testing.peers.rows import Row, Setting, versioned


def looking(setting: Setting) -> Row:
    """Every other tool imports PyTorch before it can say what it has."""
    work = "metabench list, against importing PyTorch [s]"
    ours, peer = _process("-m", "metabench", "list"), _process("-c", "import torch")
    return compared(work, ours, peer, versioned("torch"), setting, setting.blocks_of(10, quick=3))


def _process(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)
