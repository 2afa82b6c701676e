"""Array caches: exact, memory-mapped, and never wrong without being noticed."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metabench.data.arrays import ArrayCache, Arrays, content_digest
from metabench.data.folder import DataHome
from metabench.errors import DataCorruptError, DataMissingError, UsageError

ITEMS = np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3)
FACTS = {"names": ["circle", "square"]}


def build() -> Arrays:
    return Arrays({"images": ITEMS, "weights": np.linspace(0, 1, 7)}, FACTS)


def never() -> Arrays:
    raise AssertionError("built although a good cache is there")


@pytest.fixture
def cache(home: DataHome) -> ArrayCache:
    return ArrayCache(home, "images-3", {"version": 1})


def only_file(cache: ArrayCache, name: str) -> Path:
    return cache.paths[0] / name


def test_second_time_it_is_mapped_and_not_built(cache: ArrayCache) -> None:
    assert not cache.present()
    assert cache.find() is None
    first = cache.get(build)
    second = cache.get(never)
    for found in (first, second):
        assert isinstance(found.arrays["images"], np.memmap)
        assert not found.arrays["images"].flags.writeable
        np.testing.assert_array_equal(found.arrays["images"], ITEMS)
        assert found.facts == FACTS
    assert cache.present()
    assert os.listdir(cache.paths[0].parent) == ["images-3"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        st.sampled_from(["u1", "<i8", ">i4", "<f4", "?"]),
        hnp.array_shapes(max_dims=4, max_side=5),
    )
)
def test_any_array_comes_back_exactly(home: DataHome, array: np.ndarray) -> None:
    made_by = {"content": array.tobytes().hex(), "type": array.dtype.str, "n": list(array.shape)}
    found = ArrayCache(home, "any", made_by).get(lambda: Arrays({"x": array}))
    assert found.arrays["x"].dtype == array.dtype
    assert found.arrays["x"].tobytes() == array.tobytes()
    assert found.arrays["x"].shape == array.shape


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["images.npy", "weights.npy", "manifest.json"])
def test_damage_is_noticed_named_and_mended(
    cache: ArrayCache,
    damage: Callable[[Path], None],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.get(build)
    damage(only_file(cache, name))
    gone = damage is Path.unlink and name == "manifest.json"
    with pytest.raises(DataMissingError if gone else DataCorruptError) as fault:
        cache.verify()
    if not gone:
        assert name in fault.value.message
        assert str(cache.paths[0]) in fault.value.message
    with caplog.at_level(logging.WARNING):
        mended = cache.get(build)
    warned = [record for record in caplog.records if name in record.getMessage()]
    assert len(warned) == (0 if gone else 1)
    np.testing.assert_array_equal(mended.arrays["images"], ITEMS)
    cache.verify()
    assert os.listdir(cache.paths[0].parent) == ["images-3"]


def test_present_notices_a_truncated_file_without_reading_it(cache: ArrayCache) -> None:
    cache.get(build)
    truncate(only_file(cache, "images.npy"))
    assert not cache.present()


def test_one_made_in_another_way_is_stale(cache: ArrayCache) -> None:
    cache.get(build)
    newer = ArrayCache(cache.home, cache.key, {"version": 2})
    assert not newer.present()
    with pytest.raises(DataMissingError):
        newer.verify()
    rebuilt = newer.get(lambda: Arrays({"images": ITEMS + 1}))
    np.testing.assert_array_equal(rebuilt.arrays["images"], ITEMS + 1)
    assert not cache.present()


def test_a_corrupt_cache_in_a_read_only_folder_is_made_anew_elsewhere(cache: ArrayCache) -> None:
    cache.get(build)
    flip_a_byte(only_file(cache, "images.npy"))
    cache.home.raw.chmod(0o555)
    cache.home.folder.chmod(0o555)
    np.testing.assert_array_equal(cache.get(build).arrays["images"], ITEMS)
    assert (cache.paths[1] / "manifest.json").exists()
    cache.home.folder.chmod(0o755)
    cache.home.raw.chmod(0o755)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_build_leaves_nothing(
    cache: ArrayCache, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((KeyboardInterrupt, UsageError)) as raised:
        cache.get(build)
    if isinstance(error, OSError):
        assert "is full" in str(raised.value)
    assert os.listdir(cache.paths[0].parent) == []


def test_objects_are_never_written(cache: ArrayCache) -> None:
    with pytest.raises(ValueError, match="cannot be memory-mapped"):
        cache.get(lambda: Arrays({"images": np.array([{}], dtype=object)}))
    assert not cache.present()


BUILDS_SLOWLY = """
import sys, time
from pathlib import Path
import numpy as np
from metabench.data.arrays import ArrayCache, Arrays
from metabench.data.folder import DataHome

def build():
    print("building", flush=True)
    sys.stdin.readline()
    return Arrays({"images": np.arange(100_000)})

found = ArrayCache(DataHome(Path(sys.argv[1]), "shapes"), "images", {}).get(build)
print(int(found.arrays["images"].sum()), flush=True)
"""


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDS_SLOWLY, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:  # both have found no cache before either writes one
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
    results = [process.communicate("go\n")[0] for process in processes]
    assert results == [f"{sum(range(100_000))}\n"] * 2
    assert os.listdir(tmp_path / "shapes" / "cache") == ["images"]


def test_content_digest_tells_names_sizes_shapes_and_values_apart() -> None:
    offsets = np.array([0, 2, 4])
    names = ["circle", "square"]
    digests = [
        content_digest(names, offsets, {"images": ITEMS}),
        content_digest(names[::-1], offsets, {"images": ITEMS}),
        content_digest(names, np.array([0, 1, 4]), {"images": ITEMS}),
        content_digest(names, offsets, {"images": ITEMS.reshape(4, 1, 3, 2)}),
        content_digest(names, offsets, {"images": ITEMS.astype(np.int8)}),
        content_digest(names, offsets, {"images": ITEMS ^ 1}),
        content_digest(names, offsets, {"pictures": ITEMS}),
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == "efbfc2e11997cc1592aa403bb3c4ee01"


@given(hnp.arrays("<i4", hnp.array_shapes(max_dims=3)))
def test_content_digest_is_of_values_not_of_memory(array: np.ndarray) -> None:
    offsets = np.array([0, len(array)])
    digest = content_digest(["a"], offsets, {"x": array})
    assert digest == content_digest(["a"], offsets, {"x": array.astype(">i4")})
    assert digest == content_digest(["a"], offsets, {"x": np.asfortranarray(array)})
