"""What people call the rows of a table, and which of them are meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from metabench.errors import MetabenchError, UsageError, unknown_name
from metabench.leaderboard.members import Member
from metabench.leaderboard.rows import TableRow
from metabench.rendering import plain
from metabench.runner.patterns import algorithm_matches, any_match, protocol_matches

_WILDCARDS = frozenset("*?[")
Named = TableRow | Member


class RowName(NamedTuple):
    """What people call a row: `maml`, `maml/batch-norm-batch`, `maml@conv4-32`.

    The parts are as plugins have them, and untrusted; `short` and `str` are one visible line.
    """

    algorithm: str
    variant: str
    backbone: str

    @classmethod
    def of(cls, row: Named) -> RowName:
        return cls(row.labels.algorithm, row.labels.variant, row.labels.backbone)

    @property
    def short(self) -> str:
        """Without the backbone."""
        return plain(f"{self.algorithm}/{self.variant}" if self.variant else self.algorithm)

    def __str__(self) -> str:
        return f"{self.short}@{plain(self.backbone)}"

    def is_called(self, pattern: str) -> bool:
        """Whether `-a PATTERN` means it."""
        return pattern in (self.short, str(self)) or algorithm_matches(
            pattern, self.algorithm, self.variant
        )


@dataclass(frozen=True)
class Only:
    """Which rows are meant; nothing of a kind means all of them. Patterns are as for a run."""

    algorithms: Sequence[str] = ()
    backbones: Sequence[str] = ()
    datasets: Sequence[str] = ()
    protocols: Sequence[str] = ()

    def __contains__(self, row: Named) -> bool:
        return all(
            not patterns or any(matches(row, pattern) for pattern in patterns)
            for _, patterns, matches, _ in self._filters
        )

    def of(self, rows: Iterable[TableRow]) -> list[TableRow]:
        """Those of the rows that are meant."""
        return [row for row in rows if row in self]

    def check(self, rows: Sequence[Named]) -> None:
        """Raise UsageError unless each pattern, and all of them together, mean one of the rows."""
        for option, patterns, matches, label in self._filters:
            for pattern in patterns:
                if not any(matches(row, pattern) for row in rows):
                    raise _means_none(option, pattern, {label(row) for row in rows})
        if rows and not any(row in self for row in rows):
            raise UsageError(f"no row is left by {self}", "each of these leaves some: drop one")

    def __str__(self) -> str:
        """As it is typed."""
        typed = [f"{f[0]} {plain(pattern)}" for f in self._filters for pattern in f[1]]
        return " ".join(typed)

    @property
    def _filters(self) -> tuple[_Filter, ...]:
        return (
            ("-a", self.algorithms, _is_called, lambda row: RowName.of(row).short),
            ("-b", self.backbones, _has_backbone, lambda row: row.labels.backbone),
            ("--dataset", self.datasets, _has_dataset, lambda row: row.labels.dataset),
            ("-p", self.protocols, _has_protocol, lambda row: row.labels.protocol),
        )


_Filter = tuple[str, Sequence[str], Callable[[Named, str], bool], Callable[[Named], str]]
"""Its option, the patterns, whether one means a row, and what it is asked of that."""


def _is_called(row: Named, pattern: str) -> bool:
    return RowName.of(row).is_called(pattern)


def _has_backbone(row: Named, pattern: str) -> bool:
    name = [row.identity.backbone.name] if row.identity else []
    return any_match([pattern], [row.labels.backbone, *name])


def _has_dataset(row: Named, pattern: str) -> bool:
    name = [row.identity.dataset.name] if row.identity else []
    return any_match([pattern], [row.labels.dataset, *name])


def _has_protocol(row: Named, pattern: str) -> bool:
    return protocol_matches(pattern, row.labels.protocol)


def _means_none(option: str, pattern: str, known: Iterable[str]) -> MetabenchError:
    hint = unknown_name("row", pattern, map(plain, known)).hint
    return UsageError(f"there is no row under {option} {plain(pattern)}", hint)


def row_called(names: Iterable[RowName], text: str) -> RowName:
    """The row that is meant by `ALGORITHM[/VARIANT][@BACKBONE]`.

    A name without a variant means the row that has none, if there is such a one; a pattern does so
    only among rows of one algorithm and backbone.

    Raises:
        UnknownNameError: no row is called so.
        UsageError: several are.
    """
    names = sorted(set(names))
    called, _, backbone = text.partition("@")
    exact = [name for name in names if text in (name.short, str(name))]
    found = [
        name
        for name in names
        if name in exact
        or (
            algorithm_matches(called, name.algorithm, name.variant)
            and (not backbone or any_match([backbone], [name.backbone]))
        )
    ]
    if not found:
        raise unknown_name("row", text, {str(name) if backbone else name.short for name in names})
    meant = exact or (_without_variant(found, called) or found)
    if len(meant) > 1:
        raise UsageError(
            f"{text!r} is the name of {len(found)} rows", f"say which: {', '.join(map(str, found))}"
        )
    return meant[0]


def _without_variant(found: Sequence[RowName], called: str) -> list[RowName]:
    """Those of the rows that a name prefers; none where it says more than a name does."""
    alike = len({(name.algorithm, name.backbone) for name in found}) == 1
    if "/" in called or (_WILDCARDS & set(called) and not alike):
        return []
    return [name for name in found if not name.variant]
