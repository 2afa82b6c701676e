"""Every engine gives what the loop gives: values, outer gradients, buffers, states."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call

from metabench.engine import compiled, mixed
from metabench.engine.chunks import most_held
from metabench.engine.inner import Tensors, sgd, unroll
from metabench.engine.lift import over_tasks
from metabench.engine.mixed import LONG, stride_of
from metabench.engine.modes import (
    AUTO,
    capturing,
    current_engine,
    engines_of,
    resolve_engine,
    using_engine,
)
from metabench.engine.norm import convert
from metabench.errors import UnknownNameError, UsageError

TASKS, SHOTS, QUERIES, WAYS = 3, 4, 6, 3


class Net(nn.Module):
    """Convolution, batch norm, max-pooling and a head: what a few-shot network is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.across = nn.LayerNorm(4 * 16)
        self.head = nn.Linear(4 * 16, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(F.max_pool2d(self.norm(self.conv(x)), 2))
        return self.head(self.across(maps.flatten(1)))


def made_net() -> Net:
    made = Net().double()
    convert(made)
    made.norm.mode = "fresh"
    return made


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return made_net()


@pytest.fixture
def tasks() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "support": torch.rand(TASKS, SHOTS, 1, 8, 8, dtype=torch.float64),
        "labels": torch.randint(0, WAYS, (TASKS, SHOTS)),
        "queries": torch.rand(TASKS, QUERIES, 1, 8, 8, dtype=torch.float64),
        "targets": torch.randint(0, WAYS, (TASKS, QUERIES)),
    }


def momentum(params: Tensors, grads: Tensors, opt_state: Any, t: int) -> tuple[Tensors, Any]:
    """A step with a rate for each parameter, a memory and a count: all that a state can hold."""
    memory = {n: 0.5 * m + grads[n] for n, m in opt_state["memory"].items()}
    rates = opt_state["rates"]
    moved = {n: p - rates[n] * memory[n] / (1 + t) for n, p in params.items()}
    return moved, {"memory": memory, "rates": rates, "count": opt_state["count"] + 1}


def outer(net: Net, tasks: dict[str, Tensor], order: int, which: list[str], steps: int) -> Tensor:
    """The outer loss, by way of all that may carry a gradient."""
    params = dict(net.named_parameters())
    shift = net.norm.bias.sum()  # reaches the batch and the buffers
    drift = {"drift": shift * 0.1}

    def loss(p: Tensors, buffers: Tensors, batch: Any, t: int) -> tuple[Tensor, Tensors]:
        data, labels = batch
        logits = functional_call(net, p, (data,)) * (1 + buffers["drift"])
        after = {"drift": buffers["drift"] * 0.9 + 0.01 * logits.square().mean()}
        return F.cross_entropy(logits, labels), after

    def one(data: Tensor, labels: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
        start = {
            "memory": {n: 0.1 * params[n] for n in which},
            "rates": {n: 0.3 + 0.1 * params[n].tanh() for n in which},
            "count": 0,
        }
        phi, buffers, state = unroll(
            loss, params, drift, (data * (1 + shift), labels), start, momentum, which, steps, order
        )
        assert state["count"] == steps
        value, _ = loss(phi, buffers, (queries, targets), steps)
        return value + sum(m.square().sum() for m in state["memory"].values())

    losses: Tensor = over_tasks(one, *tasks.values())
    return losses.mean()


def gradients(net: Net, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(net.parameters()), materialize_grads=True))


