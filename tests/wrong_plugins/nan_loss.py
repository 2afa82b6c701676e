"""Takes the logarithm of nothing in its third step."""

from honest import Centroid


class Logarithm(Centroid):
    """log 0 - log 0."""

    name = "nan-loss"

    def training_loss(self, batch, ctx):
        loss = super().training_loss(batch, ctx)
        return loss if ctx.step < 2 else loss * 0 * (loss * 0).log()
