"""The same training in another process, whose hashes, addresses and imports are its own.

    python -m metabench.testing.conformance.elsewhere TARGET KIND NAME

prints a digest of the weights.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import torch

from metabench.api.algorithm import Algorithm
from metabench.registry import Entry
from metabench.runner.worker import initialise

SEED = 1
SECONDS = 40.0
LONGEST = 500


def weights_digest(algorithm: Algorithm) -> str:
    """Of all parameters and persistent buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(algorithm.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def weights_digest_elsewhere(target: str, entry: Entry) -> str:
    """That of the same training in a new process.

    Raises:
        RuntimeError: it failed there; with the end of what it said.
    """
    command = [sys.executable, "-m", __name__, target, entry.kind, entry.name]
    # A seed of its own for hashes, whatever this process was given.
    paths = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONHASHSEED": "random", "PYTHONPATH": paths}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"it failed in another process: {done.stderr.strip()[-LONGEST:]}")
    return done.stdout.strip()


def main() -> None:
    """Of a fresh process: print the digest, and nothing that a plugin prints."""
    from metabench.testing.conformance.subject import AlgorithmSubject
    from metabench.testing.conformance.target import resolved

    results = os.dup(1)
    initialise(os.getppid())
    target, kind, name = sys.argv[1:]
    torch.set_num_threads(1)
    [subject] = [s for s in resolved(target) if (s.entry.kind, s.entry.name) == (kind, name)]
    assert isinstance(subject, AlgorithmSubject)  # others are not trained
    os.write(results, weights_digest(subject.train(seed=SEED)).encode())


if __name__ == "__main__":
    main()
