"""What a check finds: that all is well, that something is not, or that it doesn't apply."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]
CheckFunction = Callable[[Any], str | None]
"""Of a subject; what it returns is a remark, such as a time."""


class NonconformityError(Exception):
    """A plugin does not do what it has to, or not what it says.

    Args:
        expected: what every plugin of its kind does, or what this one declares.
        happened: what it did instead.
        at: where to look: a function or class of the plugin.
    """

    def __init__(self, expected: str, happened: str, at: object = None) -> None:
        super().__init__(expected, happened, at)
        self.expected, self.happened, self.at = expected, happened, at


class NotApplicableError(Exception):
    """A check has nothing to say of this plugin, or can't be done on this machine: why."""


@dataclass(frozen=True)
class Check:
    """One thing that is looked at.

    Attributes:
        name: how it is asked for, such as `inference-mode`.
        what: in a sentence, what holds of a plugin that passes.
        run: raises `NonconformityError` or `NotApplicableError`.
        patience: how many times the usual limit it may take; more where it starts a process.
    """

    name: str
    what: str
    run: CheckFunction
    patience: int = 1


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes:
        plugin: kind and name of what was checked, such as "algorithm maml".
        check: its name.
        status: passed, failed or skipped.
        seconds: that it took.
        remark: figures, or why it was skipped.
        expected, happened, look_at: see `NonconformityError`; empty unless it failed.
    """

    plugin: str
    check: str
    status: Status
    seconds: float
    remark: str = ""
    expected: str = ""
    happened: str = ""
    look_at: str = ""


class Checks:
    """The checks of one kind of plugin, in the order in which they are run."""

    def __init__(self) -> None:
        self.all: list[Check] = []

    def add(self, what: str, patience: int = 1) -> Callable[[CheckFunction], CheckFunction]:
        """Decorate a check, which is named after its function; `what`, `patience`: see `Check`."""

        def added(function: CheckFunction) -> CheckFunction:
            name = function.__name__.replace("_", "-")
            self.all.append(Check(name, what, function, patience))
            return function

        return added


def place(of: object) -> str:
    """`file:line (name)` of a function or class; its name alone where there is no source."""
    if of is None:
        return ""
    named = inspect.unwrap(of) if callable(of) else of
    name = getattr(named, "__qualname__", str(named))
    try:
        file, (_, line) = inspect.getsourcefile(named), inspect.getsourcelines(named)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return name
    return f"{file}:{line} ({name})"
