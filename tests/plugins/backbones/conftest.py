"""What tests of given weights share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save
from torch import Tensor

Put = Callable[[dict[str, Tensor]], str]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Write tensors into the folder of weights of a data folder; returns the file's name."""
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()

    def written(tensors: dict[str, Tensor]) -> str:
        content = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
        name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.safetensors"
        (tmp_path / "weights" / name).write_bytes(content)
        return name

    return written
