"""Algorithms that load without a fault and then fail while they train, each in its own way."""

import metabench


@metabench.hookimpl
def metabench_register_algorithms():
    from metabench_misbehaving import algorithms

    return [
        algorithms.Patient,
        algorithms.Raising,
        algorithms.NotANumber,
        algorithms.Greedy,
        algorithms.Exiting,
        algorithms.Endless,
        algorithms.Leaving,
        algorithms.Mortal,
    ]
