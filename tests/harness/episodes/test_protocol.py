"""The protocol: what makes its digest, its name, its bounds."""

from typing import ClassVar

import pytest
from pydantic import ValidationError

from metabench.episodes.protocol import EpisodeShape, Protocol, Rotation

FROZEN = {
    "5w1s15q": (Protocol(ways=5, shots=1), "b317a4739d2e5a4eaf9c4a707d0a658b"),
    "5w5s15q": (Protocol(ways=5, shots=5), "f866428046bfaf0dd65e5c762972f607"),
    "20w1s15q": (
        Protocol(ways=20, shots=1, class_split="vinyals", rotation=Rotation.CLASSES),
        "669bf1fc77b94f7ab487b5d4c1fdafe7",
    ),
    "5w1s1q": (
        Protocol(
            ways=5,
            shots=1,
            queries=1,
            episodes=600,
            episode_seed=7,
            rotation=Rotation.EPISODE,
            image_size=28,
        ),
        "9d774db28333971a64bff435a807097f",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_digests_never_change(name: str) -> None:
    protocol, expected = FROZEN[name]
    assert protocol.name == name
    assert protocol.digest == expected
    assert protocol.short_digest == f"p-{expected[:8]}"


CHANGES = {
    "ways": 6,
    "shots": 2,
    "queries": 14,
    "rotation": Rotation.CLASSES,
    "episodes": 999,
    "episode_seed": 1,
    "class_split": "lake",
    "image_size": 28,
}


def test_every_field_is_part_of_the_identity() -> None:
    assert CHANGES.keys() | {"metric"} == Protocol.model_fields.keys() - Protocol.NEUTRAL.keys()
    base = Protocol(ways=5, shots=1)
    digests = {base.model_copy(update={field: value}).digest for field, value in CHANGES.items()}
    assert len(digests | {base.digest}) == len(CHANGES) + 1


def test_a_field_added_later_keeps_the_digest_at_its_neutral_value() -> None:
    class Later(Protocol):
        NEUTRAL: ClassVar[dict[str, object]] = {**Protocol.NEUTRAL, "distractors": 0}
        distractors: int = 0

    assert Later(ways=5, shots=1).digest == Protocol(ways=5, shots=1).digest
    assert Later(ways=5, shots=1, distractors=2).digest != Protocol(ways=5, shots=1).digest


def test_proportions_of_queries_are_part_of_digest_and_name() -> None:
    balanced, drawn = (Protocol(ways=5, shots=1, dirichlet=alpha) for alpha in (None, 2))
    assert drawn.name == "5w1s15q-dirichlet2"
    assert drawn.digest != balanced.digest == FROZEN["5w1s15q"][1]
    assert drawn.digest != drawn.model_copy(update={"dirichlet": 1}).digest
    assert drawn.shape.most_queries == 75
    assert balanced.shape.most_queries == 15


def test_its_shape_is_that_of_its_episodes() -> None:
    protocol = Protocol(ways=5, shots=2, queries=3, rotation=Rotation.EPISODE)
    assert protocol.shape == EpisodeShape(ways=5, shots=2, queries=3, rotation=Rotation.EPISODE)


@pytest.mark.parametrize(
    "field",
    [
        {"ways": 1},
        {"shots": 0},
        {"queries": 0},
        {"dirichlet": 0},
        {"episodes": 1},
        {"episode_seed": -1},
        {"image_size": 0},
        {"class_split": ""},
        {"metric": "f1"},
        {"way": 5},
    ],
    ids=str,
)
def test_impossible_values_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        Protocol(**{"ways": 5, "shots": 1, **field})
