"""What a cell is: equal keys for equal cells, different keys for different ones, and why."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.errors import UsageError
from metabench.store.keys import SCHEMA, CellIdentity, PhaseIdentity, cell_key, fresh_code

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
tables = st.dictionaries(
    st.text(max_size=6),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ),
    max_size=4,
)


def shuffled(value, rng):
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(item, rng) for key, item in items}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


@given(tables, st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_the_order_of_fields(table, rng):
    assert cell_key(shuffled(table, rng)) == cell_key(table)


@given(tables)
def test_a_key_survives_json(table):
    assert cell_key(json.loads(json.dumps(table))) == cell_key(table)


@given(st.integers(-(2**40), 2**40))
def test_a_key_tells_a_whole_number_from_a_float(number):
    assert cell_key({"x": number}) != cell_key({"x": float(number)})


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_a_key_sees_the_last_bit_of_a_float(number):
    assert cell_key({"x": number}) != cell_key({"x": math.nextafter(number, math.inf)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}])
def test_what_cannot_be_part_of_a_key_is_a_usage_error(value):
    with pytest.raises(UsageError, match="identity"):
        cell_key({"x": value})


def test_the_key_of_a_cell_is_frozen(make_identity, make_phase_identity):
    """A change of these digests would orphan every stored cell: raise SCHEMA instead."""
    assert SCHEMA == 1
    protocol, recipe = {"ways": 5, "shots": 1}, {"steps": 800, "lr": 0.001}
    cell = make_identity(protocol=protocol, recipe=recipe)
    phase = make_phase_identity(recipe=recipe)
    assert cell.key == "064eab4d90b03dd9403af206dba0d8ec"
    assert phase.key == "c6ecfc8b584eeebe4c9d985fc480feb8"


def test_an_identity_survives_json(make_identity, make_phase_identity):
    for identity in (make_identity(), make_phase_identity()):
        text = json.dumps(identity.to_json())
        again = type(identity).model_validate(json.loads(text))
        assert again == identity
        assert again.key == identity.key


def test_an_identity_with_an_unknown_part_is_refused(make_identity):
    with pytest.raises(ValueError, match="surprise"):
        CellIdentity.model_validate(make_identity().to_json() | {"surprise": 1})


def test_every_part_of_an_identity_is_in_its_key(make_identity, make_phase_identity):
    for identity in (make_identity(), make_phase_identity()):
        keys = {identity.key}
        changes = list(one_leaf_changed(identity.to_json()))
        for value in changes:
            keys.add(cell_key(value))
        assert len(keys) == len(changes) + 1


def one_leaf_changed(value):
    for name, item in value.items():
        if isinstance(item, dict) and item:
            for changed in one_leaf_changed(item):
                yield value | {name: changed}
        else:
            yield value | {name: "something else"}


def test_a_difference_is_explained_part_by_part(make_identity):
    old = make_identity()
    new = make_identity(
        seed=1,
        recipe=old.recipe | {"steps": 900},
        algorithm=old.algorithm.model_copy(update={"code": "f" * 32, "hp": {"inner_lr": 0.1}}),
    )
    assert old.explain_difference(new) == [
        "algorithm.code: aaaaaaaaaaaa... -> ffffffffffff...",
        "algorithm.hp.inner_lr: 0.4 -> 0.1",
        "algorithm.hp.steps: 5 -> absent",
        "recipe.steps: 800 -> 900",
        "seed: 0 -> 1",
    ]
    assert old.explain_difference(make_identity()) == []


@pytest.mark.parametrize(("before", "after"), [(1, 1.0), (1, True), ("a" * 31 + "b", "a" * 32)])
def test_a_difference_is_explained_wherever_the_keys_differ(make_identity, before, after):
    old = make_identity(backbone={"name": "conv4", "hp": {"digest": before}, "code": "b"})
    new = make_identity(backbone={"name": "conv4", "hp": {"digest": after}, "code": "b"})
    assert old.key != new.key
    assert len(old.explain_difference(new)) == 1


def test_code_that_could_not_be_read_is_never_the_same(make_identity):
    def notebook():
        return make_identity(algorithm={"name": "mine", "hp": {}, "code": fresh_code()})

    assert make_identity().reusable
    assert not notebook().reusable
    assert notebook().key != notebook().key


def test_a_shared_phase_with_unreadable_code_is_not_reusable(make_phase_identity):
    phase = make_phase_identity()
    assert phase.reusable
    unread = PhaseIdentity.model_validate(phase.to_json() | {"code": fresh_code()})
    assert not unread.reusable


def test_keys_do_not_depend_on_the_process(make_identity):
    text = json.dumps(shuffled(make_identity().to_json(), random.Random(0)))
    script = (
        "import json, sys; from metabench.store.keys import CellIdentity;"
        "print(CellIdentity.model_validate(json.loads(sys.argv[1])).key);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, text], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == make_identity().key
