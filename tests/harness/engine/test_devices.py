"""The same on a CUDA device as on the CPU, within what other kernels may differ by."""

import numpy as np
import pytest
import torch

from metabench.api.recipe import Recipe
from metabench.engine.evaluate import evaluate
from metabench.engine.feed import TrainingData
from metabench.engine.gather import ItemStore
from metabench.engine.numerics import resolve_device
from metabench.engine.train import train
from metabench.errors import UsageError


def run(world, device):
    recipe = Recipe(steps=20, queries=3)
    algorithm = world.make(world.Nearest, recipe).to(device)
    store = ItemStore(world.banks["train"], world.image, device)
    train(algorithm, recipe, TrainingData(store, world.protocol), 0)
    test = ItemStore(world.banks["test"], world.image, device)
    return algorithm, evaluate(algorithm, world.source(), test, 50, "test")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_and_test_on_cuda_agree_with_the_cpu(world):
    _, on_cpu = run(world, torch.device("cpu"))
    algorithm, on_cuda = run(world, torch.device("cuda"))
    assert {p.device.type for p in algorithm.parameters()} == {"cuda"}
    assert (on_cpu.targets == on_cuda.targets).all()
    assert np.abs(on_cpu.scores("accuracy") - on_cuda.scores("accuracy")).mean() < 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_said_clearly():
    with pytest.raises(UsageError, match="0 CUDA devices"):
        resolve_device("cuda:1")
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:x", "meta"])
def test_other_devices_are_refused(name):
    with pytest.raises(UsageError, match="device"):
        resolve_device(name)
