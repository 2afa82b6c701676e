"""Unsupervised features: fitted on the training items without their labels."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = ()
