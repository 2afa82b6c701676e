"""Backbones that begin with the weights of a file: their own, a cell's, another library's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

import metabench
from metabench import DataMissingError, ItemSpec, UsageError
from metabench.engine.norm import convert
from metabench.plugins import load_registry
from metabench.runner.resolve import settings_of

torch.set_num_threads(1)

Put = Callable[[dict[str, Tensor]], str]
SMALL: dict[str, dict[str, object]] = {
    "conv4": {"width": 3},
    "conv6": {"width": 3},
    "resnet12": {"widths": [2, 2, 2, 2]},
    "resnet10": {"width": 2},
    "resnet18": {"width": 2},
    "wrn-28-10": {"blocks": 1, "widen": 1},
    "lstm": {"hidden": 3},
    "mlp": {"hidden": [5, 3]},
    "torchvision:shufflenet_v2_x0_5": {},
    "torchvision:mnasnet0_5": {},
    "timm:test_efficientnet": {},
}


def backbone(name: str, shape: tuple[int, ...] = (1, 32, 32), **more: object) -> metabench.Backbone:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    entry = load_registry(strict=True).get("backbone", name)
    hp = settings_of(entry, {**SMALL.get(name, {}), **more})
    made: metabench.Backbone = entry.load()(ItemSpec("image", shape), hp)
    return made


@pytest.mark.parametrize("name", SMALL)
def test_a_cells_checkpoint_makes_the_same_backbone(name: str, put: Put) -> None:
    torch.manual_seed(0)
    one = backbone(name)
    convert(one)  # as the engine has them; its batch norm counts no batches
    for tensor in one.state_dict().values():
        tensor.add_(0.1 * torch.rand_like(tensor))
    cell = {f"backbone.{key}": value for key, value in one.state_dict().items()}
    file = put({**cell, "head.weight": torch.ones(3)})
    other = backbone(name, weights=file)
    convert(other)
    data = torch.rand(2, 1, 32, 32)
    assert torch.equal(one.eval()(data), other.eval()(data))
    with torch.device("meta"):
        assert backbone(name, weights=file)(torch.empty(2, 1, 32, 32)).shape[0] == 2


def test_torchvisions_file_fits_ours_and_its_own_without_the_head(put: Put) -> None:
    torch.manual_seed(0)
    theirs = models.resnet18().eval()
    file = put(theirs.state_dict())
    data = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        theirs.fc = torch.nn.Identity()
        expected = theirs(data)
        for name in ("resnet18", "torchvision:resnet18"):
            more = {"width": 64, "stem": "large"} if name == "resnet18" else {}
            ours = backbone(name, (3, 64, 64), weights=file, **more).eval()
            torch.testing.assert_close(ours(data), expected)


def test_tensors_that_lack_or_are_too_many_are_named(put: Put) -> None:
    tensors = backbone("lstm").state_dict()
    del tensors["of_state.weight"]
    file = put({**tensors, "more": torch.ones(1), "most": torch.ones(1)})
    with pytest.raises(UsageError) as found:
        backbone("lstm", weights=file)
    assert found.value.message == (
        f"the weights {file} don't fit: they lack of_state.weight and have beside them more "
        "(and 1 more)"
    )
    assert found.value.hint


def test_another_shape_is_told_with_both(put: Put) -> None:
    file = put(backbone("conv4", width=4).state_dict())
    for device in ("cpu", "meta"):  # where a run looks before it trains anything
        with torch.device(device), pytest.raises(UsageError) as found:
            backbone("conv4", weights=file)
        assert (
            "have blocks.0.conv.weight of 4 x 1 x 3 x 3 values, and here it has 3 x 1 x 3 x 3"
            in (found.value.message)
        )


def test_a_file_that_is_not_there_is_told_before_anything_is_trained(
    tmp_path: Path, data: Path
) -> None:
    suite = write_suite(tmp_path, 'name = "lstm"\nhyperparameters = {weights = "a-12345678.pth"}')
    with pytest.raises(DataMissingError, match=re.escape(str(data / "weights"))):
        metabench.run(suite, out=tmp_path / "out", data_dir=data, device="cpu")
    assert not list((tmp_path / "out").glob("cells/*"))


def test_a_trained_cells_backbone_goes_into_another_cell(tmp_path: Path, data: Path) -> None:
    """By the file's name alone, from the data folder that the run was told."""
    plain = 'name = "conv4"\nhyperparameters = {width = 4, downsample = "stride"'
    first = metabench.run(
        write_suite(tmp_path, plain + "}", 'name = "protonet"\nrecipe = {steps = 3}'),
        out=tmp_path / "first",
        data_dir=data,
        device="cpu",
    )
    assert not first.outcome.failures
    [checkpoint] = (tmp_path / "first").glob("cells/*/checkpoint.safetensors")
    name = f"trained-{hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]}.safetensors"
    (data / "weights").mkdir(exist_ok=True)
    (data / "weights" / name).write_bytes(checkpoint.read_bytes())
    second = metabench.run(
        write_suite(tmp_path, f'{plain}, weights = "{name}"}}'),
        out=tmp_path / "second",
        data_dir=data,
        device="cpu",
    )
    assert not second.outcome.failures
    [again] = (tmp_path / "second").glob("cells/*/checkpoint.safetensors")
    one, other = load_file(checkpoint), load_file(again)
    shared = [key for key in one if key.startswith("backbone.")]
    assert shared
    assert all(torch.equal(one[key], other[key]) for key in shared)


def write_suite(
    folder: Path, backbone: str, algorithm: str = 'name = "nearest-centroid"\nrecipe = {steps = 0}'
) -> Path:
    path = folder / "mine.toml"
    path.write_text(
        'summary = "weights"\nseeds = 1\n[[dataset]]\nname = "quickdraw"\n'
        "[[protocol]]\nways = 5\nshots = 1\nqueries = 2\nepisodes = 4\n"
        f"[[backbone]]\n{backbone}\n[[algorithm]]\n{algorithm}\n",
        encoding="utf-8",
    )
    return path
