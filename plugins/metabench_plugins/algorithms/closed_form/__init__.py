"""Closed-form heads: a small convex problem on the support set, solved in each episode."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = ()
