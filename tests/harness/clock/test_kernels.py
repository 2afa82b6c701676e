"""Where the time goes: kernels by share, the small ones together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metabench.clock.kernels import CALLS, MOST, OTHERS, by_share, profiled

FOUND = st.lists(st.tuples(st.text("ab", max_size=3), st.just(1.0), st.floats(1e-3, 100)))


@given(FOUND)
def test_shares_fall_and_add_up_to_one(found) -> None:
    kernels = by_share(found)
    assert len(kernels) <= MOST + 1
    own = [kernel.share for kernel in kernels if kernel.name != OTHERS]
    assert own == sorted(own, reverse=True)
    if found:
        assert sum(kernel.share for kernel in kernels) == pytest.approx(1)
        assert sum(kernel.ms for kernel in kernels) == pytest.approx(sum(ms for *_, ms in found))


def test_the_small_ones_stand_together() -> None:
    kernels = by_share([("large", 1, 99.2), ("x", 2, 0.4), ("y", 3, 0.4)])
    assert [kernel.name for kernel in kernels] == ["large", OTHERS]
    assert kernels[1].calls == 5
    assert kernels[1].ms == pytest.approx(0.8)


def test_a_real_call_shows_its_operators() -> None:
    one = torch.randn(64, 64)
    made = []

    def at(number: int):
        made.append(number)
        return lambda: one @ one

    kernels = profiled(at, torch.device("cpu"))
    assert made == list(range(CALLS))
    [product] = [kernel for kernel in kernels if kernel.name == "aten::mm"]
    assert product.calls == 1
    assert product.ms > 0
