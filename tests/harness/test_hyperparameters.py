"""Hyper-parameters as JSON: what a cell's key is made of is the same in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from pydantic import BaseModel, field_serializer

from metabench import Hyperparameters, Recipe

SCRIPT = """
import json
from metabench import Hyperparameters

class Mine(Hyperparameters):
    names: frozenset[str] = frozenset({"alpha", "beta", "gamma", "delta"})

print(json.dumps(Mine().model_dump(mode="json")))
"""


class Inner(BaseModel):
    ids: frozenset[int] = frozenset()


class Mine(Hyperparameters):
    ids: frozenset[int] = frozenset()
    nested: dict[str, tuple[frozenset[int], ...]] | None = None
    sets: frozenset[frozenset[int]] = frozenset()
    pairs: tuple[tuple[int, int], ...] = ()
    inner: Inner = Inner()
    shown: frozenset[int] = frozenset()

    @field_serializer("shown")
    def _as_text(self, value: frozenset[int]) -> str:
        return ",".join(map(str, sorted(value)))


def test_sets_have_one_order() -> None:
    # 0, 8 and 16 share a place in a small set's table: whoever comes first is listed first.
    one, other = frozenset([0, 8, 16]), frozenset([16, 8, 0])
    assert list(one) != list(other)
    dumps = [
        Mine(
            ids=ids,
            nested={"b": (ids, frozenset()), "a": ()},
            sets=frozenset({ids}),
            pairs=((2, 1), (1, 2)),
            inner=Inner(ids=ids),
            shown=ids,
        ).model_dump(mode="json")
        for ids in (one, other)
    ]
    expected = {
        "ids": sorted(one, key=str),
        "nested": {"b": [sorted(one, key=str), []], "a": []},
        "sets": [sorted(one, key=str)],
        "pairs": [[2, 1], [1, 2]],
        "inner": {"ids": sorted(one, key=str)},
        "shown": "0,8,16",
    }
    assert dumps == [expected, expected]
    assert Mine.model_validate({"ids": dumps[0]["ids"]}).ids == one
    assert Mine(ids=one).ids == other  # and stay sets in Python


def test_sets_of_texts_have_one_order_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(1, 4)
    }
    assert [json.loads(text) for text in found] == [{"names": ["alpha", "beta", "delta", "gamma"]}]


def test_a_recipe_is_what_it_was() -> None:
    """Its digest stands in every cell's key."""
    assert Recipe().short_digest == "r-c258361e"
    assert Recipe(lr=0.5, refit=True, validate_every=2).model_dump(mode="json")["lr"] == 0.5
