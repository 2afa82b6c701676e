"""The conformance kit over every built-in plugin."""

from __future__ import annotations

import pytest

import metabench_plugins as builtin
from metabench.testing.conformance.running import Asked, Planned, plan, run_planned

TARGETS = [
    *(f"algorithm:{lazy.name}" for lazy in builtin.metabench_register_algorithms()),
    *(f"backbone:{lazy.name}" for lazy in builtin.metabench_register_backbones()),
    *(f"dataset:{lazy.name}" for lazy in builtin.metabench_register_datasets()),
    *(f"suite:{path.stem}" for path in builtin.metabench_register_suites()),
]
CASES = [
    pytest.param(Asked(target), planned, id=f"{target}-{planned.check}")
    for target in TARGETS
    for planned in plan(Asked(target))
]


@pytest.mark.parametrize(("asked", "planned"), CASES)
def test_it_conforms(asked: Asked, planned: Planned) -> None:
    found = run_planned(asked, planned)
    if found.status == "skipped":
        pytest.skip(found.remark)
    assert found.status == "passed", f"{found.expected}: {found.happened} ({found.look_at})"
