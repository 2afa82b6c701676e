"""Fine-tuning: each policy against PyTorch's optimisers on the same problem; what may move."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from metabench import Choose, Recipe, Support, Targets, UsageError
from metabench.api.backbone import ItemSpec
from metabench.api.items import Items
from metabench.engine.modes import using_engine
from metabench.engine.norm import BatchNorm
from metabench_plugins.algorithms.transfer.finetune import (
    FineTune,
    FineTuneHyperparameters,
)
from metabench_plugins.algorithms.transfer.low_rank import DOWN, UP, merged
from metabench_plugins.algorithms.transfer.policies import last_block, moving
from metabench_plugins.algorithms.transfer.stopping import held_out
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters
from metabench_plugins.backbones.identity import Identity
from metabench_plugins.backbones.lstm import LSTM
from metabench_plugins.backbones.mlp import MLP
from metabench_plugins.backbones.resnet12 import ResNet12

Lab = Any
IMAGE = ItemSpec("image", (1, 28, 28))
POLICIES = ["full", "head", "last-block", "bias", "lora"]


def made(lab: Lab, backbone: Any = None, **settings: Any) -> FineTune:
    """Over SmoothConv, whose running moments are not those of a fresh batch norm."""
    hp = FineTuneHyperparameters(**{"steps": (6,), **settings})
    algorithm: FineTune = lab.make(FineTune, hp, backbone=backbone or lab.SmoothConv)
    generator = torch.Generator().manual_seed(1)
    for layer in algorithm.modules():
        if isinstance(layer, BatchNorm):
            layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
            layer.running_var.uniform_(0.1, 0.3, generator=generator)
    return algorithm


class Reference:
    """One task fine-tuned by PyTorch's own optimiser, in evaluation mode."""

    def __init__(self, algorithm: FineTune, moves: Any) -> None:
        hp = algorithm.hp
        self.network = nn.Sequential(copy.deepcopy(algorithm.backbone), nn.Linear(36, 5).double())
        nn.init.zeros_(self.network[1].weight)
        nn.init.zeros_(self.network[1].bias)
        self.network.eval()
        chosen = [p for n, p in self.network.named_parameters() if n.startswith("1.") or moves(n)]
        made: Any = torch.optim.AdamW if hp.optimizer == "adamw" else torch.optim.SGD
        more = {} if hp.optimizer == "adamw" else {"momentum": hp.momentum}
        self.optimizer = made(chosen, lr=hp.lr, weight_decay=hp.weight_decay, **more)
        falling = torch.optim.lr_scheduler
        total = max(hp.steps)
        self.scheduler = {
            "constant": lambda: falling.ConstantLR(self.optimizer, 1.0),
            "linear": lambda: falling.LinearLR(self.optimizer, 1.0, 0.0, total_iters=total),
            "cosine": lambda: falling.CosineAnnealingLR(self.optimizer, total),
        }[hp.schedule]()
        self.smoothing = hp.label_smoothing

    def step(self, data: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(data), labels, label_smoothing=self.smoothing).backward()
        self.optimizer.step()
        self.scheduler.step()


@pytest.mark.parametrize(
    ("policy", "moves"),
    [
        ("full", lambda name: True),
        ("head", lambda name: False),
        ("bias", lambda name: name.endswith("bias")),
        ("last-block", lambda name: name.startswith(("0.net.3", "0.net.4"))),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02, "schedule": "linear"},
        {"lr": 0.03, "optimizer": "adamw", "weight_decay": 0.3, "label_smoothing": 0.2},
        {"lr": 0.2, "momentum": 0.0, "schedule": "cosine"},
    ],
    ids=["momentum, linear", "adamw, smooth labels", "plain, cosine"],
)
def test_each_policy_is_pytorchs_optimiser_on_what_it_names(
    lab: Lab, policy: str, moves: Any, settings: dict[str, Any]
) -> None:
    lab = lab.with_protocol(shots=2).double()
    algorithm, batch = made(lab, policy=policy, **settings), lab.batch(2)
    with torch.no_grad():
        found = lab.logits(algorithm, batch.support, batch.queries)
    for b in range(2):
        reference = Reference(algorithm, moves)
        for _ in range(6):
            reference.step(batch.support.items.data[b], batch.support.targets.values[b])
        with torch.no_grad():
            expected = reference.network(batch.queries.data[b])
        torch.testing.assert_close(found[b], expected, rtol=1e-9, atol=1e-9)
    assert found.abs().max() > 0.1


