"""Which of a backbone's parameters a policy of fine-tuning moves."""

from __future__ import annotations

from typing import Literal

from torch import nn

from metabench import Backbone

Policy = Literal["full", "head", "last-block", "bias", "lora"]


def moving(backbone: Backbone, policy: Policy) -> list[str]:
    """Names of the backbone's own parameters that move; `lora` moves adapters of its own."""
    names = [name for name, _ in backbone.named_parameters()]
    if policy == "full":
        return names
    if policy == "bias":
        return [name for name in names if name.rpartition(".")[2] == "bias"]
    if policy == "last-block":
        block = last_block(backbone)
        return [name for name in names if name.startswith(f"{block}.")]
    return []


def last_block(backbone: Backbone) -> str:
    """The name of the backbone's last block, empty where it has no parameters.

    Of the children that have parameters the last one; and of that the last one again where it is
    but a list of blocks, an `nn.Sequential` or `nn.ModuleList`. What has one such child alone is a
    wrapper, and looked into first. So it is the fourth block of `conv4` and `resnet12`, the last
    layer of `mlp`, the last `BasicBlock` of a wrapped ResNet, and all of a network of one layer.
    """
    module: nn.Module = backbone
    path: list[str] = []
    chosen = False
    while True:
        trained = [child for child in module.named_children() if _has_parameters(child[1])]
        listing = isinstance(module, nn.Sequential | nn.ModuleList)
        is_block = chosen and not listing and len(trained) > 1
        if not trained or is_block or any(True for _ in module.parameters(recurse=False)):
            return ".".join(path)
        chosen = chosen or listing or len(trained) > 1
        name, module = trained[-1]
        path.append(name)


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
