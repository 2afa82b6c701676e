"""Chooses the settings of the fewshot suite on meta-validation: as many trials for each algorithm.

    python ci/choose_settings.py [ALGORITHM...] --out FOLDER > trials.csv

Each algorithm gets the same number of candidates (`CANDIDATES`), each trained once under each
protocol with a seed that the suite does not use and the budget that the suite then has, scored on
meta-validation episodes. Meta-test is not looked at: the runs test two episodes, as few as there
can be, and nothing here reads them. What was chosen from these trials stands in the suite file.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import metabench

SEED = 1000
EPISODES = 400
COMMON = ("protocol.episodes=2", f"*.recipe.validation_episodes={EPISODES}")

Candidate = tuple[str, ...]

CANDIDATES: dict[str, list[Candidate]] = {
    "maml": [
        ("inner_lr=0.4", "recipe.lr=3e-3"),
        ("inner_lr=0.4", "recipe.lr=1e-3"),
        ("inner_lr=0.1", "recipe.lr=3e-3"),
        ("inner_lr=1.0", "recipe.lr=3e-3"),
    ],
    "fomaml": [
        ("inner_lr=0.4", "recipe.lr=3e-3"),
        ("inner_lr=0.4", "recipe.lr=1e-3"),
        ("inner_lr=0.1", "recipe.lr=3e-3"),
        ("inner_lr=1.0", "recipe.lr=3e-3"),
    ],
    "anil": [
        ("inner_lr=0.4", "recipe.lr=3e-3"),
        ("inner_lr=0.4", "recipe.lr=1e-3"),
        ("inner_lr=0.1", "recipe.lr=3e-3"),
        ("inner_lr=1.0", "recipe.lr=3e-3"),
    ],
    "reptile": [
        ("inner_lr=1e-2", "recipe.lr=1.0"),
        ("inner_lr=3e-3", "recipe.lr=1.0"),
        ("inner_lr=1e-3", "recipe.lr=1.0"),
        ("inner_lr=1e-2", "recipe.lr=0.5"),
    ],
    "protonet": [
        ("recipe.lr=1e-3",),
        ("recipe.lr=3e-3",),
        ("recipe.lr=1e-3", "temperature=4.0"),
        ("recipe.lr=3e-3", "recipe.schedule=cosine"),
    ],
    "matching-networks": [
        ("recipe.lr=1e-3",),
        ("recipe.lr=3e-3",),
        ("recipe.lr=1e-3", "distance=squared-euclidean"),
        ("recipe.lr=3e-3", "recipe.schedule=cosine"),
    ],
    "relation-network": [
        ("recipe.lr=1e-3",),
        ("recipe.lr=3e-3", "recipe.schedule=constant"),
        ("recipe.lr=1e-3", "loss=squared-error"),
        ("recipe.lr=3e-3", "recipe.schedule=cosine"),
    ],
    "baseline": [
        ("head_lr=0.01",),
        ("head_lr=0.1",),
        ("head_lr=1.0",),
        ("head_lr=0.1", "head_weight_decay=0.01"),
    ],
}
"""`nearest-centroid` has nothing to choose: its three normalisations are three rows."""


def main() -> None:
    """Print one row a trial, best first within algorithm and protocol."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithms", nargs="*", default=list(CANDIDATES))
    parser.add_argument("--out", type=Path, required=True, help="result folder of the trials")
    parser.add_argument("--jobs", type=int, default=None)
    options = parser.parse_args()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["algorithm", "protocol", "settings", "validation", "episodes", "seed"])
    for algorithm in options.algorithms:
        rows = [
            row
            for candidate in CANDIDATES[algorithm]
            for row in trial(algorithm, candidate, options.out, options.jobs)
        ]
        rows.sort(key=lambda row: (row[0], row[1], -float(row[3])))
        writer.writerows(rows)
        sys.stdout.flush()


def trial(
    algorithm: str, candidate: Candidate, out: Path, jobs: int | None
) -> list[tuple[str, str, str, str, int, int]]:
    """Train one candidate under each protocol of the suite."""
    experiment = metabench.run(
        "fewshot",
        # Of several rows of an algorithm, the first is the default one.
        algorithms=[f"{algorithm}/" if algorithm in {"maml", "reptile"} else algorithm],
        backbones=["conv4-32"],
        seeds=[SEED],
        settings=[*COMMON, *(f"{algorithm}.{setting}" for setting in candidate)],
        out=out,
        jobs=jobs,
    )
    frame = experiment.to_frame()
    return [
        (
            algorithm,
            row.protocol,
            " ".join(candidate),
            f"{row.validation_score:.4f}",
            EPISODES,
            SEED,
        )
        for row in frame.itertuples()
    ]


if __name__ == "__main__":
    main()
