"""The folder of real data that tests read."""

import os
from pathlib import Path

import pytest

from metabench_plugins.datasets.omniglot import Omniglot


def real(part: str) -> Path:
    """A part of the real data; skips the test where it is not on this machine."""
    beside = Path(__file__).parents[3].parent / "shared" / "data"
    folder = Path(os.environ.get("METABENCH_DATA") or beside)
    if not (folder / part).exists():
        pytest.skip(f"{folder / part} is not here (METABENCH_DATA says where data is)")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user cache that no other test sees."""
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


@pytest.fixture(scope="session")
def omniglot_archives() -> Path:
    """The folder with the two archives."""
    return real("omniglot/omniglot-py/images_evaluation.zip") / "omniglot" / "omniglot-py"


@pytest.fixture(scope="session")
def prepared(omniglot_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Omniglot:
    """Omniglot, prepared once from the archives; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("omniglot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METABENCH_CACHE", str(folder / "user-cache"))
        (folder / "omniglot").mkdir()
        (folder / "omniglot" / "omniglot-py").symlink_to(omniglot_archives)
        dataset = Omniglot(folder)
        assert dataset.availability() == "unprepared"
        dataset.prepare()
    return dataset


@pytest.fixture(scope="session")
def quickdraw_source() -> Path:
    """The drawings at 256 levels."""
    return real("quickdraw/quickdraw_345x100_28.npz") / "quickdraw" / "quickdraw_345x100_28.npz"


@pytest.fixture(scope="session")
def vinyals_lists() -> Path:
    """The published lists of the split."""
    return real("class_splits/omniglot_vinyals/train.txt") / "class_splits" / "omniglot_vinyals"
