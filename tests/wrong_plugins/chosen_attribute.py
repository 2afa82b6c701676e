"""What it chooses on meta-validation is an attribute, which no checkpoint holds."""

from honest import Centroid

from metabench import Choose


class Choosing(Centroid):
    """Prototypes are shrunk towards their mean, by as much as does best."""

    name = "chosen-attribute"

    def build(self):
        self.kept = 1.0

    def phases(self, recipe):
        return [*super().phases(recipe), Choose(self.put, candidates=3)]

    def put(self, number):
        self.kept = (1.0, 0.5, 0.25)[number]

    def adapt(self, support, ctx):
        means = super().adapt(support, ctx)
        centre = means.mean(1, keepdim=True)
        return centre + self.kept * (means - centre)
