"""wrn-28-10: its published size, its depth, and its arithmetic written out again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench import ItemSpec
from metabench_plugins.backbones.wrn import WRN, WRNHyperparameters

torch.set_num_threads(1)


def wrn(*shape: int, **settings: object) -> WRN:
    return WRN(ItemSpec("image", shape), WRNHyperparameters(**settings))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("depth", "widen", "millions"), [(28, 10, 36.5), (40, 4, 8.9), (16, 8, 11.0)]
)
def test_it_is_as_large_as_published(depth: int, widen: int, millions: float) -> None:
    """Table 4 of the paper, with CIFAR-10's head."""
    with torch.device("meta"):
        net = wrn(3, 32, 32, blocks=(depth - 4) // 6, widen=widen)
    head = net.feature_dim * 10 + 10
    assert round((count(net) + head) / 1e6, 1) == millions


def test_its_layers_are_as_many_as_its_name_says() -> None:
    with torch.device("meta"):
        net = wrn(3, 32, 32)
        assert net(torch.empty(2, 3, 84, 84)).shape == (2, 640)  # as Mangla et al. have it
    in_depth = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    shortcuts = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(in_depth) + len(shortcuts) == 28
    assert {m.out_channels for m in shortcuts} == {160, 320, 640}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
def test_pre_activation_blocks_as_the_paper_draws_them(training: bool, blocks: int) -> None:
    torch.manual_seed(0)
    net = wrn(2, 13, 18, blocks=blocks, widen=2)
    for tensor in net.state_dict().values():
        if tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.5)
    net.train(training)
    own = {name: value.clone() for name, value in net.state_dict().items()}

    def active(name: str, x: Tensor) -> Tensor:
        parts = [own[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, training=training).relu()

    data = torch.rand(3, 2, 13, 18)
    x = F.conv2d(data, own["stem.weight"], padding=1)
    for i in range(3 * blocks):
        name, stride = f"blocks.{i}", 2 if i in {blocks, 2 * blocks} else 1
        before = active(f"{name}.norm1", x)
        y = F.conv2d(before, own[f"{name}.conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(active(f"{name}.norm2", y), own[f"{name}.conv2.weight"], padding=1)
        shortcut = own.get(f"{name}.shortcut.weight")
        x = y + (x if shortcut is None else F.conv2d(before, shortcut, stride=stride))
        assert (shortcut is not None) == (i % blocks == 0)
    maps = active("norm", x)
    assert net.feature_map == (128, 4, 5) == tuple(maps.shape[1:])
    torch.testing.assert_close(net(data), maps.mean((2, 3)))
    assert wrn(1, 28, 28, blocks=1, widen=1).feature_map == (64, 7, 7)


def test_dropout_stands_between_the_two_convolutions_alone() -> None:
    torch.manual_seed(0)
    net, data = wrn(1, 8, 8, blocks=1, widen=1, drop_rate=0.9), torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        for block in net.blocks:
            block.conv2.weight.zero_()
    assert torch.equal(net(data), net(data))  # what was dropped is multiplied by nothing
    net = wrn(1, 8, 8, blocks=1, widen=1, drop_rate=0.9)
    assert not torch.equal(net(data), net(data))
    assert torch.equal(net.eval()(data), net(data))
