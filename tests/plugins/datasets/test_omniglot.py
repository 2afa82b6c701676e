"""Omniglot: from archives, a tree or a download to banks, without surprises."""

import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from metabench import DataCorruptError, DataMissingError, UsageError, assert_disjoint
from metabench.data.arrays import content_digest
from metabench.data.folder import DataHome
from metabench_plugins.datasets import omniglot, omniglot_files
from metabench_plugins.datasets.omniglot import Omniglot, classes_by_split
from metabench_plugins.datasets.omniglot_files import HALVES, known_characters, read_ink

SIZES = {
    "vinyals": {"train": 1028, "validation": 172, "test": 423},
    "lake": {"train": 832, "validation": 132, "test": 659},
    "maml": {"train": 1100, "validation": 100, "test": 423},
    "reptile": {"train": 1200, "test": 423},
}


@pytest.fixture
def copy(prepared: Omniglot, tmp_path: Path) -> Omniglot:
    """A prepared Omniglot that a test may damage; without raw files."""
    source = prepared.folder / "omniglot" / "cache"
    shutil.copytree(source, tmp_path / "omniglot" / "cache")
    return Omniglot(tmp_path)


def no_png(*_: object, **__: object) -> None:
    raise AssertionError("a PNG was read")


def test_content_is_frozen(prepared: Omniglot) -> None:
    assert prepared.digest() == "500e2d90f7463365353485fc907cf518"
    prepared.verify()


def test_the_table_of_characters_is_complete_and_sorted() -> None:
    characters = known_characters()
    names = [c.name for c in characters]
    assert names == sorted(set(names))
    assert Counter(c.half for c in characters) == {"background": 964, "evaluation": 659}
    assert len({c.alphabet for c in characters}) == 50


@pytest.mark.parametrize("split", SIZES)
def test_split_sizes(split: str) -> None:
    assert {name: len(c) for name, c in classes_by_split(split).items()} == SIZES[split]


def test_splits_are_frozen() -> None:
    digests = {}
    for split in Omniglot.class_splits:
        parts = classes_by_split(split)
        order = [f"{part} {name}" for part, names in parts.items() for name in names]
        digests[split] = content_digest(order, np.arange(len(order) + 1), {})[:8]
    assert digests == {
        "vinyals": "3006d93f",
        "lake": "97cea500",
        "maml": "ea0b5238",
        "reptile": "e0b10132",
    }


def test_vinyals_is_the_published_list(vinyals_lists: Path) -> None:
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        published = (vinyals_lists / f"{file}.txt").read_text().split()
        assert classes_by_split("vinyals")[split] == tuple(sorted(published))


def test_lake_keeps_alphabets_whole_and_tests_on_the_evaluation_ones() -> None:
    split = {
        name: {c.split("/")[0] for c in classes}
        for name, classes in classes_by_split("lake").items()
    }
    assert {name: len(alphabets) for name, alphabets in split.items()} == {
        "train": 25,
        "validation": 5,
        "test": 20,
    }
    assert not split["train"] & split["validation"]
    halves = {c.alphabet: c.half for c in known_characters()}
    assert {halves[alphabet] for alphabet in split["test"]} == {"evaluation"}
    assert {halves[a] for a in split["train"] | split["validation"]} == {"background"}


@pytest.mark.parametrize("split", SIZES)
def test_banks_are_disjoint_on_unrotated_characters(prepared: Omniglot, split: str) -> None:
    banks = prepared.banks(split, None)
    assert_disjoint({name: bank.rotated() for name, bank in banks.items()})
    for name, bank in banks.items():
        assert (bank.split, len(bank.names)) == (name, SIZES[split][name])
        assert bank.rotated().n_classes == 4 * len(bank.names)
        assert set(bank.class_sizes) == {20}
        assert bank.digest == prepared.digest()
        assert bank.data.dtype == np.uint8
        assert bank.items().shape == (20 * len(bank.names), *prepared.item(None).shape)
        assert isinstance(bank.data, np.memmap)
        assert np.shares_memory(bank.data, banks["train"].data)


def test_a_bank_holds_the_drawings_of_its_names(
    prepared: Omniglot, omniglot_archives: Path
) -> None:
    bank = prepared.banks("lake", 105)["test"]
    name = bank.names[7]
    images = bank.items(np.arange(7 * 20, 8 * 20))
    with zipfile.ZipFile(omniglot_archives / "images_evaluation.zip") as archive:
        files = sorted(f for f in archive.namelist() if f"/{name}/" in f)
        for i, file in enumerate(files):
            with archive.open(file) as stream:
                ink = np.asarray(Image.open(stream).convert("L")) == 0
            np.testing.assert_array_equal(images[i, 0], ink * 255)
    small = prepared.banks("lake", None)["test"].items(np.array([7 * 20]))[0]
    assert small.shape == (1, 28, 28)
    mean_ink = images[0].mean()
    assert abs(small.mean() - mean_ink) < 0.1 * mean_ink  # resizing keeps the ink


