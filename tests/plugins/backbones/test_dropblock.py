"""DropBlock: the squares, how often they fall, and the scale of what is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metabench_plugins.backbones.dropblock import DropBlock, corner_rate, keep_mask

torch.set_num_threads(1)


@settings(max_examples=60, deadline=None)
@given(
    block=st.integers(1, 6),
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    rate=st.floats(0.0, 1.0),
    seed=st.integers(0, 10_000),
)
def test_a_value_is_dropped_if_and_only_if_a_square_covers_it(
    block: int, rows: int, columns: int, rate: float, seed: int
) -> None:
    corners = np.random.default_rng(seed).random((2, 3, rows, columns)) < rate
    expected = np.ones((2, 3, rows + block - 1, columns + block - 1))
    for n, c, y, x in zip(*np.nonzero(corners), strict=True):
        expected[n, c, y : y + block, x : x + block] = 0
    got = keep_mask(torch.from_numpy(corners.astype(np.float32)), block)
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize(
    ("size", "block", "expected"),
    [
        # MetaOptNet on 84 x 84: maps of 10 and 5 with squares of 5 and a rate of .1.
        (10, 5, 0.1 / 25 * 100 / 36),
        (5, 5, 0.1),  # a square is the whole map
        (7, 1, 0.1),  # dropout of single values
    ],
)
def test_the_rate_of_corners_is_equation_1(size: int, block: int, expected: float) -> None:
    assert corner_rate(0.1, block, size, size) == pytest.approx(expected)


@pytest.mark.parametrize(("height", "width", "block"), [(10, 10, 5), (6, 9, 4), (3, 3, 5)])
def test_each_value_falls_as_often_as_its_covering_corners_say(
    height: int, width: int, block: int
) -> None:
    torch.manual_seed(0)
    maps = 20_000
    dropped = DropBlock(0.3, block)(torch.ones(maps, 1, height, width)) == 0
    block = min(block, height, width)
    gamma = corner_rate(0.3, block, height, width)

    def covering(size: int) -> np.ndarray:
        at = np.arange(size)
        return np.minimum(at, size - block) - np.maximum(at - block + 1, 0) + 1

    places = np.outer(covering(height), covering(width))  # corners whose square covers a value
    expected = 1 - (1 - gamma) ** places
    error = 5 * np.sqrt(expected * (1 - expected) / maps)
    assert (np.abs(dropped.double().mean((0, 1)).numpy() - expected) < error).all()


def test_kept_values_are_scaled_so_that_the_mean_of_ones_stays_one() -> None:
    torch.manual_seed(0)
    out = DropBlock(0.2, 3)(torch.ones(8, 4, 9, 9, dtype=torch.float64))
    assert out.mean().item() == pytest.approx(1.0, abs=1e-12)
    assert len(out.unique()) == 2  # zero, and one scale for the whole batch


def test_items_and_channels_have_squares_of_their_own() -> None:
    torch.manual_seed(0)
    kept = DropBlock(0.3, 3)(torch.ones(4, 4, 12, 12)) != 0
    patterns = {tuple(kept[n, c].flatten().tolist()) for n in range(4) for c in range(4)}
    assert len(patterns) == 16


def test_it_drops_only_in_training_and_only_at_a_rate() -> None:
    maps = torch.rand(2, 3, 8, 8)
    assert torch.equal(DropBlock(0.5, 3).eval()(maps), maps)
    assert torch.equal(DropBlock(0.0, 3).train()(maps), maps)
    assert not torch.equal(DropBlock(0.5, 3).train()(maps), maps)


def test_the_same_seed_drops_the_same_squares() -> None:
    layer, maps = DropBlock(0.4, 3), torch.rand(2, 3, 8, 8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(layer(maps))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_where_everything_falls_the_result_is_zero_and_not_nan() -> None:
    torch.manual_seed(0)
    layer = DropBlock(0.9, 5)
    results = [layer(torch.ones(1, 1, 2, 1)) for _ in range(50)]
    assert any(result.count_nonzero() == 0 for result in results)
    assert all(result.isfinite().all() for result in results)


def test_gradients_pass_through_kept_values_only() -> None:
    torch.manual_seed(0)
    maps = torch.ones(3, 2, 6, 6, requires_grad=True)
    out = DropBlock(0.4, 3)(maps)
    out.sum().backward()
    assert maps.grad is not None
    assert torch.equal(maps.grad, out.detach())  # of ones, value and slope are the same
