"""Cells that were run again in another result folder, and what that says of those published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from metabench.errors import UsageError
from metabench.leaderboard.members import Member
from metabench.leaderboard.source import Source, StoreSource, Trust
from metabench.publishing.evidence import Proof
from metabench.publishing.reproduction import Reproduction
from metabench.store.store import Store


class Again:
    """Second runs of cells: those of a suite in another result folder, or some that are known."""

    def __init__(
        self, source: Source | None = None, suite: str = "", known: Iterable[Reproduction] = ()
    ) -> None:
        self._source, self._suite = source, suite
        self._found: dict[tuple[str, str], Reproduction | None] = {
            (one.key, one.published): one for one in known
        }

    @classmethod
    def of(cls, store: Store, suite: str, first: Store | None) -> Again:
        """From a result folder.

        Raises:
            UsageError: it's the first one itself.
        """
        if first is not None and store.root.resolve() == first.root.resolve():
            raise UsageError(
                f"{store.root} is the result folder that is published",
                "run the suite again with --out ANOTHER, and name that",
            )
        return cls(StoreSource(store), suite)

    @cached_property
    def _members(self) -> dict[str, Member]:
        found = self._source.members(self._suite) if self._source is not None else []
        return {m.key: m for m in found if m.record is not None}

    def of_cell(self, proof: Proof) -> Reproduction | None:
        """What the second run of a cell says of the first; None where it wasn't run again.

        A cell of the same start is a copy of that run, and says nothing.
        """
        which = proof.record.key, proof.record.result.predictions
        if which not in self._found:
            self._found[which] = self._compared(proof)
        return self._found[which]

    def _compared(self, proof: Proof) -> Reproduction | None:
        member = self._members.get(proof.record.key)
        if self._source is None or member is None or member.record is None:
            return None
        new = Proof.of(self._source, member.record)
        if new.cell.run.started == proof.cell.run.started:
            return None
        return Reproduction.between(proof, new)

    def of_row(self, proofs: Mapping[int, Proof]) -> Iterator[Reproduction]:
        """Of those cells of a row that were run again."""
        for proof in proofs.values():
            if (found := self.of_cell(proof)) is not None:
                yield found

    def trust(self, proofs: Mapping[int, Proof], before: Trust) -> Trust:
        """How far a row was checked, with the second run."""
        found = list(self.of_row(proofs))
        if not found:
            return before
        return "reproduced" if all(one.holds for one in found) else "recomputed"
