"""Folders of published tables that were tampered with: in their texts, or in what lies beside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from forging import Check, Forgery, reasons

from metabench.errors import EvidenceError
from metabench.leaderboard.rows import TableRow
from metabench.leaderboard.table import leaderboard_csv, leaderboard_markdown
from metabench.publishing.datasheet import described
from metabench.publishing.facts import TableFacts
from metabench.publishing.files import FolderFiles
from metabench.publishing.published import SUBMISSION, PublishedSource
from metabench.publishing.reproduction import Reproduction
from metabench.publishing.verify.episodes import DataHere
from metabench.registry import Registry


def published_folder(forgery: Forgery) -> Forgery:
    """The same rows as a folder that a maintainer would keep."""
    folder = Forgery({n: d for n, d in forgery.files.items() if n != SUBMISSION})
    folder.renumbered(trust=None)
    source = PublishedSource.read(folder.given())
    rows = source.rows("small")
    folder.files["small.csv"] = leaderboard_csv(rows).encode()
    folder.files["small.md"] = leaderboard_markdown(source, "small", rows).encode()
    folder.files |= _described(folder, source, rows)
    folder.files["README.md"] = b"# Tables\n"
    folder.files["measurements/speed.csv"] = b"a,b\n"
    return folder


def _described(folder: Forgery, source: PublishedSource, rows: list[TableRow]) -> dict[str, bytes]:
    here = DataHere(Registry(), Path("nowhere"))
    facts = TableFacts.of(source, source.tables["small"], rows, here)
    return described(folder.given(), facts)


@pytest.fixture
def folder(forgery: Forgery) -> Forgery:
    return published_folder(forgery)


def test_a_folder_holds(check: Check, folder: Forgery, tmp_path: Path) -> None:
    for name, content in folder.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    report = check(FolderFiles(tmp_path))
    assert report.ok, report.wrong()
    assert {finding.what for finding in report.findings if finding.check == "texts"} == {
        "small.csv",
        "small.md",
    }
    (tmp_path / "evidence" / "cells" / "x").symlink_to("/etc/hosts")
    with pytest.raises(EvidenceError, match="is a link"):
        check(FolderFiles(tmp_path))


@pytest.mark.parametrize("name", ["small.csv", "small.md"])
def test_an_edited_number_in_a_text(check: Check, folder: Forgery, name: str) -> None:
    text = folder.files[name].decode()
    for old, new in (("0.2400", "0.9400"), ("0.2400", "0.2401"), ("0.2400", "0.24000")):
        assert old in text
        folder.files[name] = text.replace(old, new, 1).encode()
        reasons(check(folder.given()), "texts")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nearest-centroid", '"=HYPERLINK(""http://x"",""y"")"'),
        ("nearest-centroid", "=1+1"),
        ("quickdraw", "@quickdraw"),
        ("ok", "ok "),
        ("\n", "\r\n"),
        ("small,", '"small",'),
    ],
)
def test_a_formula_or_another_writing_in_a_csv(
    check: Check, folder: Forgery, old: str, new: str
) -> None:
    text = folder.files["small.csv"].decode()
    folder.files["small.csv"] = text.replace(old, new, 1).encode()
    reasons(check(folder.given()), "texts")


def test_a_line_more_or_a_script_in_the_markdown(check: Check, folder: Forgery) -> None:
    folder.files["small.md"] += b"<script>alert(1)</script>\n"
    assert "small.md" in [f.what for f in check(folder.given()).wrong()]


def test_a_table_without_its_json(check: Check, folder: Forgery) -> None:
    folder.files["other.csv"] = folder.files["small.csv"]
    report = check(folder.given())
    assert "other.csv is a table without its JSON" in reasons(report, "no other files")


def test_a_row_that_says_it_was_reproduced(check: Check, folder: Forgery) -> None:
    folder.change_row(lambda row: row["numbers"].update(trust="reproduced"))
    assert "its trust is reproduced, and its evidence gives recomputed" in reasons(
        check(folder.given()), "numbers"
    )


def test_metadata_of_other_files(check: Check, folder: Forgery) -> None:
    import hashlib

    entry = {"@type": "cr:FileObject", "contentUrl": "small.csv"}
    sums = {"sha256": hashlib.sha256(folder.files["small.csv"]).hexdigest()}
    name = "small.croissant.json"
    assert check(folder.given()).ok
    folder.files[name] = json.dumps({"distribution": [entry | sums]}).encode()
    assert "it doesn't list small.datasheet.md" in reasons(check(folder.given()), "metadata")
    folder.files[name] = json.dumps({"distribution": [entry | {"sha256": "0" * 64}]}).encode()
    assert "another sha256" in reasons(check(folder.given()), "metadata")
    gone = entry | sums | {"contentUrl": "../small.csv"}
    folder.files[name] = json.dumps({"distribution": [gone]}).encode()
    assert "isn't there" in reasons(check(folder.given()), "metadata")


@pytest.mark.parametrize("ending", [".csv", ".md", ".datasheet.md", ".croissant.json"])
def test_a_table_without_one_of_its_texts(check: Check, folder: Forgery, ending: str) -> None:
    del folder.files[f"small{ending}"]
    assert f"it has no small{ending}: publish it again" in reasons(check(folder.given()), "files")


def test_an_edited_datasheet(check: Check, folder: Forgery) -> None:
    folder.files["small.datasheet.md"] += b"Checked by everybody.\n"
    found = reasons(check(folder.given()), "metadata")
    assert "small.datasheet.md has another sha256" in found


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({}, "its score moved by 0.02"),
        ({"agreement": 0.97, "run": {}}, "on what device and PyTorch it ran"),
        ({"agreement": 0.97, "torch": "2.13"}, "it ran on PyTorch"),
        ({"agreement": 0.97, "same_device": True}, "same_device otherwise than its devices"),
        ({"agreement": 0.97, "device": "cpu", "run": "its own"}, "same_device otherwise"),
        ({"agreement": 0.97, "difference": 0.0}, "its score and difference make"),
        ({"agreement": 1.0, "predictions": "its own"}, "another score|its score moved"),
        ({"agreement": 0.97, "predictions": "its own"}, "the same predictions, and they differ"),
    ],
)
def test_a_second_run_that_nobody_made(
    check: Check, folder: Forgery, told: dict[str, Any], why: str
) -> None:
    proof = folder.proof()
    again = Reproduction.between(proof, proof).model_dump(mode="json")
    far = {"device": "cuda", "same_device": False, "predictions": "0" * 32, "agreement": 0.99}
    run = {**again["run"], "device": "GPU"}
    again |= far | {"run": run, "score": again["score"] + 0.02, "difference": 0.02}
    name = f"evidence/reproduced/{proof.record.key}.json"
    folder.files[name] = json.dumps(again | {"agreement": 0.97}).encode()
    held = [f for f in check(folder.given()).findings if f.check == "run again"]
    assert [f.state for f in held] == ["holds"], held
    again |= told
    if again["predictions"] == "its own":
        again["predictions"] = again["published"]
    if again["run"] == "its own":
        again["run"] = proof.cell.run.model_dump(mode="json")
    folder.files[name] = json.dumps(again).encode()
    assert re.search(why, reasons(check(folder.given()), "run again"))