def agrees(
    net: Net, tasks: dict[str, Tensor], engine: Any, order: int, steps: int, which: str
) -> None:
    names = [n for n, _ in net.named_parameters() if which == "all" or n.startswith("head.")]
    expected = outer(net, tasks, order, names, steps)
    with using_engine(engine):
        value = outer(net, tasks, order, names, steps)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(gradients(net, value), gradients(net, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("which", ["all", "head"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("engine", ["vmap", "mixed"])
def test_the_outer_loss_and_its_gradient_are_those_of_the_loop(
    net, tasks, engine, order, steps, which
) -> None:
    agrees(net, tasks, engine, order, steps, which)


@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("which", ["all", "head"])
def test_a_long_loop_is_walked_again_between_the_points_that_are_kept(
    net, tasks, steps, which, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "LONG", 4)  # this loop's gradient grows tenfold with each step
    assert stride_of(steps) == 2
    agrees(net, tasks, "mixed", 2, steps, which)


def test_a_long_loop_keeps_some_points_only() -> None:
    weight = {"w": torch.rand(256, 256, requires_grad=True)}  # 256 KiB

    def loss(p: Tensors, b: Tensors, batch: Tensor, t: int) -> tuple[Tensor, Tensors]:
        return (batch @ p["w"]).tanh().square().mean(), b

    def after(steps: int) -> int:
        with using_engine("mixed"):
            return most_held(
                lambda: (
                    unroll(loss, weight, {}, batch, (), sgd(0.1), ["w"], steps, 2)[0]["w"]
                    .sum()
                    .backward()
                )
            )

    batch = torch.rand(4, 256)
    short, long = after(LONG), after(16 * LONG)
    assert stride_of(16 * LONG) == 16
    # 4 points and the 4 of a segment; 16 and 16.
    assert long - short < 1.2 * (2 * 16 - 2 * 4) * 2**18
    assert long > short


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_so_are_they_when_the_step_is_compiled(net, tasks, order) -> None:
    agrees(net, tasks, "compile", order, 3, "all")


def test_one_compilation_serves_all_steps_tasks_and_cells_of_a_shape(
    tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    counted = torch.compile(compiled._gradient, fullgraph=True, dynamic=False, backend=counter)
    monkeypatch.setattr(compiled, "_compiled", lambda: counted)
    one = {name: value[:1] for name, value in tasks.items()}
    agrees(made_net(), one, "compile", 2, 1, "all")
    once = counter.frame_count
    assert once >= 1
    for _ in range(3):  # cells
        agrees(made_net(), tasks, "compile", 2, 4, "all")
    assert counter.frame_count == once


@pytest.mark.slow
def test_a_process_compiles_more_kinds_of_steps_than_pytorch_would_by_itself(tasks) -> None:
    limit = torch._dynamo.config.recompile_limit
    for features in range(1, limit + 3):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, features), nn.Linear(features, WAYS))
        params = {n: p.double() for n, p in net.named_parameters()}

        def loss(
            p: Tensors, b: Tensors, batch: Any, t: int, net: nn.Module = net
        ) -> tuple[Tensor, Tensors]:
            return F.cross_entropy(functional_call(net, p, (batch[0],)), batch[1]), b

        def adapted(engine: Any, loss: Any = loss, params: Tensors = params) -> Tensors:
            batch = tasks["support"][0], tasks["labels"][0]
            with using_engine(engine):
                return unroll(loss, params, {}, batch, (), sgd(0.1), list(params), 2, 1)[0]

        torch.testing.assert_close(adapted("compile"), adapted("loop"), rtol=1e-10, atol=1e-12)


def test_the_second_order_gradient_is_not_the_first(net, tasks) -> None:
    names = [n for n, _ in net.named_parameters()]
    first, second = (gradients(net, outer(net, tasks, order, names, 3)) for order in (1, 2))
    assert max((a - b).abs().max() for a, b in zip(first, second, strict=True)) > 1e-3


def test_mixed_mode_agrees_with_finite_differences(net, tasks) -> None:
    names = [n for n, _ in net.named_parameters()]
    with using_engine("mixed"):
        slope = gradients(net, outer(net, tasks, 2, names, 2))
        step = 1e-6
        for parameter, found in zip(net.parameters(), slope, strict=True):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[0] += sign * step
                    values.append(outer(net, tasks, 2, names, 2))
                    parameter.view(-1)[0] -= sign * step
            expected = (values[0] - values[1]) / (2 * step)
            torch.testing.assert_close(found.view(-1)[0], expected, rtol=1e-5, atol=1e-7)


MIXED_FOR_THE_FIRST_TIME = """
import sys
import warnings
import torch
from metabench.engine.inner import sgd, unroll
from metabench.engine.modes import using_engine


def loss(params, buffers, batch, t):
    warnings.warn("this loss is old", FutureWarning)
    return params["w"].square().sum(), buffers


weight = torch.ones(2, requires_grad=True)
with using_engine("mixed"):
    adapted, _, _ = unroll(loss, {"w": weight}, {}, None, (), sgd(0.1), ["w"], 1, 2)
    adapted["w"].sum().backward()
assert "torch._decomp.decompositions_for_jvp" in sys.modules
print("adapted", file=sys.stderr)
torch.jit.script(torch.nn.Identity())
"""


def test_of_warnings_only_that_of_pytorch_about_itself_is_not_shown() -> None:
    """In a process of its own: PyTorch sets its forward mode up once."""
    done = subprocess.run(
        [sys.executable, "-c", MIXED_FOR_THE_FIRST_TIME],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = done.stderr.split("adapted")
    assert "FutureWarning: this loss is old" in before
    assert "torch.jit" not in before
    assert "FutureWarning: `torch.jit.script`" in after


def test_a_batch_of_tasks_may_be_any_tree(tasks) -> None:
    def one(tree: Any, mask: Any) -> Any:
        assert mask is None
        return {"sum": tree["x"][0].sum(), "rows": [tree["x"][1] + 1]}

    def made() -> Any:
        return over_tasks(one, {"x": (tasks["support"], tasks["labels"])}, None)

    expected = made()
    with using_engine("vmap"):
        found = made()
    torch.testing.assert_close(found["sum"], expected["sum"])
    assert torch.equal(found["rows"][0], expected["rows"][0])


def test_an_engine_is_chosen_for_a_while() -> None:
    assert current_engine() == "loop"
    with using_engine("mixed"):
        with using_engine("vmap"):
            assert current_engine() == "vmap"
        assert current_engine() == "mixed"
        with using_engine("graph"):
            assert (current_engine(), capturing()) == ("vmap", True)
        assert not capturing()
    assert current_engine() == "loop"


def test_the_engine_of_a_name() -> None:
    assert resolve_engine("auto", "cpu", 2) == AUTO["cpu"][2]
    assert resolve_engine("mixed", "cuda", 2) == "mixed"
    assert resolve_engine("mixed", "cuda", 1) == "loop"
    assert resolve_engine("graph", "cuda", 2) == "graph"
    with pytest.raises(UsageError, match="graph is CUDA's own"):
        resolve_engine("graph", "cpu", 2)
    with pytest.raises(UnknownNameError, match="mixd"):
        resolve_engine("mixd", "cpu", 2)


def test_only_meta_steps_are_captured() -> None:
    assert engines_of(MAML, "graph", "cuda") == ("graph", "vmap")
    assert engines_of(MAML, "auto", "cpu") == ("loop", "loop")


class MAML:
    order = 2
