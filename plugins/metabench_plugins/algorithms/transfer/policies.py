"""Which of a backbone's parameters a policy of fine-tuning moves."""

from __future__ import annotations

from typing import Literal

from torch import nn

from metabench import Backbone, BatchNorm

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NORMS = (BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)

Policy = Literal["full", "head", "last-block", "bias", "lora"]


def moving(backbone: Backbone, policy: Policy) -> list[str]:
    """Names of the backbone's own parameters that move; `lora` moves adapters of its own."""
    names = [name for name, _ in backbone.named_parameters()]
    if policy == "full":
        return names
    if policy == "bias":
        return [name for name in names if name.rpartition(".")[2] == "bias"]
    if policy == "last-block":
        blocks = tuple(f"{block}." for block in last_block(backbone))
        return [name for name in names if name.startswith(blocks)]
    return []


def last_block(backbone: Backbone) -> list[str]:
    """The names of the modules that are the backbone's last block; none: it has no parameters.

    Where the backbone doesn't say (`last_block`): of the children that have parameters the last
    one, and of that the last one again where it is but a list of blocks. Norms that stand behind
    belong to it, and are no block themselves; what has one such child alone is a wrapper, and
    looked into. So it is the fourth block of `conv4` and `resnet12`, the last layer of `mlp`, the
    last `BasicBlock` of a ResNet, the last encoder block of a vision transformer.
    """
    if backbone.last_block:
        return list(backbone.last_block)
    module: nn.Module = backbone
    path: list[str] = []
    behind: list[str] = []
    chosen = False
    while True:
        blocks = [child for child in module.named_children() if _has_parameters(child[1])]
        norms: list[str] = []
        while blocks and _is_norm(blocks[-1][1]):
            norms.insert(0, ".".join([*path, blocks.pop()[0]]))
        listing = isinstance(module, LISTS)
        if not blocks or (chosen and not listing and len(blocks) > 1 and not _lists(blocks[-1][1])):
            here = ".".join(path)
            return [*([here] if here else []), *behind]
        behind = norms + behind
        chosen = chosen or listing or len(blocks) > 1
        name, module = blocks[-1]
        path.append(name)


def _lists(module: nn.Module) -> bool:
    """Whether a module is a list of blocks, not of layers."""
    kinds = {type(child) for child in module.children()}
    deep = all(any(True for _ in child.children()) for child in module.children())
    return isinstance(module, LISTS) and len(kinds) == 1 and deep


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS)


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
