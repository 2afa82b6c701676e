"""An algorithm run as usual beside the same one captured, on CUDA or on a fake of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from fake_cuda import FakeCuda
from torch import Tensor

from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import EpisodeBatch, Items, Support, Targets
from metabench.api.recipe import Recipe
from metabench.engine.gradient import GradientAlgorithm, GradientHyperparameters
from metabench.engine.graphs import CapturedStep, Step
from metabench.engine.numerics import seed_all


class Learner(GradientAlgorithm):
    """Second-order MAML."""

    name = "learner"
    reference = summary = ""


def batch(seed: int, device: str = "cpu", *, shots: int = 2, ways: int = 4) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(seed)

    def items(each: int) -> Tensor:
        return torch.rand(2, ways * each, 1, 6, 6, generator=generator).to(device)

    def targets(each: int) -> Tensor:
        return torch.arange(ways, device=device).repeat(each).expand(2, -1).contiguous()

    support = Support(Items(items(shots)), Targets(targets(shots)), ways)
    classes = torch.arange(ways, device=device).expand(2, -1)
    return EpisodeBatch(support, Items(items(3)), Targets(targets(3)), classes)


def context(number: int, device: str = "cpu") -> Context:
    return Context(
        "train", EpisodeRandom(b"key", [number, number + 1], device), number, 100, "meta"
    )


@dataclass
class Device:
    """Where steps are captured: CUDA, or what stands for it on the CPU."""

    of_tensors: str
    fake: FakeCuda | None

    @property
    def tolerance(self) -> dict[str, float]:
        return {} if self.fake is None else {"rtol": 0.0, "atol": 0.0}


def made(world, kind: type[GradientAlgorithm], device: str) -> GradientAlgorithm:
    trial = world.trial(Recipe(ways=4), kind)
    blueprint = replace(trial.blueprint, algorithm_hp=GradientHyperparameters(inner_steps=3))
    algorithm = replace(trial, blueprint=blueprint, device=torch.device(device)).build()
    for layer in algorithm.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return algorithm.train()


class Left(NamedTuple):
    """What a step leaves."""

    loss: Tensor
    grads: list[Tensor | None]
    buffers: list[Tensor]
    weights: list[Tensor]
    random: list[Tensor]


class Twins:
    """An algorithm run as usual, and the same one captured: after each step they are the same."""

    def __init__(self, world, device: Device, kind: type[GradientAlgorithm]) -> None:
        self.device = device
        self.plain = made(world, kind, device.of_tensors)
        self.twin = copy.deepcopy(self.plain)
        self.captured = CapturedStep(self.twin, torch.device("cuda"))
        self.both = [self.plain, self.twin]
        self.optimizers = [torch.optim.Adam(one.parameters(), lr=1e-2) for one in self.both]
        self.number = self.calls = 0
        self.losses: tuple[list[Tensor], list[Tensor]] = ([], [])
        usual = self.twin.training_step

        def counted(batch: EpisodeBatch, ctx: Context) -> Tensor:
            self.calls += 1
            return usual(batch, ctx)

        self.twin.training_step = counted  # type: ignore[method-assign]

    @property
    def fake(self) -> FakeCuda:
        assert self.device.fake is not None
        return self.device.fake

    def step(self, **shape: int) -> None:
        number, self.number = self.number, self.number + 1
        one = batch(number, self.device.of_tensors, **shape)
        runs = (self.plain.training_step, self.captured)
        usual, other = (self._left(i, run, number, one) for i, run in enumerate(runs))
        for found, expected in zip(other, usual, strict=True):
            torch.testing.assert_close(found, expected, **self.device.tolerance)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def _left(self, i: int, run: Step, number: int, one: EpisodeBatch) -> Left:
        algorithm, generator = self.both[i], torch.cuda.default_generators[0]
        seed_all("step", number)
        generator.manual_seed(number)
        self.optimizers[i].zero_grad()
        loss = run(one, context(number, self.device.of_tensors))
        self.losses[i].append(loss)
        random = [torch.get_rng_state(), generator.get_state(), torch.from_numpy(np.random.rand(4))]
        grads = [None if p.grad is None else p.grad.clone() for p in algorithm.parameters()]
        self.optimizers[i].step()
        weights = [p.detach().clone() for p in algorithm.parameters()]
        return Left(loss, grads, [b.clone() for b in algorithm.buffers()], weights, random)
