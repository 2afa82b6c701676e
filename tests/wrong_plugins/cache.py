"""Keeps the prototypes of an episode's number, and hands them out again."""

from honest import Centroid


class Caching(Centroid):
    """What was computed once."""

    name = "cache"

    def build(self):
        self.kept = {}

    def adapt(self, support, ctx):
        key = tuple(ctx.rng._index)
        if ctx.training:
            return super().adapt(support, ctx)
        return self.kept.setdefault(key, super().adapt(support, ctx))
