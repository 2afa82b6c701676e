"""Augmentation of a support set against NumPy, and what is independent in a dropout mask."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from metabench_plugins.algorithms.transfer.noise import dropout_mask, moved


@given(st.integers(0, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_images_are_moved_within_their_repeated_edges(shift: int, flip: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 2, 6, 5, generator=generator)
    draws = torch.rand(3, 3, generator=generator)
    found = moved(images, draws, shift, flip).numpy()
    for image, draw, result in zip(images.numpy(), draws.numpy(), found, strict=True):
        seen = image[:, :, ::-1] if flip and draw[2] < 0.5 else image
        wide = np.pad(seen, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
        down, right = (int(d * (2 * shift + 1)) for d in draw[:2])
        expected = wide[:, down : down + 6, right : right + 5]
        np.testing.assert_array_equal(result, expected)


def test_all_shifts_are_drawn_alike() -> None:
    draws = torch.rand(7000, 3, generator=torch.Generator().manual_seed(0))
    picture = torch.zeros(1, 1, 15, 15)
    picture[..., 7, 7] = 1
    places = moved(picture.expand(7000, -1, -1, -1), draws, 3, False).sum(0).squeeze()
    assert places.sum() == 7000
    reached = places[4:11, 4:11]
    assert reached.sum() == 7000
    assert (reached - 7000 / 49).abs().max() < 5 * (7000 / 49) ** 0.5


def test_two_entries_of_a_dropout_mask_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    rate, draws = 0.3, 20_000
    masks = torch.stack(
        [
            dropout_mask(
                torch.rand(2, generator=generator), torch.rand(2, generator=generator), rate
            )
            for _ in range(draws)
        ]
    ).flatten(1)  # (draws, 4)
    assert set(masks.unique().tolist()) == {0.0, masks.max().item()}
    torch.testing.assert_close(masks.max().item(), 1 / (1 - rate))
    error = (rate / (1 - rate) / draws) ** 0.5
    assert (masks.mean(0) - 1).abs().max() < 5 * error
    correlation = np.corrcoef(masks.T.numpy())
    assert np.abs(correlation - np.eye(4)).max() < 5 / draws**0.5
