"""Networks of torchvision without their heads: against torchvision's own, and all of them."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torchvision import models

from metabench import DataCorruptError, DataMissingError, ItemSpec
from metabench_plugins.backbones.torchvision_networks import (
    Torchvision,
    TorchvisionHyperparameters,
    _check_cached,
)

torch.set_num_threads(1)

EVERY = models.list_models(module=models)
# One of each family that is small enough to be run: other heads, other normalisations.
FAMILIES = {
    "resnet18": "fc",
    "mobilenet_v3_small": "classifier.3",
    "shufflenet_v2_x0_5": "fc",
    "mnasnet0_5": "classifier.1",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "regnet_y_400mf": "fc",
    "googlenet": "fc",
    "swin_t": "head",
    "convnext_tiny": "classifier.2",
}


def backbone(network: str, *shape: int, **settings: object) -> Torchvision:
    hp = TorchvisionHyperparameters(network=network, **settings)
    return Torchvision(ItemSpec("image", shape), hp)


def published(network: str, **more: object) -> nn.Module:
    if network in {"googlenet", "inception_v3"}:
        more = {"init_weights": False, **more}
    return models.get_model(network, **more)


@pytest.mark.parametrize("network", FAMILIES)
def test_its_head_on_our_features_gives_torchvisions_logits(network: str) -> None:
    torch.manual_seed(0)
    other, head = published(network).eval(), FAMILIES[network]
    ours = backbone(network, 3, 40, 44).eval()
    own = {n: t for n, t in other.state_dict().items() if not n.startswith((f"{head}.", "aux"))}
    ours.network.load_state_dict(own)
    data = torch.rand(2, 3, 40, 44)
    with torch.no_grad():
        expected = other(data)
        features = ours(data)
        torch.testing.assert_close(other.get_submodule(head)(features), expected)
        maps = ours.forward_map(data)
    assert features.shape == (2, ours.feature_dim)
    assert maps.shape == (2, *(ours.feature_map or ()))
    if network in {"resnet18", "googlenet", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0"}:
        torch.testing.assert_close(maps.mean((2, 3)), features)


def test_squeezenets_head_is_a_convolution() -> None:
    torch.manual_seed(0)
    other, ours = published("squeezenet1_1").eval(), backbone("squeezenet1_1", 3, 40, 44).eval()
    ours.network.features.load_state_dict(other.features.state_dict())
    data = torch.rand(2, 3, 40, 44)
    torch.testing.assert_close(ours(data), other.features(data).mean((2, 3)))
    assert ours.feature_dim == 512


def check_whole(network: str) -> None:
    """It works on images of some size, says for others which, and lacks only its head."""
    with torch.device("meta" if not network.startswith("regnet_") else "cpu"):
        other = published(network)
    heads = {"fc", "head", "heads", "classifier", "aux1", "aux2", "AuxLogits"}
    for shape in ((1, 28, 28), (3, 84, 84), (3, 224, 224)):
        with torch.device("meta"):
            try:
                ours = backbone(network, *shape)
            except ValueError as error:
                size = int(str(error).rpartition("size = ")[2].split()[0])
                ours = backbone(network, *shape, size=size)
            assert ours(torch.empty(2, *shape)).shape == (2, ours.feature_dim)
            if ours.feature_map is not None:
                assert ours.forward_map(torch.empty(2, *shape)).shape == (2, *ours.feature_map)
    left = {n: p.shape for n, p in ours.network.named_parameters()}
    whole = {n: p.shape for n, p in other.named_parameters()}
    assert left.items() <= whole.items()
    gone = whole.keys() - left.keys()
    assert gone
    assert {name.partition(".")[0] for name in gone} <= heads
    lost = [whole[n] for n in gone if n.endswith("weight") and not n.startswith(("aux", "Aux"))]
    assert [shape[0] for shape in lost] == [1000]
    assert lost[0][1] == ours.feature_dim


@pytest.mark.parametrize("network", ["alexnet", "resnet18", "squeezenet1_0", "vit_b_32"])
def test_it_works_or_says_which_size_does(network: str) -> None:
    check_whole(network)


@pytest.mark.slow
@pytest.mark.parametrize("network", EVERY)
def test_every_network_of_torchvision_works_or_says_which_size_does(network: str) -> None:
    check_whole(network)


@pytest.mark.parametrize(
    ("network", "size"), [("vgg11", 32), ("alexnet", 63), ("inception_v3", 75), ("maxvit_t", 224)]
)
def test_small_images_are_refused_with_a_size_that_is_taken(network: str, size: int) -> None:
    with torch.device("meta"):
        with pytest.raises(
            ValueError, match=rf"{network} can't take images of 28 x 28 .*; size = {size} resizes"
        ):
            backbone(network, 1, 28, 28)
        assert backbone(network, 1, 28, 28, size=size).feature_dim > 0


def test_a_vision_transformer_is_built_for_the_images() -> None:
    with torch.device("meta"):
        assert backbone("vit_b_16", 3, 64, 64).network.encoder.pos_embedding.shape[1] == 4 * 4 + 1
        with pytest.raises(ValueError, match=r"takes square images.*size = 224"):
            backbone("vit_b_16", 3, 64, 80)


@pytest.mark.parametrize("shape", [(2, 32, 32), (4, 32, 32)])
def test_other_numbers_of_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, not"):
        backbone("squeezenet1_1", *shape)


def test_a_grey_image_is_one_of_three_equal_channels() -> None:
    torch.manual_seed(0)
    grey, colour = backbone("squeezenet1_1", 1, 32, 32), backbone("squeezenet1_1", 3, 32, 32)
    colour.load_state_dict(grey.state_dict())
    data = torch.rand(2, 1, 32, 32)
    repeated = data.repeat(1, 3, 1, 1)
    torch.testing.assert_close(grey.eval()(data), colour.eval()(repeated))


def test_images_are_resized_where_a_size_is_set() -> None:
    torch.manual_seed(0)
    small, large = (
        backbone("squeezenet1_1", 3, 20, 24, size=40),
        backbone("squeezenet1_1", 3, 40, 40),
    )
    large.load_state_dict(small.state_dict())
    data = torch.rand(2, 3, 20, 24)
    resized = nn.functional.interpolate(data, (40, 40), mode="bilinear")
    torch.testing.assert_close(small.eval()(data), large.eval()(resized))
    assert small.feature_map == large.feature_map


# Given weights.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch hub, and no network."""

    def refused(*_args: object, **_more: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_its_own_weights_are_loaded_and_given_what_they_expect(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    other = published("shufflenet_v2_x0_5").eval()
    torch.save(other.state_dict(), hub / "new.pth")
    digest = hashlib.sha256((hub / "new.pth").read_bytes()).hexdigest()[:8]
    (hub / "new.pth").rename(hub / f"shuffle-{digest}.pth")
    of_library = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(of_library, "url", f"https://example.org/shuffle-{digest}.pth")
    item = ItemSpec("image", (1, 32, 32), mean=(0.2,), std=(0.5,))  # as the engine hands it over
    hp = TorchvisionHyperparameters(network="shufflenet_v2_x0_5", weights="IMAGENET1K_V1")
    ours = Torchvision(item, hp).eval()
    data = torch.rand(2, 1, 32, 32)
    other.fc = nn.Identity()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(ours((data - 0.2) / 0.5), other((data - mean) / deviation))
    plain = Torchvision(item, hp.model_copy(update={"normalise": "none"})).eval()
    torch.testing.assert_close(plain(data), other(data.repeat(1, 3, 1, 1)))


def test_another_content_in_the_cache_is_refused_before_it_is_read(hub: Path) -> None:
    name = models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    (hub / name).write_bytes(b"a pickle of somebody's")
    with pytest.raises(DataCorruptError, match=rf"{name} are not what their name says"):
        backbone("resnet18", 3, 32, 32, weights="IMAGENET1K_V1")


def test_a_cached_file_is_hashed_anew_only_once_it_changed(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, hashed, digest = b"weights", [], hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, how: hashed.append(how) or digest(file, how)
    )
    url = f"https://example.org/net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file = hub / url.rpartition("/")[2]
    _check_cached(url)  # it isn't there yet
    file.write_bytes(content)
    for _ in range(3):
        _check_cached(url)
    assert hashed == ["sha256"]
    file.write_bytes(b"another")
    changed = file.stat().st_mtime_ns
    os.utime(file, ns=(changed + 1, changed + 1))
    with pytest.raises(DataCorruptError):
        _check_cached(url)


def test_weights_that_cannot_be_downloaded(hub: Path) -> None:
    with pytest.raises(DataMissingError, match=r"can't be had from https://.*no network") as found:
        backbone("resnet18", 3, 32, 32, weights="IMAGENET1K_V1")
    assert str(hub) in found.value.hint
    with torch.device("meta"):  # a look at shapes needs none
        assert backbone("resnet18", 3, 32, 32, weights="IMAGENET1K_V1").feature_dim == 512


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="called 'resnt34'; did you mean 'resnet34'"):
        TorchvisionHyperparameters(network="resnt34")
    with pytest.raises(ValidationError, match=r"resnet18 has no weights 'V1'.* IMAGENET1K_V1, and"):
        TorchvisionHyperparameters(network="resnet18", weights="V1")


# What `torch.func` needs.


def test_nothing_is_changed_in_place_and_the_originals_stay_as_they_are() -> None:
    network = published("mobilenet_v3_small")
    assert any(getattr(m, "inplace", False) for m in network.modules())
    ours = backbone("mobilenet_v3_small", 3, 32, 32)
    assert not any(getattr(m, "inplace", False) for m in ours.modules())
    assert any(getattr(m, "inplace", False) for m in published("mobilenet_v3_small").modules())


@pytest.mark.parametrize("network", ["swin_t", "mobilenet_v3_small"])
def test_trained_networks_draw_their_noise_under_vmap(network: str) -> None:
    """Stochastic depth and dropout, each task its own."""
    torch.manual_seed(0)
    net = backbone(network, 3, 32, 32).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the engine's own handles moments
    params = {n: torch.stack([p, p]) for n, p in net.named_parameters()}
    data = torch.rand(3, 3, 32, 32)

    def features(p: dict[str, Tensor]) -> Tensor:
        return functional_call(net, p, (data,))

    first, second = vmap(features, randomness="different")(params)
    assert not torch.equal(first, second)
    assert first.isfinite().all()


def test_stochastic_depth_keeps_the_mean() -> None:
    from metabench_plugins.backbones.torchvision_networks import Depth

    torch.manual_seed(0)
    depth, data = Depth(0.25, "row"), torch.ones(20_000, 2, 1, 1)
    found = depth(data)
    assert {round(v, 4) for v in found.unique().tolist()} == {0.0, 1.3333}
    assert found.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(found[:, 0], found[:, 1])  # an item's whole branch, or none of it
    assert torch.equal(depth.eval()(data), data)


def test_a_backbone_can_be_written_as_a_module() -> None:
    """It is saved and copied like any other: no hook is left behind by `forward_map`."""
    net = backbone("squeezenet1_1", 3, 32, 32)
    net.forward_map(torch.rand(1, 3, 32, 32))
    assert not any(module._forward_hooks for module in net.modules())
    torch.save(net.state_dict(), io.BytesIO())
