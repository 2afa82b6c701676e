"""What the transfer learners share: a backbone trained on the training classes, if it can be."""

from __future__ import annotations

from metabench import Backbone, Phase, Problem, Recipe, pretraining


def pretrained(backbone: Backbone, problem: Problem, recipe: Recipe) -> list[Phase]:
    """The shared supervised phase; none over a backbone without weights, such as `identity`."""
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        return []
    return [pretraining(backbone, problem, recipe)]