@torch.no_grad()
def test_early_stopping_keeps_the_best_step_on_the_held_out_items(lab: Lab) -> None:
    lab = lab.with_protocol(shots=5).double()
    algorithm = made(lab, steps=(40,), lr=0.3, policy="full")
    assert algorithm.stops_early
    batch, kept = lab.batch(4), []
    found = lab.logits(algorithm, batch.support, batch.queries)
    held = algorithm.known(batch.support, lab.context(episodes=4))["held"]
    for b in range(4):
        data, labels = batch.support.items.data[b], batch.support.targets.values[b]
        reference, losses, states = Reference(algorithm, lambda name: True), [], []
        for step in range(41):
            losses.append(float(F.cross_entropy(reference.network(data)[held[b]], labels[held[b]])))
            states.append(copy.deepcopy(reference.network.state_dict()))
            if step < 40:
                with torch.enable_grad():
                    reference.step(data[~held[b]], labels[~held[b]])
        kept.append(losses.index(min(losses)))
        reference.network.load_state_dict(states[kept[-1]])
        expected = reference.network(batch.queries.data[b])
        torch.testing.assert_close(found[b], expected, rtol=1e-8, atol=1e-8)
    assert any(0 < step < 40 for step in kept), kept  # it matters


def test_one_item_a_class_is_held_out_of_five_and_never_the_only_one() -> None:
    sizes = torch.tensor([[5, 5, 5], [1, 2, 11]])
    labels = torch.full((2, 15), 3)  # 3: padding
    for b in range(2):
        known = torch.arange(3).repeat_interleave(sizes[b])
        labels[b, : len(known)] = known
    member = labels.unsqueeze(-1) == torch.arange(3)
    seen = torch.zeros(2, 15)
    for seed in range(200):
        draws = torch.rand(2, 15, generator=torch.Generator().manual_seed(seed))
        held = held_out(member, draws, 0.2)
        assert (held.unsqueeze(-1) & member).sum(1).tolist() == [[1, 1, 1], [0, 1, 2]]
        seen += held
    assert not seen[1, 14]  # padding
    assert (seen[0] > 15).all()  # each of the five in its turn: 40 of 200 times


@pytest.mark.parametrize("policy", POLICIES)
def test_the_state_holds_what_the_policy_names(lab: Lab, policy: str) -> None:
    algorithm, batch = made(lab, Conv4, policy=policy, lr=0.1), lab.batch(2)
    with torch.no_grad():
        state = algorithm.adapt(batch.support, lab.context())["params"]
    own = dict(algorithm.named_parameters())
    of_backbone = {n for n in state if n.startswith("backbone.")}
    convolutions = {f"backbone.blocks.{block}.conv" for block in range(4)}
    expected = {
        "full": {n for n in own if n.startswith("backbone.")},
        "head": set(),
        "last-block": {n for n in own if n.startswith("backbone.blocks.3.")},
        "bias": {n + ".bias" for n in convolutions}
        | {f"backbone.blocks.{block}.norm.bias" for block in range(4)},
        "lora": {f"{n}.weight{end}" for n in convolutions for end in (UP, DOWN)},
    }[policy]
    assert of_backbone == expected
    assert state.keys() == of_backbone | {"head.weight", "head.bias"}
    for name in expected & own.keys():
        assert not torch.equal(state[name], own[name].expand_as(state[name])), name


@pytest.mark.parametrize(
    ("backbone", "hp", "expected"),
    [
        (Conv4, {}, {"blocks.3.conv", "blocks.3.norm"}),
        (ResNet12, {"widths": (2, 2, 2, 2)}, {"blocks.3"}),
        (MLP, {"hidden": (8, 4)}, {"blocks.1."}),
        (Identity, {}, set()),
        (LSTM, {}, {"of_input", "of_state"}),
    ],
)
def test_the_last_block_is_found(backbone: Any, hp: Any, expected: set[str]) -> None:
    built = backbone(IMAGE, backbone.hyperparameters(**hp))
    names = {n for n, _ in built.named_parameters()}
    assert set(moving(built, "last-block")) == {n for n in names if n.startswith(tuple(expected))}


