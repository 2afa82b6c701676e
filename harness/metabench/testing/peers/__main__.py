"""`python -m metabench.testing.peers`: measure, print the table, write the CSV."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from metabench.data.folder import data_folder
from metabench.engine.modes import ENGINES
from metabench.rendering import to_table
from metabench.runner.allocator import keep_freed_memory
from metabench.runner.environment import usable_cores
from metabench.testing.peers import matrix, memory, prototypes, start
from metabench.testing.peers.fair import DifferentResultsError
from metabench.testing.peers.inner_loops import PEERS
from metabench.testing.peers.maml import meta_step
from metabench.testing.peers.networks import twin
from metabench.testing.peers.rows import (
    COLUMNS,
    NotMeasuredError,
    Row,
    Setting,
    Work,
    installed,
    write,
)

WORKS = (
    Work("maml-second", 1.5, meta_step(2), gpu_goal=10, on_gpu=True),
    Work("maml-first", 1.5, meta_step(1), gpu_goal=10, on_gpu=True),
    Work("maml-second-our-network", None, meta_step(2, twin), on_gpu=True),
    Work("maml-first-our-network", None, meta_step(1, twin), on_gpu=True),
    Work("memory", 4, memory.memory, on_gpu=True),
    Work("matrix", 1.8, matrix.throughput),
    Work("protonet-images", 40, prototypes.from_images, on_gpu=True),
    Work("protonet-embeddings", 15, prototypes.from_embeddings, on_gpu=True),
    Work("drawing", 15, prototypes.drawing),
    Work("suite-jobs", 1.5, matrix.suite_jobs),
    Work("looking", 4, start.looking),
)
ENGINES_TRIED = ("auto",)
"""What users get who ask for none."""
DISTURBED = 0.2
"""A reference whose times moved by more tells of a machine that others used."""
FAILED = 1


def main(args: Sequence[str] | None = None) -> int:
    """Measure what was asked for; 1 if results differed."""
    asked = _parser().parse_args(args)
    device = asked.device
    engines = asked.engine or ENGINES_TRIED
    threads = usable_cores()
    torch.set_num_threads(threads)
    keep_freed_memory()  # as a worker does; both sides have it, as they share the process
    folder = data_folder(asked.data_dir)
    setting = Setting(device, threads, asked.quick, asked.blocks, tuple(engines), folder)
    for missing in sorted(set(PEERS) - set(installed(*PEERS))):
        _say(f"{missing}: not measured, it cannot be imported here")
    if asked.quick and asked.out is not None:
        _say(f"{asked.out} is left as it is: --quick is for trying out")
    out = None if asked.quick else asked.out
    rows, failed = [], False
    for work in WORKS:
        if (asked.only and work.name not in asked.only) or (device == "cuda" and not work.on_gpu):
            continue
        _say(f"{work.name} ... (load average {os.getloadavg()[0]:.1f})")
        try:
            rows.append(_measured(work, setting))
        except NotMeasuredError as why:
            _say(f"{work.name}: not measured: {why}")
        except DifferentResultsError as why:
            failed = True
            _say(f"{work.name}: not timed, results differ: {why}")
        except Exception as error:  # a peer's own, as a rule: the other works go on
            failed = True
            _say(f"{work.name}: failed: {type(error).__name__}: {error}")
        else:
            _say(_line(rows[-1]))
            if out is not None:  # what was published stays until there is something in its place
                write(rows, out, keep=True)
    if out is not None and rows and not asked.only:
        write(rows, out, keep=False)
    print(to_table([asdict(row) for row in rows], COLUMNS), end="")
    return FAILED if failed else 0


def _measured(work: Work, setting: Setting) -> Row:
    row = work.measure(setting)
    goal = work.gpu_goal if setting.device == "cuda" and work.gpu_goal else work.goal
    return replace(row, goal=goal)


def _line(row: Row) -> str:
    spread = f"{row.ratio_low:.2f} to {row.ratio_high:.2f}"
    return (
        f"  ours {row.ours:.4g}, {row.peer_name} {row.peer:.4g}: ratio {row.ratio:.2f} ({spread})"
        f"{_disturbed(row)}"
    )


def _disturbed(row: Row) -> str:
    if row.drift is None or row.drift <= DISTURBED:
        return ""
    return f"; a fixed reference moved by {row.drift:.0%}: is anything else running?"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metabench.testing.peers", description=__doc__.splitlines()[0]
    )
    names = [work.name for work in WORKS]
    parser.add_argument("--only", action="append", choices=names, help="only this work; repeatable")
    parser.add_argument("--quick", action="store_true", help="small counts, for trying out")
    parser.add_argument("--blocks", type=int, help="ABBA blocks of each comparison")
    parser.add_argument(
        "--engine",
        action="append",
        choices=["auto", *ENGINES],
        help="of ours, the fastest of these; repeatable (default: auto, what users get)",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--data-dir", help="the data folder (default: METABENCH_DATA)")
    parser.add_argument("--out", type=Path, help="the CSV to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
