"""The question before something is deleted."""

from __future__ import annotations

import sys

import click

from metabench.errors import UsageError
from metabench.rendering import plain


def confirmed(question: str, yes: bool) -> bool:
    """Whether the user said yes, by `--yes` or at the prompt on standard error.

    Raises:
        UsageError: there is nobody to ask.
        KeyboardInterrupt: Ctrl-C at the prompt.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("nothing is deleted without an answer", "add --yes")
    try:
        return click.confirm(plain(question), err=True)
    except click.Abort:
        raise KeyboardInterrupt from None
