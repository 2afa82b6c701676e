"""Options that several verbs share: the result folder, the data folder, the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from metabench.store import DEFAULT_OUT, OUT_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])


def out_option(function: F) -> F:
    """Add `-o/--out`; the verb is handed the result folder as its argument `out`, a `Path`."""
    return click.option(
        "-o",
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        envvar=OUT_VARIABLE,
        default=Path(DEFAULT_OUT),
        help=f"The result folder. [{OUT_VARIABLE}; default: ./{DEFAULT_OUT}]",
    )(function)


def data_option(function: F) -> F:
    """Add `-d/--data-dir`; the verb is handed the data folder as its argument `data_dir`.

    It is a `Path`: the option, else METABENCH_DATA, else a folder of the user's cache.
    """
    return click.option(
        "-d",
        "--data-dir",
        callback=_data_folder,
        help="The data folder. [METABENCH_DATA; default: in the user's cache folder]",
    )(function)


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

    return data_folder(value)
