"""What holds for every transductive algorithm: padding, batches, orders, names of classes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.items import Items, Support, Targets
from metabench.api.recipe import Hyperparameters
from metabench_plugins.algorithms.transductive.bd_cspn import BDCSPN, BDCSPNHyperparameters
from metabench_plugins.algorithms.transductive.laplacian_shot import (
    LaplacianShot,
    LaplacianShotHyperparameters,
)
from metabench_plugins.algorithms.transductive.pt_map import PTMAP, PTMAPHyperparameters
from metabench_plugins.algorithms.transductive.tim import TIM, TIMHyperparameters
from metabench_plugins.algorithms.transductive.transductive_finetuning import (
    TransductiveFinetuning,
    TransductiveFinetuningHyperparameters,
)

VARIANTS: dict[str, tuple[type[Algorithm], Hyperparameters]] = {
    "bd-cspn": (BDCSPN, BDCSPNHyperparameters(confident=3)),
    "laplacian-shot": (LaplacianShot, LaplacianShotHyperparameters()),
    "laplacian-shot plain": (LaplacianShot, LaplacianShotHyperparameters(rectify=False)),
    "tim": (TIM, TIMHyperparameters(steps=10)),
    "tim alternating": (TIM, TIMHyperparameters(solver="alternating", steps=10)),
    "alpha-tim": (TIM, TIMHyperparameters(steps=10, entropy_order=2.0, normalisation="cl2n")),
    "pt-map": (PTMAP, PTMAPHyperparameters(iterations=5)),
    "fine-tuning": (
        TransductiveFinetuning,
        TransductiveFinetuningHyperparameters(inner_steps=3, inner_lr=1e-3),
    ),
    "fine-tuning the head": (
        TransductiveFinetuning,
        TransductiveFinetuningHyperparameters(adapted="head", inner_steps=3, inner_lr=1e-2),
    ),
}

every = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def made(lab) -> Callable[[str], Algorithm]:
    def get(variant: str) -> Algorithm:
        kind, hp = VARIANTS[variant]
        algorithm: Algorithm = lab.double().make(kind, hp)
        return algorithm.requires_grad_(False)

    return get


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


@every
def test_it_is_transductive_as_declared(lab, made, variant: str) -> None:
    algorithm = made(variant)
    assert algorithm.inference_mode(algorithm.hp) == "transductive"
    assert lab.double().dependence(algorithm) != ""


@every
def test_episodes_at_once_equal_one_at_a_time(lab, made, variant: str) -> None:
    lab = lab.double().with_protocol(shots=2)
    support, queries, _, _ = lab.batch(3)
    together = lab.logits(made(variant), support, queries)
    assert together.shape == (3, 25, 5)
    for b in range(3):
        labels = support.targets.values[b : b + 1]
        one = Support(Items(support.items.data[b : b + 1]), Targets(labels), 5)
        found = lab.logits(made(variant), one, Items(queries.data[b : b + 1]))
        close(together[b : b + 1], found)


@every
def test_orders_and_names_are_nothing(lab, made, variant: str) -> None:
    """Support items and queries in another order, classes under other names."""
    algorithm, lab = made(variant), lab.double().with_protocol(shots=3)
    support, queries, _, _ = lab.batch(2)
    queries = Items(queries.data[:, :19])
    logits = lab.logits(algorithm, support, queries)
    assert algorithm.equivariant_to == {"support-order", "class-labels"}
    close(lab.logits(algorithm, lab.shuffle_support(support), queries), logits)
    close(lab.logits(algorithm, lab.relabel(support), queries), logits.roll(1, dims=-1))
    order = torch.randperm(19, generator=torch.Generator().manual_seed(0))
    turned = lab.logits(algorithm, support, Items(queries.data[:, order]))
    close(turned, logits[:, order])


@every
@pytest.mark.parametrize("masked", ["items", "targets"])
def test_padding_changes_nothing(lab, made, variant: str, masked: str) -> None:
    """Classes of 1, 2 and 3 shots; the missing items stand there as noise with a wrong label."""
    lab = lab.double().with_protocol(shots=3)
    support, queries, _, _ = lab.batch(2)
    there = torch.ones(15, dtype=torch.bool)
    there[[1, 2, 5, 14]] = False
    data, labels = support.items.data, support.targets.values
    short = Support(Items(data[:, there]), Targets(labels[:, there]), 5)
    mask = there.expand(2, 15)
    noise = torch.rand(data.shape, generator=torch.Generator().manual_seed(0), dtype=data.dtype)
    padded = Support(
        Items(
            torch.where(there.view(1, 15, 1, 1, 1), data, noise),
            mask if masked == "items" else None,
        ),
        Targets(
            torch.where(there, labels, (labels + 2) % 5), mask if masked == "targets" else None
        ),
        5,
    )
    expected = lab.logits(made(variant), short, queries)
    close(lab.logits(made(variant), padded, queries), expected)
