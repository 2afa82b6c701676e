"""Chooses the settings of the suite fewshot-full on meta-validation, with as many trials for all.

    python ci/choose_settings.py [ROW...] --out FOLDER > trials.csv

Each row of `ci/candidates.toml` has the same number of candidates (fewer where there are fewer
choices), each trained once under each of `PROTOCOLS` with a seed that the suite does not use and
the budget that the suite has, and scored on meta-validation episodes; a trial that failed has no
score. A candidate names every setting that any of its row's varies, so nothing hangs on what the
suite has chosen so far. Meta-test is not looked at: the runs test two episodes, as few as there can
be, and nothing here reads them. What was chosen from these trials stands in the suite file.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tomllib
from pathlib import Path

import metabench

HERE = Path(__file__).parent
SEED = 1000
EPISODES = 300
PROTOCOLS = ("5w1s15q", "5w5s15q")
COMMON = ("protocol.episodes=2", f"*.recipe.validation_episodes={EPISODES}")
COLUMNS = ("row", "protocol", "settings", "validation", "episodes", "seed", "train_s", "paper")


def main() -> None:
    """Print one line a trial, best first within row and protocol."""
    with (HERE / "candidates.toml").open("rb") as file:
        candidates = tomllib.load(file)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=list(candidates))
    parser.add_argument("--out", type=Path, required=True, help="result folder of the trials")
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="only these")
    parser.add_argument("--jobs", type=int, default=None)
    options = parser.parse_args()
    if unknown := sorted(set(options.rows) - set(candidates)):
        parser.error(f"{', '.join(unknown)}: not in candidates.toml")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in options.rows:
        found = [
            line
            for settings in candidates[row]["try"]
            for line in trial(row, settings, options.protocol or PROTOCOLS, options)
        ]
        found.sort(key=lambda line: (line[1], -float(line[3] or 0)))
        writer.writerows([*line, candidates[row]["paper"]] for line in found)
        sys.stdout.flush()


def trial(
    row: str, settings: str, protocols: list[str], options: argparse.Namespace
) -> list[tuple[str, str, str, str, int, int, str]]:
    """Train one candidate under each protocol."""
    algorithm = row.partition("/")[0]
    experiment = metabench.run(
        "fewshot-full",
        # Of several rows of an algorithm, one without a variant is the default one.
        algorithms=[row if "/" in row else f"{row}/"],
        backbones=["identity" if algorithm == "pca-features" else "conv4-32"],
        protocols=list(protocols),
        seeds=[SEED],
        settings=[*COMMON, *(f"{algorithm}.{setting}" for setting in settings.split())],
        out=options.out,
        jobs=options.jobs,
    )
    return [
        (
            row,
            line.protocol,
            settings,
            "" if math.isnan(line.validation_score) else f"{line.validation_score:.4f}",
            EPISODES,
            SEED,
            f"{line.train_s:.1f}",
        )
        for line in experiment.to_frame().itertuples()
    ]


if __name__ == "__main__":
    main()
