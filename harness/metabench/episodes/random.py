"""Counter-based random numbers: the n-th number of stream (key, index) is a pure function.

NumPy promises that the raw words of Philox never change; what its `Generator` makes of them may. So
integers, uniforms, normals and permutations are derived here, from the raw words alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.digest import canonical_json, digest_bytes

Words = NDArray[np.uint64]
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def stream_key(*parts: object) -> bytes:
    """A 128-bit key from anything that has a canonical form."""
    return digest_bytes(*(canonical_json(part) for part in parts))


class Stream:
    """The random words of one key, by (index, lane): index is an episode, lane a purpose."""

    def __init__(self, key: bytes) -> None:
        self.key = np.frombuffer(key, dtype="<u8").astype(np.uint64)
        self._philox = np.random.Philox(key=self.key)
        # Plain integers: NumPy takes each of a state's numbers out of its container by itself.
        self._place = {"counter": [0, 0, 0, 0], "key": self.key.tolist()}
        self._state: Any = {
            "bit_generator": "Philox",
            "state": self._place,
            "buffer": [0, 0, 0, 0],
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }

    def words(self, index: int, count: int, lane: int = 0) -> Words:
        """`count` raw 64-bit words; asking for more gives the same ones first."""
        self._place["counter"] = [0, lane, index, 0]
        self._philox.state = self._state
        return self._philox.random_raw(count)


def below(words: Words, bound: int | NDArray[np.integer]) -> NDArray[np.int64]:
    """Integers in [0, bound) by multiplication: floor(word * bound / 2**64), bound under 2**32.

    The bias is at most bound / 2**64 of a value's probability.
    """
    n = np.asarray(bound, dtype=np.uint64)
    low = ((words & _LOW) * n) >> _HALF
    high = (words >> _HALF) * n
    return ((high + low) >> _HALF).astype(np.int64)


def uniform(words: Words) -> NDArray[np.float64]:
    """Uniform in [0, 1), 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(words: Words) -> NDArray[np.float64]:
    """Standard normals by Box and Muller; `words` has twice the length of the result."""
    first, second = uniform(words[0::2]), uniform(words[1::2])
    return np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)


def sample_without_replacement(
    words: Words, population: NDArray[np.int64] | int
) -> NDArray[np.int64]:
    """Draw distinct integers: a sparse Fisher-Yates shuffle, many rows at once.

    Args:
        words: (..., M) raw words, one a draw.
        population: how many there are to draw from, a number or one a row (...); at least M and
            under 2**32.

    Returns:
        (..., M) distinct integers in [0, population), in a uniformly random order. The cost is
        O(M log M) a row whatever the population: only the positions that are swapped are kept.
    """
    draws = words.shape[-1]
    size = np.asarray(population, dtype=np.int64)[..., None]
    position = np.arange(draws, dtype=np.int64)
    # Step j swaps a[j] with a[target_j], target_j uniform in [j, population).
    target = (position + below(words, size - position)).reshape(-1, draws)  # (R, M)
    slot = _slots(target)
    row = np.arange(len(target))
    table = np.empty((len(target), 2 * draws), dtype=np.int64)  # a, where it is touched
    table[:, :draws] = position
    table[row[:, None], slot] = target
    drawn = np.empty_like(target)
    for j in range(draws):
        drawn[:, j] = table[row, slot[:, j]]
        table[row, slot[:, j]] = table[:, j]
    return drawn.reshape(words.shape)


def _slots(target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each position of (R, M) is kept in a row's table of 2M: equal ones in one slot.

    Positions under M have the slot of their number, others one of those behind.
    """
    draws = target.shape[-1]
    bits = draws.bit_length()
    ordered = np.sort(target << bits | np.arange(draws), axis=-1)  # by position, then by draw
    position, draw = ordered >> bits, ordered & ((1 << bits) - 1)
    number = np.zeros_like(position)  # of distinct positions before it
    np.cumsum(position[:, 1:] != position[:, :-1], axis=-1, out=number[:, 1:])
    slot = np.empty_like(position)
    np.put_along_axis(slot, draw, draws + number, axis=-1)
    return np.where(target < draws, target, slot)
