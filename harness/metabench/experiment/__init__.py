"""`metabench.run`: a suite run from a notebook or a script; the command line calls the same.

`prepared` looks up and checks what was asked for, `outcome` is what comes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metabench.experiment.outcome import Experiment
from metabench.experiment.prepared import Texts, prepare
from metabench.runner.run import Watch

if TYPE_CHECKING:
    from metabench.api.algorithm import Algorithm

__all__ = ["Experiment", "run"]


def run(
    suite: str | Path,
    *,
    algorithms: str | type[Algorithm] | Sequence[str | type[Algorithm]] | None = None,
    backbones: Texts = None,
    datasets: Texts = None,
    protocols: Texts = None,
    exclude: Texts = None,
    seeds: int | Sequence[int] | None = None,
    settings: Texts = None,
    device: str = "auto",
    jobs: int | Literal["auto"] | None = None,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    timeout: float | None = None,
    failed: bool = False,
    fail_fast: bool = False,
    fresh: bool = False,
    watch: Watch | None = None,
    strict_plugins: bool = False,
) -> Experiment:
    """Run a suite, or a part of it; cells that are finished in the result folder are reused.

        metabench.run("fewshot", algorithms=["maml", MyAlgorithm], seeds=1).to_frame()

    Filters are shell-style patterns; empty ones leave everything in.

    Args:
        suite: the name of a registered suite, or the path of a TOML file.
        algorithms: names, `name/variant`, or classes. A class that the suite does not name runs
            with its own defaults on the suite's first backbone; one that is defined in a notebook
            works too, but its cells are never reused.
        backbones, datasets, protocols, exclude: names or labels.
        seeds: how many training seeds, from 0, or which; None: the suite's.
        settings: changes such as `maml.inner_lr=0.1`, as `--set` takes them.
        device: auto, cpu, cuda or cuda:N.
        jobs: worker processes, or "auto"; None: everything in this process.
        out: the result folder; None: METABENCH_OUT, else ./metabench-results.
        data_dir: the data folder; None: METABENCH_DATA, else one in the user's cache folder.
        timeout: seconds that a cell may take; needs `jobs`.
        failed: run only cells that failed before.
        fail_fast: stop at the first failure.
        fresh: run finished cells again.
        watch: is told what happens.
        strict_plugins: a plugin that does not load is an error.

    Raises:
        MetabenchError: what was asked for cannot be, or the result folder cannot be used. A cell
            that fails raises nothing: it is a row with a status.
    """
    asked = prepare(
        suite,
        algorithms=algorithms,
        backbones=backbones,
        datasets=datasets,
        protocols=protocols,
        exclude=exclude,
        seeds=seeds,
        settings=settings,
        device=device,
        jobs=jobs,
        out=out,
        data_dir=data_dir,
        timeout=timeout,
        failed=failed,
        fail_fast=fail_fast,
        fresh=fresh,
        strict_plugins=strict_plugins,
    )
    return asked.run(watch)
