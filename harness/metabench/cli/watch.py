"""Live progress of a run on standard error: moving on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from metabench.rendering import plain
from metabench.runner.run import Unwatched, Watch

if TYPE_CHECKING:
    from metabench.engine.progress import Progress
    from metabench.runner.cells import Cell
    from metabench.runner.jobs import Job, JobResult
    from metabench.runner.plan import Plan

COUNT, SCORE, LEFT, BAR = 18, len("validation 0.1234"), len("0:00:00"), 8
"""Characters that `supervised 500/800`, a score, the time left and a bar take."""


@contextmanager
def watching(quiet: bool) -> Iterator[Watch]:
    """Whoever fits: nobody, a terminal's live display, or lines."""
    console = Console(stderr=True)
    if quiet:
        yield Unwatched()
    elif console.is_terminal and not console.is_dumb_terminal:
        screen = Screen(console)
        with screen.bars:
            yield screen
    else:
        yield Lines()


class Lines(Unwatched):
    """A line for what ends: `[ 3/28] quickdraw/5w1s15q/maml/conv4-32/seed0 ok 31.2 s, ...`."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self._told = ""

    def preparing(self, what: str, fraction: float | None) -> None:
        if what != self._told:
            self._told = what
            self.tell(what)

    def planned(self, plan: Plan) -> None:
        self.done, self.total = len(plan.finished), len(plan.cells) - len(plan.left_out)
        for line in plan_lines(plan):
            self.tell(line)

    def ended(self, job: Job, result: JobResult) -> None:
        if job.kind == "cell":
            self.done += 1
        if job.kind != "timing":
            width = len(str(self.total))
            self.tell(f"[{self.done:>{width}}/{self.total}] {ended_line(job, result)}")

    def timing(self, jobs: int) -> None:
        self.tell(f"timing {counted(jobs, 'row')}")

    def tell(self, line: str) -> None:
        """Print a line."""
        click.echo(plain_start(line), err=True)


class Screen(Lines):
    """The same lines, and below them a moving bar for the run and one for each worker's job."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.bars = Bars(
            # Where room is short, the name is cut, and the numbers stay.
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=BAR),
            TextColumn("{task.fields[count]}", markup=False, table_column=_whole(COUNT)),
            TextColumn("{task.fields[score]}", markup=False, table_column=_whole(SCORE)),
            TimeRemainingColumn(compact=True, table_column=_whole(LEFT)),
            console=console,
            transient=True,
            expand=True,
            speed_estimate_period=120,
        )
        self._all: TaskID | None = None
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._phase: dict[tuple[str, str], str] = {}

    def preparing(self, what: str, fraction: float | None) -> None:
        key = ("data", "")
        if key not in self._tasks:
            self._tasks[key] = self._add(plain(what), 1.0)
        if fraction is not None and fraction >= 1:
            self._remove(key)
        else:
            self.bars.update(self._tasks[key], description=plain(what), completed=fraction or 0)

    def planned(self, plan: Plan) -> None:
        super().planned(plan)
        self._remove(("data", ""))
        self._all = self._add("cells", self.total, completed=self.done)
        self._count()

    def started(self, job: Job) -> None:
        self._tasks[job.kind, job.key] = self._add(self._name(job.cell), None)

    def progress(self, job: Job, progress: Progress) -> None:
        key = (job.kind, job.key)
        task = self._tasks.get(key)
        if task is None:
            return
        if self._phase.get(key) != progress.phase:  # another phase, another speed
            self._phase[key] = progress.phase
            self.bars.reset(task, total=progress.total, completed=progress.step)
        scored = progress.validation is not None
        self.bars.update(
            task,
            completed=progress.step,
            total=progress.total,
            count=f"{plain(progress.phase)} {progress.step}/{progress.total}",
            score=f"validation {progress.validation:.4f}" if scored else "",
        )

    def ended(self, job: Job, result: JobResult) -> None:
        super().ended(job, result)
        self._remove((job.kind, job.key))
        if job.kind == "timing":
            self.done += 1
        self._count()

    def timing(self, jobs: int) -> None:
        self.done, self.total = 0, jobs
        if self._all is None:
            self._all = self._add("timing", jobs)
        self.bars.reset(self._all, description="timing")
        self._count()

    def tell(self, line: str) -> None:
        self.bars.console.print(Text(plain_start(line)), soft_wrap=True)

    def _name(self, cell: Cell) -> str:
        """The cell's id, or what tells it from most others where that is too long."""
        name = plain(cell.id)
        taken = BAR + COUNT + SCORE + LEFT + 4  # and blanks between them
        if cell_len(name) <= self.bars.console.width - taken:
            return name
        variant = f":{cell.variant}" if cell.variant else ""
        return plain(f"{cell.algorithm.name}{variant} {cell.protocol.name} seed{cell.seed}")

    def _count(self) -> None:
        if self._all is not None:
            count = f"{self.done}/{self.total}"
            self.bars.update(self._all, completed=self.done, total=self.total, count=count)

    def _add(self, what: str, total: float | None, completed: int = 0) -> TaskID:
        return self.bars.add_task(what, total=total, completed=completed, count="", score="")

    def _remove(self, key: tuple[str, str]) -> None:
        self._phase.pop(key, None)
        task = self._tasks.pop(key, None)
        if task is not None:
            self.bars.remove_task(task)


def _whole(width: int) -> Column:
    """A column of numbers, which is never cut nor folded."""
    return Column(min_width=width, no_wrap=True)


def plan_lines(plan: Plan) -> list[str]:
    """What is reused, and what is left to do."""
    lines = []
    if plan.finished:
        count = f"{len(plan.finished)} of {counted(len(plan.cells), 'cell')}"
        lines.append(f"{count} finished before: reused")
    if plan.left_out:
        lines.append(f"{counted(len(plan.left_out), 'cell')} left out: they did not fail")
    return lines


def ended_line(job: Job, result: JobResult) -> str:
    """How a job ended."""
    what = job.cell.id if job.kind == "cell" else f"training shared by {job.cell.id} and others"
    if result.failure is not None:
        failure = result.failure
        text = ": ".join(filter(None, [failure.exception, plain(failure.message)]))
        return f"{what} {failure.status} after {result.seconds:.1f} s: {text}"
    score = "" if result.validation is None else f", validation {result.validation:.4f}"
    return f"{what} ok {result.seconds:.1f} s{score}"


def counted(number: int, what: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def plain_start(line: str) -> str:
    """`plain`, but the padding of a number in front stays."""
    head, bracket, rest = line.partition("]")
    return f"{head}{bracket} {plain(rest)}" if bracket and head[:1] == "[" else plain(line)
