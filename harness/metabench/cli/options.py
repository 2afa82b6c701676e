"""Options that several verbs share: the result folder, the data folder, the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from metabench.errors import UsageError
from metabench.store import DEFAULT_OUT, OUT_VARIABLE, result_folder, with_home

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


def _data_folder(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> Path:
    from metabench.data.folder import data_folder

    try:
        return data_folder(value)
    except RuntimeError as error:  # `~NAME`, and nobody of that name has a home here
        raise UsageError(f"the data folder: {error}", "write the folder out") from None
