"""f_theta: from a support set to the parameters of a model, class by class and as a whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metabench_plugins.algorithms.attention import SelfAttention
from metabench_plugins.algorithms.classes import class_means


class SetNetwork(nn.Module):
    """A function of a labelled set, invariant to its order and equivariant to its labels.

    Deep Sets (Zaheer et al. 2017, arXiv:1703.06114, theorem 2) within a class, self-attention
    (Vaswani et al. 2017, arXiv:1706.03762) among classes. With x an item's features, means over the
    items of class c, A a linear map, and M, M_l networks with one hidden layer:
        u_c = mean of A x,    t_c = mean of A x + M(A x)                                     (1)
        t <- T_l(t),  t_c <- t_c + M_l(t_c),  for each layer l, T_l being attention among t     (2)
        per class: v_c = L u_c + R t_c, less its mean over the classes                         (3)
        of all: w = L' (mean of u) + R' (mean of t)                                            (4)
    R and R' start at zero, so that training begins with what is linear in class means.

    Args:
        inputs: D, of the features.
        width: of all that is between.
        layers: l; with none, v and w are linear in the class means.
        of_class: P, numbers for each class.
        of_task: numbers for the task as a whole; 0: none.
    """

    def __init__(self, inputs: int, width: int, layers: int, of_class: int, of_task: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        outputs = {"class": of_class} | ({"task": of_task} if of_task else {})
        self.direct = nn.ModuleDict({k: nn.Linear(width, size) for k, size in outputs.items()})
        self.refined = nn.ModuleDict()
        self.of_items = nn.ModuleList()
        self.attention, self.of_tokens = nn.ModuleList(), nn.ModuleList()
        if layers:
            self.of_items.append(_two_layers(width))
            self.refined.update({k: nn.Linear(width, size) for k, size in outputs.items()})
        for layer in self.refined.values():
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for _ in range(layers):
            self.attention.append(SelfAttention(width, dropout=0.0))
            self.of_tokens.append(_two_layers(width))

    def forward(self, features: Tensor, member: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give v (B, N, P) and w (B, of_task) or None for sets (B, S, D), members (B, S, N)."""
        points = self.enter(features)
        plain, tokens = class_means(points, member), None  # (B, N, width)
        for network in self.of_items:
            tokens = class_means(points + network(points), member)  # (1)
        for attention, network in zip(self.attention, self.of_tokens, strict=True):
            tokens = attention(tokens)  # (2)
            tokens = tokens + network(tokens)
        found = self._of("class", plain, tokens)
        found = found - found.mean(1, keepdim=True)  # (3)
        if "task" not in self.direct:
            return found, None
        pooled = None if tokens is None else tokens.mean(1)
        return found, self._of("task", plain.mean(1), pooled)  # (4)

    def _of(self, what: str, plain: Tensor, tokens: Tensor | None) -> Tensor:
        found: Tensor = self.direct[what](plain)
        return found if tokens is None else found + self.refined[what](tokens)


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def class_by_class(ways: int, shots: int, device: torch.device) -> Tensor:
    """(1, ways * shots, ways) bool: who is of which class where items stand class by class."""
    return torch.eye(ways, dtype=torch.bool, device=device).repeat_interleave(shots, 0)[None]
