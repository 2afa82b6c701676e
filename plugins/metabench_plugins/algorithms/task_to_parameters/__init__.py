"""Task to parameters: a network that maps a support set to a model, learnt by supervision."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = ()
