"""A registry of made-up plugins, and a suite of them: for tests of suites and their matrix."""

from typing import ClassVar

from pydantic import Field

from metabench.api.recipe import Hyperparameters, Recipe
from metabench.registry import Entry, Registry


class LearnerSettings(Hyperparameters):
    rate: float = Field(0.4, gt=0, description="inner learning rate")
    steps: int = Field(5, ge=0, description="inner steps")
    norm: str = Field("support", pattern="^(support|batch)$", description="whose moments")


class MetricSettings(Hyperparameters):
    distance: str = Field("cosine", description="between embeddings")


class NetSettings(Hyperparameters):
    width: int = Field(64, ge=1, description="channels")


class PointSettings(Hyperparameters):
    noise: float = Field(0.0, ge=0, description="standard deviation")


class Learner:
    hyperparameters = LearnerSettings
    recipe = Recipe(steps=60, ways=20)

    @classmethod
    def inference_mode(cls, hp):
        return "transductive" if hp.norm == "batch" else "inductive"


class Metric:
    hyperparameters = MetricSettings
    recipe = Recipe(steps=70, lr=0.5)

    @classmethod
    def inference_mode(cls, hp):
        return "inductive"


class Net:
    hyperparameters = NetSettings


class Points:
    hyperparameters = PointSettings
    class_splits: ClassVar = ("first", "second")
    rotations = False


class Images(Points):
    rotations = True


def registry_of(**kinds):
    tables = {
        kind: {
            name: Entry(name=name, kind=kind[:-1], plugin="p", owner="p", source=cls)
            for name, cls in classes.items()
        }
        for kind, classes in kinds.items()
    }
    return Registry(**tables)


REGISTRY = registry_of(
    algorithms={"learner": Learner, "metric": Metric},
    backbones={"net": Net, "pixels": Net},
    datasets={"points": Points, "images": Images},
)

SUITE = """
summary = "a suite"
seeds = 2

[recipe]
validate_every = 10

[recipes.shared]
steps = 400
lr = 0.25

[[dataset]]
name = "points"

[[protocol]]
ways = 5
shots = 1

[[protocol]]
ways = 5
shots = 5

[[backbone]]
name = "net"
label = "net-32"
hyperparameters = {width = 32}

[[backbone]]
name = "pixels"

[[algorithm]]
name = "learner"
backbones = ["net-*"]
hyperparameters = {rate = 0.1}
recipe = {steps = 80}

[algorithm.protocols."5w5s"]
hyperparameters = {steps = 3}
recipe = {lr = 0.01}

[[algorithm]]
name = "learner"
variant = "classic"
backbones = ["net-*"]
hyperparameters = {rate = 0.1, norm = "batch"}

[[algorithm]]
name = "metric"
recipe = "shared"
"""
