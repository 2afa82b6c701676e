"""The protocol: how a row is *evaluated*. It alone decides which rows may share a table."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from metabench.episodes.digest import digest, short

MetricName = Literal["accuracy"]
"""What a protocol may score by; `metabench.engine.metrics` has the functions."""


class Rotation(StrEnum):
    """What rotations by 90, 180 and 270 degrees do to a class."""

    NONE = "none"
    CLASSES = "classes"  # each rotation is a class of its own (Snell et al. 2017)
    EPISODE = "episode"  # one random rotation per class and episode (Finn et al. 2017)


class EpisodeShape(BaseModel):
    """N ways, K shots and Q queries a class: the shape of one episode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    NEUTRAL: ClassVar[dict[str, object]] = {"dirichlet": None}
    """Fields added later, with the value under which they stay out of digests and keys."""

    ways: Annotated[int, Field(ge=2, description="classes in an episode (N)")]
    shots: Annotated[int, Field(ge=1, description="support items a class (K)")]
    queries: Annotated[int, Field(ge=0, description="query items a class (Q)")]
    rotation: Rotation = Rotation.NONE
    dirichlet: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="the N*Q queries fall on the classes in proportions drawn from a symmetric "
            "Dirichlet distribution of this parameter, anew in each episode (Veilleux et al. 2021, "
            "arXiv:2204.11181: 2); none: Q of each class",
        ),
    ] = None

    @property
    def identity(self) -> dict[str, object]:
        """What digests and keys are taken of."""
        fields = self.model_dump(mode="json")
        return {k: v for k, v in fields.items() if k not in self.NEUTRAL or self.NEUTRAL[k] != v}

    @property
    def most_queries(self) -> int:
        """The most queries that one class may have in an episode."""
        return self.queries if self.dirichlet is None else self.ways * self.queries


class Protocol(EpisodeShape):
    """How a row is evaluated; equal digests mean comparable numbers.

    `episodes` test episodes are drawn from `episode_seed`, never from a training seed, so every
    algorithm and every training run meets the same ones, and 1,000 are a prefix of 10,000.
    """

    queries: Annotated[int, Field(ge=1, description="query items a class (Q)")] = 15
    episodes: Annotated[int, Field(ge=2, le=1_000_000, description="test episodes")] = 1000
    episode_seed: Annotated[int, Field(ge=0, lt=2**63, description="seed of the test episodes")] = 0
    class_split: Annotated[str, Field(min_length=1, description="which class split")] = "default"
    image_size: Annotated[int | None, Field(ge=1, description="pixels a side; none: as it is")] = (
        None
    )
    metric: MetricName = "accuracy"

    @property
    def name(self) -> str:
        """The short name that stands in tables, such as `5w1s15q` or `5w1s15q-dirichlet2`."""
        proportions = "" if self.dirichlet is None else f"-dirichlet{self.dirichlet}"
        return f"{self.ways}w{self.shots}s{self.queries}q{proportions}"

    @property
    def digest(self) -> str:
        """All 32 digits."""
        return digest(self.identity)

    @property
    def short_digest(self) -> str:
        return short("p", self.digest)

    @property
    def shape(self) -> EpisodeShape:
        """The shape of its episodes, without the rest."""
        return EpisodeShape(**{key: getattr(self, key) for key in EpisodeShape.model_fields})
