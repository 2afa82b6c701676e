"""What suites refer to, from runs at the same time, and what nothing refers to any more."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from metabench.store import suites
from metabench.store.record import Failure
from metabench.store.suites import SuiteCell


def cell(n: int, **labels: object) -> SuiteCell:
    return SuiteCell(key=f"{n:032x}", labels=labels)


def test_the_latest_run_says_which_key_a_cell_has(store):
    store.remember_suite("fewshot", [cell(1, algorithm="maml"), cell(2, algorithm="protonet")])
    store.remember_suite("fewshot", [cell(3, algorithm="maml")])
    store.remember_suite("other", [cell(4, algorithm="maml")])
    found = {c.labels["algorithm"]: int(c.key, 16) for c in store.suite("fewshot")}
    assert found == {"maml": 3, "protonet": 2}
    assert store.suites() == ["fewshot", "other"]
    assert store.suite("never run") == []


def test_a_run_that_is_superseded_leaves_no_file(store):
    for n in range(5):
        store.remember_suite("fewshot", [cell(n, seed=0), cell(n + 10, seed=1)])
    store.remember_suite("fewshot", [cell(99, seed=0)])
    names = list((store.root / "suites" / "fewshot").iterdir())
    assert len(names) == 2
    assert [int(c.key, 16) for c in store.suite("fewshot")] == [99, 14]


def test_runs_at_the_same_time_lose_nothing(store):
    script = (
        "import sys\nfrom metabench.store.store import Store\n"
        "from metabench.store.suites import SuiteCell\nstore = Store.open(sys.argv[1])\n"
        "for n in range(10):\n"
        "    labels = {'run': sys.argv[2], 'n': n}\n"
        "    store.remember_suite('fewshot', [SuiteCell(key='0' * 32, labels=labels)])\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", script, str(store.root), name]) for name in "ab"
    ]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    assert len(store.suite("fewshot")) == 20


@pytest.mark.parametrize("name", ["my suite", "..", ".", "a/b", "größe", "%2E", "a\\b:c"])
def test_any_name_is_a_folder_of_its_own(store, name):
    store.remember_suite(name, [cell(1)])
    assert store.suites() == [name]
    assert store.suite(name) == [cell(1)]
    assert len(list((store.root / "suites").iterdir())) == 1


def test_a_corrupted_file_is_named_and_left_out(store, caplog):
    store.remember_suite("fewshot", [cell(1, seed=0)])
    (path,) = (store.root / "suites" / "fewshot").iterdir()
    store.remember_suite("fewshot", [cell(2, seed=1)])
    path.write_text("{")
    assert suites.damaged(store.root) == [path]
    for _ in range(2):
        assert store.suite("fewshot") == [cell(2, seed=1)]
    named, *missing = caplog.messages
    assert f"the list {path.name} of cells of suite fewshot is corrupted" in named
    assert [m.startswith("cells of suite fewshot may be missing here") for m in missing] == [
        True
    ] * 2
    [aside] = (store.root / "corrupt").iterdir()
    assert (aside.name, aside.read_text()) == (f"fewshot@{path.name}-1", "{")
    assert not path.exists()


def test_a_suite_that_changed_loses_what_it_no_longer_asks_for(store, caplog):
    def noted(n: int, name: str, settings: str) -> SuiteCell:
        return SuiteCell(key=f"{n:032x}", labels={"algorithm": name}, settings=settings)

    def table() -> dict[str, int]:
        return {c.labels["algorithm"]: int(c.key, 16) for c in store.suite("mine")}

    before, after = ["maml lr=1", "protonet"], ["maml lr=2", "protonet", "anil"]
    store.remember_suite("mine", [noted(1, "maml", "maml lr=1")], before)
    store.remember_suite("mine", [noted(2, "protonet", "protonet")], before)
    store.remember_suite("mine", [noted(3, "maml:lr=9", "maml lr=9")], before)  # by --set
    assert table() == {"maml": 1, "protonet": 2, "maml:lr=9": 3}
    assert caplog.messages == []
    store.remember_suite("mine", [noted(4, "anil", "anil")], reversed(after))
    assert table() == {"protonet": 2, "anil": 4}
    [warning] = caplog.messages
    assert "suite mine does not ask for what it did" in warning
    assert "2 cells of then" in warning
    store.remember_suite("mine", [noted(5, "maml", "maml lr=2")], after)
    store.remember_suite("mine", [noted(6, "hidden", "?")], None)  # what it asks for isn't known
    assert table() == {"protonet": 2, "anil": 4, "maml": 5, "hidden": 6}
    assert len(caplog.messages) == 1


def test_a_run_of_a_part_does_not_make_up_for_a_corrupted_list(store, publish, caplog):
    records = [publish(store, seed) for seed in (0, 1)]
    both = [
        SuiteCell(key=record.key, labels={"seed": seed}, settings=f"seed {seed}")
        for seed, record in enumerate(records)
    ]
    asked = ["seed 0", "seed 1"]
    store.remember_suite("fewshot", both, asked)
    (path,) = (store.root / "suites" / "fewshot").iterdir()
    store.remember_suite("fewshot", both[:1], asked)
    path.write_text("{")
    assert not any(what.startswith("cells/") for what in whats(store))
    store.remember_suite("fewshot", both, asked)
    caplog.clear()
    assert store.suite("fewshot") == both
    assert caplog.messages == []
    assert whats(store) == {f"corrupt/fewshot@{path.name}-1": "set aside as corrupted"}


def test_what_was_noted_without_settings_stays(store, caplog):
    store.remember_suite("fewshot", [cell(1, seed=0)])  # as the first versions noted it
    new = SuiteCell(key=f"{2:032x}", labels={"seed": 1}, settings="seed 1")
    store.remember_suite("fewshot", [new], ["seed 1", "seed 2"])
    assert store.suite("fewshot") == [cell(1, seed=0), new]
    store.remember_suite("fewshot", [new], ["seed 1"])
    assert store.suite("fewshot") == [cell(1, seed=0), new]
    assert caplog.messages == []


def test_what_a_later_version_adds_to_a_note_is_left_out(store):
    store.remember_suite("fewshot", [cell(1, seed=0)])
    (path,) = (store.root / "suites" / "fewshot").iterdir()
    note = json.loads(path.read_text())
    note["cells"][0]["colour"] = note["mood"] = "blue"
    path.write_text(json.dumps(note))
    assert store.suite("fewshot") == [cell(1, seed=0)]
    assert suites.damaged(store.root) == []


def whats(store) -> dict[str, str]:
    return {
        leftover.path.relative_to(store.root).as_posix(): leftover.what
        for leftover in store.unreferenced()
    }


def test_only_what_nothing_refers_to_is_cleaned(store, publish, put_phase):
    used, unused = put_phase(store, 0), put_phase(store, 1)
    kept, orphan = publish(store, 0, phases=[used.key]), publish(store, 1)
    store.remember_suite("fewshot", [SuiteCell(key=kept.key, labels={"seed": 0})])
    assert sorted(whats(store)) == [f"cells/{orphan.key}", f"phases/{unused.key}"]
    sizes = {leftover.path.name: leftover.bytes for leftover in store.unreferenced()}
    assert sizes[orphan.key] == sum(p.stat().st_size for p in store.folder(orphan.key).iterdir())
    assert store.clean() == sum(sizes.values())
    assert store.unreferenced() == []
    assert store.find(kept.key) == kept
    assert store.find(orphan.key) is None
    assert store.find_phase(used.key) == used
    assert list((store.root / "tmp").iterdir()) == []


def test_while_a_cell_is_unfinished_phases_and_training_state_stay(store, publish, put_phase):
    phase, done = put_phase(store), publish(store, 0)
    missing = cell(5, seed=1)
    store.remember_suite("fewshot", [SuiteCell(key=done.key, labels={"seed": 0}), missing])
    with store.claim(missing.key), store.claim("e" * 32):
        pass  # released: nobody works on them, and a later run goes on from them
    with store.claim(done.key):
        pass
    (only,) = whats(store)
    assert only.startswith(f"partial/{done.key}/")
    store.remember_suite("fewshot", [SuiteCell(key=done.key, labels={"seed": 1})])
    kinds = {path.split("/")[0] + "/" + path.split("/")[1] for path in whats(store)}
    assert kinds == {
        f"phases/{phase.key}",
        f"partial/{done.key}",
        f"partial/{missing.key}",
        f"partial/{'e' * 32}",
    }


def test_what_somebody_works_on_is_not_cleaned(store):
    mine = store.claim("e" * 32)
    (store.root / "tmp" / "00000000-1-11111111").mkdir()  # a draft of another machine, just made
    assert store.unreferenced() == []
    mine.release()
    assert len(store.unreferenced()) == 1


def test_failures_and_corrupted_things_are_cleaned(store, publish, make_identity):
    wanted, orphan = make_identity(seed=0), make_identity(seed=1)
    store.remember_suite("fewshot", [SuiteCell(key=wanted.key, labels={})])
    for identity in (wanted, orphan):
        store.fail(identity, Failure(status="nan"))
    bad = publish(store, seed=2)
    (store.folder(bad.key) / "episodes.parquet").write_bytes(b"")
    assert store.find(bad.key) is None
    assert sorted(whats(store)) == [f"corrupt/{bad.key}-1", f"failed/{orphan.key}"]
    store.clean()
    assert store.unreferenced() == []
    assert [failed.key for failed in store.failures()] == [wanted.key]


def test_nothing_is_cleaned_on_the_word_of_a_corrupted_file(store, publish, put_phase, caplog):
    record = publish(store)
    put_phase(store)
    store.remember_suite("fewshot", [SuiteCell(key=record.key, labels={})])
    (path,) = (store.root / "suites" / "fewshot").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    for _ in range(2):  # it is set aside, and remembered
        assert store.unreferenced() == []
    assert path.name in caplog.text
    store.remember_suite("fewshot", [], ["all of it"])  # a run of a part of it
    assert store.unreferenced() == []
    store.remember_suite("fewshot", [], [])
    assert {f"cells/{record.key}", f"corrupt/fewshot@{path.name}-1"} <= set(whats(store))
