"""Identities: one byte string for a value, whatever the order of its keys, and no collisions."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.episodes.digest import canonical_json, digest, digest_bytes, short

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4)
)


@given(VALUES)
def test_canonical_json_can_be_read_back_exactly(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), SCALARS, min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert digest(turned) == digest(value)


@given(st.lists(st.binary(max_size=6)), st.lists(st.binary(max_size=6)))
def test_different_lists_of_parts_differ(first: list[bytes], second: list[bytes]) -> None:
    assert (digest_bytes(*first) == digest_bytes(*second)) == (first == second)


def test_types_are_kept_apart() -> None:
    texts = {canonical_json(v) for v in (1, 1.0, True, "1", [1], None)}
    assert len(texts) == 6
    assert canonical_json((1, 2)) == canonical_json([1, 2])
    assert canonical_json({"b": 0.1, "a": "ü"}) == '{"a":"ü","b":0.1}'.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, [{"x": -math.inf}]])
def test_what_is_not_finite_has_no_identity(value: object) -> None:
    with pytest.raises(ValueError, match="no place in an identity"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1, 2}, b"x", {"a": object()}, {1: 2}])
def test_other_types_have_no_identity(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_digests_never_change() -> None:
    assert digest({"ways": 5, "shots": 1}) == "ed4ce8d633beead90921e0da8e9055df"
    assert digest_bytes(b"ab", b"c").hex() == "4826ed043ab3cdec576d8541fa5d5a80"
    assert short("p", "12e45678" + 24 * "0") == "p-12e45678"
