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
        self.last: tuple[str, States] | None = None
        self.beside: dict[str, tuple[str, States]] = {}
        self.steps: list[int] = []

    def load(self) -> tuple[dict[str, Any], States] | None:
        return None if self.last is None else _read(self.last)

    def save(self, step: int, tensors: States, meta: dict[str, Any]) -> None:
        self.steps.append(step)
        if len(self.steps) % self.every == 0:
            self.last = _written(tensors, meta)

    def keep(self, name: str, tensors: States, meta: dict[str, Any]) -> None:
        self.beside[name] = _written(tensors, meta)

    def kept(self, name: str) -> tuple[dict[str, Any], States] | None:
        return _read(self.beside[name]) if name in self.beside else None


def _written(tensors: States, meta: dict[str, Any]) -> tuple[str, States]:
    return json.dumps(meta), {name: value.detach().clone() for name, value in tensors.items()}


def _read(written: tuple[str, States]) -> tuple[dict[str, Any], States]:
    meta, tensors = written
    return json.loads(meta), {name: value.clone() for name, value in tensors.items()}


def interrupt_at(phase: str, step: int) -> Callable[[Progress], None]:
    def monitor(progress: Progress) -> None:
        if (progress.phase, progress.step) == (phase, step):
            raise KilledError

    return monitor
