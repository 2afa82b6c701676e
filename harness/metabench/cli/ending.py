"""How a long verb ends before its time: Ctrl-C and SIGTERM, and the line that goes on."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from metabench.rendering import plain

_NOT_AGAIN = {"fresh", "failed", "fail_fast", "dry_run"}
"""Options that a line which goes on with a verb must not repeat."""


@contextmanager
def keeping(ctx: click.Context, what: str, then: str = "Go on with") -> Iterator[None]:
    """Where what runs in here is ended by Ctrl-C or SIGTERM, say what is kept and what to type.

    The exit code is 130 or 143 then, as a shell's.

    Args:
        what: such as "what is finished is kept".
        then: what the line that was typed does if it is typed again.
    """
    try:
        with _ended_by_sigterm():
            yield
    except KeyboardInterrupt as end:
        _no_more_interrupts()
        how, code = ("terminated", 143) if isinstance(end, _Terminated) else ("interrupted", 130)
        tell(f"{how}; {what}. {then}: {again(ctx)}")
        ctx.exit(code)


def again(ctx: click.Context, *more: str) -> str:
    """The line as it was typed, without what must not be repeated."""
    words = ["metabench", ctx.command.name or ""]
    for parameter in ctx.command.params:
        name = parameter.name or ""
        typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not typed or name in _NOT_AGAIN:
            continue
        option, value = parameter.opts[-1], ctx.params[name]
        for one in value if isinstance(value, tuple) and name != "seed" else (value,):
            words += [option] if one is True else [option, _word(one)]
    return shlex.join([*words, *more])


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, str | Path) else f"{value:g}"


def tell(line: str) -> None:
    """A line on standard error."""
    click.echo(plain(line), err=True)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler, `timeout` or `kill` asks the run to end."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what runs in here as Ctrl-C does: by an exception, which workers don't outlive.

    Without it the process would be gone at once, and what watches over its locks complain.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one would disturb the cleaning up
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _no_more_interrupts() -> None:
    """Another Ctrl-C must not disturb the last line, nor Python's own cleaning up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
