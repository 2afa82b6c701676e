"""The frame of the command line: one module a verb, imported only when the verb is used.

To add a verb, write `metabench/cli/<verb>.py` with a click command called `command`, and add a line
to `VERBS`. Results go to standard output, progress, warnings and errors to standard error.
"""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from metabench.cli.choice import nearest
from metabench.errors import MetabenchError
from metabench.rendering import plain

VERBS = {
    "bench": "Time all that is registered: sampling, inner loops, meta-steps, evaluation.",
    "bundle": "Write one file with rows of a suite and all that they stand on, to hand in.",
    "check": "Check a plugin: what it states and predicts, how it trains, what can be saved of it.",
    "clean": "Delete what nothing in a result folder refers to any more.",
    "compare": "Compare two rows of a table, two result folders, or a table with what it was.",
    "completion": "Print the script that makes a shell complete metabench's words.",
    "data": "List, prepare, verify and remove data sets.",
    "doctor": "Say what metabench finds on this machine, what is wrong, and what to do.",
    "leaderboard": "Print the table of a suite from the results in a folder.",
    "list": "List what is registered: algorithms, backbones, data sets, suites, plugins.",
    "show": "Show all that is known of something registered, or of a cell.",
    "status": "Say what is finished, failed or missing in a result folder, and what runs now.",
    "publish": "Merge the rows of a suite, or of a bundle, with a folder of published tables.",
    "new": "Write the project of an algorithm, backbone, dataset or suite into a new folder NAME.",
    "run": "Run a suite: train, test and time its cells, then print its table.",
    "time": "Time the finished cells of a suite again, longer and with nothing beside them.",
    "verify": "Check a bundle or a folder of published tables: what holds and what doesn't.",
}
INTERRUPTED = 130
_ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_HELP_ASKED_FOR = getattr(click.exceptions, "NoArgsIsHelpError", ())  # since click 8.2


class VerbGroup(click.Group):
    """The verbs of `VERBS`, and what becomes of their errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"metabench.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = args[0] in VERBS or args[0].startswith("-")
        if not known and not ctx.resilient_parsing:  # which a shell that completes words asks for
            ctx.fail(f"There is no verb {args[0]!r}.{nearest(args[0], list(VERBS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click's own would import every verb for its first line of help.
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, VERBS[verb]) for verb in self.list_commands(ctx)])

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        with _errors_in_two_lines():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_in_two_lines():
            return super().invoke(ctx)


@contextmanager
def _errors_in_two_lines() -> Iterator[None]:
    """What a person can act on becomes a message, a hint and an exit code, without a traceback."""
    try:
        yield
    except MetabenchError as error:
        _stop(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        if isinstance(error, _HELP_ASKED_FOR):
            raise
        where = error.ctx.command_path if error.ctx else "metabench"
        _stop(error.format_message(), f"see {where} -h", error.exit_code)
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        _stop(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        _stop("interrupted", exit_code=INTERRUPTED)


def _stop(message: str, hint: str = "", exit_code: int = 2) -> NoReturn:
    click.echo(f"metabench: {plain(message)}", err=True)
    if hint:
        click.echo(plain(hint), err=True)
    raise click.exceptions.Exit(exit_code)


class _StandardError(logging.Handler):
    """Warnings of the library, one line each on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"metabench: {record.levelname.lower()}: {plain(record.getMessage())}", err=True)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    """Warnings of Python, by plugins as they load for instance, in one line like our own."""
    told = plain(f"{category.__name__}: {message} ({filename}:{lineno})")
    click.echo(f"metabench: warning: {told}", err=True)


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB ...",
)
@click.version_option(package_name="metabench", message="%(prog)s %(version)s")
@click.option(
    "--strict-plugins", is_flag=True, help="Stop where a plugin fails, instead of warning."
)
def main(strict_plugins: bool) -> None:
    """Few-shot learning algorithms on the same episodes, under one protocol."""
    logger = logging.getLogger("metabench")
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        logger.addHandler(_StandardError())
    warnings.showwarning = _warn
    if strict_plugins:
        from metabench.plugins import registry

        registry(strict=True)
