"""What is not as it was written is named, set aside, and made again."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest

from metabench.errors import StoreError
from metabench.store import files, shelf
from metabench.store.record import CellRecord, Failure, RunInfo


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize(
    "name", ["record.json", "episodes.parquet", "checkpoint.safetensors", "training.csv"]
)
def test_a_corrupted_cell_is_named_set_aside_and_run_again(store, publish, caplog, name, damage):
    record = publish(store)
    damage(store.folder(record.key) / name)
    with caplog.at_level(logging.WARNING):
        assert store.find(record.key) is None
    assert len(caplog.records) == 1
    assert name in caplog.text
    assert record.key in caplog.text
    assert [p.name for p in (store.root / "corrupt").iterdir()] == [f"{record.key}-1"]
    assert publish(store) == record
    assert store.find(record.key) == record


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["result"].update(score=0.99),
        lambda value: value["identity"].update(seed=7),
        lambda value: value.update(key="0" * 32),
        lambda value: value["files"].pop("episodes.parquet"),
        lambda value: value.update(surprise=1),
        lambda value: value.update(schema_version="new"),
    ],
)
def test_a_record_that_was_edited_is_noticed(store, publish, caplog, change):
    record = publish(store)
    path = store.folder(record.key) / "record.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    assert store.find(record.key) is None
    assert "record.json" in caplog.text


def test_a_record_of_another_cell_is_noticed(store, publish, make_identity, caplog):
    record = publish(store, seed=0)
    other = make_identity(seed=1).key
    store.folder(record.key).rename(store.folder(other))
    assert store.find(other) is None
    assert record.key in caplog.text


def test_a_record_cannot_point_out_of_its_folder(store, publish):
    record = publish(store)
    outside = store.root / "store.json"
    facts = shelf.FileFacts(size=outside.stat().st_size, blake2b=files.file_digest(outside))
    fields = {"inference": record.inference, "result": record.result}
    forged = CellRecord.seal(record.identity, {"../../store.json": facts}, **fields)
    (store.folder(record.key) / "record.json").write_bytes(forged.to_bytes())
    assert store.find(record.key) is None


def test_a_record_of_a_newer_version_is_an_error_and_stays(store, publish):
    record = publish(store)
    path = store.folder(record.key) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(StoreError, match="newer version"):
        store.find(record.key)
    assert path.exists()


def test_a_file_in_place_of_a_cell_is_set_aside(store, publish, make_identity, caplog):
    key = make_identity().key
    store.cells.place.mkdir()
    store.folder(key).write_text("not a folder")
    record = publish(store)
    assert record.key == key
    assert "it is no folder" in caplog.text
    assert store.find(key) == record


def test_corrupted_ones_are_left_out_of_the_records(store, publish):
    good, bad = publish(store, seed=0), publish(store, seed=1)
    flip(store.folder(bad.key) / "episodes.parquet")
    (store.cells.place / ".nfs0001").touch()
    (store.cells.place / "notes").mkdir()
    assert list(store.records()) == [good]
    assert publish(store, seed=1) == bad
    truncate(store.folder(bad.key) / "episodes.parquet")
    assert list(store.records()) == [good]
    assert len(list((store.root / "corrupt").iterdir())) == 2


def test_what_cannot_be_set_aside_is_said_and_left_out(store, publish, caplog, monkeypatch):
    record = publish(store)
    flip(store.folder(record.key) / "episodes.parquet")

    def refuse(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "move_to_free_name", refuse)
    assert store.find(record.key) is None
    assert "can't be set aside" in caplog.text


def test_a_lost_run_json_costs_a_warning_only(store, publish, caplog):
    record = publish(store)
    path = store.folder(record.key) / "run.json"
    path.write_text("{")
    assert store.run_info(record.key) == RunInfo()
    assert store.run_info(record.key) == RunInfo()
    [warning] = caplog.messages
    assert f"run.json of {record.key} is corrupted" in warning
    [aside] = (store.root / "corrupt").iterdir()
    assert (aside.name, aside.read_text()) == (f"{record.key}-run.json-1", "{")
    assert store.find(record.key) == record


FAILURE = Failure(
    status="error", exception="ValueError", message="no", traceback="...", where="train step 3"
)


def test_a_corrupted_failure_is_set_aside(store, make_identity, caplog):
    identity = make_identity()
    store.fail(identity, FAILURE)
    truncate(store.failure_folder(identity.key) / "failure.json")
    assert list(store.failures()) == []
    assert identity.key in caplog.text
    store.fail(identity, FAILURE)
    assert len(list(store.failures())) == 1


def test_a_shared_phase_is_published_and_verified_alike(store, put_phase, make_phase_identity):
    record = put_phase(store)
    assert record.key == make_phase_identity().key
    assert store.find_phase(record.key) == record
    assert store.find(record.key) is None
    flip(store.phases.folder(record.key) / "checkpoint.safetensors")
    assert store.find_phase(record.key) is None
    assert put_phase(store) == record