@pytest.mark.parametrize(
    ("network", "block", "norms"),
    [
        ("resnet18", "layer4.1", ()),
        ("densenet121", "features.denseblock4.denselayer16", ("features.norm5",)),
        ("mobilenet_v2", "features.18.0", ("features.18.1",)),
        ("efficientnet_b0", "features.8.0", ("features.8.1",)),
        ("vgg11_bn", "features.25", ("features.26",)),
        ("swin_t", "features.7.1", ("norm",)),
        ("vit_b_32", "encoder.layers.encoder_layer_11", ("encoder.ln",)),
    ],
)
def test_the_last_block_of_a_wrapped_network_is_its_last_block(
    network: str, block: str, norms: tuple[str, ...]
) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        built = models.get_model(network)
    for head in ("fc", "classifier", "head", "heads"):
        if hasattr(built, head):
            setattr(built, head, nn.Identity())

    class Wrapped(Identity):
        def __init__(self) -> None:
            super().__init__(IMAGE, Identity.hyperparameters())
            self.network = built

    assert last_block(Wrapped()) == [f"network.{name}" for name in (block, *norms)]


# Low-rank adapters.


def test_adapters_begin_at_the_weights_and_keep_their_rank(lab: Lab) -> None:
    lab = lab.with_protocol(shots=2).double()
    algorithm = made(lab, Conv4, policy="lora", rank=2, alpha=3.0, lr=0.02, steps=(12,))
    batch, ctx = lab.batch(2), lab.context()
    begun = algorithm.start(lab.context())
    with torch.no_grad():
        state = algorithm.adapt(batch.support, ctx)["params"]
    own = dict(algorithm.named_parameters())
    for name in algorithm.adapters():
        down, up = begun[name + DOWN], begun[name + UP]
        assert not up.any()
        assert down.any()
        assert torch.equal(merged(own[name], down[0], up[0], 1.5), own[name])
        for b in range(2):
            learnt = merged(own[name], state[name + DOWN][b], state[name + UP][b], 1.5) - own[name]
            rank = int(torch.linalg.matrix_rank(learnt.flatten(1), rtol=1e-9))
            assert 1 <= rank <= 2, name


def test_a_first_step_of_an_adapter_is_the_full_gradient_seen_through_it() -> None:
    """dW = -lr scale^2 G A^T A: with orthonormal A of full rank, a step of full fine-tuning."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 6, generator=generator), torch.randn(3, 6, generator=generator)
    labels = torch.randint(3, (9,), generator=generator)
    full = weight.clone().requires_grad_()
    F.cross_entropy(x @ full.T, labels).backward()
    assert full.grad is not None
    for rank, down in (
        (2, torch.randn(2, 6, generator=generator)),
        (6, torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q),
    ):
        up = torch.zeros(3, rank, requires_grad=True)
        F.cross_entropy(x @ merged(weight, down, up, 0.7).T, labels).backward()
        assert up.grad is not None
        moved = merged(weight, down, -0.1 * up.grad, 0.7) - weight
        torch.testing.assert_close(moved, -0.1 * 0.7**2 * full.grad @ down.T @ down)
        if rank == 6:
            torch.testing.assert_close(moved, -0.1 * 0.7**2 * full.grad)


# The number of steps, weights, batch norm, engines.


def test_the_number_of_steps_is_chosen_below_five_shots_and_in_the_checkpoint(lab: Lab) -> None:
    settings = {"steps": (6, 1, 3)}
    few = made(lab.with_protocol(shots=4), **settings)
    (phase,) = [p for p in few.phases(Recipe(validation_episodes=70)) if isinstance(p, Choose)]
    assert (phase.candidates, phase.episodes, few.steps) == (3, 70, 6)
    phase.put(1)
    assert few.steps == 1
    other = made(lab.with_protocol(shots=4), **settings)
    other.load_state_dict({name: value.clone() for name, value in few.state_dict().items()})
    assert other.steps == 1

    many = lab.with_protocol(shots=5)
    assert not [p for p in made(many, **settings).phases(Recipe()) if isinstance(p, Choose)]
    assert made(many, steps=(2, 6, 3)).steps == 6
    asked = made(many, early_stopping=False, **settings).phases(Recipe())
    assert [p for p in asked if isinstance(p, Choose)]
    single = made(lab, steps=(7,))
    assert [p.name for p in single.phases(Recipe())] == ["pretrain"]


def test_the_number_of_steps_that_does_best_on_validation_is_taken(lab: Lab) -> None:
    """One step, or too many at a ruinous rate."""
    recipe = Recipe(steps=0, validation_episodes=20)
    algorithm = made(lab, steps=(30, 1), lr=3.0, momentum=0.9, policy="full")
    lab.train(algorithm, recipe)
    assert algorithm.steps == 1


def test_a_backbone_that_brings_its_weights_is_left_as_it_is(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a recipe of no steps: then nothing is trained but what the support set says."""
    like = Conv4Hyperparameters(width=4, downsample="stride")
    drawn = Conv4(IMAGE, like).state_dict()
    tensors = {n: torch.randn_like(v) for n, v in drawn.items() if v.is_floating_point()}
    content = save(tensors)
    name = f"conv4-{hashlib.sha256(content).hexdigest()[:8]}.safetensors"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / name).write_bytes(content)
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    hp = like.model_copy(update={"weights": name})
    algorithm = lab.make(FineTune, FineTuneHyperparameters(), backbone=Conv4, backbone_hp=hp)
    assert [type(phase) for phase in algorithm.phases(Recipe(steps=0))] == [Choose]
    state = algorithm.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in tensors.items())


