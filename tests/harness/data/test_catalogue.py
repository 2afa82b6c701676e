"""The list of data sets."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from metabench.api.backbone import ItemSpec
from metabench.api.dataset import Availability, Dataset, Report, no_report
from metabench.data.catalogue import list_data
from metabench.episodes.bank import ClassBank


class Letters(Dataset):
    """A data set that is one file which has to be downloaded."""

    name = "letters"
    reference = "none"
    summary = "Letters."
    licence = "CC0"
    origin = "the alphabet"
    download_bytes = 1000

    def availability(self) -> Availability:
        return "ready" if (self.folder / self.name / "letters.txt").exists() else "missing"

    def prepare(self, report: Report = no_report) -> None:
        (self.folder / self.name).mkdir(parents=True)
        (self.folder / self.name / "letters.txt").write_text("abc")

    def item(self, image_size: int | None) -> ItemSpec:
        return ItemSpec("tokens", (1,))

    def digest(self) -> str:
        return "0" * 32

    def banks(self, class_split: str, image_size: int | None) -> Mapping[str, ClassBank]:
        return {}

    def verify(self) -> None:
        return

    def remove(self) -> int:
        return 0


class Digits(Letters):
    name = "digits"


def test_rows_say_what_is_here_and_what_a_download_would_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    Letters(folder).prepare()
    digits, letters = list_data([Letters, Digits], folder)
    assert letters == {
        "name": "letters",
        "state": "ready",
        "bytes": 3,
        "download_bytes": 0,
        "licence": "CC0",
        "origin": "the alphabet",
        "path": str(folder / "letters"),
    }
    assert (digits["name"], digits["state"]) == ("digits", "missing")
    assert (digits["bytes"], digits["download_bytes"]) == (0, 1000)
    assert digits["path"] == str(folder / "digits")


def test_a_read_only_folder_is_listed_with_where_the_data_would_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o555)
    (row,) = list_data([Letters], folder)
    folder.chmod(0o755)
    assert str(row["path"]).startswith(str(tmp_path / "cache"))
