"""A number without bounds."""

from typing import Annotated

from honest import Centroid

from metabench import Field, Hyperparameters


class Settings(Hyperparameters):
    scale: Annotated[float, Field(description="factor of the logits")] = 1.0


class Unbounded(Centroid):
    """Any scale at all."""

    name = "unbounded"
    hyperparameters = Settings
