"""The lines that run cells and rows again, from those noted in a result folder.

Whoever made the folder may have noted any command, and people paste these: nothing but a
`metabench run ...` or a call of `metabench.run` is passed on.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Sequence
from pathlib import PurePath

from metabench.rendering import plain


def cell_command(noted: str) -> str:
    """The noted line itself; empty if it's anything but a run of metabench."""
    words = _words(noted)
    if words:
        return plain(shlex.join(words))
    call = _call(noted)
    return plain(ast.unparse(call)) if call else ""


def published_command(noted: str) -> str:
    """The noted line with the suite's file by its name only; empty if it's no run."""
    words = _words(noted)
    if "--suite" in words[:-1]:
        at = words.index("--suite") + 1
        words[at] = PurePath(words[at]).name
        return plain(shlex.join(words))
    call = _call(noted)
    if call is not None and call.args and isinstance(call.args[0], ast.Constant):
        call.args[0] = ast.Constant(PurePath(str(call.args[0].value)).name)
    return plain(ast.unparse(call)) if call else ""


def suite_of(line: str) -> str:
    """The suite's name or file in a line that `cell_command` gave; empty where it names none."""
    words = _words(line)
    if "--suite" in words[:-1]:
        return words[words.index("--suite") + 1]
    call = _call(line)
    first = call.args[0] if call is not None and call.args else None
    return str(first.value) if isinstance(first, ast.Constant) else ""


def row_command(
    noted: str, seeds: Sequence[int], device: str, engine: str = "", precision: str = "float32"
) -> str:
    """The noted line with other seeds, the type of the device and what is not the default: an
    engine of the training but a loop on the CPU, a precision but float32; empty if it's no run.

    A suite's file stands in it by its name only: where it lay is nobody's business.
    """
    words = _words(noted)
    if "--suite" in words[:-1] and "--seed" in words[:-1]:
        at = words.index("--suite") + 1
        words[at] = PurePath(words[at]).name
        words[words.index("--seed") + 1] = ",".join(map(str, seeds))
        words += ["--device", device]
        if engine and (device, engine) != ("cpu", "loop"):
            words += ["--engine", engine.partition("+")[0]]
        if precision != "float32":
            words += ["--precision", precision]
        return plain(shlex.join(words))
    call = _call(noted)
    if call is None:
        return ""
    listed = ast.List([ast.Constant(seed) for seed in seeds], ast.Load())
    kept = [keyword for keyword in call.keywords if keyword.arg not in ("seeds", "precision")]
    call.keywords = [*kept, ast.keyword("seeds", listed)]
    if precision != "float32":
        call.keywords.append(ast.keyword("precision", ast.Constant(precision)))
    if call.args and isinstance(call.args[0], ast.Constant):
        call.args[0] = ast.Constant(PurePath(str(call.args[0].value)).name)
    return plain(ast.unparse(call))


def _words(noted: str) -> list[str]:
    """The words of a `metabench run ...`, or none."""
    try:
        words = shlex.split(noted)
    except ValueError:
        return []
    return words if words[:2] == ["metabench", "run"] else []


def _call(noted: str) -> ast.Call | None:
    """A call `metabench.run(...)` with nothing but constants, names and lists of them in it."""
    try:
        call = ast.parse(noted, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "metabench.run":
        return None
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    parts = [part for v in values for part in (v.elts if isinstance(v, ast.List) else [v])]
    return call if all(isinstance(part, ast.Constant | ast.Name) for part in parts) else None
