"""What the tests of transductive algorithms share: tasks of embeddings, with known clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from metabench.api.items import Items, Support, Targets


class Tasks(NamedTuple):
    """B tasks of embeddings in float64, none negative, as after a ReLU.

    Attributes:
        support: (B, S, D), classes of the sizes that were asked for, in no order.
        queries: (B, Q, D), in no order.
        classes: (B, Q) of the queries.
    """

    support: Support
    queries: Items
    classes: Tensor

    def of(self, task: int) -> tuple[Tensor, Tensor, Tensor]:
        """Support (S, D), labels (S,) and queries (Q, D) of one."""
        support = self.support
        return support.items.data[task], support.targets.values[task], self.queries.data[task]


@pytest.fixture(scope="session")
def draw_tasks() -> Callable[..., Tasks]:
    """`draw_tasks(shots, queries, ...)`: how many of each class; classes are clusters."""

    def draw(
        shots: Sequence[int],
        queries: Sequence[int],
        *,
        tasks: int = 2,
        dims: int = 12,
        spread: float = 0.6,
        seed: int = 0,
    ) -> Tasks:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        ways = len(shots)
        centres = normal(tasks, ways, dims)

        def items(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
            labels = torch.repeat_interleave(torch.arange(ways), torch.tensor(sizes))
            labels = torch.stack(
                [labels[torch.randperm(len(labels), generator=rng)] for _ in range(tasks)]
            )
            here = centres.gather(1, labels.unsqueeze(-1).expand(-1, -1, dims))
            return (here + spread * normal(*here.shape)).relu(), labels

        known, labels = items(shots)
        asked, classes = items(queries)
        return Tasks(Support(Items(known), Targets(labels), ways), Items(asked), classes)

    return draw
