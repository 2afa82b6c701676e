"""`metabench doctor`: what metabench finds on this machine, what is wrong, and what to do."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import click

from metabench.cli.options import unchecked_folder_options
from metabench.cli.output import format_options, print_rows
from metabench.cli.sizes import size_text
from metabench.errors import MetabenchError, UsageError
from metabench.rendering import Format

COLUMNS = ("check", "state", "found", "advice")
LEAST_MEMORY = 2 * 2**30
LEAST_DISK = 10**9
SOMETHING_WRONG = 1

State = Literal["ok", "note", "wrong"]


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        check: what was looked at.
        state: `note` keeps nobody from running a suite, `wrong` does.
        found: what is there.
        advice: what to do about it; empty where all is well.
    """

    check: str
    state: State
    found: str
    advice: str = ""


@click.command()
@unchecked_folder_options
@format_options
@click.pass_context
def command(ctx: click.Context, out: str | None, data_dir: str | None, fmt: Format) -> None:
    """Say what metabench finds on this machine, what is wrong, and what to do.

    Leaves with exit code 1 if something is wrong.
    """
    found = list(examine(out, data_dir))
    print_rows([finding._asdict() for finding in found], COLUMNS, fmt)
    if any(finding.state == "wrong" for finding in found):
        ctx.exit(SOMETHING_WRONG)


def examine(out: str | None, data_dir: str | None) -> Iterator[Finding]:
    """All checks, one after the other; one that breaks is a finding too.

    Args:
        out, data_dir: the folders as they were typed; None: the default ones.
    """
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("python", _python),
        ("torch", _torch),
        ("torchvision", _torchvision),
        ("devices", _devices),
        ("machine", _machine),
        ("result folder", lambda: _results(out)),
        ("data folder", lambda: _data_folder(data_dir)),
        ("data sets", lambda: _datasets(data_dir)),
        ("plugins", _plugins),
    )
    for name, check in checks:
        try:
            yield from check()
        except MetabenchError as error:
            yield Finding(name, "wrong", error.message, error.hint)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            yield Finding(name, "wrong", told, "this check broke; mend the installation")


def _python() -> Iterator[Finding]:
    from importlib.metadata import version

    yield Finding("metabench", "ok", version("metabench"))
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _torch() -> Iterator[Finding]:
    import torch

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    yield Finding("torch", "ok", f"{torch.__version__}, {built}")


def _torchvision() -> Iterator[Finding]:
    try:
        found = importlib.import_module("torchvision").__version__
    except Exception as error:  # a build for another torch fails in many ways
        told = f"{type(error).__name__}: {error}"
        yield Finding("torchvision", "wrong", told, "install the release that fits this torch")
    else:
        yield Finding("torchvision", "ok", found)


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            found = f"{facts.name}, {size_text(facts.total_memory)}"
            yield Finding(f"cuda:{index}", "ok", found)
    elif Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi"):
        advice = "install a torch built for the CUDA version of this driver, or use --device cpu"
        yield Finding("cuda", "note", "there is a driver, but torch can't use it", advice)
    else:
        yield Finding("cuda", "ok", "none; everything runs on the CPU")


def _machine() -> Iterator[Finding]:
    import psutil
    import torch

    from metabench.engine.numerics import THREADS
    from metabench.runner.environment import default_jobs, usable_cores

    jobs = default_jobs(torch.device("cpu"), cells=10**6)
    found = f"{usable_cores()} usable of {os.cpu_count()}; up to {jobs} workers"
    yield Finding("cores", "ok", f"{found} of {THREADS['cpu']} thread")
    memory = psutil.virtual_memory()
    found = f"{size_text(memory.available)} free of {size_text(memory.total)}"
    if memory.available < LEAST_MEMORY:
        yield Finding("memory", "note", found, "a worker may need 2 GB: end other programs")
    else:
        yield Finding("memory", "ok", found)


def _results(option: str | None) -> Iterator[Finding]:
    from metabench.data.folder import is_writable
    from metabench.store import OUT_VARIABLE, result_folder
    from metabench.store.store import MARK, Store

    out = result_folder(option)
    if not is_writable(out):
        wrong = "is not a folder" if out.is_file() else "can't be written"
        advice = f"choose another one with -o/--out or {OUT_VARIABLE}"
        yield Finding("result folder", "wrong", f"{out} {wrong}", advice)
        return
    there = next(path for path in (out, *out.parents) if path.exists())
    free = shutil.disk_usage(there).free
    suites = Store.open(out, create=False).suites() if (out / MARK).exists() else []
    held = f"suites: {', '.join(suites)}" if suites else "no results yet"
    found = f"{out} ({held}; {size_text(free)} free)"
    if free < LEAST_DISK:
        yield Finding("result folder", "note", found, "free some space: metabench clean")
    else:
        yield Finding("result folder", "ok", found)


def _data_folder(option: str | None) -> Iterator[Finding]:
    from metabench.data.folder import CACHE_VARIABLE, cache_folder, data_folder, is_writable

    folder = data_folder(option)
    if is_writable(folder):
        there = "" if folder.exists() else ", made when it is first used"
        yield Finding("data folder", "ok", f"{folder}{there}")
    elif is_writable(cache_folder()):
        found = f"{folder} is read-only; caches go to {cache_folder()}"
        yield Finding("data folder", "ok", found)
    else:
        found = f"neither {folder} nor {cache_folder()} can be written"
        yield Finding("data folder", "wrong", found, f"-d/--data-dir, or set {CACHE_VARIABLE}")


def _datasets(option: str | None) -> Iterator[Finding]:
    from metabench.data.folder import data_folder
    from metabench.plugins import registry

    try:
        folder = data_folder(option)
    except UsageError:  # the check of the data folder says why
        yield Finding("data sets", "note", "not looked at", "mend the data folder first")
        return
    for name, entry in registry().datasets.items():
        check = f"data set {name}"
        try:
            state = entry.load()(folder).availability()
        except MetabenchError as error:
            yield Finding(check, "wrong", error.message, error.hint)
            continue
        if state == "missing":
            yield Finding(check, "note", state, f"to have it: metabench data prepare {name}")
        else:
            yield Finding(check, "ok", state)


def _plugins() -> Iterator[Finding]:
    from metabench.plugins import registry

    for plugin in registry().plugins:
        check = f"plugin {plugin.name}"
        found = f"{plugin.status}, of {plugin.distribution} {plugin.version}"
        if plugin.error:
            advice = "mend or uninstall it, or name it in METABENCH_DISABLE_PLUGINS"
            yield Finding(check, "wrong", f"{found}: {plugin.error}", advice)
        else:
            yield Finding(check, "ok", found)
