"""What a datasheet, metadata and an archive say of a published table: gathered once, from evidence.

Nothing here hangs on the day or the machine but what is installed of the data sets' plugins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from metabench.episodes.digest import digest, short
from metabench.errors import MetabenchError
from metabench.leaderboard.rows import TableRow, protocol_order
from metabench.publishing.evidence import CellEvidence
from metabench.publishing.history import History
from metabench.publishing.merge import moment_of
from metabench.publishing.published import PublishedSource, PublishedTable
from metabench.publishing.verify.episodes import DataHere
from metabench.publishing.verify.identities import protocol_of
from metabench.store.keys import CellIdentity
from metabench.store.record import CellRecord

CREATOR = "The metabench developers"
LICENCE = "MIT"
"""Of tables and evidence, as of all that is in metabench; data sets have their own."""
LICENCE_LINK = "https://spdx.org/licenses/MIT"


@dataclass(frozen=True)
class DataFacts:
    """What is known here of a data set that a table stands on.

    Attributes:
        digest: short, of its decoded content.
        licence, origin, reference, summary, card: as its plugin says; empty if that's not here.
        splits: of each split its name, classes and items; empty if the data isn't here.
        unknown: why something isn't known; empty where all is.
    """

    name: str
    digest: str
    licence: str = ""
    origin: str = ""
    reference: str = ""
    summary: str = ""
    card: str = ""
    splits: tuple[tuple[str, int, int], ...] = ()
    unknown: str = ""


@dataclass(frozen=True)
class TableFacts:
    """What is known of a published table, beside its rows."""

    suite: str
    rows: Sequence[TableRow]
    cells: Sequence[CellEvidence]
    records: Sequence[CellRecord]
    data: Sequence[DataFacts]
    replaced: int
    reproduced: int

    @classmethod
    def of(
        cls,
        source: PublishedSource,
        table: PublishedTable,
        rows: Sequence[TableRow],
        here: DataHere,
    ) -> TableFacts:
        """Of a table of a source, whose evidence is whole."""
        proofs = [source.proofs[key] for key in table.keys]
        return cls(
            suite=table.suite,
            rows=rows,
            cells=[proof.cell for proof in proofs],
            records=[proof.record for proof in proofs],
            data=_data((proof.record.identity for proof in proofs), here),
            replaced=len(History.read(source.files, table.suite).replaced),
            reproduced=len(set(source.reproductions) & set(table.keys)),
        )

    @property
    def version(self) -> str:
        """Format, rows replaced so far, and training runs with those that were run again.

        Whatever is added to a table makes it higher; a row that is replaced raises the second.
        """
        return f"1.{self.replaced}.{len(self.cells) + self.reproduced}"

    @cached_property
    def day(self) -> str:
        """On which the latest of its training runs started, ISO 8601; empty if nobody knows."""
        told = (moment_of(cell.run.started) for cell in self.cells)
        known = [moment for moment in told if moment is not None]
        return max(known).date().isoformat() if known else ""

    @property
    def protocols(self) -> list[dict[str, Any]]:
        """Each protocol's fields, with its name and digest."""
        found = {p.digest: p for p in (protocol_of(r.identity) for r in self.records)}
        ordered = sorted(found.values(), key=lambda p: (protocol_order(p.name), p.digest))
        return [{"name": p.name, "digest": p.short_digest, **p.model_dump()} for p in ordered]

    @property
    def seeds(self) -> list[int]:
        """Training seeds."""
        return sorted({record.identity.seed for record in self.records})

    @property
    def made_with(self) -> list[str]:
        """Versions, devices and systems of its cells, each combination once."""
        return sorted(
            {
                ", ".join(
                    filter(
                        None,
                        (
                            f"metabench {cell.run.metabench}" if cell.run.metabench else "",
                            f"torch {cell.run.torch}" if cell.run.torch else "",
                            f"Python {cell.run.python}" if cell.run.python else "",
                            cell.run.platform,
                            cell.run.device,
                            cell.run.instructions,
                        ),
                    )
                )
                for cell in self.cells
            }
            - {""}
        )


def _data(identities: Iterable[CellIdentity], here: DataHere) -> list[DataFacts]:
    """Of each data set, class split and image size."""
    found: dict[str, CellIdentity] = {}
    for identity in identities:
        protocol = protocol_of(identity)
        which = identity.dataset.model_dump(mode="json")
        found.setdefault(digest([which, protocol.class_split, protocol.image_size]), identity)
    facts = {_facts(identity, here) for identity in found.values()}
    return sorted(facts, key=lambda data: (data.name, data.digest, data.splits))


def _facts(identity: CellIdentity, here: DataHere) -> DataFacts:
    told = identity.dataset
    name, own = told.name, short("d", told.digest)
    try:
        entry = here.registry.find("dataset", name)
        if entry is None:
            return DataFacts(name, own, unknown=f"no data set called {name} is installed")
        cls = entry.load()
    except MetabenchError as error:
        return DataFacts(name, own, unknown=error.message)
    splits, unknown = _splits(identity, here)
    return DataFacts(
        name=name,
        digest=own,
        licence=cls.licence,
        origin=cls.origin,
        reference=cls.reference,
        summary=cls.summary,
        card=str(cls.card).strip(),
        splits=splits,
        unknown=unknown,
    )


def _splits(identity: CellIdentity, here: DataHere) -> tuple[tuple[tuple[str, int, int], ...], str]:
    """Classes and items of each split, if the data here are those of the table; else why not."""
    try:
        dataset, banks = here.banks(identity)
        if dataset.digest() != identity.dataset.digest:
            return (), "the data set that is installed has another content"
    except MetabenchError as error:
        return (), error.message
    return tuple((name, bank.n_classes, bank.n_items) for name, bank in banks.items()), ""
