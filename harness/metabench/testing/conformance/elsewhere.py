"""The same training in another process, whose hashes, addresses and imports are its own.

    python -m metabench.testing.conformance.elsewhere

loads PyTorch, and no plugin; for each line that it reads it starts a process that trains once, and
answers with a line. So of many checks in one process only the first waits for PyTorch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from metabench.api.algorithm import Algorithm
from metabench.runner.worker import initialise

if TYPE_CHECKING:
    from metabench.testing.conformance.subject import AlgorithmSubject

SEED = 1
SECONDS = 40
LONGEST = 500
if sys.platform == "linux":
    CONTEXT = multiprocessing.get_context("fork")
else:  # there what PyTorch stands on survives no fork
    CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Training:
    """What is trained elsewhere, and what that process shares with this one.

    Attributes:
        target, kind, name: of the algorithm; see `target.resolved`.
        hp: its hyper-parameters, as JSON.
        folder: the working directory.
        paths: where modules are looked for.
        environment: all variables.
    """

    target: str
    kind: str
    name: str
    hp: str
    folder: str
    paths: list[str]
    environment: dict[str, str]


def weights_digest(algorithm: Algorithm) -> str:
    """Of all parameters and persistent buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(algorithm.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def weights_digest_elsewhere(subject: AlgorithmSubject) -> str:
    """That of the same training in a new process.

    Raises:
        RuntimeError: it failed there; with the end of what it said.
    """
    wanted = Training(
        target=subject.target,
        kind=subject.entry.kind,
        name=subject.entry.name,
        hp=subject.hp.model_dump_json(),
        folder=os.getcwd(),
        paths=list(sys.path),
        environment=_environment(),
    )
    digest, said = _starter(os.getpid()).train(wanted)
    if not digest:
        raise RuntimeError(f"it failed in another process: {said.strip()[-LONGEST:]}")
    return digest


def _environment() -> dict[str, str]:
    """Of another process: a seed of its own for hashes, whatever this one was given."""
    paths = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONHASHSEED": "random", "PYTHONPATH": paths}


# Here.


class Starter:
    """The process that starts those that train; it ends when nobody can ask it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )

    def train(self, wanted: Training) -> tuple[str, str]:
        """The digest, empty where it failed, and what was said meanwhile."""
        asked, answered = self.process.stdin, self.process.stdout
        assert asked is not None
        assert answered is not None
        try:
            print(json.dumps(asdict(wanted)), file=asked, flush=True)
            answer = answered.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            _starter.cache_clear()  # the next one asks another
            return "", self.process.communicate()[1]
        digest, said = json.loads(answer)
        return digest, said


@functools.cache
def _starter(pid: int) -> Starter:
    """That of the process with this number: one that is forked from it asks its own."""
    return Starter()


# There.


def main() -> None:
    """Answer until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # What each training would load anew; `target` loads no plugin before it is asked for one.
    importlib.import_module("torch._dynamo")  # by the first optimiser
    importlib.import_module("metabench.testing.conformance.target")
    parent = os.getppid()
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as scratch:
            digest, said = Path(scratch, "digest"), Path(scratch, "said")
            process = CONTEXT.Process(target=_train, args=(line, str(digest), str(said)))
            process.start()
            for _ in range(SECONDS):
                process.join(1.0)
                if process.exitcode is not None or os.getppid() != parent:
                    break
            late = process.exitcode is None
            process.kill()
            process.join()
            if late:
                said.write_text(f"it did not end within {SECONDS} s")
            found = [p.read_text(errors="replace") if p.exists() else "" for p in (digest, said)]
        print(json.dumps(found), flush=True)


def _train(line: str, digest: str, said: str) -> None:
    """Of a process of its own: write the digest to one file, all that a plugin prints to another.

    Args:
        line: the `Training` as JSON.
        digest, said: paths.
    """
    wanted = Training(**json.loads(line))
    told = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(told, 2)
    initialise(os.getppid())
    os.chdir(wanted.folder)
    os.environ.clear()
    os.environ.update(wanted.environment)
    sys.path[:] = wanted.paths
    importlib.invalidate_caches()

    from metabench.testing.conformance.subject import AlgorithmSubject
    from metabench.testing.conformance.target import resolved

    torch.set_num_threads(1)
    [subject] = [
        s
        for s in resolved(wanted.target)
        if (s.entry.kind, s.entry.name) == (wanted.kind, wanted.name)
    ]
    assert isinstance(subject, AlgorithmSubject)  # others are not trained
    subject = replace(subject, hp=subject.cls.hyperparameters.model_validate_json(wanted.hp))
    Path(digest).write_text(weights_digest(subject.train(seed=SEED)))


if __name__ == "__main__":
    main()
