"""Training state: the last whole checkpoint survives, and one process at a time owns it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metabench.errors import StoreError
from metabench.store import files, machine, partial
from metabench.store.partial import HEARTBEAT, claim, is_stale

KEY = "0123456789abcdef" * 2
OTHER_HOST = "00000000-1-11111111"


def state(step: int) -> dict[str, torch.Tensor]:
    weight = torch.full((3, 2), float(step))
    return {
        "weight": weight,
        "same": weight,
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(step),
        "none": torch.zeros(0),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "rng": torch.get_rng_state(),
    }


def assert_loads(found: partial.Partial, step: int) -> None:
    loaded = found.load()
    assert loaded is not None
    meta, tensors = loaded
    assert meta == {"step": step, "phase": 1, "loss": 0.1}
    for name, tensor in state(step).items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def save(mine: partial.Partial, step: int) -> None:
    mine.save(step, state(step), {"phase": 1, "loss": 0.1})


def kill_after(root: Path, script: str) -> None:
    """Claim KEY in another process, run a script there, and kill it the hard way."""
    lines = [
        "import os, signal, sys, torch",
        "from pathlib import Path",
        "from metabench.store import files",
        "from metabench.store.partial import claim",
        f"mine = claim(Path({str(root)!r}), {KEY!r})",
        script,
        "os.kill(os.getpid(), signal.SIGKILL)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False, text=True)
    assert done.returncode == -signal.SIGKILL


def age(folder: Path, seconds: float) -> None:
    then = (folder / HEARTBEAT).stat().st_mtime - seconds
    os.utime(folder / HEARTBEAT, (then, then))


def test_a_new_one_is_empty(tmp_path):
    assert claim(tmp_path, KEY).load() is None


def test_what_was_saved_last_is_loaded(tmp_path):
    mine = claim(tmp_path, KEY)
    for step in (10, 20, 5):  # a later phase counts its steps anew
        save(mine, step)
        assert_loads(mine, step)
        assert len(partial.checkpoints(mine.folder)) == 1


def test_the_training_of_a_killed_process_is_taken_over_at_once(tmp_path):
    kill_after(tmp_path, "mine.save(7, {'w': torch.ones(2)}, {})")
    mine = claim(tmp_path, KEY)
    loaded = mine.load()
    assert loaded is not None
    assert loaded[0] == {"step": 7}
    assert [path.name for path in (tmp_path / "partial" / KEY).iterdir()] == [mine.folder.name]


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path):
    script = (
        "mine.save(7, {'w': torch.ones(2)}, {})\n"
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "mine.save(8, {'w': torch.zeros(2)}, {})"
    )
    kill_after(tmp_path, script)
    mine = claim(tmp_path, KEY)
    loaded = mine.load()
    assert loaded is not None
    assert loaded[0] == {"step": 7}
    assert torch.equal(loaded[1]["w"], torch.ones(2))
    save(mine, 9)
    assert_loads(mine, 9)


def test_what_a_phase_made_is_kept_beside_the_checkpoints(tmp_path, caplog):
    """Through kills and claims, by its name, until it is discarded; what is corrupted is gone."""
    kill_after(
        tmp_path,
        "mine.keep('a/../b', {'w': torch.ones(2)}, {'items': 3})\nmine.save(7, {}, {})\n"
        "mine.keep('other', {'w': torch.zeros(1)}, {})\nmine.save(8, {}, {})",
    )
    mine = claim(tmp_path, KEY)
    kept, other = mine.kept("a/../b"), mine.kept("other")
    assert kept is not None
    assert other is not None
    assert kept[0] == {"items": 3}
    assert torch.equal(kept[1]["w"], torch.ones(2))
    assert torch.equal(other[1]["w"], torch.zeros(1))
    assert mine.kept("unknown") is None
    loaded = mine.load()
    assert loaded is not None
    assert loaded[0] == {"step": 8}
    for path in mine.folder.glob("kept-*"):
        path.write_bytes(path.read_bytes()[:-1])
    assert mine.kept("other") is None
    assert "is corrupted and is made anew" in caplog.text
    mine.keep("other", {"w": torch.ones(1)}, {})
    again = mine.kept("other")
    assert again is not None
    assert torch.equal(again[1]["w"], torch.ones(1))
    mine.discard()
    assert not mine.folder.exists()


def test_what_is_kept_by_a_sleeper_that_lost_its_folder_is_its_own(tmp_path):
    first = claim(tmp_path, KEY)
    age(first.folder, 50 * partial.LIVING_FACTOR)
    second = claim(tmp_path, KEY, stale_after=1)
    first.keep("collect", {"w": torch.ones(1)}, {})
    assert first.kept("collect") is not None
    assert second.kept("collect") is None


def test_what_somebody_works_on_is_left_alone(tmp_path):
    first = claim(tmp_path, KEY)
    save(first, 3)
    second = claim(tmp_path, KEY)
    assert second.folder != first.folder
    assert second.load() is None
    assert_loads(first, 3)


def test_what_was_released_is_taken_over_at_once(tmp_path):
    with claim(tmp_path, KEY) as first:
        save(first, 3)
    second = claim(tmp_path, KEY)
    assert not first.folder.exists()
    assert_loads(second, 3)
    assert claim(tmp_path, KEY).load() is None  # it's owned again


def test_a_heartbeat_that_stopped_makes_it_stale(tmp_path):
    first = claim(tmp_path, KEY)
    save(first, 3)
    age(first.folder, 50 * partial.LIVING_FACTOR)
    assert claim(tmp_path, KEY, stale_after=100).load() is None
    assert_loads(claim(tmp_path, KEY, stale_after=30), 3)


def test_who_is_at_work_on_this_host_may_be_quiet_for_long(tmp_path):
    mine = claim(tmp_path, KEY)
    age(mine.folder, 500)
    assert not is_stale(mine.folder, 120)


def test_another_machine_is_judged_by_its_heartbeat_alone(tmp_path):
    first = claim(tmp_path, KEY)
    save(first, 3)
    foreign = first.folder.rename(first.folder.with_name(OTHER_HOST))
    assert not is_stale(foreign, stale_after=60)
    age(foreign, 61)
    assert is_stale(foreign, stale_after=60)
    assert_loads(claim(tmp_path, KEY, stale_after=60), 3)


def test_a_beat_keeps_it_alive(tmp_path, monkeypatch):
    mine = claim(tmp_path, KEY)
    age(mine.folder, 500 * partial.LIVING_FACTOR)
    mine.beat()  # not yet due: costs no system call
    assert is_stale(mine.folder)
    monkeypatch.setattr(partial, "BEAT_EVERY_S", 0.0)
    mine.beat()
    assert not is_stale(mine.folder)


def test_the_furthest_of_several_is_taken_and_the_rest_dropped(tmp_path):
    place = tmp_path / "partial" / KEY
    runs = [claim(tmp_path, KEY) for _ in range(3)]
    for saves, run in zip((1, 3, 2), runs, strict=True):
        for step in range(saves):
            save(run, step)
    for run in runs:
        run.release()
    mine = claim(tmp_path, KEY)
    assert_loads(mine, 2)
    assert list(place.iterdir()) == [mine.folder]


def test_how_far_it_got_is_told_by_phase_and_step_not_by_how_often_it_was_saved(tmp_path):
    reached = {"often": (0, 9, 5), "far": (1, 3, 1), "less far": (1, 2, 4)}
    runs = {name: claim(tmp_path, KEY) for name in reached}
    for name, (phase, step, saves) in reached.items():
        for done in range(step - saves + 1, step + 1):
            runs[name].save(done, {"w": torch.zeros(1)}, {"phase": phase})
        runs[name].release()
    found = claim(tmp_path, KEY).load()
    assert found is not None
    assert found[0] == {"phase": 1, "step": 3}


def test_a_folder_that_never_got_a_heartbeat_is_taken_over(tmp_path):
    with claim(tmp_path, KEY) as first:
        (first.folder / HEARTBEAT).unlink()
    assert [path.name for path in (tmp_path / "partial" / KEY).iterdir()] == [first.folder.name]
    mine = claim(tmp_path, KEY)
    assert list((tmp_path / "partial" / KEY).iterdir()) == [mine.folder]
    assert (mine.folder / HEARTBEAT).exists()


def test_only_one_can_take_it(tmp_path):
    first = claim(tmp_path, KEY)
    save(first, 3)
    first.release()
    assert partial._take(first.folder) is not None
    assert partial._take(first.folder) is None


def test_of_many_at_once_one_takes_it_and_the_others_start_anew(tmp_path):
    keys = [f"{n:032x}" for n in range(30)]
    for key in keys:
        with claim(tmp_path, key) as first:
            first.save(3, {"w": torch.ones(2)}, {})
    script = (
        "import sys, time; from pathlib import Path;"
        "from metabench.store.partial import checkpoints, claim;"
        "root = Path(sys.argv[1]); print('ready', flush=True); sys.stdin.readline();"
        "mine = [claim(root, key) for key in sys.argv[2:]];"
        "print(*(len(checkpoints(m.folder)) for m in mine), flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", script, str(tmp_path), *keys]
    pipe = subprocess.PIPE
    runs = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        print(file=run.stdin, flush=True)
    got = [[int(n) for n in run.stdout.readline().split()] for run in runs]
    for run in runs:
        run.communicate("\n", timeout=60)
    assert [sum(counts) for counts in zip(*got, strict=True)] == [1] * len(keys)


def test_one_that_slept_and_was_robbed_goes_on_in_a_new_place(tmp_path):
    sleeper = claim(tmp_path, KEY)
    save(sleeper, 3)
    age(sleeper.folder, 1000)
    thief = claim(tmp_path, KEY)
    save(thief, 4)
    sleeper.beat(force=True)
    save(sleeper, 6)
    assert_loads(thief, 4)
    assert_loads(sleeper, 6)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_corrupted_checkpoint_is_named_and_not_used(tmp_path, caplog, damage):
    mine = claim(tmp_path, KEY)
    save(mine, 3)
    (path,) = partial.checkpoints(mine.folder)
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    path.write_bytes(
        {"truncated": data[: len(data) // 2], "flipped": flipped, "emptied": b""}[damage]
    )
    path_content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert mine.load() is None
    assert str(path) in caplog.text
    aside = tmp_path / "corrupt" / f"{KEY}-checkpoint.safetensors"
    assert aside.read_bytes() == path_content
    save(mine, 4)
    assert_loads(mine, 4)
    (path,) = partial.checkpoints(mine.folder)
    path.write_bytes(b"worse")
    assert mine.load() is None
    assert [p.read_bytes() for p in (tmp_path / "corrupt").iterdir()] == [b"worse"]  # the newest


def test_discard_leaves_nothing_but_what_others_have(tmp_path):
    first, second = claim(tmp_path, KEY), claim(tmp_path, KEY)
    first.discard()
    assert second.folder.is_dir()
    second.discard()
    second.discard()
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    mine = claim(tmp_path, KEY)
    save(mine, 3)

    def full(path, data):
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(StoreError, match="is full") as caught:
        save(mine, 4)
    assert len(str(caught.value).splitlines()) == 2
    assert_loads(mine, 3)
    assert not [path for path in mine.folder.iterdir() if path.name.startswith(".")]


def test_a_zombie_is_not_alive(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # it has closed its output: it is ending
    name = machine.unique_name().replace(f"-{os.getpid()}-", f"-{child.pid}-")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert machine.owner_alive(name) is False
    child.wait()
    assert machine.owner_alive(name) is False
    assert machine.owner_alive(machine.unique_name()) is True
    assert machine.owner_alive(OTHER_HOST) is None


def test_a_key_that_is_a_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no key"):
        claim(tmp_path, "../../elsewhere")
