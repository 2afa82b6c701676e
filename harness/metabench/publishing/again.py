"""Cells that were run again in another result folder, and what that says of those published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from metabench.episodes.digest import digest
from metabench.errors import UsageError
from metabench.leaderboard.source import Source, StoreSource, Trust
from metabench.publishing.evidence import Proof
from metabench.publishing.reproduction import Reproduction
from metabench.store.record import CellRecord
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
    def _records(self) -> dict[str, list[CellRecord]]:
        """Of the second folder, by what they are wherever they ran."""
        found: dict[str, list[CellRecord]] = {}
        for member in self._source.members(self._suite) if self._source is not None else []:
            if member.record is not None:
                found.setdefault(_anywhere(member.record), []).append(member.record)
        return found

    def of_cell(self, proof: Proof) -> Reproduction | None:
        """What the second run of a cell says of the first; None where it wasn't run again.

        A cell of the same start is a copy of that run, and says nothing. One that ran on another
        kind of device or PyTorch is compared too; one on the same that was computed otherwise, in
        another precision or by another engine, is another cell.
        """
        which = proof.record.key, proof.record.result.predictions
        if which not in self._found:
            self._found[which] = self._compared(proof)
        return self._found[which]

    def _compared(self, proof: Proof) -> Reproduction | None:
        same = self._records.get(_anywhere(proof.record), [])
        # The very same cell first.
        for record in sorted(same, key=lambda r: (r.key != proof.record.key, r.key)):
            if self._source is None or not _comparable(proof.record, record):
                continue
            new = Proof.of(self._source, record)
            if new.cell.run.started != proof.cell.run.started:
                return Reproduction.between(proof, new)
        return None

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


def _anywhere(record: CellRecord) -> str:
    """What a cell is, its seed included, wherever it was computed."""
    facts = record.identity.to_json()
    return digest({name: value for name, value in facts.items() if name != "numerics"})


def _comparable(one: CellRecord, other: CellRecord) -> bool:
    """The same cell, or in the same precision on another kind of device or minor PyTorch."""
    a, b = one.identity.numerics, other.identity.numerics
    elsewhere = (a.device, a.torch) != (b.device, b.torch)
    return one.key == other.key or (elsewhere and a.dtype == b.dtype)