def test_only_images_are_moved(lab: Lab) -> None:
    algorithm = made(lab)
    problem = copy.copy(algorithm.problem)
    object.__setattr__(problem, "item", ItemSpec("vector", (784,)))
    with pytest.raises(UsageError, match="not items of kind 'vector'"):
        FineTune(algorithm.backbone, FineTuneHyperparameters(flip=True), problem)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("option", ["support", "support+1", "running", "batch"])
def test_it_is_inductive_but_with_batch_moments(lab: Lab, policy: str, option: str) -> None:
    algorithm = made(
        lab.with_protocol(shots=2), policy=policy, batch_norm=option, steps=(3,), lr=0.1
    )
    assert FineTune.inference_mode(algorithm.hp) == (
        "transductive" if option == "batch" else "inductive"
    )
    assert bool(lab.dependence(algorithm)) == (option == "batch")


NOISY = {"dropout": 0.3, "shift": 2, "flip": True, "steps": (3,), "lr": 0.1}


@torch.no_grad()
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shots", [2, 5])
def test_all_tasks_at_once_are_each_by_itself(lab: Lab, policy: str, shots: int) -> None:
    lab = lab.with_protocol(shots=shots).double()
    algorithm, batch = made(lab, policy=policy, batch_norm="support", **NOISY), lab.batch(3)
    looped = lab.logits(algorithm, batch.support, batch.queries)
    with using_engine("vmap"):
        together = lab.logits(algorithm, batch.support, batch.queries)
    torch.testing.assert_close(together, looped, rtol=1e-9, atol=1e-9)
    quiet = made(lab, policy=policy, batch_norm="support", **{**NOISY, "dropout": 0.0})
    assert (lab.logits(quiet, batch.support, batch.queries) - looped).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("policy", ["head", "full"])
def test_padding_changes_nothing(lab: Lab, policy: str) -> None:
    lab = lab.with_protocol(shots=2).double()
    algorithm, batch = made(lab, policy=policy), lab.batch(2)
    expected = lab.logits(algorithm, batch.support, batch.queries)
    data, labels = batch.support.items.data, batch.support.targets.values
    mask = torch.arange(13).expand(2, -1) < 10
    padded = Support(
        Items(torch.cat([data, data[:, :3] + 1], 1), mask),
        Targets(torch.cat([labels, labels[:, :3]], 1), mask),
        batch.support.ways,
    )
    torch.testing.assert_close(lab.logits(algorithm, padded, batch.queries), expected)
