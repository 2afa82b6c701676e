"""Early stopping on a part of the support set: what is held out, and the best parameters so far."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
BEST = "best:"
"""Before the names of the best parameters so far, where they stand beside batch-norm moments."""
LEAST = BEST + "loss"
"""Their loss on the held-out items."""


def held_out(member: Tensor, draws: Tensor, share: float) -> Tensor:
    """(B, S) bool: the items of each class with the least draws, a share of them, one or more.

    Args:
        member: (B, S, N) bool, of which class an item is. Of a class with one item none is held.
        draws: (B, S) uniform.
        share: of a class's items, rounded down.
    """
    together = (member.unsqueeze(2) & member.unsqueeze(1)).any(-1)  # (B, S, S), in one class
    rank = (together & (draws.unsqueeze(1) < draws.unsqueeze(2))).sum(-1)  # (B, S)
    count = together.sum(-1)
    spared = (count * share + 1e-6).floor().clamp(min=1)
    return (rank < spared) & (count > 1)


def nothing_tried(params: Tensors) -> Tensors:
    """What `best` is handed at the first step."""
    least = next(iter(params.values())).new_full((), torch.inf)
    return {LEAST: least, **{BEST + name: value.detach() for name, value in params.items()}}


def best(before: Tensors, params: Tensors, losses: Tensor, held: Tensor) -> Tensors:
    """These parameters or the best ones before, whichever has the lower loss; of equals these.

    Args:
        before: by `nothing_tried`, or by the step before; other entries are left out.
        params: by name, all of the best ones' among them.
        losses: (S,) of the items under these parameters.
        held: (S,) bool; where none is, the last parameters are the best.
    """
    loss = (losses * held).sum() / held.sum().clamp(min=1)
    better = loss <= before[LEAST]
    here = {LEAST: loss, **{BEST + name: value.detach() for name, value in params.items()}}
    return {
        name: torch.where(better, here[name], value)
        for name, value in before.items()
        if name.startswith(BEST)
    }
