"""Files: whole or not at all, and what the system says in one line and a hint."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest
import torch

from metabench.errors import StoreError
from metabench.store import files
from metabench.store.tensors import parse_tensors, read_tensors, tensor_bytes, write_tensors

STORE = Path(files.__file__).parent


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "no permission"),
        (errno.EIO, "cannot use"),
    ],
)
def test_what_the_system_says_is_an_error_of_two_lines(tmp_path, number, words):
    with pytest.raises(StoreError, match=words) as caught, files.storing(tmp_path):
        raise OSError(number, "whatever it says", str(tmp_path / "file"))
    message, hint = str(caught.value).splitlines()
    assert str(tmp_path) in message
    assert "--out" in hint


def test_other_errors_pass(tmp_path):
    with pytest.raises(ZeroDivisionError), files.storing(tmp_path):
        raise ZeroDivisionError


def test_json_is_the_same_bytes_for_the_same_table(tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    files.write_json(one, {"b": 1.5, "a": ["é", None]})
    files.write_json(other, {"a": ["é", None], "b": 1.5})
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes().endswith(b"}\n")
    assert b"\r" not in one.read_bytes()
    assert files.read_json(one) == {"a": ["é", None], "b": 1.5}
    with pytest.raises(ValueError):
        files.write_json(one, {"a": float("nan")})


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": NaN}', b"\xff\xfe", b'{"a": 1} 2'])
def test_what_is_no_json_is_a_value_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(ValueError):
        files.read_json(path)


def test_a_digest_is_of_content(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"content")
    assert files.file_digest(path) == files.bytes_digest(b"content")
    assert files.file_digest(path) != files.bytes_digest(b"contents")


def test_replacing_keeps_the_old_file_if_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "x"
    files.replace_bytes(path, b"old", "u")
    files.replace_bytes(path, b"new", "u")
    assert path.read_bytes() == b"new"

    def fail(handle):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError):
        files.replace_bytes(path, b"newer", "u")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_to_publish_wins(tmp_path):
    target = tmp_path / "place"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    assert files.publish_folder(tmp_path / "first", target)
    assert not files.publish_folder(tmp_path / "second", target)
    assert (target / "who").read_text() == "first"
    assert (tmp_path / "second" / "who").read_text() == "second"


def test_moving_away_finds_a_free_name(tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    for n in (1, 2, 3):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "file").touch()
        assert files.move_to_free_name(tmp_path / "x", away, "x") == away / f"x-{n}"
    assert files.move_to_free_name(tmp_path / "x", away, "x") is None


def test_tensors_are_the_same_bytes_in_any_order(tmp_path):
    tensors = {name: torch.full((2,), float(i)) for i, name in enumerate("abcdefgh")}
    backwards = dict(reversed(tensors.items()))
    assert tensor_bytes(tensors, {"a": 1, "b": 2}) == tensor_bytes(backwards, {"b": 2, "a": 1})
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, tensors)
    loaded, meta = read_tensors(path)
    assert meta == {}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match="no whole"):
        parse_tensors(path.read_bytes()[:-3])


def test_nothing_on_disk_is_a_pickle():
    """No module of the store imports a pickler, or calls what pickles or unpickles."""
    picklers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in sorted(STORE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not picklers & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in picklers, path
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = f"{node.value.id}.{node.attr}"
                assert call not in {"torch.save", "torch.load", "np.load", "np.save"}, path
