"""Identities: canonical JSON and its BLAKE2b-128 digest, printed with a letter and a dash first."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

DIGEST_BYTES = 16


def canonical_json(value: Any) -> bytes:
    """One byte string for each value: sorted keys, no spaces, exact floats, no NaN.

    Args:
        value: dicts with string keys, lists, tuples, strings, numbers, booleans, None.

    Raises:
        TypeError: anything else in it, or a key that is not a string.
        ValueError: a float that is not finite.
    """
    _check(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _check(value: Any) -> None:
    if value is None or isinstance(value, str | bool | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no place in an identity")
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} of an identity is not a string")
            _check(item)
    else:
        raise TypeError(f"{type(value).__name__} has no canonical form")


def digest_bytes(*parts: bytes) -> bytes:
    """BLAKE2b-128 over the parts, each preceded by its length, so that no two lists collide."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def digest(value: Any) -> str:
    """The identity of a JSON-like value, 32 hexadecimal digits."""
    return digest_bytes(canonical_json(value)).hex()


def short(letter: str, full: str) -> str:
    """How a digest is printed: `p-12e45678`; a bare `12e45678` would read as a float."""
    return f"{letter}-{full[:8]}"
