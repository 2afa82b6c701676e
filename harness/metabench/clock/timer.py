"""The clock that times are read from, taken before any plugin loads, and who replaced it since.

Import it before plugins are loaded. Times themselves are always read from the references here; that
somebody replaced the clock still makes a time worthless, because code that reads the replaced one
(a plugin's own, a library's) may do something else in it.
"""

from __future__ import annotations

import time
from types import BuiltinFunctionType, ModuleType

import torch

from metabench.errors import MetabenchError

now = time.perf_counter_ns
"""Nanoseconds of a clock that never goes back."""
synchronize = torch.cuda.synchronize
Event = torch.cuda.Event

_HOST = (
    *("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns"),
    *("time", "time_ns", "process_time", "process_time_ns"),
)
_DEVICE: tuple[tuple[str, ModuleType | type, str], ...] = (
    ("torch.cuda.synchronize", torch.cuda, "synchronize"),
    ("torch.cuda.Event", torch.cuda, "Event"),
    ("torch.cuda.Event.record", Event, "record"),
    ("torch.cuda.Event.elapsed_time", Event, "elapsed_time"),
)
_TAKEN = {name: getattr(time, name) for name in _HOST}
_TAKEN |= {name: getattr(owner, attribute) for name, owner, attribute in _DEVICE}


def seconds() -> float:
    """Seconds of the same clock."""
    return now() / 1e9


class ClockError(MetabenchError):
    """A time that nobody may believe; none is kept."""


def patched() -> list[str]:
    """Which clock functions somebody replaced, such as `time.perf_counter`; empty: none.

    Those of Python are recognised even if they were replaced before this module was imported.
    """
    host = [f"time.{name}" for name in _HOST if not _is_own(name)]
    return host + [
        name for name, owner, attribute in _DEVICE if getattr(owner, attribute) is not _TAKEN[name]
    ]


def check_clock() -> None:
    """Raise ClockError, naming what was replaced, unless every clock is what it was."""
    if names := patched():
        raise ClockError(
            f"{', '.join(names)} was replaced in this process: no time is taken",
            "find out which plugin or library does so (metabench list plugins), and leave it out",
        )


def _is_own(name: str) -> bool:
    """Whether a function of `time` is the interpreter's, and the one that was taken here."""
    function = getattr(time, name, None)
    builtin = isinstance(function, BuiltinFunctionType) and function.__self__ is time
    return builtin and function is _TAKEN[name]
