"""Options that several verbs share: the result folder, the data folder, the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from metabench.cli import complete
from metabench.errors import UsageError
from metabench.store import DEFAULT_OUT, OUT_VARIABLE, result_folder, with_home

if TYPE_CHECKING:
    _ParamType = click.ParamType[tuple[int, ...]]
else:  # not a generic class before click 8.4
    _ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

OUT_HELP = f"The result folder. [{OUT_VARIABLE}; default: ./{DEFAULT_OUT}]"
DATA_HELP = "The data folder. [METABENCH_DATA; default: in the user's cache folder]"


class _ResultFolder(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # which `Path` takes for the current folder
            result_folder(value)
        return super().convert(with_home(value), param, ctx)  # no shell expands a variable's `~`


def out_option(function: F) -> F:
    """Add `-o/--out`; the verb is handed the result folder as its argument `out`, a `Path`."""
    return click.option(
        "-o",
        "--out",
        type=_ResultFolder(file_okay=False, path_type=Path),
        envvar=OUT_VARIABLE,
        default=Path(DEFAULT_OUT),
        help=OUT_HELP,
    )(function)


def data_option(function: F) -> F:
    """Add `-d/--data-dir`; the verb is handed the data folder as its argument `data_dir`.

    It is a `Path`: the option, else METABENCH_DATA, else a folder of the user's cache.
    """
    return click.option(
        "-d",
        "--data-dir",
        callback=_data_folder,
        help=DATA_HELP,
    )(function)


def unchecked_folder_options(function: F) -> F:
    """Add both options for a verb that itself says what is wrong with a folder.

    It is handed `out` and `data_dir` as they were typed, or None: give them to `result_folder` and
    `data_folder`.
    """
    text = click.Path(readable=False)
    data = click.option("-d", "--data-dir", type=text, help=DATA_HELP)(function)
    return click.option("-o", "--out", type=text, help=OUT_HELP)(data)


def device_option(function: F) -> F:
    """Add `--device`; the verb is handed its name: give that to `resolve_device`."""
    return click.option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        default="auto",
        show_default=True,
        help="What everything runs on; auto takes CUDA where there is any.",
    )(function)


def run_options(function: F) -> F:
    """Add what run and time have in common: which cells, computed how, kept where."""
    function = out_option(data_option(function))
    return _filter_options(device_option(_engine_option(_precision_option(function))))


def _engine_option(function: F) -> F:
    return click.option(
        "--engine",
        metavar="auto|loop|vmap|compile|mixed|graph",
        default="auto",
        show_default=True,
        help="How inner loops are run; a part of what a cell is. auto follows a table by device.",
    )(function)


def _precision_option(function: F) -> F:
    return click.option(
        "--precision",
        metavar="float32|tf32|bf16",
        default="float32",
        show_default=True,
        help="In which networks are computed; a part of what a cell is. tf32 needs CUDA.",
    )(function)


class _Seeds(_ParamType):
    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(word) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers such as 0,1,2", param, ctx)


def suite_option(default: str = "") -> Callable[[F], F]:
    """Add `-s/--suite`; it must be typed unless the text says what happens by `default`."""
    return click.option(
        "-s",
        "--suite",
        required=not default,
        shell_complete=complete.suites,
        help="A suite's name, or the path of a TOML file."
        + (default and f"  [default: {default}]"),
    )


def row_options(algorithm_help: str) -> Callable[[F], F]:
    """Add `-a`, `-b`, `--dataset` and `-p`, any of them several times.

    The verb is handed `algorithms`, `backbones`, `datasets` and `protocols`.
    """

    def add(function: F) -> F:
        for option in reversed(_row_filters(algorithm_help)):
            function = option(function)
        return function

    return add


def suite_name(typed: str, known: Sequence[str]) -> str:
    """The suite that `-s` means: its name, or that of its file; a known name may look like one."""
    from metabench.runner.suite import is_path

    return Path(typed).stem if is_path(typed) and typed not in known else typed


def _row_filters(algorithm_help: str) -> tuple[Callable[[F], F], ...]:
    return (
        click.option(
            "-a",
            "--algorithm",
            "algorithms",
            multiple=True,
            shell_complete=complete.names_of("algorithm"),
            help=algorithm_help,
        ),
        click.option(
            "-b",
            "--backbone",
            "backbones",
            multiple=True,
            shell_complete=complete.names_of("backbone"),
            help="Only these: a name or label.",
        ),
        click.option(
            "--dataset",
            "datasets",
            multiple=True,
            shell_complete=complete.names_of("dataset"),
            help="Only these: a name or label.",
        ),
        click.option(
            "-p", "--protocol", "protocols", multiple=True, help="Only these: such as 5w1s."
        ),
    )


_FILTERS = (
    *_row_filters(
        "Only these: a name, or name/variant. A registered one that the suite does not name is"
        " added to it."
    ),
    click.option(
        "--exclude",
        multiple=True,
        shell_complete=complete.names_of("algorithm", "backbone"),
        help="Leave out an algorithm, a variant or a backbone.",
    ),
    click.option("--seeds", type=click.IntRange(1), help="How many training seeds, from 0."),
    click.option(
        "--seed", type=_Seeds(), metavar="LIST", help="Which training seeds, such as 0,3."
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a setting, such as maml.inner_lr=0.1 or '*.recipe.steps=100'.",
    ),
)


def _filter_options(function: F) -> F:
    """Add the filters that choose cells in a suite; the verb passes them to `prepare`.

    `seeds` and `seed` are for `chosen_seeds`.
    """
    for option in reversed(_FILTERS):
        function = option(function)
    return function


def chosen_seeds(seeds: int | None, seed: tuple[int, ...] | None) -> tuple[int, ...] | int | None:
    """The training seeds of `--seeds` or `--seed`; None where neither was typed.

    Raises:
        UsageError: both were.
    """
    if seeds is not None and seed is not None:
        raise UsageError("--seeds and --seed exclude each other", "--seeds 3 is --seed 0,1,2")
    return seed or seeds


def _data_folder(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> Path:
    from metabench.data.folder import data_folder

    try:
        return data_folder(value)
    except RuntimeError as error:  # `~NAME`, and nobody of that name has a home here
        raise UsageError(f"the data folder: {error}", "write the folder out") from None
