"""A folder of published tables: publishing a suite into it, so that twice changes nothing.

All is computed before the first file is written. Then come the history, the evidence and the
tables, each file whole or not at all, and at the end goes what no table refers to any more. What an
interruption leaves, publishing again completes. There is no lock: one writes at a time, as one
does in a working copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from metabench.errors import EvidenceError
from metabench.leaderboard.source import Source
from metabench.leaderboard.table import leaderboard_csv, leaderboard_markdown
from metabench.publishing.again import Again
from metabench.publishing.datasheet import described, still_true
from metabench.publishing.evidence import CELLS, QUERIES, REPRODUCED, Proof
from metabench.publishing.facts import TableFacts
from metabench.publishing.files import Files, FolderFiles, read_json
from metabench.publishing.history import History, Replaced, history_name
from metabench.publishing.merge import Change, Claim, claims, merge
from metabench.publishing.published import (
    PublishedSource,
    PublishedTable,
    RowLabels,
    published,
    stem_of,
    suites_in,
    table_name,
)
from metabench.publishing.reproduction import Reproduction
from metabench.publishing.verify.episodes import DataHere
from metabench.store.files import replace_bytes, storing
from metabench.store.machine import owner_alive, unique_name

_DRAFT = re.compile(r"\..+\.(?P<owner>[0-9a-f]{8}-[0-9]+-[0-9a-f]{8})")
_EVIDENCE = re.compile(
    rf"({CELLS}/[0-9a-f]{{32}}\.(json|parquet)|{QUERIES}/[0-9a-f]{{32}}\.parquet"
    rf"|{REPRODUCED}/[0-9a-f]{{32}}\.json)"
)


RunAgain = tuple[RowLabels, tuple[Reproduction, ...]]
"""What came of running cells of a row again."""


@dataclass(frozen=True)
class Publication:
    """What publishing a suite came to.

    Attributes:
        changes: what became of each new row.
        reproductions: of cells that were run again, by row.
        written, removed: files, by their names in the folder.
    """

    suite: str
    changes: tuple[Change, ...]
    reproductions: tuple[RunAgain, ...]
    written: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all that was run again predicted the same."""
        return all(one.holds for _, found in self.reproductions for one in found)


class ChangedFiles:
    """The files of a folder as they'll be."""

    def __init__(self, base: Files) -> None:
        self._base = base
        self.written: dict[str, bytes] = {}
        self.removed: set[str] = set()

    @property
    def place(self) -> str:
        return self._base.place

    def names(self) -> list[str]:
        return sorted((self._there - self.removed) | self.written.keys())

    def read(self, name: str) -> bytes:
        if name in self.written:
            return self.written[name]
        if name in self.removed:
            raise EvidenceError(f"{name} is missing")
        return self._base.read(name)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Put files in; those that are there already as they are don't count."""
        for name, data in files.items():
            self.removed.discard(name)
            self.written.pop(name, None)
            if name not in self._there or self._base.read(name) != data:
                self.written[name] = data

    def remove(self, name: str) -> None:
        self.written.pop(name, None)
        if name in self._there:
            self.removed.add(name)

    @cached_property
    def _there(self) -> set[str]:
        return set(self._base.names())


def publish(
    source: Source,
    suite: str,
    folder: Path,
    here: DataHere,
    *,
    replacing: bool = False,
    again: Again | None = None,
    check: Callable[[Files], object] | None = None,
) -> Publication:
    """Merge the rows of a suite with those that a folder has published of it.

    One process at a time may write to a folder; nothing keeps a second one from it.

    Args:
        source: a result folder, or a bundle that was verified.
        folder: made where it's missing.
        here: data sets of this machine, for what the datasheet says of them.
        replacing: take new rows also where the rules would keep the published ones, and make
            texts anew that are still true.
        again: the cells of a second run.
        check: is given the folder as it will be, and raises if that isn't to be written.

    Raises:
        UnknownNameError: the source has no such suite.
        EvidenceError: what is published isn't whole, or nothing is fit to be published.
        StoreError: something can't be read or written.
    """
    files = ChangedFiles(FolderFiles(folder))
    tables = {name: PublishedTable.read(files, name) for name in suites_in(files)}
    new, left = claims(source, suite)
    if again is not None:
        new = [replace(c, trust=again.trust(c.proofs, c.trust)) for c in new]
    old = _published_claims(files, tables.get(suite), {c.key for c in new} if replacing else set())
    shared = _Shared(files, [table for name, table in tables.items() if name != suite])
    kept_apart: list[Change] = []
    if replacing:
        shared.read_known(new)
    else:
        new, kept_apart = shared.settled(new)
    decisions, untouched = merge(old, new, replacing)
    standing = [d.claim for d in decisions if d.claim is not None] + untouched
    if not standing:
        why = "; ".join(sorted({c.reason for c in (*left, *kept_apart) if c.reason}))
        raise EvidenceError(f"nothing of suite {suite!r} can be published", why)
    before = {p.record.key: p for claim in old for p in claim.proofs.values()}
    _put_evidence(files, before | shared.proofs, standing)
    _put_shared_history(files, shared, tables, suite)
    reproductions = _put_reproductions(files, standing, again, replacing)
    history = [d.history for d in decisions if d.history is not None]
    remade = {suite, *shared.touched(files)}
    _put_history(files, suite, history)
    tables[suite] = PublishedTable(suite=suite, rows=tuple(claim.row for claim in standing))
    _put_tables(files, [tables[name] for name in sorted(remade)], here, replacing)
    _sweep(files)
    if check is not None:
        check(files)
    changes = (*(d.change for d in decisions), *kept_apart, *left)
    written, removed = _write(folder, files), _remove(folder, files)
    return Publication(suite, changes, reproductions, written, removed)


