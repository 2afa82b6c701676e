"""Ways to run the inner loop: the same mathematics, other schedules of the work.

- `loop`: one task after the other, plain eager operations.
- `vmap`: all tasks of a batch at once (`torch.func.vmap`): few and large kernels, for accelerators.
- `compile`: as `loop`, one inner step and its gradient compiled; seconds to compile, once a shape.
- `mixed`: as `loop`, the second-order outer gradient by forward-over-reverse products back through
  the stored trajectory: its memory does not hold the graphs of the inner steps.
- `graph`: as `vmap`, each meta-step launched as one CUDA graph where it can be; CUDA only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, get_args

from metabench.errors import UsageError, unknown_name

EngineName = Literal["loop", "vmap", "compile", "mixed", "graph"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

AUTO: dict[str, dict[int, EngineName]] = {
    "cpu": {1: "loop", 2: "loop"},
    "cuda": {1: "vmap", 2: "vmap"},
}
"""What `auto` means, by device type and order of the outer gradient.

`make bench` ends with what each engine takes over the one that stands here. Where that is less than
1 on several machines, change the table; what compiling takes first, tens of seconds a shape, is not
in it. The row of `cuda` is a guess from the number of kernels launched: it was never measured.
"""

_current: ContextVar[EngineName] = ContextVar("engine", default="loop")
_capturing: ContextVar[bool] = ContextVar("capturing", default=False)


def current_engine() -> EngineName:
    """The engine in which the inner loop is run now; that of `graph` is `vmap`."""
    return _current.get()


def capturing() -> bool:
    """Whether meta-steps are to be captured as CUDA graphs."""
    return _capturing.get()


@contextmanager
def using_engine(name: EngineName) -> Iterator[None]:
    """Run inner loops with this engine for the duration."""
    before = _current.set("vmap" if name == "graph" else name)
    asked = _capturing.set(name == "graph")
    try:
        yield
    finally:
        _current.reset(before)
        _capturing.reset(asked)


def resolve_engine(name: str, device_type: str, order: int) -> EngineName:
    """The engine of a name that a user gave, `auto` included.

    Raises:
        UnknownNameError: there is none of that name.
        UsageError: the device hasn't got it.
    """
    if name == "graph" and device_type != "cuda":
        raise UsageError(
            f"engine graph is CUDA's own, and this would run on {device_type}",
            "use --device cuda, or another engine",
        )
    if name == "auto":
        return AUTO[device_type][order]
    for known in ENGINES:
        if known == name:
            # Without an outer gradient there is nothing to take back through a trajectory.
            return "loop" if known == "mixed" and order == 1 else known
    raise unknown_name("engine", name, ["auto", *ENGINES])


class Engines(NamedTuple):
    """How an algorithm is run: in training, and where nothing is learnt (validation and test)."""

    train: EngineName
    test: EngineName

    def __str__(self) -> str:
        return self.train if self.train == self.test else f"{self.train}+{self.test}"


def engines_of(algorithm: type, name: str, device_type: str) -> Engines:
    """The engines of an algorithm's class, which says in `order` what its outer gradient needs.

    One that says nothing has no inner loop of ours. What it does with each task may not suit
    `vmap`, so it gets that only if it is asked for.
    """
    order = getattr(algorithm, "order", None)
    if order is None:
        order, name = 1, "loop" if name == "auto" else name
    train = resolve_engine(name, device_type, order)
    # Only meta-steps are captured.
    test = "vmap" if train == "graph" else resolve_engine(name, device_type, 1)
    return Engines(train, test)
