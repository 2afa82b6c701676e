"""Files of weights: named by their content, verified, and nothing but tensors read from them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from metabench import DataCorruptError, DataMissingError, UsageError, load_weights
from metabench.data.folder import using_data_folder

Put = Callable[..., str]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Write a file of weights into the data folder, under the name that it should have."""
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()

    def written(content: bytes, stem: str = "net", suffix: str = ".safetensors", digits: int = 8):
        name = f"{stem}-{hashlib.sha256(content).hexdigest()[:digits]}{suffix}"
        (tmp_path / "weights" / name).write_bytes(content)
        return name

    return written


def saved(value: object, path: Path) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


@pytest.mark.parametrize("digits", [8, 11, 64])
def test_tensors_come_back_by_their_names(put: Put, digits: int) -> None:
    tensors = {"conv.weight": torch.randn(2, 3), "norm.bias": torch.arange(4.0)}
    found = load_weights(put(save(tensors), digits=digits))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("wrapped", ["", "state_dict", "model"])
def test_pytorchs_files_are_read_too(put: Put, tmp_path: Path, suffix: str, wrapped: str) -> None:
    tensors = {"module.a": torch.arange(3.0), "module.b": torch.ones(2, 2)}
    value = {wrapped: tensors, "epoch": 7} if wrapped else tensors
    found = load_weights(put(saved(value, tmp_path / "draft"), suffix=suffix))
    assert found.keys() == {"a", "b"}
    assert torch.equal(found["a"], torch.arange(3.0))


def test_of_a_cells_checkpoint_the_backbone_is_taken(put: Put) -> None:
    tensors = {"backbone.a": torch.ones(2), "head.weight": torch.ones(3), "steps": torch.ones(1)}
    assert load_weights(put(save(tensors))).keys() == {"a"}


def test_they_are_on_the_cpu_even_where_shapes_alone_are_looked_at(
    put: Put, tmp_path: Path
) -> None:
    names = [put(save({"a": torch.ones(2)}))]
    names += [put(saved({"a": torch.ones(2)}, tmp_path / "draft"), suffix=".pth")]
    with torch.device("meta"):
        found = [load_weights(name)["a"] for name in names]
    assert [value.tolist() for value in found] == [[1.0, 1.0]] * 2


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../net-12345678.pth",
            "/net-12345678.pth",
            "a/../../net-12345678.pth",
            "..-12345678.pth",
        ),
        *("net.pth", "net-1234567.pth", "net-1234567g.pth", "net-12345678.bin", "net-12345678"),
        *(
            "net-12345678.pth\n",
            "net-12345678.pth\0",
            "",
            f"net-{'0' * 65}.pth",
            "NET-1234567A.pth",
        ),
        "a\\..\\net-12345678.pth",
    ],
)
def test_other_names_are_refused_before_any_file_is_read(
    put: Put, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(UsageError, match="not the name of a file of weights") as found:
        load_weights(name)
    assert "STEM-HASH.safetensors" in found.value.hint


def test_a_file_that_is_not_there(put: Put, tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="there are no weights") as found:
        load_weights("net-12345678.safetensors")
    assert str(tmp_path / "weights" / "net-12345678.safetensors") in found.value.message
    assert found.value.hint == "put the file there"
    name = put(save({"a": torch.ones(2)}), stem="resnet18-omniglot")
    with pytest.raises(DataMissingError) as found:
        load_weights(name.replace("omniglot", "omniglott"))
    assert found.value.hint == f"did you mean {name}?"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_content_that_the_name_does_not_stand_for(put: Put, tmp_path: Path, suffix: str) -> None:
    name = put(save({"a": torch.ones(2)}), stem="my-net", suffix=suffix)
    path = tmp_path / "weights" / name
    other = save({"a": torch.zeros(2)})
    path.write_bytes(other)
    with pytest.raises(DataCorruptError, match=re.escape(str(path))) as found:
        load_weights(name)
    assert f"my-net-{hashlib.sha256(other).hexdigest()[:8]}{suffix}" in found.value.hint


def test_the_same_file_is_hashed_once_and_a_changed_one_again(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(save({"a": torch.ones(2)}))
    path = tmp_path / "weights" / name
    hashed, sha256 = [], hashlib.sha256
    monkeypatch.setattr(
        hashlib, "sha256", lambda content: hashed.append(len(content)) or sha256(content)
    )
    for _ in range(3):
        assert load_weights(name)["a"].tolist() == [1.0, 1.0]
    assert len(hashed) == 1
    changed = path.stat().st_mtime_ns
    os.utime(path, ns=(changed + 1, changed + 1))  # got anew, and the same
    load_weights(name)
    assert len(hashed) == 2
    path.write_bytes(save({"a": torch.zeros(2)}))  # of the same size
    os.utime(path, ns=(changed + 2, changed + 2))
    with pytest.raises(DataCorruptError):
        load_weights(name)


class Evil:
    def __reduce__(self):
        return os.system, ("touch it-ran",)


def test_no_code_in_a_pickle_is_run(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = put(saved({"a": Evil()}, tmp_path / "draft"), suffix=".pth")
    with pytest.raises(DataCorruptError, match="tensors alone"):
        load_weights(name)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b"", ".safetensors"),
        (b"not one", ".safetensors"),
        (save({"a": torch.ones(2)})[:-1], ".safetensors"),
        (b"", ".pth"),
        (b"not one", ".pt"),
    ],
)
def test_what_is_no_file_of_tensors_is_refused(put: Put, content: bytes, suffix: str) -> None:
    with pytest.raises(DataCorruptError, match="are refused") as found:
        load_weights(put(content, suffix=suffix))
    assert len(found.value.message.splitlines()) == 1
    assert found.value.hint


@pytest.mark.parametrize("value", [torch.ones(2), [torch.ones(2)], {"a": 1.0}, {1: torch.ones(2)}])
def test_what_is_no_table_of_tensors_is_refused(put: Put, tmp_path: Path, value: object) -> None:
    with pytest.raises(DataCorruptError, match="no table of tensors"):
        load_weights(put(saved(value, tmp_path / "draft"), suffix=".pth"))


def test_a_run_looks_in_the_data_folder_that_it_was_told(put: Put, tmp_path: Path) -> None:
    name = put(save({"a": torch.ones(2)}))
    with using_data_folder(tmp_path / "elsewhere"), pytest.raises(DataMissingError):
        load_weights(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "weights").rename(tmp_path / "elsewhere" / "weights")
    with using_data_folder(tmp_path / "elsewhere"):
        assert load_weights(name).keys() == {"a"}
    with pytest.raises(DataMissingError):
        load_weights(name)
