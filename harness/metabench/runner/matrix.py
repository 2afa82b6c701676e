"""The matrix: the cells of a suite that the filters leave, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from metabench.api.recipe import Recipe
from metabench.episodes.protocol import Protocol
from metabench.errors import UsageError, unknown_name
from metabench.registry import Registry
from metabench.runner.cells import Cell, Choice
from metabench.runner.checked import checked, unknown_key
from metabench.runner.overrides import Override, parse_override
from metabench.runner.patterns import algorithm_matches, any_match, escaped, protocol_matches
from metabench.runner.resolve import Combination, Resolved, resolve
from metabench.runner.suite import MOST_SEEDS, PluginEntry, Suite

T = TypeVar("T")


@dataclass(frozen=True)
class Filters:
    """What of a suite is run, and with which changes; empty: all of it, as it is.

    Patterns are shell-style, and match what the suite says, before `--set`.

    Attributes:
        algorithms: patterns of names, or of `name/variant` where there is a slash.
        backbones, datasets: patterns of labels or names.
        protocols: patterns of names such as `5w1s15q`, or of the part before the queries, `5w1s`.
        exclude: patterns of an algorithm, a variant, `algorithm/variant` or a backbone to leave
            out.
        seeds: a number of seeds from 0, or the seeds; None: the suite's.
        settings: `--set` texts, see `metabench.runner.overrides`.
    """

    algorithms: Sequence[str] = ()
    backbones: Sequence[str] = ()
    datasets: Sequence[str] = ()
    protocols: Sequence[str] = ()
    exclude: Sequence[str] = ()
    seeds: int | Sequence[int] | None = None
    settings: Sequence[str] = ()


def build_matrix(suite: Suite, registry: Registry, filters: Filters | None = None) -> list[Cell]:
    """The cells of a suite, by data set, protocol, algorithm, backbone and seed.

    Raises:
        UsageError: something in the suite or in the filters that cannot be meant.
    """
    filters = filters or Filters()
    overrides = [parse_override(text) for text in filters.settings]
    seeds = _seeds(suite, filters.seeds)
    combinations = list(_combinations(suite, filters, overrides))
    resolved = [resolve(suite, registry, at, overrides) for at in combinations]
    kept = _filtered(suite, resolved, filters)
    _check_used(overrides, [row for _, row in kept])
    rows = [
        row.cell.model_copy(update={"arguments": _arguments(suite, combinations[i], row)})
        for i, row in kept
    ]
    _check_distinct(suite, rows)
    return [
        row.model_copy(update={"seed": seed, "arguments": (*row.arguments, "--seed", str(seed))})
        for row in rows
        for seed in seeds
    ]


def _seeds(suite: Suite, asked: int | Sequence[int] | None) -> tuple[int, ...]:
    if asked is None:
        return suite.seeds
    count = asked if isinstance(asked, int) else len(asked)
    if not 1 <= count <= MOST_SEEDS:
        raise UsageError(f"{count} seeds: a run takes 1 to {MOST_SEEDS}", "--seeds 3")
    seeds = range(asked) if isinstance(asked, int) else asked
    if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**63 for seed in seeds):
        raise UsageError(
            f"seeds {', '.join(map(str, seeds))}: they should be different, not below 0, "
            "and below 2**63",
            "--seed 0,1,2",
        )
    return tuple(seeds)


def _combinations(
    suite: Suite, filters: Filters, overrides: Sequence[Override]
) -> Iterable[Combination]:
    """What the filters on names leave; those on variants come when these are known."""
    datasets = _chosen("dataset", suite.datasets, filters.datasets, _plugin_matches, _label)
    protocols = _chosen(
        "protocol",
        suite.protocols,
        filters.protocols,
        lambda pattern, p: protocol_matches(pattern, p.name),
        lambda p: p.name,
    )
    algorithms = _chosen(
        "algorithm",
        suite.algorithms,
        filters.algorithms,
        lambda pattern, entry: any_match([pattern.partition("/")[0]], [entry.name]),
        lambda entry: entry.name,
    )
    backbones = _chosen("backbone", suite.backbones, filters.backbones, _plugin_matches, _label)
    # Before any plugin is imported, so that one that cannot be can be left out.
    algorithms = [a for a in algorithms if not any_match(filters.exclude, [a.name])]
    backbones = [b for b in backbones if not any_match(filters.exclude, b.names)]
    for dataset in datasets:
        for written, protocol in _overridden(protocols, overrides):
            for algorithm in algorithms:
                for backbone in backbones:
                    if any_match(algorithm.backbones, [backbone.label]):
                        yield Combination(dataset, written, protocol, algorithm, backbone)


def _chosen(
    kind: str,
    entries: Sequence[T],
    patterns: Sequence[str],
    matches: Callable[[str, T], bool],
    name: Callable[[T], str],
) -> list[T]:
    """The entries that one of the patterns matches; a pattern that matches none is an error."""
    for pattern in patterns:
        if not any(matches(pattern, entry) for entry in entries):
            raise _no_match(kind, pattern, {name(entry) for entry in entries})
    return [e for e in entries if not patterns or any(matches(p, e) for p in patterns)]


def _plugin_matches(pattern: str, entry: PluginEntry) -> bool:
    return any_match([pattern], entry.names)


def _label(entry: PluginEntry) -> str:
    return entry.label


def _no_match(kind: str, pattern: str, known: Iterable[str]) -> UsageError:
    known = {name.removesuffix("/") for name in known}  # `maml/`: without a label
    error = unknown_name(kind, pattern, known)
    names = ", ".join(sorted(known))
    hint = error.hint if error.hint.startswith("known") else f"{error.hint} (known: {names})"
    return UsageError(f"this suite has no {kind} {pattern!r}", hint)


def _overridden(
    protocols: Sequence[Protocol], overrides: Sequence[Override]
) -> list[tuple[Protocol, Protocol]]:
    """Each protocol as written and as changed; those that a change makes equal only once."""
    changes = {o.key: o.value for o in overrides if o.kind == "protocol"}
    pairs: dict[str, tuple[Protocol, Protocol]] = {}
    for written in protocols:
        changed = written
        if changes:
            table = {**written.model_dump(mode="json"), **changes}
            changed = checked(Protocol, table, "--set protocol")
        pairs.setdefault(changed.digest, (written, changed))
    return list(pairs.values())


def _filtered(
    suite: Suite, resolved: Sequence[Resolved], filters: Filters
) -> list[tuple[int, Resolved]]:
    """What the filters on algorithms and variants leave, with its number among all."""
    kept = [
        (i, row)
        for i, row in enumerate(resolved)
        if not any(_excludes(pattern, row) for pattern in filters.exclude)
        and (not filters.algorithms or any(_includes(p, row) for p in filters.algorithms))
    ]
    _check_patterns(suite, resolved, filters)
    if not kept:
        raise UsageError(
            "the filters leave nothing of this suite",
            "take one away, or see what there is with `metabench run --suite NAME --dry-run`",
        )
    return kept


def _check_patterns(suite: Suite, resolved: Sequence[Resolved], filters: Filters) -> None:
    """Raise UsageError for a pattern that matches nothing of the suite, whatever the others do."""
    variants = {f"{row.cell.algorithm.name}/{row.variant}" for row in resolved}
    variants |= {f"{entry.name}/{entry.variant or ''}" for entry in suite.algorithms}
    for pattern in filters.algorithms:
        if not any(algorithm_matches(pattern, *name.split("/", 1)) for name in variants):
            raise _no_match("algorithm", pattern, variants)
    backbones = {word for entry in suite.backbones for word in entry.names}
    words = {word for name in variants for word in (name, *name.split("/", 1))}
    for pattern in filters.exclude:
        if not any_match([pattern], words | backbones):
            what = "algorithm, variant or backbone to exclude:"
            raise _no_match(what, pattern, variants | backbones)


def _includes(pattern: str, row: Resolved) -> bool:
    return algorithm_matches(pattern, row.cell.algorithm.name, row.variant)


def _excludes(pattern: str, row: Resolved) -> bool:
    return _includes(pattern, row) or bool(row.variant and any_match([pattern], [row.variant]))


def _check_used(overrides: Sequence[Override], rows: Sequence[Resolved]) -> None:
    """Raise UsageError for a `--set` that changes nothing of what is run."""
    for override in overrides:
        if not any(override in row.used for row in rows):
            error = _unused(override, rows)
            whole = _whole_key(override, rows)
            raise UsageError(error.message, f"did you mean {whole!r}?") if whole else error


def _unused(override: Override, rows: Sequence[Resolved]) -> UsageError:
    """Why an override changes nothing: nobody of that name is run, or they have no such key."""
    where = f"--set {override.text}"
    known: set[str] = set()
    keys: set[str] = set()
    for row in rows:
        choice = _target(override, row.cell)
        known.add(choice.label)
        if override.kind == "algorithm":
            meant = override.is_for_algorithm(choice.name, row.variant)
        else:
            meant = override.is_for_plugin(override.kind, choice.name, choice.label)
        if meant:
            keys.update(Recipe.model_fields if override.recipe else choice.hyperparameters)
    if keys:
        return unknown_key(where, override.key, keys)
    if override.pattern in known:
        return UsageError(f"{where}: {override.kind} {override.pattern!r} has no settings")
    error = _no_match(override.kind, override.pattern, known)
    return UsageError(f"{where}: {error.message}", error.hint)


def _whole_key(override: Override, rows: Sequence[Resolved]) -> str:
    """Where a setting is that was looked for among those of algorithms; empty: nowhere."""
    if override.kind != "algorithm" or override.recipe:
        return ""
    pattern, key = override.pattern, override.key
    if key in Recipe.model_fields and any(
        override.is_for_algorithm(row.cell.algorithm.name, row.variant) for row in rows
    ):
        return f"{pattern}.recipe.{key}"
    for row in rows:
        for kind, choice in (("backbone", row.cell.backbone), ("dataset", row.cell.dataset)):
            if any_match([pattern], [choice.name, choice.label]) and key in choice.hyperparameters:
                return f"{kind}.{pattern}.{key}"
    return ""


def _target(override: Override, cell: Cell) -> Choice:
    if override.kind == "dataset":
        return cell.dataset
    return cell.backbone if override.kind == "backbone" else cell.algorithm


def _arguments(suite: Suite, at: Combination, row: Resolved) -> tuple[str, ...]:
    """The options that choose this row in its suite and change it likewise."""
    name = at.algorithm.name
    if sum(entry.name == name for entry in suite.algorithms) > 1:
        name = f"{name}/{escaped(row.variant)}"
    chosen = {
        "--dataset": escaped(at.dataset.label),
        "--protocol": at.written.name,
        "--algorithm": name,
        "--backbone": escaped(at.backbone.label),
    }
    options = [word for pair in chosen.items() for word in pair]
    return (*options, *(word for o in row.used for word in ("--set", o.text)))


def _check_distinct(suite: Suite, rows: Sequence[Cell]) -> None:
    """Raise UsageError where two entries of the suite make one row of the table."""
    seen = set()
    for cell in rows:
        if cell.id in seen:
            row = cell.id.rpartition("/")[0]
            raise UsageError(
                f"{suite.source}: two entries make the row {row}",
                'tell two [[algorithm]] tables apart by a variant = "..."',
            )
        seen.add(cell.id)
