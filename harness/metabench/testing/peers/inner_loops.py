"""The peers' meta-steps, each as its library documents MAML, in the fastest way that it has.

A meta-step leaves the mean of the tasks' meta-gradients in the network's `.grad`. Each task's
backward pass is taken at once: it frees the task's graph, and is faster than one for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metabench.api.items import EpisodeBatch
from metabench.testing.peers.rows import installed

MetaStep = Callable[[EpisodeBatch], None]
Make = Callable[[nn.Module, float, int, int], MetaStep]
"""`make(network, inner_lr, steps, order)`."""


def tasks_of(batch: EpisodeBatch) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Support, labels, queries, targets, task by task."""
    return zip(
        batch.support.items.data,
        batch.support.targets.values,
        batch.queries.data,
        batch.query_targets.values,
        strict=True,
    )


def with_higher(network: nn.Module, lr: float, steps: int, order: int) -> MetaStep:
    """`higher.innerloop_ctx`, as in its example maml-omniglot.

    First order as its authors answer in issue 63: without the graph, and the gradient at the
    adapted weights handed to the initial ones.
    """
    import higher

    initial = list(network.parameters())
    inner = torch.optim.SGD(initial, lr=lr)

    def step(batch: EpisodeBatch) -> None:
        network.zero_grad()
        count = len(batch.query_targets.values)
        for x, y, queries, targets in tasks_of(batch):
            with higher.innerloop_ctx(
                network, inner, copy_initial_weights=False, track_higher_grads=order == 2
            ) as (patched, optimizer):
                for _ in range(steps):
                    optimizer.step(F.cross_entropy(patched(x), y))
                loss = F.cross_entropy(patched(queries), targets) / count
                if order == 2:
                    loss.backward()  # type: ignore[no-untyped-call]
                else:
                    add_gradients(initial, torch.autograd.grad(loss, list(patched.parameters())))

    return step


def with_torchopt(network: nn.Module, lr: float, steps: int, order: int) -> MetaStep:
    """Second order: `MetaSGD`, as in its example maml_omniglot; first order: functional `sgd`.

    (`MetaSGD` always keeps the graph.)
    """
    return (_torchopt_second if order == 2 else _torchopt_first)(network, lr, steps)


def _torchopt_second(network: nn.Module, lr: float, steps: int) -> MetaStep:
    import torchopt

    inner = torchopt.MetaSGD(network, lr=lr)
    initial = torchopt.extract_state_dict(network, by="reference")
    fresh = torchopt.extract_state_dict(inner, by="reference")
    leaves = list(network.parameters())

    def step(batch: EpisodeBatch) -> None:
        for leaf in leaves:
            leaf.grad = None
        count = len(batch.query_targets.values)
        for x, y, queries, targets in tasks_of(batch):
            for _ in range(steps):
                inner.step(F.cross_entropy(network(x), y))
            (F.cross_entropy(network(queries), targets) / count).backward()  # type: ignore[no-untyped-call]
            torchopt.recover_state_dict(network, initial)
            torchopt.recover_state_dict(inner, fresh)

    return step


def _torchopt_first(network: nn.Module, lr: float, steps: int) -> MetaStep:
    import torchopt

    names = [name for name, _ in network.named_parameters()]
    initial = list(network.parameters())
    inner = torchopt.sgd(lr=lr)

    def loss_at(params: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(
            functional_call(network, dict(zip(names, params, strict=True)), x), y
        )

    def step(batch: EpisodeBatch) -> None:
        network.zero_grad()
        count = len(batch.query_targets.values)
        for x, y, queries, targets in tasks_of(batch):
            params = tuple(value.detach().requires_grad_() for value in initial)
            state = inner.init(params)
            for _ in range(steps):
                grads = torch.autograd.grad(loss_at(params, x, y), params)
                updates, state = inner.update(grads, state, inplace=False)
                moved = torchopt.apply_updates(params, updates, inplace=False)
                params = tuple(value.detach().requires_grad_() for value in moved)
            loss = loss_at(params, queries, targets) / count
            add_gradients(initial, torch.autograd.grad(loss, params))

    return step


def with_learn2learn(network: nn.Module, lr: float, steps: int, order: int) -> MetaStep:
    """`learn2learn.algorithms.MAML`, as in its example maml_omniglot."""
    import learn2learn

    maml = learn2learn.algorithms.MAML(network, lr=lr, first_order=order == 1)

    def step(batch: EpisodeBatch) -> None:
        network.zero_grad()
        count = len(batch.query_targets.values)
        for x, y, queries, targets in tasks_of(batch):
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(x), y))
            (F.cross_entropy(learner(queries), targets) / count).backward()  # type: ignore[no-untyped-call]

    return step


def add_gradients(params: list[nn.Parameter], grads: tuple[Tensor, ...]) -> None:
    """Add to the parameters' `.grad`."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad if param.grad is None else param.grad.add_(grad)


PEERS: dict[str, Make] = {
    "higher": with_higher,
    "torchopt": with_torchopt,
    "learn2learn": with_learn2learn,
}


def present() -> dict[str, Make]:
    """The peers that can be imported here."""
    return {name: PEERS[name] for name in installed(*PEERS)}
