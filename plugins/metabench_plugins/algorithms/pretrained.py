"""What stands on supervised training: a backbone trained on the training classes, if it can be."""

from __future__ import annotations

from typing import Annotated

from metabench import Backbone, Field, Hyperparameters, Phase, Problem, Recipe, pretraining


class PretrainedHyperparameters(Hyperparameters):
    """What an algorithm lets one choose whose recipe is that of what comes after."""

    pretrain_ratio: Annotated[
        float, Field(ge=0, le=1000, description="supervised steps before, for each meta-step")
    ] = 4.0
    pretrain_lr: Annotated[
        float, Field(gt=0, description="learning rate of the supervised training")
    ] = 1e-3


def has_weights(backbone: Backbone) -> bool:
    """Whether there is anything to train."""
    return any(parameter.requires_grad for parameter in backbone.parameters())


def pretrained(backbone: Backbone, problem: Problem, recipe: Recipe) -> list[Phase]:
    """The shared supervised phase.

    None where the recipe has no steps (the backbone brings its weights), or over a backbone without
    any, such as `identity`.
    """
    if not recipe.steps or not has_weights(backbone):
        return []
    return [pretraining(backbone, problem, recipe)]


def pretrained_before(
    backbone: Backbone, problem: Problem, recipe: Recipe, hp: PretrainedHyperparameters
) -> list[Phase]:
    """The same before a training by `recipe`: Adam at a constant rate, on the recipe's batches.

    It is one with `baseline`'s where the number of steps and their settings are equal.
    """
    steps = round(hp.pretrain_ratio * recipe.steps)
    supervised = Recipe(steps=steps, batch_size=recipe.batch_size, lr=hp.pretrain_lr)
    return pretrained(backbone, problem, supervised)
