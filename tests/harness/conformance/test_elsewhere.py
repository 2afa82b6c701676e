"""Training in another process: each in one of its own, whatever became of the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from metabench.testing.conformance import elsewhere
from metabench.testing.conformance.elsewhere import weights_digest, weights_digest_elsewhere
from metabench.testing.conformance.subject import AlgorithmSubject
from metabench.testing.conformance.target import resolved

HONEST = Path(__file__).parents[2] / "wrong_plugins" / "honest.py"
CLASS = """
import os

from honest import Centroid

trained = 0

class Trained(Centroid):
    \"\"\"Prototypes.\"\"\"

    name = "trained"

    def training_loss(self, batch, ctx):
        global trained
        trained += ctx.step == 0
        loss = super().training_loss(batch, ctx)
"""

Digest = Callable[[str], str]


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Digest:
    """That of a class whose training step ends so, trained elsewhere."""
    monkeypatch.syspath_prepend(str(HONEST.parent))

    def of(end: str) -> str:
        path = tmp_path / "trained.py"
        path.write_text(f"{CLASS}        {end}\n")
        [subject] = resolved(str(HONEST))
        assert isinstance(subject, AlgorithmSubject)
        entry = replace(subject.entry, name="trained")
        return weights_digest_elsewhere(replace(subject, target=str(path), entry=entry))

    return of


def test_the_weights_are_those_of_a_training_here(digest: Digest) -> None:
    [subject] = resolved(str(HONEST))
    assert isinstance(subject, AlgorithmSubject)
    here = weights_digest(subject.train(seed=elsewhere.SEED))
    assert digest("return loss") == here
    assert digest("return 2 * loss") != here


def test_each_is_trained_by_a_process_that_has_trained_nothing(digest: Digest) -> None:
    assert len({digest("return loss * trained") for _ in range(2)}) == 1


def test_what_went_wrong_there_is_told(digest: Digest) -> None:
    with pytest.raises(RuntimeError, match=r"it failed in another process: (?s:.*)bad luck"):
        digest('raise ValueError("bad luck")')


def test_one_that_dies_harms_none_after_it(digest: Digest) -> None:
    with pytest.raises(RuntimeError, match="it failed in another process"):
        digest("os._exit(0)")
    with pytest.raises(RuntimeError, match="it failed in another process"):
        digest("os.kill(os.getppid(), 9)")  # the process that starts the others
    assert digest("return loss")
