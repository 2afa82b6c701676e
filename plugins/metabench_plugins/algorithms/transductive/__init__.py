"""Transductive: the queries of an episode are predicted together; ranked apart."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = ()
