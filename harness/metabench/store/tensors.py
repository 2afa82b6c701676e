"""Tensors on disk: safetensors, the same bytes for the same tensors, never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.episodes.digest import canonical_json
from metabench.store.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

_META = "meta"  # one entry only: safetensors writes several in no fixed order


def tensor_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> bytes:
    """Named tensors, and a JSON table beside them, as the content of a safetensors file.

    Tensors that share memory are written one by one; those of another device are copied.
    """
    from safetensors.torch import save

    plain = {name: _plain(tensor) for name, tensor in sorted(tensors.items())}
    return save(plain, {_META: canonical_json(dict(meta or {})).decode()})


def _plain(tensor: Tensor) -> Tensor:
    import torch

    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None
) -> None:
    """Write a new safetensors file, such as a cell's `checkpoint.safetensors`."""
    write_bytes(path, tensor_bytes(tensors, meta))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, on the CPU, and the JSON table beside them.

    Raises:
        ValueError: it is no whole safetensors file.
        OSError: it cannot be read.
    """
    return parse_tensors(path.read_bytes())


def parse_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `read_tensors`, of the file's content."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"no whole safetensors file: {error}") from error
    # The format: 8 bytes with the header's length, then the header in JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, json.loads(header.get("__metadata__", {}).get(_META, "{}"))
