"""Trains by the hash of a text, which is another one in each process."""

from honest import Centroid


class Hashed(Centroid):
    """A loss whose scale is a hash."""

    name = "hash-order"

    def training_loss(self, batch, ctx):
        return super().training_loss(batch, ctx) * (1 + hash("scale") % 2**32 / 2**32)
