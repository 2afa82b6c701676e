"""The texts of `--set`, and the patterns of filters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.errors import UsageError
from metabench.runner.overrides import parse_override, parse_value
from metabench.runner.patterns import protocol_matches


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-3", 1e-3),
        ("true", True),
        ('"1"', "1"),
        ("batch", "batch"),
        ("support+1", "support+1"),
        ("[1, 2]", [1, 2]),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_a_value_is_toml_or_else_text(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text):
    try:
        override = parse_override(text)
    except UsageError:
        return
    assert override.text == text
    assert override.key
    assert override.pattern


@given(st.integers(2, 99), st.integers(1, 99), st.integers(1, 99), st.integers(1, 99))
def test_a_protocol_pattern_takes_numbers_whole(ways, shots, queries, other):
    name = f"{ways}w{shots}s{queries}q"
    assert protocol_matches(name, name)
    assert protocol_matches(f"{ways}w{shots}s", name)
    assert protocol_matches(f"{ways}w*", name)
    assert protocol_matches(f"{ways}w{other}s", name) == (other == shots)
    assert not protocol_matches(f"{ways}", name)