def _published_claims(
    files: Files, table: PublishedTable | None, replaceable: set[object]
) -> list[Claim]:
    """The published rows; one that can't be read is an error unless it may be replaced."""
    if table is None:
        return []
    found = []
    for row in table.rows:
        claim = Claim(row, {}, "self-reported")
        try:
            proofs = {int(seed): Proof.read(files, key) for seed, key in row.cells.items()}
            source = PublishedSource(files, [table], {p.record.key: p for p in proofs.values()})
            records = {p.record.key: p.record for p in proofs.values()}
            found.append(Claim(row, proofs, source.trust(row.members(records))))
        except EvidenceError as error:
            if claim.key not in replaceable:
                error.hint = error.hint or "publish that row again with --replace"
                raise
            found.append(replace(claim, damage=error.message))
    return found


class _Shared:
    """Evidence of the other tables of a folder, on which a suite's may stand too."""

    def __init__(self, files: Files, tables: Iterable[PublishedTable]) -> None:
        self._files = files
        self.proofs: dict[str, Proof] = {}
        self._suites: dict[str, list[str]] = {}
        for table in tables:
            for key in table.keys:
                self._suites.setdefault(key, []).append(table.suite)

    def read_known(self, new: Iterable[Claim]) -> None:
        """Take what is published of the cells of new rows, where it can be read."""
        keys = {proof.record.key for claim in new for proof in claim.proofs.values()}
        for key in keys & self._suites.keys():
            with suppress(EvidenceError):
                self.proofs[key] = Proof.read(self._files, key)

    def settled(self, new: Iterable[Claim]) -> tuple[list[Claim], list[Change]]:
        """The rows with evidence as it's published already, and those that contradict it."""
        found: list[Claim] = []
        left: list[Change] = []
        for claim in new:
            proofs, reason = dict(claim.proofs), ""
            for seed, proof in claim.proofs.items():
                key = proof.record.key
                if key not in self._suites:
                    continue
                proofs[seed] = self.proofs[key] = Proof.read(self._files, key)
                if proofs[seed].record.result != proof.record.result:
                    reason = f"suite {self._suites[key][0]} has its seed {seed} otherwise"
            if reason:
                left.append(Change(claim.row.labels, "left out", reason))
            else:
                found.append(replace(claim, proofs=proofs))
        return found, left

    def touched(self, files: ChangedFiles) -> set[str]:
        """Other suites whose evidence changes."""
        changed = {Path(name).stem for name in (*files.written, *files.removed)}
        return {suite for key in changed for suite in self._suites.get(key, ())}


def _put_evidence(
    files: ChangedFiles, before: Mapping[str, Proof], standing: Iterable[Claim]
) -> None:
    """Evidence that isn't there; that of a cell whose predictions are others takes its place."""
    for proof in (proof for claim in standing for proof in claim.proofs.values()):
        key = proof.record.key
        was = before.get(key)
        # A record vouches for predictions: the same one needs no look at these.
        if was is not None and was.cell == proof.cell:
            continue
        files.write(proof.files())
        if was is None or was.record.result != proof.record.result:
            files.remove(f"{REPRODUCED}/{key}.json")


