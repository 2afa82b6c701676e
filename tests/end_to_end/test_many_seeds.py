"""One algorithm, really trained under many seeds: rows made of its runs must not be told apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ttest_rel
from small_suite import HEAD

import metabench
from metabench.stats.differences import all_pairs

SEEDS, ROWS = 24, 6
TABLES = 100
PROTONET = (
    HEAD.replace("episodes = 10\n", "episodes = 100\n") + '[[algorithm]]\nname = "protonet"\n'
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float64]:
    """(SEEDS, E) scores of ProtoNet on the same test episodes."""
    folder = tmp_path_factory.mktemp("many")
    suite = folder / "many.toml"
    suite.write_text(PROTONET)
    done = metabench.run(str(suite), seeds=SEEDS, out=folder / "results")
    frame = done.to_frame(episodes=True)
    return np.stack([part["score"].to_numpy() for _, part in frame.groupby("seed")])


def test_its_runs_differ_on_the_same_episodes(runs: NDArray[np.float64]) -> None:
    """Why a row is a set of runs: in pairs over episodes, some seeds are 'better' than others."""
    p = [ttest_rel(one, other).pvalue for one, other in combinations(runs, 2)]
    assert len(runs) == SEEDS
    assert np.mean(np.array(p) < 0.05) > 0.2


def test_rows_of_its_runs_are_told_apart_in_at_most_5_percent_of_tables(
    runs: NDArray[np.float64],
) -> None:
    rng, found = np.random.default_rng(0), 0
    for _ in range(TABLES):
        rows = rng.permutation(SEEDS)[: 3 * ROWS].reshape(ROWS, 3)
        pairs = all_pairs([{seed: runs[run] for seed, run in enumerate(row)} for row in rows])
        found += any(pair.p_holm < 0.05 for pair in pairs.values())
    assert found / TABLES <= 0.05
