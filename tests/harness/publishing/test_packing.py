"""Predictions in few bytes: they come back as they were, and are as few bytes as was promised."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from metabench.engine.probabilities import encode
from metabench.publishing.packing import CONFIDENCE, EXCESS, SHIFT, SURE, packed, unpacked
from metabench.store.parquet import parquet_columns
from metabench.store.results import EpisodeResults


@st.composite
def results(draw: st.DrawFn, ways: int, sure: bool) -> EpisodeResults:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 7)))
    labels = arrays(np.int64, shape, elements=st.integers(0, ways - 1))
    classes = arrays(np.int64, shape, elements=st.integers(0, 2**31 - 1))
    codes = arrays(np.uint8, shape) if sure else st.none()
    return EpisodeResults(draw(labels), draw(labels), draw(classes), draw(codes), draw(codes))


@st.composite
def parts(draw: st.DrawFn) -> tuple[int, list[EpisodeResults]]:
    ways = draw(st.sampled_from([1, 2, 5, 20, 255, 256, 257, 1000]))
    sure = draw(st.booleans())
    return ways, draw(st.lists(results(ways, sure), min_size=1, max_size=2))


@settings(deadline=None, max_examples=60)
@given(parts())
def test_what_is_packed_comes_back(drawn: tuple[int, list[EpisodeResults]]) -> None:
    ways, made = drawn
    data = packed(made, ways)
    columns = parquet_columns(data, (SHIFT,), SURE)
    asked = [EpisodeResults(part.targets, part.targets, part.classes) for part in made]
    found = unpacked(columns, asked, ways)
    assert [part.digest for part in found] == [part.digest for part in made]
    assert packed(found, ways) == data


def test_pyarrow_alone_reads_what_the_datasheet_describes() -> None:
    targets, predicted = np.array([[0, 1, 4]]), np.array([[0, 4, 0]])
    confidence, surprise = np.array([[3, 5, 9]], np.uint8), np.array([[3, 8, 255]], np.uint8)
    made = EpisodeResults(targets, predicted, targets, surprise, confidence)
    table = pq.read_table(io.BytesIO(packed([made], 5))).to_pydict()
    assert table == {SHIFT: [0, 3, 1], CONFIDENCE: [3, 5, 9], EXCESS: [0, 3, 246]}


ASKED = EpisodeResults(*(np.array([[0, 1], [1, 0]]),) * 3)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({SHIFT: [0, 1, 0]}, "3 predictions for 4 queries"),
        ({SHIFT: [0, 1, 0, 2]}, "labels that are not of 0 to 1"),
        ({SHIFT: [0, 1, 0, -1]}, "labels that are not of 0 to 1"),
        ({SHIFT: [0, 1, 0, 1], CONFIDENCE: np.zeros(4, np.uint8)}, "codes of another kind"),
        (
            {SHIFT: [0, 1, 0, 1], CONFIDENCE: np.zeros(4, np.uint8), EXCESS: [0, 0, 0, 300]},
            "codes of another kind",
        ),
    ],
)
def test_what_are_no_predictions_of_the_queries_is_refused(
    columns: dict[str, NDArray[np.int64]], why: str
) -> None:
    given_columns = {name: np.asarray(values) for name, values in columns.items()}
    with pytest.raises(ValueError, match=why):
        unpacked(given_columns, [ASKED], 2)


def test_labels_outside_the_ways_are_not_packed() -> None:
    with pytest.raises(ValueError, match="not one of 0 to 4"):
        packed([replace(ASKED, predictions=np.array([[0, 5], [1, 0]]))], 5)


@pytest.mark.parametrize(("skill", "most"), [(0.4, 110_000), (0.6, 100_000), (0.8, 85_000)])
def test_a_cell_is_so_many_bytes_that_ninety_of_them_are_under_ten_megabytes(
    skill: float, most: int
) -> None:
    """1,000 episodes of 5 x 15 queries with probabilities of a softmax, as `fewshot` has them."""
    rng = np.random.default_rng(0)
    shape = (1000, 75)
    targets = rng.permuted(np.tile(np.repeat(np.arange(5), 15), (1000, 1)), axis=1)
    lift = {0.4: 0.8, 0.6: 1.7, 0.8: 2.8}[skill]
    logits = 1.3 * rng.standard_normal((*shape, 5)) + lift * np.eye(5)[targets]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    predicted = log_p.argmax(-1)
    assert np.mean(predicted == targets) == pytest.approx(skill, abs=0.05)
    surprise, confidence = (
        encode(-np.take_along_axis(log_p, labels[..., None], -1)[..., 0])
        for labels in (targets, predicted)
    )
    made = EpisodeResults(targets, predicted, targets, surprise, confidence)
    size = len(packed([made], 5))
    assert size < most
    buffer = io.BytesIO()
    plain = {"p": predicted.ravel(), "s": surprise.ravel(), "c": confidence.ravel()}
    pq.write_table(pa.table(plain), buffer, compression="zstd", compression_level=19)
    assert size < 0.85 * len(buffer.getvalue())
