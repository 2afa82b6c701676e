"""The data folder: where it is, who may write to it, what may be removed."""

import os
from pathlib import Path

import platformdirs
import pytest

from metabench.data.folder import DataHome, cache_folder, data_folder, is_writable
from metabench.errors import UsageError


def test_option_wins_over_variable_wins_over_user_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METABENCH_CACHE", raising=False)
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "variable"))
    assert data_folder(tmp_path / "option") == tmp_path / "option"
    assert data_folder() == tmp_path / "variable"
    monkeypatch.delenv("METABENCH_DATA")
    assert data_folder() == platformdirs.user_cache_path("metabench").absolute() / "data"
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "data"
    assert cache_folder() == tmp_path / "cache"


def test_relative_and_home_folders_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert data_folder("here") == tmp_path / "here"
    assert data_folder("~/data") == tmp_path / "me" / "data"


def test_a_file_is_no_data_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        data_folder(tmp_path / "file")


def test_a_folder_without_write_permission_is_read_only_for_everybody(tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    assert is_writable(folder)
    assert is_writable(folder / "not" / "yet" / "there")
    folder.chmod(0o555)
    assert not is_writable(folder)
    assert not is_writable(folder / "not" / "yet" / "there")
    folder.chmod(0o755)


def test_caches_go_to_the_users_own_where_the_data_folder_is_read_only(home: DataHome) -> None:
    assert home.place_to_write() == home.raw
    home.folder.mkdir()
    home.folder.chmod(0o555)
    beside = home.place_to_write()
    assert cache_folder() in beside.parents
    assert DataHome(home.folder.parent / "other", home.name).places[1] != beside
    cache_folder().mkdir()
    cache_folder().chmod(0o555)
    assert home.writable() is None
    with pytest.raises(UsageError, match="no folder to write to"):
        home.place_to_write()
    cache_folder().chmod(0o755)
    home.folder.chmod(0o755)


def test_remove_frees_what_was_made_and_leaves_what_a_person_put_there(home: DataHome) -> None:
    kept = home.raw / "archive.zip"
    made = home.raw / "cache" / "images" / "images.npy"
    fetched = home.places[1] / "downloaded" / "x" / "file"
    for path, size in ((kept, 5), (made, 7), (fetched, 11)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"." * size)
    assert home.size() == 23
    assert home.remove() == 18
    assert home.size() == 5
    assert kept.exists()
    assert not home.places[1].exists()
    assert home.remove() == 0


def test_remove_says_that_a_read_only_cache_stays(home: DataHome) -> None:
    (home.raw / "cache").mkdir(parents=True)
    home.raw.chmod(0o555)
    with pytest.raises(UsageError, match="read-only"):
        home.remove()
    home.raw.chmod(0o755)
    assert (home.raw / "cache").is_dir()


def test_an_interrupted_fetch_leaves_nothing(home: DataHome) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        home.fetch("archives", fill, lambda folder: True)
    assert os.listdir(home.raw / "downloaded") == []


def test_a_fetch_appears_whole_and_replaces_a_partial_one(home: DataHome) -> None:
    def fill(folder: Path) -> None:
        (folder / "file").write_bytes(b"whole")

    def is_whole(folder: Path) -> bool:
        return (folder / "file").exists()

    (home.raw / "downloaded" / "archives").mkdir(parents=True)
    (home.raw / "downloaded" / "archives" / "part").write_bytes(b"part")
    target = home.fetch("archives", fill, is_whole)
    assert [path.name for path in target.iterdir()] == ["file"]
    assert target.parent in home.downloads
