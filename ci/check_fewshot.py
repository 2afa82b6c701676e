"""Checks that what the fewshot suite trains has learnt something, on the same test episodes.

    python ci/check_fewshot.py --out FOLDER [--jobs N] > check.csv

Runs the suite with one seed, and once more untrained (`*.recipe.steps=0`); what FOLDER holds
already is reused. Every trained row has to beat its untrained self by .05 with a paired p under
.01, and all but Reptile, whose recipe needs far longer, have to beat pixels with the nearest
centroid.
Prints a line a row; leaves with 1 if any fails.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

import metabench

LEAST_GAIN = 0.05
LARGEST_P = 0.01
ROW = ["protocol", "algorithm", "variant", "backbone"]


def episodes(out: Path, jobs: int | None, settings: list[str]) -> dict[tuple[str, ...], np.ndarray]:
    """(E,) scores of each row; the variant without what `settings` add to it."""
    experiment = metabench.run("fewshot", seeds=1, settings=settings, out=out, jobs=jobs)
    frame: pd.DataFrame = experiment.to_frame(episodes=True)
    frame["variant"] = frame["variant"].str.replace(",?recipe.steps=0", "", regex=True)
    return {key: group["score"].to_numpy() for key, group in frame.groupby(ROW, sort=False)}


def main() -> int:
    """Print the comparison; 1 if a row does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="result folder")
    parser.add_argument("--jobs", type=int, default=None)
    options = parser.parse_args()
    trained = episodes(options.out, options.jobs, [])
    untrained = episodes(options.out, options.jobs, ["*.recipe.steps=0"])
    pixels = {key[0]: scores for key, scores in trained.items() if key[3] == "identity"}
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*ROW, "score", "untrained", "gain", "p", "over_pixels", "holds"])
    holds = True
    for key, scores in trained.items():
        if key[3] == "identity":
            continue
        gain, p = float(np.mean(scores - untrained[key])), ttest_rel(scores, untrained[key]).pvalue
        over = float(scores.mean() - pixels[key[0]].mean())
        good = gain >= LEAST_GAIN and p < LARGEST_P
        good = good and (over > 0 or key[1] == "reptile")
        holds = holds and good
        facts = [scores.mean(), untrained[key].mean(), gain]
        numbers = [*(f"{x:.4f}" for x in facts), f"{p:.2g}", f"{over:.4f}"]
        writer.writerow([*key, *numbers, "yes" if good else "no"])
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
