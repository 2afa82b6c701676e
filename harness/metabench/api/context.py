"""The context of a call: where in training it stands, and the only randomness it may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metabench.episodes.random import Stream, normal, stream_key, uniform

Stage = Literal["train", "validation", "test"]


class EpisodeRandom:
    """Random tensors, one row an episode; row b depends only on the b-th episode's number.

    The n-th draw of a call comes from the n-th lane, so neither the number of episodes in the
    batch nor the number of queries can change what an episode is given.

    Args:
        key: the stream's key, such as the episode source's.
        index: the numbers of the B episodes.
        device: where the tensors go.
    """

    def __init__(self, key: bytes, index: list[int], device: torch.device | str = "cpu") -> None:
        # A stream of its own: that of the source decides classes and the order of queries, from
        # which an algorithm could tell the answers.
        self._stream = Stream(stream_key("algorithm", key.hex()))
        self._index = index
        self._lane = 0
        self._device = torch.device(device)

    def __len__(self) -> int:
        return len(self._index)

    def only(self, row: int) -> EpisodeRandom:
        """The randomness of one of the episodes, from the same draw on: what its row gets here."""
        one = EpisodeRandom.__new__(EpisodeRandom)
        # A stream holds a place of its own, so that threads don't disturb one another.
        one._stream, one._index = Stream(self._stream.key.tobytes()), [self._index[row]]
        one._lane, one._device = self._lane, self._device
        return one

    def _words(self, count: int) -> np.ndarray:
        lane, self._lane = self._lane, self._lane + 1
        return np.stack([self._stream.words(i, count, lane) for i in self._index])

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) uniform in [0, 1)."""
        values = uniform(self._words(int(np.prod(shape))))
        return self._tensor(values, shape, dtype)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) standard normal."""
        words = self._words(2 * int(np.prod(shape)))
        return self._tensor(np.stack([normal(row) for row in words]), shape, dtype)

    def permutation(self, n: int) -> Tensor:
        """(B, n) random permutations of 0 to n - 1."""
        # Equal words would tie; a stable sort breaks ties by position on every machine.
        order = np.argsort(self._words(n), axis=1, kind="stable")
        return torch.from_numpy(order).to(self._device)

    def _tensor(self, values: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = torch.from_numpy(values.reshape(len(self._index), *shape))
        return tensor.to(device=self._device, dtype=dtype)


@dataclass
class Context:
    """Where a call stands.

    Attributes:
        stage: train, validation or test.
        rng: randomness for the batch's episodes.
        step: steps of the phase done so far; 0 outside training.
        total: steps of the phase; 0 outside training.
        phase: the phase's name; empty outside training.
    """

    stage: Stage
    rng: EpisodeRandom
    step: int = 0
    total: int = 0
    phase: str = ""

    @property
    def training(self) -> bool:
        return self.stage == "train"
