"""`metabench.run`: a suite run from a notebook or a script; the command line calls the same.

`prepared` looks up and checks what was asked for, `outcome` is what comes of it.
"""

from __future__ import annotations

from typing import Any

from metabench.experiment.outcome import Experiment
from metabench.experiment.prepared import prepare, with_signature_of

__all__ = ["Experiment", "run"]


@with_signature_of(prepare)
def run(*args: Any, **asked: Any) -> Experiment:
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
        engine: how inner loops are run: auto, loop, vmap, compile, mixed or graph (CUDA only).
        precision: in which networks are computed: float32, tf32 (CUDA only) or bf16.
        jobs: worker processes, or "auto"; None: everything in this process.
        threads: cores of a worker, among which the tasks of a meta-step are shared; None: what
            the workers leave. It changes no digit.
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
    return prepare(*args, **asked).run()
