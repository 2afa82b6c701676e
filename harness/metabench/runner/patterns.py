"""Shell-style patterns against the names of plugins, variants and protocols; case counts."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def any_match(patterns: Iterable[str], names: Iterable[str]) -> bool:
    """Whether one of the patterns matches one of the names."""
    names = list(names)
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def protocol_matches(pattern: str, name: str) -> bool:
    """Match a protocol's name, `5w1s15q`, or what is left of it without the queries, `5w1s`."""
    ways, letter, _queries = name.partition("s")  # a foreign label may have no such letter
    return any_match([pattern], [name, ways + letter])


def algorithm_matches(pattern: str, name: str, variant: str) -> bool:
    """Match a name (`maml`: every variant) or `name/variant` (`maml/`: the one without a label)."""
    return fnmatchcase(f"{name}/{variant}" if "/" in pattern else name, pattern)


def escaped(name: str) -> str:
    """The pattern that matches this name only."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
