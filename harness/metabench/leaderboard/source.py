"""Where the cells of a table are read from: a result folder, or what was published of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

from metabench.leaderboard.members import Member, members
from metabench.store.machine import machine_id
from metabench.store.record import CellRecord, RunInfo
from metabench.store.results import EpisodeResults
from metabench.store.store import Store

Trust = Literal["self-reported", "recomputed", "reproduced"]
TRUSTS: tuple[Trust, ...] = get_args(Trust)
"""How far a row's numbers were checked, the least first: somebody says so; they follow from its own
predictions; it was run again, elsewhere or later, and predicted the same."""


class Source(Protocol):
    """What a table is made from.

    Every method raises StoreError for what is there and can't be read.
    """

    def members(self, suite: str) -> list[Member]:
        """The cells of a suite, by labels; UnknownNameError where there is none of that name."""

    def episodes(self, key: str) -> EpisodeResults:
        """What a finished cell predicted at meta-test."""

    def disjoint(self, key: str) -> EpisodeResults | None:
        """What it predicted for disjoint episodes; None where it has none."""

    def run_info(self, key: str) -> RunInfo:
        """How and on what it ran."""

    def times(self, record: CellRecord) -> Mapping[str, Any] | None:
        """Its times of one machine, as in `timing/<machine>.json`; None where there are none."""

    def train_s(self, record: CellRecord) -> float | None:
        """Seconds of its training, with those of the shared phases under it."""

    def trust(self, cells: Sequence[Member]) -> Trust:
        """How far the numbers of a row of these cells were checked."""


class StoreSource:
    """A result folder as a source."""

    def __init__(self, store: Store, machine: str | None = None) -> None:
        """`machine`: whose times are meant (`machine_id`); None: this one's."""
        self.store, self._machine = store, machine

    def members(self, suite: str) -> list[Member]:
        return members(self.store, suite)

    def episodes(self, key: str) -> EpisodeResults:
        return self.store.episodes(key)

    def disjoint(self, key: str) -> EpisodeResults | None:
        return self.store.disjoint(key)

    def run_info(self, key: str) -> RunInfo:
        return self.store.run_info(key)

    def times(self, record: CellRecord) -> Mapping[str, Any] | None:
        # A device's name is its type on the CPU, and needs PyTorch to be found out elsewhere.
        place = self._machine or machine_id(self.store.run_info(record.key).device)
        return self.store.read_timing(record.key, place)

    def train_s(self, record: CellRecord) -> float | None:
        parts = [self.store.run_info(key).train_s for key in (record.key, *record.phases)]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def trust(self, cells: Sequence[Member]) -> Trust:
        """A table of a result folder is made from its predictions, whatever records say."""
        return "recomputed"