def test_second_start_reads_no_png(copy: Omniglot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", no_png)
    monkeypatch.setattr(omniglot, "resize", no_png)
    assert copy.availability() == "ready"
    copy.prepare()
    assert copy.banks("vinyals", 28)["train"].n_items == 20560


def test_another_size_is_made_from_the_cache(
    copy: Omniglot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", no_png)
    assert copy.banks("vinyals", 14)["test"].items().shape == (8460, 1, 14, 14)
    assert copy.item(14).shape == (1, 14, 14)
    copy.verify()


def damage(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.seek(1_000_000)
        byte = stream.read(1)
        stream.seek(1_000_000)
        stream.write(bytes([byte[0] ^ 1]))


def test_damaged_images_are_named_and_mended_from_the_ink(
    copy: Omniglot, caplog: pytest.LogCaptureFixture
) -> None:
    file = copy.folder / "omniglot" / "cache" / "images-28" / "images.npy"
    before = file.read_bytes()
    damage(file)
    with pytest.raises(DataCorruptError, match=r"images-28 is corrupt: images\.npy"):
        copy.verify()
    copy.prepare()
    assert "images-28" in caplog.text
    assert file.read_bytes() == before
    copy.verify()


def test_damaged_ink_without_raw_files_is_missing_again(
    copy: Omniglot, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(copy.folder / "omniglot" / "cache" / "ink-105" / "ink.npy")
    with pytest.raises(DataCorruptError, match=r"ink-105 is corrupt: ink\.npy"):
        copy.verify()
    monkeypatch.setattr(torchvision.datasets, "Omniglot", no_network)
    with pytest.raises(DataMissingError, match="cannot be downloaded"):
        copy.prepare()


def no_network(*_: object, **__: object) -> None:
    raise OSError("the network is unreachable")


def test_missing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "Omniglot", no_network)
    dataset = Omniglot(tmp_path)
    assert dataset.availability() == "missing"
    for use in (dataset.digest, dataset.verify, lambda: dataset.banks("lake", None)):
        with pytest.raises(DataMissingError) as error:
            use()
        assert "metabench data prepare omniglot" in error.value.hint
    with pytest.raises(DataMissingError, match="cannot be downloaded: the network is unreach"):
        dataset.prepare()
    assert os.listdir(tmp_path / "omniglot" / "downloaded") == []


class StopError(Exception):
    pass


def test_an_interrupted_preparation_leaves_nothing_half_made(
    tmp_path: Path, omniglot_archives: Path
) -> None:
    (tmp_path / "omniglot").mkdir()
    (tmp_path / "omniglot" / "omniglot-py").symlink_to(omniglot_archives)
    dataset = Omniglot(tmp_path)

    def stop(what: str, fraction: float | None) -> None:
        if what == "omniglot: reading images_evaluation" and (fraction or 0) > 0:
            raise StopError

    with pytest.raises(StopError):
        dataset.prepare(stop)
    assert dataset.availability() == "unprepared"
    assert list((tmp_path / "omniglot").rglob("*.npy")) == []


def test_a_download_keeps_two_archives_and_an_interrupted_one_nothing(
    tmp_path: Path, omniglot_archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at = "images_evaluation"

    def fetched(root: str, background: bool, download: bool) -> None:
        """What torchvision's leaves behind: an archive and the tree unpacked from it."""
        assert download
        half = HALVES[0] if background else HALVES[1]
        (Path(root) / "omniglot-py" / half / "Alphabet").mkdir(parents=True)
        shutil.copy(omniglot_archives / f"{half}.zip", Path(root) / "omniglot-py")
        if half == stop_at:
            raise StopError

    monkeypatch.setattr(torchvision.datasets, "Omniglot", fetched)
    home = DataHome(tmp_path, "omniglot")
    with pytest.raises(StopError):
        omniglot_files.download(home, lambda what, fraction: None)
    assert os.listdir(tmp_path / "omniglot" / "downloaded") == []

    stop_at = ""
    said: list[str] = []
    omniglot_files.download(home, lambda what, fraction: said.append(what))
    assert [half for half in HALVES if f"omniglot: downloading {half}" in said] == list(HALVES)
    kept = tmp_path / "omniglot" / "downloaded" / "torchvision" / "omniglot-py"
    assert sorted(os.listdir(kept)) == [f"{half}.zip" for half in HALVES]
    assert Omniglot(tmp_path).availability() == "unprepared"
    assert Omniglot(tmp_path).remove() > 14_000_000
    assert Omniglot(tmp_path).availability() == "missing"


@pytest.mark.parametrize(("split", "size"), [("default", None), ("lake", 106), ("lake", 7)])
def test_what_it_does_not_have_is_a_usage_error(
    tmp_path: Path, split: str, size: int | None
) -> None:
    with pytest.raises(UsageError):
        Omniglot(tmp_path).banks(split, size)


# Reading raw files, on a few real characters that stand for the whole of it


@pytest.fixture
def few(
    tmp_path: Path, omniglot_archives: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, bytes]]:
    """The files of two characters of each half; only these are known."""
    chosen = {
        half: [c for c in known_characters() if f"images_{c.half}" == half][5:7] for half in HALVES
    }
    known = tuple(c for half in HALVES for c in chosen[half])
    monkeypatch.setattr(omniglot_files, "known_characters", lambda: known)
    found: dict[str, dict[str, bytes]] = {}
    for half in HALVES:
        with zipfile.ZipFile(omniglot_archives / f"{half}.zip") as archive:
            found[half] = {
                name: archive.read(name)
                for name in archive.namelist()
                if any(f"/{c.name}/" in name for c in chosen[half])
            }
    return found


def write_tree(root: Path, entries: dict[str, bytes]) -> None:
    for name, data in entries.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def write_zip(path: Path, entries: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def read(folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    return read_ink(DataHome(folder, "omniglot"), lambda what, fraction: None)


def test_tree_and_zips_give_the_same(tmp_path: Path, few: dict[str, dict[str, bytes]]) -> None:
    for half in HALVES:
        backwards = dict(reversed(few[half].items()))
        write_tree(tmp_path / "a" / "omniglot" / "omniglot-py", few[half])
        write_zip(tmp_path / "b" / "omniglot" / "omniglot-py" / f"{half}.zip", backwards)
    junk = tmp_path / "a" / "omniglot" / "omniglot-py" / HALVES[0] / ".DS_Store"
    junk.write_bytes(b"junk")
    from_tree, from_zips = read(tmp_path / "a"), read(tmp_path / "b")
    assert from_tree[0] == from_zips[0]
    assert len(from_tree[0]) == 4
    np.testing.assert_array_equal(from_tree[1], from_zips[1])
    assert from_tree[1].shape == (80, 105, 14)


def test_a_damaged_tree_gives_way_to_a_good_zip(
    tmp_path: Path, few: dict[str, dict[str, bytes]]
) -> None:
    root = tmp_path / "omniglot" / "omniglot-py"
    for half in HALVES:
        write_tree(root, few[half])
        write_zip(root / f"{half}.zip", few[half])
    (root / next(iter(few[HALVES[0]]))).write_bytes(b"no PNG")
    assert len(read(tmp_path)[0]) == 4


def test_what_differs_is_named(tmp_path: Path, few: dict[str, dict[str, bytes]]) -> None:
    root = tmp_path / "omniglot" / "omniglot-py"
    for half in HALVES:
        write_tree(root, few[half])
    files = sorted(few[HALVES[1]])
    character = "/".join(files[0].split("/")[1:3])

    def fault() -> str:
        with pytest.raises(DataCorruptError) as error:
            read(tmp_path)
        return error.value.message

    (root / files[0]).write_bytes(few[HALVES[1]][files[1]])
    assert f"the drawings of {character} differ" in fault()
    (root / files[0]).unlink()
    assert f"{character} has 19 drawings, not 20" in fault()
    shutil.rmtree((root / files[0]).parent)
    assert f"{character} is missing" in fault()


def test_a_picture_of_another_size_is_named(
    tmp_path: Path, few: dict[str, dict[str, bytes]]
) -> None:
    root = tmp_path / "omniglot" / "omniglot-py"
    for half in HALVES:
        write_tree(root, few[half])
    file = root / next(iter(few[HALVES[0]]))
    Image.new("1", (28, 28)).save(file)
    with pytest.raises(DataCorruptError, match=f"{file.name}.*28x28, not 105x105"):
        read(tmp_path)


def test_half_of_it_is_missing_data(tmp_path: Path, few: dict[str, dict[str, bytes]]) -> None:
    write_tree(tmp_path / "omniglot" / "omniglot-py", few[HALVES[0]])
    assert Omniglot(tmp_path).availability() == "missing"
    with pytest.raises(DataMissingError, match="images_evaluation"):
        read(tmp_path)
