"""The built-in plugins: what `metabench list` says of a class is what the class says of itself."""

import ast
from pathlib import Path

import pytest

import metabench
import metabench_plugins as builtin
from metabench import Lazy
from metabench.plugins import load_registry
from metabench.registry import FACTS

LAZY = [
    *[("algorithm", lazy) for lazy in builtin.metabench_register_algorithms()],
    *[("backbone", lazy) for lazy in builtin.metabench_register_backbones()],
    *[("dataset", lazy) for lazy in builtin.metabench_register_datasets()],
]


@pytest.mark.parametrize(("kind", "lazy"), LAZY, ids=lambda value: getattr(value, "name", value))
def test_lazy_facts_are_the_class_facts(kind: str, lazy: Lazy) -> None:
    cls = load_registry(strict=True).get(kind, lazy.name).load()
    stated = {fact: getattr(cls, fact, "") for fact in ("name", *FACTS)}
    assert stated == {fact: getattr(lazy, fact) for fact in ("name", *FACTS)}
    if kind == "algorithm":
        assert cls.inference_mode(cls.hyperparameters()) == lazy.inference


@pytest.mark.parametrize(("kind", "lazy"), LAZY, ids=lambda value: getattr(value, "name", value))
def test_hyperparameters_have_defaults_and_meanings(kind: str, lazy: Lazy) -> None:
    cls = load_registry(strict=True).get(kind, lazy.name).load()
    cls.hyperparameters()
    for name, field in cls.hyperparameters.model_fields.items():
        assert field.description, f"{lazy.name}.{name} does not say what it means"


def test_every_suite_file_is_registered_and_says_what_it_is() -> None:
    suites = load_registry(strict=True).suites
    assert {path.stem for path in builtin.metabench_register_suites()} == set(suites)
    assert all(entry.summary for entry in suites.values())


def test_plugins_use_only_the_public_api() -> None:
    """No import of a submodule of metabench, and no name that is not in `metabench.__all__`."""
    for file in Path(builtin.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("metabench."), f"{file}:{node.lineno}"
                if node.module == "metabench":
                    names = {alias.name for alias in node.names}
                    assert names <= set(metabench.__all__), f"{file}:{node.lineno}"
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
                assert not any(n.startswith("metabench.") for n in names), f"{file}:{node.lineno}"
