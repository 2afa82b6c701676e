"""Implements `metabench_register_algorithm`; the hook's name is plural."""

from metabench import Lazy, hookimpl


@hookimpl
def metabench_register_algorithm():
    return [Lazy("never-seen", "metabench_misspelt_hook:Never")]
