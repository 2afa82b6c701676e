"""Weights from files that the user put into the data folder, named by their content."""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.data.folder import DataHome, data_folder
from metabench.errors import DataCorruptError, DataMissingError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "weights"
"""Below the data folder."""
FILE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.+-]*-[0-9a-f]{8,64}\.(safetensors|pth|pt)"
"""STEM-HASH.safetensors: the hash is the beginning of the content's SHA-256."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""What training scripts call the table of weights among the other things that they save."""
PARALLEL = "module."
"""Before every name in what was saved from `DataParallel`."""
BACKBONE = "backbone."
"""Before the backbone's names in the checkpoint of a cell."""

_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
_known: dict[tuple[Path, int, int], str] = {}
"""SHA-256 by path, size and time of change: a cell reads its weights more than once."""


def load_weights(name: str) -> dict[str, Tensor]:
    """The tensors of a file in the folder `weights` of the data folder, by name, on the CPU.

    The file is called STEM-HASH.safetensors (or .pth, .pt: PyTorch's own, of which only tensors are
    read, no pickled code is run), where HASH is the first 8 hexadecimal digits, or more, of the
    content's SHA-256: so the name, which stands among a cell's hyper-parameters and thus in its
    key, says what the content is. It is what torch hub calls its files.

    Of the checkpoint of a cell (`checkpoint.safetensors`, which has more than a backbone in it) the
    backbone is taken, and the prefix `backbone.` off its names; likewise `module.` of
    `DataParallel`, and the table `state_dict` or `model` of a training script's checkpoint.

    Args:
        name: the file's name; it can't lead out of the folder.

    Raises:
        UsageError: no file can have that name; the hint says how it should be called.
        DataMissingError: there is no such file; the hint says where it belongs.
        DataCorruptError: its content is not what its name says, or it holds no table of tensors.
    """
    if not re.fullmatch(FILE_PATTERN, name):
        raise UsageError(
            f"{name!r} is not the name of a file of weights",
            "it is STEM-HASH.safetensors (or .pth, .pt), HASH the first 8 digits of its SHA-256",
        )
    folder = DataHome(data_folder(), FOLDER).raw
    content, found = _read(folder, name)
    path = folder / name
    match = _HASH.search(name[name.rindex("-") :])
    assert match is not None  # the pattern has it
    if not found.startswith(match[1]):
        raise DataCorruptError(
            f"the weights {path} are not what their name says: their SHA-256 begins {found[:8]}",
            f"get the file anew, or call it {name[: name.rindex('-')]}-{found[:8]}{path.suffix}",
        )
    read = _of_safetensors if path.suffix == ".safetensors" else _of_pytorch
    return _without_prefix(read(content, path))


def _read(folder: Path, name: str) -> tuple[bytes, str]:
    """A file's content, and its SHA-256."""
    try:
        with (folder / name).open("rb") as file:
            facts, content = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        there = [p.name for p in sorted(folder.glob("*")) if re.fullmatch(FILE_PATTERN, p.name)]
        near = difflib.get_close_matches(name, there, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else "put the file there"
        raise DataMissingError(f"there are no weights {folder / name}", hint) from None
    except OSError as error:
        raise DataMissingError(
            f"the weights {folder / name} cannot be read: {error.strerror or error}",
            "mend its permissions",
        ) from None
    state = (folder / name, len(content), facts.st_mtime_ns)
    if state not in _known:
        _known[state] = hashlib.sha256(content).hexdigest()
    return content, _known[state]


def _of_safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise _refused(path, f"it is no whole safetensors file ({error})") from None


def _of_pytorch(content: bytes, path: Path) -> dict[str, Tensor]:
    import torch

    try:
        with torch.device("cpu"):
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # it has many ways to say so, pickle's, zipfile's and its own
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refused(path, f"it is no file of tensors alone ({what})") from None
    for key in WRAPPERS:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in saved.items()
    ):
        raise _refused(path, "it is no table of tensors by name")
    return dict(saved)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if tensors and all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): value for name, value in tensors.items()}
    of_backbone = {
        name.removeprefix(BACKBONE): value
        for name, value in tensors.items()
        if name.startswith(BACKBONE)
    }
    return of_backbone or tensors


def _refused(path: Path, what: str) -> DataCorruptError:
    return DataCorruptError(
        f"the weights {path} are refused: {what}",
        "save tensors by name: safetensors' save_file, or torch.save(network.state_dict(), ...)",
    )
