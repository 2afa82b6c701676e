"""Fine-tuning's adapters, dropout and moved images against PyTorch's optimisers and layers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from metabench.api.items import EpisodeBatch
from metabench.testing.conformance import algorithm_predictions as predicting
from metabench.testing.conformance.finding import NotApplicableError
from metabench.testing.conformance.subject import AlgorithmSubject
from metabench_plugins.algorithms.transfer.finetune import FineTune, FineTuneHyperparameters
from metabench_plugins.algorithms.transfer.low_rank import DOWN

Lab = Any
STEPS = 4


class LowRank(nn.Module):
    """A weight W (out, in, ...) as W + (alpha / r) B A."""

    def __init__(self, down: Tensor, scale: float, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down.clone())
        self.up = nn.Parameter(torch.zeros(len(weight), len(down), dtype=weight.dtype))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)


class Plain:
    """The network of one task, what of it moves, and PyTorch's own optimiser of that."""

    def __init__(self, algorithm: FineTune, adapters: dict[str, Tensor]) -> None:
        hp = algorithm.hp
        self.backbone = copy.deepcopy(algorithm.backbone).eval()
        self.head = nn.Linear(36, 5).double()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        moving = list(self.backbone.parameters()) if hp.policy == "full" else []
        for name in ("0", "3") if hp.policy == "lora" else ():
            layer = self.backbone.net[int(name)]
            down = adapters[f"backbone.net.{name}.weight{DOWN}"]
            factors = LowRank(down, hp.alpha / hp.rank, layer.weight)
            parametrize.register_parametrization(layer, "weight", factors)
            moving += [factors.down, factors.up]
        moving += list(self.head.parameters())
        self.optimizer: Any = (
            torch.optim.AdamW(moving, lr=hp.lr, weight_decay=hp.weight_decay)
            if hp.optimizer == "adamw"
            else torch.optim.SGD(
                moving, lr=hp.lr, momentum=hp.momentum, weight_decay=hp.weight_decay
            )
        )

    def logits(self, items: Tensor, mask: Tensor | float = 1.0) -> Tensor:
        found: Tensor = self.head(self.backbone(items) * mask)
        return found

    def step(self, items: Tensor, labels: Tensor, mask: Tensor | float) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.logits(items, mask), labels).backward()
        self.optimizer.step()


def mask_of(known: dict[str, Tensor], task: int, step: int, rate: float) -> Tensor:
    """(S, D): an entry is dropped where the sum of its two draws, modulo 1, is below the rate."""
    rows, columns = (known[name][task, step].numpy() for name in ("of_items", "of_features"))
    kept = np.add.outer(rows, columns) % 1.0 >= rate
    return torch.from_numpy(kept / (1 - rate))


