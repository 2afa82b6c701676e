"""Errors that a person can act on: what was wrong, where, and what to do about it.

Everything raised on purpose derives from `MetabenchError`. The command line prints its message in
one or two lines without a traceback and leaves with its `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MetabenchError(Exception):
    """Something that the user can mend.

    Args:
        message: what was wrong and where, one line.
        hint: what to do about it, one line, or empty.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Errors cross process boundaries; the default would lose the hint.
        return type(self), (self.message, self.hint)


class UsageError(MetabenchError):
    """An option, a suite file or an argument that cannot be meant."""


class UnknownNameError(UsageError):
    """A name that nothing is registered under."""


class PluginError(MetabenchError):
    """A plugin that could not be loaded, or two that want the same name."""


class ProtocolError(MetabenchError):
    """A protocol that the data cannot serve (too few classes, too few items in a class)."""


class DataMissingError(MetabenchError):
    """A data set that is not on this machine, with how to get it."""


class DataCorruptError(MetabenchError):
    """A data set or cache whose content is not what its digest says."""


class StoreError(MetabenchError):
    """A result folder that cannot be read or written."""


class EvidenceError(MetabenchError):
    """Something published or handed in that isn't what it says, or can't be read."""

    exit_code = 1


class NotANumberError(MetabenchError):
    """A loss, a prediction or a parameter that is not finite."""

    exit_code = 1


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a `kind` (such as "algorithm") called `name`, with the nearest of `known`."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return UnknownNameError(f"there is no {kind} called {name!r}", hint)
