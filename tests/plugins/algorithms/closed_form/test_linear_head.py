"""What holds for every closed-form head: padding, derivatives, odd support sets, bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench.api.items import Items, Support, Targets
from metabench_plugins.algorithms.closed_form.linear_head import LinearHead
from metabench_plugins.algorithms.closed_form.lr_d2 import LRD2, LRD2Hyperparameters
from metabench_plugins.algorithms.closed_form.metaoptnet_ridge import MetaOptNetRidge
from metabench_plugins.algorithms.closed_form.metaoptnet_svm import MetaOptNetSVM
from metabench_plugins.algorithms.closed_form.r2d2 import R2D2

Lab = Any

every = pytest.mark.parametrize("kind", [R2D2, LRD2, MetaOptNetRidge, MetaOptNetSVM])


@every
def test_padding_changes_nothing(task: Any, logits: Callable[..., Tensor], kind: Any) -> None:
    real = task((3, 1, 4))
    rows, labels = torch.from_numpy(real.features), torch.from_numpy(real.labels)
    noise = torch.full((2, rows.shape[1]), torch.nan, dtype=rows.dtype)
    mask = torch.arange(len(labels) + 2)[None] >= 2
    padded = Support(
        Items(torch.cat([noise, rows])[None], mask),
        Targets(torch.cat([torch.tensor([1, 2]), labels])[None]),
        3,
    )
    expected = logits(kind, real)
    torch.testing.assert_close(logits(kind, real, padded), expected, rtol=1e-9, atol=1e-11)
    unmasked = Support(Items(padded.items.data.nan_to_num(0.3)), padded.targets, 3)
    assert not torch.allclose(logits(kind, real, unmasked), expected, rtol=1e-3)


@every
@pytest.mark.parametrize("shots", [(2, 2, 2), (1, 3, 2), (1, 1), (2, 3)], ids=str)
def test_derivatives_go_through_the_solution(lab: Lab, task: Any, kind: Any, shots: Any) -> None:
    """By support and query embeddings and all that is learned, against differences."""
    real = task(shots)
    # So few that the derivative still hangs on every one of them.
    hp = LRD2Hyperparameters(newton_steps=2) if kind is LRD2 else None
    head = lab.double().make(kind, hp)
    names = [name for name, _ in head.named_parameters() if not name.startswith("backbone")]
    learned = [head.get_parameter(name) for name in names]
    labels = torch.from_numpy(real.labels)[None]
    asked = torch.arange(5) % len(shots)

    def loss(known: Tensor, queries: Tensor, *_: Tensor) -> Tensor:
        support = Support(Items(known[None]), Targets(labels), len(shots))
        state = head.adapt(support, lab.context(episodes=1))
        found = head.predict(state, Items(queries[None]), lab.context(episodes=1))
        return F.cross_entropy(found[0], asked)

    inputs = (torch.from_numpy(real.features), torch.from_numpy(real.queries))
    moving = tuple(x.clone().requires_grad_() for x in inputs)
    assert learned
    # Fast: along random directions, not by each number.
    assert torch.autograd.gradcheck(loss, (*moving, *learned), atol=1e-7, fast_mode=True)


@every
def test_an_item_many_times_and_one_in_two_classes(
    lab: Lab, task: Any, logits: Callable[..., Tensor], kind: Any
) -> None:
    """Gram matrices without full rank, and classes that nothing tells apart."""
    real = task((3, 3, 1))
    real.features[:] = real.features[0]
    found = logits(kind, real)
    assert found.isfinite().all()
    # Of classes with the same items the same is known.
    torch.testing.assert_close(found[:, 0], found[:, 1], rtol=1e-7, atol=1e-9)

    head = lab.double().make(kind)
    known = torch.from_numpy(real.features)[None].requires_grad_()
    support = Support(Items(known), Targets(torch.from_numpy(real.labels)[None]), 3)
    head.adapt(support, lab.context(episodes=1))["weights"].square().sum().backward()
    assert known.grad.isfinite().all()


@every
def test_embeddings_of_half_precision_are_solved_in_full(lab: Lab, task: Any, kind: Any) -> None:
    real = task((2, 2, 2))
    head: LinearHead = lab.make(kind)
    support = real.support()
    short = support._replace(items=Items(support.items.data.bfloat16()))
    rounded = support._replace(items=Items(short.items.data.double()))
    ctx = lab.context(episodes=1)
    with torch.no_grad():
        found = head.adapt(short, ctx)["weights"]
        expected = head.adapt(rounded, ctx)["weights"]
        with torch.autocast("cpu", torch.bfloat16):
            logits = head.predict({"weights": found}, Items(short.items.data), ctx)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=1e-7)
    assert logits.isfinite().all()
