"""Checkpoints in memory, and training that is interrupted at a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor

from metabench.engine.progress import Progress

States = dict[str, Tensor]


class KilledError(Exception):
    """As if the process had been killed."""


class Memory:
    """Checkpoints in memory, as a file would keep them: copied, the facts as JSON."""

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.kept: tuple[str, States] | None = None
        self.steps: list[int] = []

    def load(self) -> tuple[dict[str, Any], States] | None:
        if self.kept is None:
            return None
        meta, tensors = self.kept
        return json.loads(meta), {name: value.clone() for name, value in tensors.items()}

    def save(self, step: int, tensors: States, meta: dict[str, Any]) -> None:
        self.steps.append(step)
        if len(self.steps) % self.every == 0:
            copied = {name: value.detach().clone() for name, value in tensors.items()}
            self.kept = (json.dumps(meta), copied)


def interrupt_at(phase: str, step: int) -> Callable[[Progress], None]:
    def monitor(progress: Progress) -> None:
        if (progress.phase, progress.step) == (phase, step):
            raise KilledError

    return monitor
