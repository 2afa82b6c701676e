"""The conformance kit over every built-in plugin."""

from __future__ import annotations

import json

import pytest

import metabench_plugins as builtin
from metabench.errors import UsageError
from metabench.plugins import load_registry
from metabench.runner.matrix import Filters, build_matrix
from metabench.runner.resolve import settings_of
from metabench.runner.suite import open_suite
from metabench.testing.conformance.running import Asked, Planned, plan, run_planned, subjects

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


def choices_of_the_suites() -> list[Asked]:
    """The algorithms of the suites over drawings with what they choose: words and truth values.

    A number takes the code no other way.
    """
    registry = load_registry(strict=True)
    asked = set()
    for suite in ("fewshot-full", "fewshot-dirichlet"):
        for cell in build_matrix(open_suite(suite, registry), registry, Filters(seeds=1)):
            name, chosen = cell.algorithm.name, cell.algorithm.hyperparameters
            own = settings_of(registry.get("algorithm", name)).model_dump(mode="json")
            words = {
                key: json.dumps(value)
                for key, value in chosen.items()
                if value != own[key] and isinstance(value, str | bool)
            }
            if words:
                texts = tuple(f"{key}={value}" for key, value in sorted(words.items()))
                asked.add(Asked(f"algorithm:{name}", settings=texts))
    return sorted(asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", choices_of_the_suites(), ids=lambda asked: " ".join([asked.target, *asked.settings])
)
def test_what_the_suites_choose_conforms_too(asked: Asked) -> None:
    found = [run_planned(asked, planned) for planned in plan(asked)]
    assert [f"{f.check}: {f.expected}: {f.happened}" for f in found if f.status == "failed"] == []


def test_settings_reach_every_check() -> None:
    """Of MAML the one changes what is verified, the other what is trained."""
    classic = Asked("algorithm:maml", settings=("batch_norm=batch", "inner_lr=0.25"))
    [inference] = [planned for planned in plan(classic) if planned.check == "inference"]
    assert run_planned(classic, inference).remark == "transductive"
    [subject] = subjects(classic)
    assert subject.hp.inner_lr == 0.25  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("target", "text", "told"),
    [
        ("algorithm:maml", "inner_lr", "no such form"),
        ("algorithm:maml", "inner_rate=0.1", "no key called"),
        ("algorithm:maml", "inner_lr=-1", "greater than 0"),
        ("suite:smoke", "inner_lr=0.1", "one algorithm or one backbone"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(target: str, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        plan(Asked(target, settings=(text,)))
