"""Predictions on disk: small, fast, the same bytes, and checked when read."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabench.store.results import COLUMNS, EpisodeResults


@settings(deadline=None)  # the first one imports pyarrow
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_results_survive_the_file(tmp_path_factory, episodes, queries, seed):
    rng = np.random.default_rng(seed)
    targets, predictions = rng.integers(0, 20, (2, episodes, queries))
    results = EpisodeResults(targets, predictions, rng.integers(0, 10**6, targets.shape))
    path = tmp_path_factory.mktemp("results") / "episodes.parquet"
    results.to_parquet(path)
    again = EpisodeResults.from_parquet(path)
    for name in ("targets", "predictions", "classes"):
        assert np.array_equal(getattr(again, name), getattr(results, name))
    assert np.array_equal(again.scores("accuracy"), results.scores("accuracy"))


def test_codes_survive_the_file_and_are_in_the_digest(tmp_path, make_results):
    plain = make_results(episodes=3)
    codes = np.arange(plain.targets.size, dtype=np.uint8).reshape(plain.targets.shape)
    coded = replace(plain, surprise=codes, confidence=codes // 2)
    coded.to_parquet(tmp_path / "episodes.parquet")
    again = EpisodeResults.from_parquet(tmp_path / "episodes.parquet")
    assert np.array_equal(again.surprise, codes)
    assert np.array_equal(again.confidence, codes // 2)
    assert again.digest == coded.digest != plain.digest
    assert again.queries_digest == plain.queries_digest
    with pytest.raises(ValueError, match="both"):
        replace(plain, surprise=codes)


def test_a_digest_tells_any_change_and_no_change_of_the_file(make_results):
    results = make_results(episodes=3)
    assert replace(results, targets=results.targets.astype(np.int16)).digest == results.digest
    for name in ("targets", "predictions", "classes"):
        changed = getattr(results, name).copy()
        changed[1, 2] += 1
        assert replace(results, **{name: changed}).digest != results.digest
        if name != "predictions":
            assert replace(results, **{name: changed}).queries_digest != results.queries_digest


def test_accuracy_is_the_fraction_of_queries_that_were_right():
    targets = np.array([[0, 1, 2, 3], [0, 0, 1, 1]])
    predictions = np.array([[0, 1, 2, 0], [1, 0, 0, 0]])
    accuracies = EpisodeResults(targets, predictions, targets).scores("accuracy")
    assert accuracies.tolist() == [0.75, 0.25]
    assert accuracies.dtype == np.float64


def test_a_thousand_episodes_are_small_and_quick_to_read(tmp_path, make_results):
    results = make_results(episodes=1000)
    path = tmp_path / "episodes.parquet"
    results.to_parquet(path)
    assert path.stat().st_size < 200_000
    assert results.to_bytes() == path.read_bytes()

    def read_s() -> float:
        start = time.perf_counter()
        EpisodeResults.from_parquet(path)
        return time.perf_counter() - start

    assert min(read_s() for _ in range(5)) < 0.02


def test_a_row_is_a_query(tmp_path, make_results):
    path = tmp_path / "episodes.parquet"
    make_results(episodes=3).to_parquet(path)
    table = pq.read_table(path)
    assert tuple(table.column_names) == COLUMNS
    types = [str(field.type) for field in table.schema]
    assert types == ["int32", "int16", "int16", "int16", "int32"]
    assert table.num_rows == 3 * 75


def rows(**changes):
    columns = {
        "episode": np.repeat(np.arange(2, dtype=np.int32), 3),
        "query": np.tile(np.arange(3, dtype=np.int16), 2),
        "target": np.zeros(6, dtype=np.int16),
        "predicted": np.zeros(6, dtype=np.int16),
        "class_id": np.zeros(6, dtype=np.int32),
    }
    return {name: value for name, value in (columns | changes).items() if value is not None}


@pytest.mark.parametrize(
    "columns",
    [
        rows(predicted=None),
        rows(episode=np.arange(6)),
        rows(query=np.array([0, 1, 2, 0, 2, 1])),
        rows(query=np.array([0, 1, 2, 3, 0, 1])),
        {name: value[:0] for name, value in rows().items()},
    ],
)
def test_a_table_that_is_no_grid_of_episodes_is_refused(tmp_path, columns):
    path = tmp_path / "episodes.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=r"episodes\.parquet"):
        EpisodeResults.from_parquet(path)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    path = tmp_path / "episodes.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match="no results"):
        EpisodeResults.from_parquet(path)


def test_arrays_that_do_not_fit_are_refused():
    square = np.zeros((2, 3), dtype=np.int64)
    with pytest.raises(ValueError, match="shape"):
        EpisodeResults(square, square.T, square)
    with pytest.raises(ValueError, match="episodes, queries"):
        EpisodeResults(square[0], square[0], square[0])
    with pytest.raises(ValueError, match="int16"):
        EpisodeResults(square + 70_000, square, square).to_bytes()
