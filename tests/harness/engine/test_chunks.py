"""Chunks are as large as a fixed working set holds, whatever the machine."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from metabench.engine import chunks
from metabench.engine.chunks import most_held, that_fit
from metabench.engine.inner import sgd, unroll
from metabench.engine.lift import over_tasks
from metabench.engine.modes import ENGINES, current_engine, using_engine
from metabench.engine.numerics import numerics

MIB = 2**20


def made(mib: int) -> Tensor:
    return torch.zeros(mib * MIB // 4)


def test_what_is_let_go_is_not_counted() -> None:
    def call() -> Tensor:
        first = made(3)
        second = first + 1  # 6
        del first
        third = second.view(-1, 2)[:5] * 1  # a view holds nothing more
        del second
        return made(1) + float(third[0, 0])  # 2

    held = most_held(call)
    assert 6 * MIB <= held < 6 * MIB + 4096


def test_what_is_changed_in_place_is_counted_once() -> None:
    def call() -> Tensor:
        x = made(2)
        for _ in range(5):
            x += 1
            x.relu_()
        return x

    assert 2 * MIB <= most_held(call) < 2 * MIB + 4096


def test_what_a_backward_pass_needs_is_held() -> None:
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)), nn.Tanh())
    x = torch.rand(4096, 64)  # 1 MiB
    with torch.no_grad():
        forward = most_held(lambda: net(x))
    both = most_held(lambda: torch.autograd.grad(net(x).sum(), list(net.parameters())))
    assert 2 * MIB <= forward < 2.1 * MIB
    assert both > 5 * MIB


def test_weights_are_not_counted() -> None:
    layer, x = nn.Linear(1024, 1024), torch.rand(1, 1024)  # 4 MiB
    with torch.no_grad():
        assert most_held(lambda: layer(x) @ layer.weight.T) < 0.1 * MIB


def test_what_is_in_a_cycle_is_counted_whenever_it_is_collected() -> None:
    def call() -> None:
        for _ in range(3):
            cycle: list[object] = [made(1)]
            cycle.append(cycle)
            del cycle
            gc.collect(0) if gc.isenabled() else None

    assert gc.isenabled()
    assert 3 * MIB <= most_held(call) < 3.1 * MIB
    assert gc.isenabled()


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_an_inner_loop_is_looked_into(engine) -> None:
    weight = {"w": torch.rand(64, 64)}
    data = torch.rand(4096, 64)

    def loss(params, buffers, batch, t):  # type: ignore[no-untyped-def]
        return (batch @ params["w"]).tanh().square().mean(), buffers

    def one(batch: Tensor) -> object:
        return unroll(loss, weight, {}, batch, (), sgd(0.1), ["w"], 3, 1)[0]

    def call() -> object:
        return over_tasks(one, data.unflatten(0, (2, -1)))

    with using_engine(engine):
        assert most_held(call) > 2 * MIB


def test_chunks_are_powers_of_two_within_the_working_set(monkeypatch) -> None:
    monkeypatch.setitem(chunks.AT_ONCE, "cpu", 32 * MIB)
    assert that_fit(lambda: made(1), 1, "cpu", 256) == 32
    assert that_fit(lambda: made(3), 1, "cpu", 256) == 8  # 10 would fit
    assert that_fit(lambda: made(6), 2, "cpu", 256) == 8  # of two
    assert that_fit(lambda: made(1), 1, "cpu", 16) == 16
    assert that_fit(lambda: made(40), 1, "cpu", 256) == 1  # not taken apart
    assert that_fit(lambda: None, 1, "cpu", 256) == 256


def test_what_cannot_be_looked_into_goes_one_at_a_time() -> None:
    def broken() -> None:
        raise RuntimeError("told when it is run in earnest")

    assert that_fit(broken, 1, "cpu", 256) == 1


def test_a_compiled_step_is_looked_at_as_a_loop() -> None:
    seen = []
    for engine in ENGINES:
        with using_engine(engine):
            that_fit(lambda: seen.append(current_engine()), 1, "cpu", 4)
    assert "compile" not in seen
    assert len(seen) == len(ENGINES)


def test_all_of_it_stays_within_the_working_set() -> None:
    for device in ("cpu", "cuda"):
        assert chunks.KEPT + chunks.AT_ONCE[device] <= chunks.WORKING_SET == 2**30
        table = numerics(device)["chunks"]
        assert table["at_once"] == chunks.AT_ONCE[device]
        assert table["kept"] == chunks.KEPT


EVALUATE = """
import sys
import numpy as np, torch
from metabench.api.backbone import ItemSpec
from metabench.api.recipe import Recipe
from metabench.engine.build import Blueprint
from metabench.engine.evaluate import evaluate
from metabench.engine.gather import ItemStore
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key
from metabench.plugins import load_registry
from metabench.testing.resident import peak_bytes

torch.set_num_threads(1)
registry, item = load_registry(), ItemSpec("image", (3, 84, 84))
data = np.zeros((20 * 40, *item.shape), dtype=np.uint8)
bank = ClassBank(data, np.arange(21) * 40, tuple(map(str, range(20))), "0" * 32, "test")
protocol = Protocol(ways=20, shots=int(sys.argv[2]), queries=15, episodes=2)
algorithm = registry.get("algorithm", sys.argv[1]).load()
backbone = registry.get("backbone", "conv4").load()
hp = algorithm.hyperparameters(), backbone.hyperparameters()
blueprint = Blueprint(algorithm, hp[0], backbone, hp[1], Recipe(), protocol, 0)
made = blueprint.build(item, bank, torch.device("cpu"))
store = ItemStore(bank, item, torch.device("cpu"))
source = EpisodeSource(bank, protocol.shape, protocol_key(bank, protocol))
before = peak_bytes()
evaluate(made, source, store, 2, "test")
print(peak_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "shots"), [("protonet", 5), ("maml", 1)])
def test_large_images_and_episodes_stay_within_the_working_set(algorithm: str, shots: int) -> None:
    """Of 84 x 84 images 256 at a time hold 880 MiB in conv4 alone, beside their kernels' copies.

    MAML with 5 shots takes 1 GiB for the gradient of its 100 support items.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", EVALUATE, algorithm, str(shots)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert int(ran.stdout) < 0.5 * chunks.WORKING_SET
