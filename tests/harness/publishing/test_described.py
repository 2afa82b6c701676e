"""Datasheets, Croissant metadata and archives of published tables."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import mlcroissant
import pytest
import yaml
from published_folder import SUITE, content, publish_results, published_in

from metabench.errors import EvidenceError, UnknownNameError
from metabench.leaderboard.rows import COLUMNS
from metabench.leaderboard.source import StoreSource
from metabench.plugins import registry
from metabench.publishing.columns import MEANINGS
from metabench.publishing.deposit import deposit
from metabench.publishing.files import FolderFiles
from metabench.publishing.folder import publish
from metabench.publishing.verify.episodes import DataHere
from metabench.registry import Registry

QUICKDRAW = "ea717ff45e18d87becb7e07cfabe9821"


@pytest.fixture
def folder(tmp_path: Path, results: Any, data: Path) -> Path:
    results.row("maml", 3, content=QUICKDRAW, disjoint=2)
    results.row("protonet", 1, content=QUICKDRAW)
    publish(StoreSource(results.store), SUITE, tmp_path / "tables", DataHere(registry(), data))
    return tmp_path / "tables"


def archive(folder: Path, data: Path, **options: Any) -> dict[str, bytes]:
    made = deposit(FolderFiles(folder), SUITE, DataHere(registry(), data), **options)
    with zipfile.ZipFile(io.BytesIO(made)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_datasheet_says_what_the_data_are_and_how_the_rows_were_checked(folder: Path) -> None:
    sheet = (folder / f"{SUITE}.datasheet.md").read_text()
    for line in (
        "Version 1.0.4: 2 rows of 4 training runs, the latest of which started on 2026-01-01",
        "| 5w1s3q |",
        "- licence: CC BY 4.0, Google",
        "- to be cited: Ha and Eck 2017, arXiv:1704.03477",
        "- test: 52 classes, 5200 items",
        "> 345 classes, 100 drawings each",
        "- 2 rows: recomputed",
        "- 1 of 2 rows have fewer than 3 training seeds",
    ):
        assert line in sheet
    assert set(MEANINGS) >= set(COLUMNS)
    assert all(f"\n| {markdown} |" in sheet for markdown in COLUMNS)


def test_a_data_set_that_is_not_here_is_said_to_be_unknown(tmp_path: Path, results: Any) -> None:
    results.row("maml", 1)
    publish_results(results, tmp_path / "tables")
    sheet = (tmp_path / "tables" / f"{SUITE}.datasheet.md").read_text()
    assert "- licence: not known where this was made" in sheet
    assert "no data set called quickdraw is installed" in sheet


@pytest.mark.parametrize(
    ("started", "line"),
    [
        ("yesterday <b>", "2 training runs. Made by"),
        (
            "20260405T060708+02:00",
            "2 training runs, the latest of which started on 2026-04-05. Made",
        ),
    ],
)
def test_a_day_is_one_or_is_left_out(tmp_path: Path, results: Any, started: str, line: str) -> None:
    results.add("maml", 0, started="zzzz")
    results.add("maml", 1, started=started)
    publish_results(results, tmp_path / "t")
    assert line in " ".join((tmp_path / "t" / f"{SUITE}.datasheet.md").read_text().split())
    metadata = json.loads((tmp_path / "t" / f"{SUITE}.croissant.json").read_text())
    assert metadata.get("datePublished") in (None, "2026-04-05")


def test_another_content_has_no_counts(tmp_path: Path, results: Any, data: Path) -> None:
    results.row("maml", 1, content="e" * 32)
    publish(StoreSource(results.store), SUITE, tmp_path / "t", DataHere(registry(), data))
    sheet = (tmp_path / "t" / f"{SUITE}.datasheet.md").read_text()
    assert "the data set that is installed has another content" in sheet
    assert "5200 items" not in sheet


def test_the_metadata_are_croissant_by_its_own_library(folder: Path) -> None:
    """It checks the file without a network, and reads the rows by what the file says."""
    found = mlcroissant.Dataset(jsonld=str(folder / f"{SUITE}.croissant.json"))
    assert found.metadata.issues.errors == set()
    assert found.metadata.issues.warnings == set()
    rows = list(found.records("rows"))
    with (folder / f"{SUITE}.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    assert [row["rows/algorithm"].decode() for row in rows] == [row["algorithm"] for row in told]
    assert [row["rows/score"] for row in rows] == [float(row["score"]) for row in told]
    assert [row["rows/seeds"] for row in rows] == [int(row["seeds"]) for row in told]


def test_the_metadata_name_the_files_by_size_and_digest(folder: Path) -> None:
    value = json.loads((folder / f"{SUITE}.croissant.json").read_text())
    files = [part for part in value["distribution"] if part["@type"] == "cr:FileObject"]
    assert {part["contentUrl"] for part in files} == {
        f"{SUITE}{e}" for e in (".csv", ".json", ".md", ".datasheet.md")
    }
    for part in files:
        there = (folder / part["contentUrl"]).read_bytes()
        assert part["sha256"] == hashlib.sha256(there).hexdigest()
        assert part["contentSize"] == f"{len(there)} B"
    sets = [part["includes"] for part in value["distribution"] if part["@type"] == "cr:FileSet"]
    matched = {path for pattern in sets for path in folder.glob(pattern)}
    assert matched == {path for path in (folder / "evidence").rglob("*") if path.is_file()}
    assert [field["name"] for field in value["recordSet"][0]["field"]] == COLUMNS


def test_an_archive_holds_the_table_and_is_the_same_again(folder: Path, data: Path) -> None:
    (folder / "README.md").write_text("of another table")
    here = DataHere(registry(), data)
    made = deposit(FolderFiles(folder), SUITE, here)
    assert made == deposit(FolderFiles(folder), SUITE, here)
    with zipfile.ZipFile(io.BytesIO(made)) as opened:
        names = opened.namelist()
        assert names == sorted(names)
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    files = archive(folder, data)
    own = {"LICENSE", "CITATION.cff", ".zenodo.json"}
    assert set(files) - own == set(content(folder)) - {"README.md"}
    assert all(files[name] == (folder / name).read_bytes() for name in set(files) - own)
    assert b"CC BY 4.0, Google" in files["LICENSE"]
    assert b"Permission is hereby granted" in files["LICENSE"]


def test_an_archive_of_one_table_has_nothing_of_another(
    folder: Path, data: Path, results: Any
) -> None:
    results.row("reptile", 1, suite="other")
    publish_results(results, folder, suite="other")
    [other] = published_in(folder, "other").tables["other"].keys
    assert not any(other in name or name.startswith("other") for name in archive(folder, data))


def test_citation_and_deposit_are_what_their_formats_ask_for(folder: Path, data: Path) -> None:
    files = archive(folder, data, creators=["A: <b>'\"\x1b[31m", "Somebody"])
    citation = yaml.safe_load(files["CITATION.cff"])
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "dataset"
    assert citation["authors"] == [{"name": "A: <b>'\""}, {"name": "Somebody"}]
    assert citation["date-released"] == "2026-01-01"
    assert citation["references"][0]["title"] == "quickdraw"
    metadata = json.loads(files[".zenodo.json"])
    # https://developers.zenodo.org/#deposit-metadata: these are required.
    assert {"upload_type", "title", "creators", "description", "access_right"} <= set(metadata)
    assert metadata["version"] == citation["version"] == "1.0.4"
    assert metadata["creators"][1] == {"name": "Somebody"}
    [default] = yaml.safe_load(archive(folder, data)["CITATION.cff"])["authors"]
    assert default == {"name": "The metabench developers"}


def test_an_archive_of_what_is_not_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    here = DataHere(Registry(), tmp_path)
    with pytest.raises(UnknownNameError, match="no published table called 'stuby'"):
        deposit(FolderFiles(folder), "stuby", here)
    (folder / f"{SUITE}.datasheet.md").unlink()
    with pytest.raises(EvidenceError, match=r"study\.datasheet\.md of suite 'study' is missing"):
        deposit(FolderFiles(folder), SUITE, here)