def moved_items(items: Tensor, draws: Tensor, shift: int) -> Tensor:
    """Each image mirrored every other time, then cut out of itself with repeated edges."""
    found = []
    for image, (down, right, mirrored) in zip(items.numpy(), draws.numpy(), strict=True):
        seen = image[..., ::-1] if mirrored < 0.5 else image
        wide = np.pad(seen, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
        row, column = (int(draw * (2 * shift + 1)) for draw in (down, right))
        found.append(wide[:, row : row + 28, column : column + 28])
    return torch.from_numpy(np.stack(found))


def made(lab: Lab, **settings: Any) -> FineTune:
    """Over two smooth layers, with moments that are not those of a fresh batch norm."""
    hp = FineTuneHyperparameters(**{"steps": (STEPS,), **settings})
    algorithm: FineTune = lab.make(FineTune, hp, backbone=lab.SmoothConv)
    for norm in (algorithm.backbone.net[1], algorithm.backbone.net[4]):
        norm.running_mean.copy_(torch.linspace(-0.1, 0.1, 4))
        norm.running_var.copy_(torch.linspace(0.3, 0.1, 4))
    return algorithm


LORA = {"policy": "lora", "rank": 3, "alpha": 7.0}
MOVED = {"shift": 2, "flip": True}
SGD = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02}
ADAMW = {"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.3}


@pytest.mark.parametrize(
    "settings",
    [
        {**LORA, **SGD},
        {**LORA, **ADAMW},
        {"policy": "full", "dropout": 0.4, **SGD},
        {"policy": "head", "dropout": 0.4, **ADAMW},
        {"policy": "full", **MOVED, **SGD},
        {"policy": "head", **MOVED, **ADAMW},
        {**LORA, **MOVED, "dropout": 0.4, **SGD, "lr": 0.05},
    ],
    ids=[
        "lora, sgd",
        "lora, adamw",
        "dropout, sgd",
        "dropout of the head's features, adamw",
        "moved, sgd",
        "moved, head, adamw",
        "all of it",
    ],
)
@pytest.mark.parametrize("shots", [2, 5], ids=["2 shots", "5 shots, early stopping"])
def test_predictions_are_those_of_plain_pytorch(
    lab: Lab, settings: dict[str, Any], shots: int
) -> None:
    lab = lab.with_protocol(shots=shots).double()
    algorithm, batch = made(lab, **settings), lab.batch(2)
    ctx = lab.context()
    adapters, known = algorithm.start(ctx), algorithm.known(batch.support, ctx)
    with torch.no_grad():
        found = lab.logits(algorithm, batch.support, batch.queries)
    for b in range(2):
        mine = {name: value[b] for name, value in adapters.items()}
        expected = fine_tuned(algorithm, mine, known, batch, b)
        torch.testing.assert_close(found[b], expected, rtol=1e-8, atol=1e-8)
    assert found.abs().max() > 0.05  # a task that keeps its first step has zeros


def fine_tuned(
    algorithm: FineTune,
    adapters: dict[str, Tensor],
    known: dict[str, Tensor],
    batch: EpisodeBatch,
    task: int,
) -> Tensor:
    """Logits of a task's queries after the last step, or after the one that is best."""
    hp, plain = algorithm.hp, Plain(algorithm, adapters)
    items, labels = batch.support.items.data[task], batch.support.targets.values[task]
    held = known["held"][task] if "held" in known else torch.zeros(len(labels), dtype=torch.bool)
    answers, losses = [], []
    for step in range(STEPS + 1):
        with torch.no_grad():
            answers.append(plain.logits(batch.queries.data[task]))
            losses.append(F.cross_entropy(plain.logits(items[held]), labels[held]))
        shown = (
            moved_items(items, known["moves"][task, step % STEPS], hp.shift) if hp.flip else items
        )
        mask = mask_of(known, task, step % STEPS, hp.dropout) if hp.dropout else torch.ones(1)
        learnt = mask[~held] if hp.dropout else mask
        plain.step(shown[~held], labels[~held], learnt)
    return answers[int(torch.stack(losses).argmin())] if held.any() else answers[-1]


# What the place of an item in the support set decides.


@pytest.mark.parametrize(
    ("settings", "declared"),
    [
        ({"early_stopping": False}, {"support-order", "class-labels"}),
        ({"early_stopping": False, "policy": "lora"}, {"support-order", "class-labels"}),
        ({"early_stopping": False, "policy": "head"}, {"support-order", "class-labels"}),
        ({}, {"class-labels"}),
        ({"early_stopping": False, "dropout": 0.3}, {"class-labels"}),
        ({"early_stopping": False, "shift": 1}, {"class-labels"}),
        ({"early_stopping": False, "flip": True}, {"class-labels"}),
        ({"early_stopping": False, "optimizer": "adamw"}, set()),
    ],
)
def test_declared_equivariances_are_those_that_the_kit_finds(
    settings: dict[str, Any], declared: set[str]
) -> None:
    hp = FineTuneHyperparameters(steps=(5,), lr=0.1, **settings)
    assert FineTune.equivariances(hp) == declared
    subject = AlgorithmSubject(entry=None, cls=FineTune, hp=hp)  # type: ignore[arg-type]
    for what, check in (
        ("support-order", predicting.support_order),
        ("class-labels", predicting.class_labels),
    ):
        if what in declared:
            check(subject)
        else:
            with pytest.raises(NotApplicableError):
                check(subject)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"dropout": 0.3}, {"shift": 1}, {"flip": True}])
def test_what_is_drawn_hangs_on_the_place(lab: Lab, settings: dict[str, Any]) -> None:
    """At five shots, where an item of each class is held out unless it is told not to."""
    lab = lab.with_protocol(shots=5).double()
    algorithm, batch = made(lab, early_stopping=not settings, lr=0.3, **settings), lab.batch(2)
    logits = lab.logits(algorithm, batch.support, batch.queries)
    other = lab.logits(algorithm, lab.shuffle_support(batch.support), batch.queries)
    assert (other - logits).abs().max() > 1e-3
    quiet = made(lab, early_stopping=False, lr=0.3)
    logits = lab.logits(quiet, batch.support, batch.queries)
    other = lab.logits(quiet, lab.shuffle_support(batch.support), batch.queries)
    torch.testing.assert_close(other, logits, rtol=1e-9, atol=1e-9)
