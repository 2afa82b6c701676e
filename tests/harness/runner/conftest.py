"""Cells of the real drawings that take a fraction of a second, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_suite import HEAD

from metabench import Algorithm, Recipe
from metabench.experiment.prepared import Prepared, prepare


class Prototypes(Algorithm):
    """Prototypes on a linear layer: something small to train; others go wrong."""

    name = "prototypes"
    family = "metric"
    reference = "none"
    summary = "A linear prototype network, for tests."
    inference = "inductive"
    recipe = Recipe(steps=12)

    def build(self) -> None:
        size = self.backbone(torch.zeros(1, *self.problem.item.shape)).flatten(1).shape[1]
        self.linear = torch.nn.Linear(size, 8)

    def embed(self, items):
        return self.linear(self.backbone(items.data.flatten(0, 1)).flatten(1)).unflatten(
            0, items.data.shape[:2]
        )

    def adapt(self, support, ctx):
        member = F.one_hot(support.targets.values, support.ways).float()  # (B, S, N)
        sums = torch.einsum("bsn,bsd->bnd", member, self.embed(support.items))
        return sums / member.sum(1).unsqueeze(-1)

    def predict(self, state, queries, ctx):
        return -torch.cdist(self.embed(queries), state)


class Raising(Prototypes):
    name = "raising"

    def training_loss(self, batch, ctx):
        if ctx.step == 5:
            raise ValueError("bad luck")
        return super().training_loss(batch, ctx)


class Peeking(Prototypes):
    """Says that it is inductive, and centres the queries on their own mean."""

    name = "peeking"

    def predict(self, state, queries, ctx):
        embedded = self.embed(queries)
        return -torch.cdist(embedded - embedded.mean(1, keepdim=True), state)


Ask = Callable[..., Prepared]


@pytest.fixture
def ask(tmp_path: Path, data: Path) -> Ask:
    """Prepare a suite of these algorithms (TOML tables, by name) and classes; `out` is a folder."""

    def prepared(*algorithms: str | type[Algorithm], out: str = "out", **options: object):
        tables = "".join(f"[[algorithm]]\n{a}\n" for a in algorithms if isinstance(a, str))
        tables = tables or '[[algorithm]]\nname = "nearest-centroid"\nrecipe = {steps = 0}\n'
        (tmp_path / "small.toml").write_text(HEAD + tables)
        classes = [a for a in algorithms if isinstance(a, type)]
        names = ["*"] if any(isinstance(a, str) for a in algorithms) else []
        return prepare(
            tmp_path / "small.toml",
            algorithms=[*names, *classes],
            out=tmp_path / out,
            data_dir=data,
            device="cpu",
            **options,
        )

    return prepared


@pytest.fixture
def classes() -> dict[str, type[Algorithm]]:
    """The algorithms of this file."""
    return {"prototypes": Prototypes, "raising": Raising, "peeking": Peeking}
