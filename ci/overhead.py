"""What running a suite costs beside its cells: wall time over their training, test and timing.

    python ci/overhead.py [--suite fewshot] [--seeds N] [--out FOLDER] [--most 1.15]

Runs the suite with one worker into an empty folder. The wall time begins when the worker takes up
its first job, and ends with the run; what the cells took stands in the result folder (train_s and
test_s of cells and shared trainings), but for the timing stage, whose jobs are added up as they
end, loading included. Ends with 1 where the ratio is above `--most`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from metabench.experiment.prepared import prepare
from metabench.runner.jobs import Job, JobResult
from metabench.runner.run import Unwatched
from metabench.store.store import Store


class Stopwatch(Unwatched):
    """Notes when the worker began, and what the timing jobs took."""

    began: float | None = None
    timing_s = 0.0

    def ended(self, job: Job, result: JobResult) -> None:
        if self.began is None:
            self.began = time.perf_counter() - result.seconds
        if job.kind == "timing":
            self.timing_s += result.seconds


def main() -> int:
    """Print the parts and the ratio; 1 if a cell failed or the ratio is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="fewshot", help="name or file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="empty result folder (default: one that is lost)")
    parser.add_argument("--most", type=float, default=1.15, help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as lost:
        out = options.out or Path(lost) / "out"
        if out.exists() and any(out.iterdir()):
            parser.error(f"{out} is not empty: what is finished there would cost nothing")
        watch = Stopwatch()
        result = prepare(options.suite, seeds=options.seeds, jobs=1, out=out).run(watch).outcome
        wall_s = time.perf_counter() - (watch.began or 0.0)
        store = Store.open(out, create=False)
        keys = [record.key for record in (*store.records(), *store.phases.records())]
        runs = [store.run_info(key) for key in keys]
    if result.failures or watch.began is None:
        print(f"{len(result.failures)} cells failed: no ratio", file=sys.stderr)
        return 1
    train_s = sum(run.train_s or 0.0 for run in runs)
    test_s = sum(run.test_s or 0.0 for run in runs)
    cells_s = train_s + test_s + watch.timing_s
    print(f"{train_s:.1f} s training, {test_s:.1f} s test, {watch.timing_s:.1f} s timing")
    ratio = wall_s / cells_s
    print(f"{wall_s:.1f} s in all: ratio {ratio:.3f}, at most {options.most:g} is promised")
    return int(ratio > options.most)


if __name__ == "__main__":
    sys.exit(main())
