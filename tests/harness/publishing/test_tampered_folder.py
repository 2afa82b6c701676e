"""Folders of published tables that were tampered with: in their texts, or in what lies beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forging import Check, Forgery, reasons

from metabench.errors import EvidenceError
from metabench.leaderboard.table import leaderboard_csv, leaderboard_markdown
from metabench.publishing.files import FolderFiles
from metabench.publishing.published import SUBMISSION, PublishedSource


def published_folder(forgery: Forgery) -> Forgery:
    """The same rows as a folder that a maintainer would keep."""
    folder = Forgery({n: d for n, d in forgery.files.items() if n != SUBMISSION})
    folder.renumbered(trust=None)
    source = PublishedSource.read(folder.given())
    rows = source.rows("small")
    folder.files["small.csv"] = leaderboard_csv(rows).encode()
    folder.files["small.md"] = leaderboard_markdown(source, "small", rows).encode()
    folder.files["README.md"] = b"# Tables\n"
    folder.files["measurements/speed.csv"] = b"a,b\n"
    return folder


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
    folder.files[name] = json.dumps({"distribution": [entry | sums]}).encode()
    assert check(folder.given()).ok
    folder.files[name] = json.dumps({"distribution": [entry | {"sha256": "0" * 64}]}).encode()
    assert "another sha256" in reasons(check(folder.given()), "metadata")
    gone = entry | sums | {"contentUrl": "../small.csv"}
    folder.files[name] = json.dumps({"distribution": [gone]}).encode()
    assert "isn't there" in reasons(check(folder.given()), "metadata")
