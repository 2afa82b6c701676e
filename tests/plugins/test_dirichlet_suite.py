"""A suite whose queries are not balanced, run: what is trained, predicted and stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import metabench

WAYS, QUERIES, EPISODES = 5, 75, 12


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> metabench.Experiment:
    folder: Path = tmp_path_factory.mktemp("dirichlet")
    return metabench.run(
        "fewshot-dirichlet",
        algorithms=["nearest-centroid", "bd-cspn", "tim", "pt-map"],
        protocols=["5w1s15q-dirichlet2"],
        seeds=1,
        settings=[
            "*.recipe.steps=20",
            "*.recipe.validate_every=20",
            f"protocol.episodes={EPISODES}",
        ],
        out=folder,
        jobs=1,
    )


def test_every_row_comes_through_and_the_modes_stand_apart(ran: metabench.Experiment) -> None:
    frame = ran.to_frame()
    assert set(frame["status"]) == {"ok"}
    modes = dict(zip(frame["algorithm"], frame["inference"], strict=True))
    assert modes.pop("nearest-centroid") == "inductive"
    assert set(modes.values()) == {"transductive"}


def test_episodes_have_as_many_queries_as_ever_but_not_of_each_class(
    ran: metabench.Experiment,
) -> None:
    for row in ran.to_frame().itertuples():
        results = ran.store.episodes(row.key)
        assert results.targets.shape == (EPISODES, QUERIES)
        counts = np.stack([np.bincount(t, minlength=WAYS) for t in results.targets])
        assert (counts.sum(axis=1) == QUERIES).all()
        # Of Dirichlet(2, ..., 2) a class has QUERIES / WAYS = 15 with a standard deviation of 9.
        assert 5 < counts.std() < 13
        assert row.score == pytest.approx((results.targets == results.predictions).mean())
