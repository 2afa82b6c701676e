"""What training and evaluation tell whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far one cell is.

    Attributes:
        phase: the phase of training, or "test".
        step, total: steps of the phase, or episodes.
        loss: of the last logged step, None where there is none.
        validation: the best validation score so far, None before the first.
    """

    phase: str
    step: int
    total: int
    loss: float | None = None
    validation: float | None = None


Monitor = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Tell nobody."""
