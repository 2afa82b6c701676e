"""Brings two algorithms; the name of the first is taken, the second comes in."""

from metabench import Lazy, hookimpl


def _lazy(name):
    return Lazy(
        name,
        "metabench_taken_name:Ours",
        family="metric",
        inference="inductive",
        reference="none",
        summary="Not what the name says.",
    )


@hookimpl
def metabench_register_algorithms():
    return [_lazy("protonet"), _lazy("protonet-ours")]
