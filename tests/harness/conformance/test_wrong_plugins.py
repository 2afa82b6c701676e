"""Plugins that are wrong on purpose: each is caught by the check that is there for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from metabench.testing.conformance.finding import Result
from metabench.testing.conformance.running import Asked, run_check, run_checks
from metabench.testing.conformance.target import CHECKS, resolved

HERE = Path(__file__).parents[2] / "wrong_plugins"
CAUGHT = {
    "honest": set(),
    "batch_norm_on_queries": {"inference"},
    "query_order": {"query-order", "class-labels"},
    "cache": {"episodes-apart", "class-labels", "relabelling", "dtypes"},
    "global_random": {"randomness"},
    "wrong_shape": {"shapes", "training", "determinism", "episodes-apart", "inference"},
    "remembered_targets": {"query-targets"},
    "stack_of_the_caller": {"nothing-from-noise", "inference"},
    "nan_loss": {"training", "determinism"},
    "hash_order": {"determinism"},
    "chosen_attribute": {"choices"},
    "kept_choice": {"choices"},
    "kept_state": {"state", "cost", "episodes-apart", "inference"},
    "label_names": {"class-labels"},
    "unbounded": {"hyper-parameters"},
    "moving_weights": {"locked"},
    "exits": {"shapes"},
}
"""All that fails: the check that is meant, and what follows from it."""


def checked(name: str) -> dict[str, Result]:
    [subject] = resolved(str(HERE / f"{name}.py"))
    found = [run_check(subject, check) for check in CHECKS[subject.entry.kind]]
    return {result.check: result for result in found}


@pytest.mark.parametrize("name", CAUGHT)
def test_it_is_caught_and_named(name: str) -> None:
    found = checked(name)
    failed = {check for check, result in found.items() if result.status == "failed"}
    assert failed == CAUGHT[name], {check: found[check].happened for check in failed}
    assert (found["choices"].status == "skipped") == (
        name not in {"chosen_attribute", "kept_choice"}
    )
    for check in failed:
        assert found[check].expected
        assert found[check].happened


@pytest.mark.parametrize(
    ("name", "check", "told"),
    [
        ("endless", "shapes", "it did not end"),
        ("leaves", "shapes", "exit code 3"),
        ("patched_timer", "clock", "time.perf_counter"),
        ("patches_when_used", "clock", "time.perf_counter"),
    ],
)
def test_it_harms_one_check_alone(name: str, check: str, told: str) -> None:
    asked = Asked(str(HERE / f"{name}.py"), only=(check, "facts", "inference"))
    found = {result.check: result for result in run_checks(asked, timeout=5.0)}
    assert {check for check, result in found.items() if result.status == "failed"} == {check}
    assert told in found[check].happened
