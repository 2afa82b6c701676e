"""The result folder: whole cells or none, what is corrupted is run again, failures are kept."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metabench.errors import StoreError
from metabench.store import files
from metabench.store.machine import machine_id
from metabench.store.record import Failure, RunInfo
from metabench.store.store import Store

HERE = Path(__file__).parent


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_script(script: str, *args: object) -> subprocess.Popen[str]:
    """Run Python in another process, with the helpers of conftest.py at hand."""
    lines = ["import sys", f"sys.path.insert(0, {str(HERE)!r})", "import conftest", script]
    command = [sys.executable, "-c", "\n".join(lines), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# --- opening


def test_a_new_folder_says_its_schema(tmp_path):
    root = tmp_path / "a" / "b"
    Store.open(root)
    assert json.loads((root / "store.json").read_text()) == {"schema": 1}
    Store.open(root)
    Store.open(str(root), create=False)


def test_a_folder_of_a_newer_version_is_refused(store):
    (store.root / "store.json").write_text('{"schema": 2}')
    with pytest.raises(StoreError, match="newer version") as caught:
        Store.open(store.root)
    assert "upgrade" in caught.value.hint


def test_a_folder_of_an_older_version_is_read(store, publish, monkeypatch):
    record = publish(store)
    monkeypatch.setattr("metabench.store.store.SCHEMA", 2)
    assert json.loads((store.root / "store.json").read_text()) == {"schema": 1}
    assert Store.open(store.root).find(record.key) == record


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", '{"schema_version": 99}'),
        *(f'{{"schema": {value}}}' for value in ('"x"', "-5", "0", "1.5", "true", "null", "[1]")),
    ],
)
def test_a_mark_without_a_schema_number_is_an_error(store, text):
    (store.root / "store.json").write_text(text)
    for create in (True, False):
        with pytest.raises(StoreError, match=r"store\.json has no schema number\nwrite") as caught:
            Store.open(store.root, create=create)
        assert "--out" in caught.value.hint


def test_reading_where_nothing_is_makes_nothing(tmp_path):
    with pytest.raises(StoreError, match="no results"):
        Store.open(tmp_path / "none", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot use") as caught:
            Store.open(root)
        assert len(str(caught.value).splitlines()) == 2


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    def refuse(path, data):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "write_bytes", refuse)
    with pytest.raises(StoreError, match="no permission"):
        Store.open(tmp_path / "results")


def test_permissions_are_respected(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:  # whom a folder's mode does not stop; this file system does
        folder = Path("/sys/metabench-results")
        if not folder.parent.is_dir():
            pytest.skip("nothing here that root cannot write")
    with pytest.raises(StoreError, match="no permission"):
        Store.open(folder)


# --- publishing and finding


def test_what_was_published_is_found(store, publish, make_identity, make_results):
    assert store.find(make_identity().key) is None
    record = publish(store, note="metabench run", phases=["e" * 32])
    assert store.find(record.key) == record
    assert list(store.records()) == [record]
    assert record.identity == make_identity()
    assert record.phases == ("e" * 32,)
    assert record.result.score == make_results().scores("accuracy").mean()
    assert store.episodes(record.key).scores("accuracy").mean() == record.result.score
    assert store.run_info(record.key).command == "metabench run"
    assert sorted(record.files) == ["checkpoint.safetensors", "episodes.parquet", "training.csv"]
    assert list((store.root / "tmp").iterdir()) == []


def test_a_record_is_the_same_bytes_wherever_it_is_made(tmp_path, publish):
    stores = [Store.open(tmp_path / name) for name in ("one", "other")]
    folders = [s.folder(publish(s, note=s.root.name).key) for s in stores]
    one, other = (contents(folder) for folder in folders)
    assert one.keys() == other.keys()
    assert one["record.json"] == other["record.json"]
    assert {name for name in one if one[name] != other[name]} == {"log.txt", "run.json"}


def test_the_second_to_publish_gets_the_first_ones_record(store, publish):
    first = publish(store, note="first")
    before = contents(store.folder(first.key))
    assert publish(store, note="second") == first
    assert contents(store.folder(first.key)) == before
    assert list((store.root / "tmp").iterdir()) == []


def test_many_processes_at_once_leave_whole_cells(store):
    script = (
        "store = conftest.Store.open(sys.argv[1])\n"
        "for seed in range(6):\n"
        "    print(conftest.publish_cell(store, seed, note=sys.argv[2]).digest)\n"
    )
    processes = [run_script(script, store.root, name) for name in "abc"]
    printed = {process.communicate(timeout=60)[0] for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(printed) == 1
    assert len(list(store.records())) == 6
    assert sorted(p.name for p in store.root.iterdir()) == ["cells", "store.json", "tmp"]
    assert list((store.root / "tmp").iterdir()) == []


KILL = "os.kill(os.getpid(), 9)"


@pytest.mark.parametrize(
    ("where", "finished"),
    [
        (
            f"build = conftest.build_cell\nconftest.build_cell = lambda *a: (build(*a), {KILL})",
            False,
        ),
        (f"os.rename = lambda *a: {KILL}", False),
        (f"rename = os.rename\nos.rename = lambda *a: (rename(*a), {KILL})", True),
    ],
    ids=["while building", "before it is put in place", "after it is put in place"],
)
def test_a_kill_leaves_a_whole_cell_or_none(store, publish, make_identity, where, finished):
    lines = ["import os", "store = conftest.Store.open(sys.argv[1])", where]
    script = "\n".join([*lines, "conftest.publish_cell(store)"])
    process = run_script(script, store.root)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    found = store.find(make_identity().key)
    assert (found is not None) == finished
    lost = [leftover.what for leftover in store.unreferenced() if "draft" in leftover.what]
    assert len(lost) == (0 if finished else 1)
    assert publish(store).result.episodes == 20
    store.clean([leftover for leftover in store.unreferenced() if "draft" in leftover.what])
    assert list((store.root / "tmp").iterdir()) == []


def test_a_full_disk_while_publishing_is_two_lines_and_leaves_nothing(
    store, publish, make_identity, monkeypatch
):
    real = files.write_bytes

    def write(path, data):
        if path.name == "record.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(files, "write_bytes", write)
    with pytest.raises(StoreError, match="is full") as caught:
        publish(store)
    assert len(str(caught.value).splitlines()) == 2
    assert store.find(make_identity().key) is None
    assert list((store.root / "tmp").iterdir()) == []


def test_a_build_that_raises_leaves_nothing(store, make_identity, make_result):
    def build(folder):
        (folder / "episodes.parquet").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.publish(make_identity(), build, inference="inductive", result=make_result())
    with pytest.raises(ValueError, match=r"episodes\.parquet"):
        store.publish(make_identity(), lambda f: None, inference="inductive", result=make_result())
    assert store.cells.keys() == []
    assert list((store.root / "tmp").iterdir()) == []


# --- corruption


def test_a_prefix_finds_keys(store, publish):
    keys = sorted(publish(store, seed).key for seed in range(4))
    assert store.cells.keys() == keys
    assert keys[2] in store.cells.keys(keys[2][:6])
    assert store.cells.keys("zz") == []


@pytest.mark.parametrize("key", ["..", "a/b", "", "A" * 32, "0" * 31])
def test_what_is_no_key_never_becomes_a_path(store, key):
    with pytest.raises(ValueError, match="no key"):
        store.find(key)
    with pytest.raises(ValueError, match="no key"):
        store.remove(key)


def test_a_removed_cell_runs_afresh(store, publish, make_identity):
    record = publish(store)
    store.claim(record.key).release()
    store.remove(record.key)
    assert store.find(record.key) is None
    assert not any((store.root / "partial").iterdir())
    store.remove(record.key)
    assert publish(store) == record


# --- shared phases


# --- failed cells

FAILURE = Failure(
    status="error", exception="ValueError", message="no", traceback="...", where="train step 3"
)


def test_a_failed_cell_is_kept_and_is_not_finished(store, make_identity, tmp_path):
    identity = make_identity()
    (tmp_path / "log.txt").write_text("12:00 training\n")
    store.fail(identity, FAILURE, RunInfo(device="cpu"), tmp_path / "log.txt")
    (failed,) = store.failures()
    assert failed.failure == FAILURE
    assert failed.identity == identity
    assert failed.run.device == "cpu"
    assert (store.failure_folder(identity.key) / "log.txt").read_text() == "12:00 training\n"
    assert store.find(identity.key) is None
    assert list(store.records()) == []


def test_the_last_failure_counts(store, make_identity):
    identity = make_identity()
    store.fail(identity, FAILURE)
    store.fail(identity, Failure(status="timeout"))
    assert [failed.failure.status for failed in store.failures()] == ["timeout"]
    assert list((store.root / "tmp").iterdir()) == []


def test_a_cell_that_succeeds_has_no_failure(store, publish, make_identity):
    store.fail(make_identity(), FAILURE)
    record = publish(store)
    assert list(store.failures()) == []
    assert not store.failure_folder(record.key).exists()
    store.fail(make_identity(), FAILURE)  # a slower run of the same cell
    assert list(store.failures()) == []


def test_an_unknown_kind_of_failure_is_refused():
    with pytest.raises(ValueError, match="status"):
        Failure(status="bad luck")


# --- timings


def test_timings_are_kept_per_machine_and_leave_the_record_alone(store, publish, caplog):
    record = publish(store)
    store.write_timing(record.key, "m-1", {"adapt_ms": 1.5})
    store.write_timing(record.key, "m-1", {"adapt_ms": 1.25})
    store.write_timing(record.key, "m-2", {"adapt_ms": 9})
    assert store.read_timing(record.key, "m-1") == {"adapt_ms": 1.25}
    assert store.read_timing(record.key, "m-3") is None
    assert store.timings(record.key) == {"m-1": {"adapt_ms": 1.25}, "m-2": {"adapt_ms": 9}}
    assert store.find(record.key) == record
    (store.folder(record.key) / "timing" / "m-2.json").write_text("{")
    assert store.timings(record.key) == {"m-1": {"adapt_ms": 1.25}}
    assert "m-2.json" in caplog.text
    with pytest.raises(ValueError, match="machine"):
        store.write_timing(record.key, "../m", {})
    with pytest.raises(StoreError):
        store.write_timing("0" * 32, "m-1", {})


def test_a_machine_is_told_by_what_it_is():
    assert machine_id("cpu") == machine_id("cpu")
    assert machine_id("cpu") != machine_id("NVIDIA H100")
    assert machine_id("cpu").startswith("m-")


def test_reading_records_imports_no_torch(store, publish):
    publish(store)
    script = (
        "import sys; from metabench.store.store import Store; s = Store.open(sys.argv[1], False);"
        "(r,) = s.records(); s.episodes(r.key).scores('accuracy'); s.unreferenced();"
        "print(r.result.score, sorted({'torch', 'torchvision', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(store.root)], capture_output=True, text=True, check=True
    )
    (record,) = store.records()
    assert done.stdout.strip() == f"{record.result.score} []"
