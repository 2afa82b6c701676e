"""Its algorithms come; its data sets cannot: nothing of it may be registered."""

from pathlib import Path

from metabench import Lazy, hookimpl


@hookimpl
def metabench_register_algorithms():
    return [
        Lazy(
            "half-registered",
            "metabench_raising_hook:Half",
            family="metric",
            inference="inductive",
            reference="none",
            summary="Belongs to a plugin that failed.",
        )
    ]


@hookimpl
def metabench_register_datasets():
    return Path("/nonexistent/metabench-images").read_text().split()
