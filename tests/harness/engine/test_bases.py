"""An algorithm written for one episode is lifted over the batch, with the ways of each call."""

import torch

from metabench.api.recipe import Recipe
from metabench.engine.bases import EpisodeFunction
from metabench.engine.evaluate import evaluate
from metabench.engine.train import train
from metabench.engine.verify import depends_on_other_queries


class OneEpisode(EpisodeFunction):
    """The nearest class mean, written for one episode."""

    name = "one-episode"
    seen_ways: set[int]

    def build(self):
        self.seen_ways = set()

    def episode(self, support, labels, queries, ways):
        self.seen_ways.add(ways)
        embedded, asked = self.backbone(support), self.backbone(queries)
        means = torch.stack([embedded[labels == c].mean(0) for c in range(ways)])
        return -torch.cdist(asked, means).square()


class LooksAtQueries(OneEpisode):
    """Centres the queries on their own mean: transductive, whatever it says."""

    name = "looks-at-queries"

    def episode(self, support, labels, queries, ways):
        return super().episode(support, labels, queries - queries.mean(0), ways)


def test_it_equals_the_batched_algorithm(world):
    one, batched = world.make(OneEpisode), world.make(world.Nearest)
    outcomes = [
        evaluate(algorithm, world.source(), world.store(), 30, "test")
        for algorithm in (one, batched)
    ]
    assert (outcomes[0].predicted == outcomes[1].predicted).all()


def test_it_may_train_with_more_ways_than_it_is_tested_with(world):
    recipe = Recipe(steps=3, ways=world.protocol.ways + 1, queries=2)
    algorithm = world.make(OneEpisode, recipe)
    train(algorithm, recipe, world.data(recipe), 0)
    evaluate(algorithm, world.source(), world.store(), 3, "test")
    assert algorithm.seen_ways == {world.protocol.ways, world.protocol.ways + 1}


def test_its_inference_mode_is_found_out(world):
    assert depends_on_other_queries(world.make(OneEpisode), world.source(), world.store()) == ""
    found = depends_on_other_queries(world.make(LooksAtQueries), world.source(), world.store())
    assert "one at a time" in found
