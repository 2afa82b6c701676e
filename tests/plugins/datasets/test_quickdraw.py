"""The drawings inside the package."""

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from metabench import UsageError
from metabench.data.arrays import content_digest
from metabench.errors import DataCorruptError
from metabench_plugins.datasets import quickdraw
from metabench_plugins.datasets.quickdraw import QuickDraw, classes_by_split, named_groups

FILES = Path(quickdraw.__file__).parent / "files"
BUILD = Path(__file__).parents[3] / "ci" / "build_quickdraw.py"


@pytest.fixture(scope="module")
def names() -> tuple[str, ...]:
    return quickdraw.decode((FILES / "quickdraw.xz").read_bytes())[0]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_quickdraw", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_content_is_frozen(tmp_path: Path) -> None:
    dataset = QuickDraw(tmp_path)
    assert dataset.digest() == "ea717ff45e18d87becb7e07cfabe9821"
    dataset.verify()  # of the file in the package
    dataset.prepare()
    dataset.verify()  # of the cache


def test_it_is_what_the_source_gives(quickdraw_source: Path, build: ModuleType) -> None:
    with np.load(quickdraw_source, allow_pickle=False) as source:
        order = np.argsort(source["classes"])
        names = source["classes"][order].tolist()
        images = source["images"][order].reshape(34500, 1, 28, 28)
    digest = content_digest(names, quickdraw.offsets(), {"images": images})
    assert digest == build.SOURCE_DIGEST == "04ed2f7b22de419b41cb40f9f17108aa"
    levels = build.to_levels(images)
    np.testing.assert_array_equal(levels, np.rint(images / 17))
    mine, decoded = quickdraw.decode((FILES / "quickdraw.xz").read_bytes())
    assert list(mine) == names
    np.testing.assert_array_equal(decoded, levels * 17)
    few = build.encode(names[:2], levels[:200])
    np.testing.assert_array_equal(quickdraw.decode(few)[1], decoded[:200])


def test_the_file_fits_and_google_is_named_beside_it() -> None:
    assert (FILES / "quickdraw.xz").stat().st_size < 5_000_000
    attribution = (FILES / "quickdraw_ATTRIBUTION.txt").read_text()
    assert "Google, Inc. under the Creative Commons Attribution 4.0" in attribution
    assert "https://creativecommons.org/licenses/by/4.0/" in attribution


def test_split_is_241_52_52_and_cuts_no_group(names: tuple[str, ...]) -> None:
    splits = {split: set(chosen) for split, chosen in classes_by_split(names).items()}
    assert {k: len(v) for k, v in splits.items()} == {"train": 241, "validation": 52, "test": 52}
    assert set().union(*splits.values()) == set(names)
    for group in named_groups():
        assert any(set(group) <= chosen for chosen in splits.values()), group


def test_split_is_frozen(names: tuple[str, ...]) -> None:
    splits = classes_by_split(names)
    assert splits["validation"][:4] == ("The Mona Lisa", "anvil", "apple", "basket")
    assert splits["test"][:4] == ("The Eiffel Tower", "axe", "banana", "bathtub")
    order = [name for split in ("train", "validation", "test") for name in splits[split]]
    assert content_digest(order, np.arange(346), {}) == "fc3ca56ced1b614c0a4cbf7a928663e5"


def test_groups_are_of_known_names_and_disjoint_and_in_the_card(names: tuple[str, ...]) -> None:
    grouped = [name for group in named_groups() for name in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) <= set(names)
    for pair in ({"coffee cup", "mug", "cup"}, {"school bus", "bus"}, {"bat", "baseball bat"}):
        assert any(pair <= set(group) for group in named_groups())
    assert all(", ".join(group) in QuickDraw.card for group in named_groups())


def test_banks_are_the_drawings_of_their_classes(tmp_path: Path) -> None:
    names, images = quickdraw.decode((FILES / "quickdraw.xz").read_bytes())
    banks = QuickDraw(tmp_path).banks("default", 28)
    assert list(banks) == ["train", "validation", "test"]
    for split, bank in banks.items():
        assert bank.split == split
        assert bank.digest == QuickDraw(tmp_path).digest()
        assert set(bank.class_sizes) == {100}
        first = bank.names[0]
        start = names.index(first) * 100
        np.testing.assert_array_equal(bank.items(np.arange(100)), images[start : start + 100])
    assert QuickDraw(tmp_path).item(None).shape == banks["train"].data.shape[1:]
    assert all(bank.data is banks["train"].data for bank in banks.values())
    assert isinstance(banks["train"].data, np.memmap)


def test_the_second_start_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    QuickDraw(tmp_path).prepare()

    def never(_: bytes) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(quickdraw, "decode", never)
    assert QuickDraw(tmp_path).banks("default", None)["train"].n_classes == 241
    assert (tmp_path / "quickdraw" / "cache" / "images-28" / "images.npy").exists()


def test_where_nothing_can_be_written_it_works_in_memory_with_one_warning(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quickdraw._in_memory.cache_clear()
    own_cache.mkdir()
    for folder in (own_cache, tmp_path):
        folder.chmod(0o555)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert QuickDraw(tmp_path).banks("default", None)["test"].n_items == 5200
    for folder in (tmp_path, own_cache):
        folder.chmod(0o755)
    (warning,) = [r.getMessage() for r in caplog.records if "into memory" in r.getMessage()]
    assert "neither" in warning
    assert "can be written" in warning
    assert not (tmp_path / "quickdraw").exists()


def test_a_damaged_cache_is_named_and_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = QuickDraw(tmp_path)
    dataset.prepare()
    file = tmp_path / "quickdraw" / "cache" / "images-28" / "images.npy"
    with open(file, "r+b") as stream:
        stream.seek(5_000_000)
        stream.write(b"\x55")
    with pytest.raises(DataCorruptError, match=r"images\.npy"):
        dataset.verify()
    dataset.prepare()
    assert "images.npy" in caplog.text
    dataset.verify()


def test_a_damaged_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "quickdraw.xz"
    damaged.write_bytes((FILES / "quickdraw.xz").read_bytes()[:-100])
    monkeypatch.setattr(quickdraw, "_PACKED", damaged)
    with pytest.raises(DataCorruptError, match="cannot be read"):
        QuickDraw(tmp_path).prepare()


def test_remove_frees_the_cache(tmp_path: Path) -> None:
    dataset = QuickDraw(tmp_path)
    assert dataset.remove() == 0
    dataset.prepare()
    assert dataset.remove() > 27_000_000
    assert list(tmp_path.glob("quickdraw*")) == []
    assert dataset.availability() == "ready"


@pytest.mark.parametrize(("split", "size"), [("lake", None), ("default", 32)])
def test_what_it_does_not_have_is_a_usage_error(
    tmp_path: Path, split: str, size: int | None
) -> None:
    with pytest.raises(UsageError):
        QuickDraw(tmp_path).banks(split, size)