def _put_history(files: ChangedFiles, suite: str, notes: list[Replaced]) -> None:
    noted = History.read(files, suite).with_more(notes)
    if noted.replaced:
        files.write({history_name(suite): noted.to_bytes()})


def _put_shared_history(
    files: ChangedFiles, shared: _Shared, tables: Mapping[str, PublishedTable], suite: str
) -> None:
    """Note the rows of other suites that stand on a cell whose evidence is another now."""
    changed = {Path(name).stem for name in files.written if name.startswith(f"{CELLS}/")}
    for name in sorted(shared.touched(files)):
        notes = []
        for row in tables[name].rows:
            if changed.isdisjoint(row.cells.values()):
                continue
            now = {seed: Proof.read(files, key) for seed, key in row.cells.items()}
            # Of those that change without having been read, nobody knows.
            was = {
                seed: shared.proofs.get(proof.record.key, proof)
                for seed, proof in now.items()
                if proof.record.key in shared.proofs or proof.record.key not in changed
            }
            note = Replaced(
                row=row,
                predictions={seed: proof.record.result.predictions for seed, proof in was.items()},
                by=dict(row.cells),
                by_predictions={s: proof.record.result.predictions for s, proof in now.items()},
                reason=f"suite {suite} replaced cells of it: asked for",
            )
            notes.append(note)
        _put_history(files, name, notes)


def _put_reproductions(
    files: ChangedFiles, standing: Iterable[Claim], again: Again | None, replacing: bool
) -> tuple[RunAgain, ...]:
    """What was run again; one that failed isn't forgotten over one that didn't."""
    if again is None:
        return ()
    found = []
    for claim in standing:
        made = tuple(again.of_row(claim.proofs))
        for one in made:
            [(name, data)] = one.files().items()
            if replacing or name not in files.names() or not one.holds:
                files.write({name: data})
        if made:
            found.append((claim.row.labels, made))
    return tuple(found)


def _put_tables(
    files: ChangedFiles, tables: Iterable[PublishedTable], here: DataHere, replacing: bool
) -> None:
    """Tables made of their evidence only; texts that are still true stay as they are."""
    for table in tables:
        name, stem = table.suite, stem_of(table.suite)
        proofs = {key: Proof.read(files, key) for key in table.keys}
        source = PublishedSource(files, [table], proofs)
        made = source.rows(name)
        new = published(name, made, source)
        facts = TableFacts.of(source, new, made, here)
        if not replacing and name in suites_in(files):
            old = PublishedTable.read(files, name)
            if old.keys == new.keys and still_true(files, old, facts, proofs):
                continue
        texts = {
            f"{stem}.csv": leaderboard_csv(made).encode(),
            f"{stem}.md": leaderboard_markdown(source, name, made).encode(),
            table_name(name): new.to_bytes(),
        }
        files.write(texts)
        files.write(described(files, facts))


def _sweep(files: ChangedFiles) -> None:
    """Take out evidence that no table refers to, and what interrupted writers left."""
    known: set[str] = set()
    for suite in suites_in(files):
        for key in PublishedTable.read(files, suite).keys:
            known |= {f"{CELLS}/{key}.json", f"{CELLS}/{key}.parquet", f"{REPRODUCED}/{key}.json"}
            cell = read_json(files, f"{CELLS}/{key}.json")
            asked = (cell.get(name) for name in ("queries", "disjoint_queries"))
            known |= {f"{QUERIES}/{digest}.parquet" for digest in asked if digest}
    for name in files.names():
        draft = _DRAFT.fullmatch(name.rpartition("/")[2])
        left = draft is not None and owner_alive(draft["owner"]) is False
        if left or (_EVIDENCE.fullmatch(name) and name not in known):
            files.remove(name)


def _write(folder: Path, files: ChangedFiles) -> tuple[str, ...]:
    """History, evidence, tables; of a table the JSON last, which says what stands in it."""
    order = sorted(files.written, key=_place)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in order:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(path, files.written[name], unique_name())
    return tuple(order)


def _place(name: str) -> tuple[int, str]:
    for place, is_of in enumerate(
        (
            name.endswith(".history.json"),
            name.startswith(QUERIES),
            name.endswith(".parquet"),
            name.startswith(CELLS),
            name.startswith(REPRODUCED),
            "." in name.removesuffix(".json"),
        )
    ):
        if is_of:
            return place, name
    return 9, name


def _remove(folder: Path, files: ChangedFiles) -> tuple[str, ...]:
    with storing(folder):
        for name in sorted(files.removed):
            (folder / name).unlink(missing_ok=True)
    return tuple(sorted(files.removed))
