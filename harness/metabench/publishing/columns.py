"""What each column of a table means, for datasheets and metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from metabench.rendering import Row

Kind = Literal["sc:Text", "sc:Integer", "sc:Float"]

MEANINGS = {
    "suite": "the suite that names the row",
    "dataset": "data set, as the suite calls it",
    "protocol": "ways, shots and queries a class of the test episodes",
    "algorithm": "algorithm, as its plugin is registered",
    "variant": "settings that tell rows of one algorithm apart",
    "backbone": "network, as the suite calls it",
    "inference": "inductive or transductive, as verified; the two are ranked apart",
    "metric": "what is averaged over the queries of an episode",
    "score": "mean of the metric over test episodes and training seeds",
    "ci95": "half-width of the 95% t-interval over test episodes, of the mean over seeds in each",
    "seed_std": "standard deviation (ddof 1) of the training seeds' scores; from 3 seeds on",
    "seed_ci95": "half-width of the 95% t-interval over the training seeds' scores",
    "seeds": "training runs, alike but for their seed",
    "episodes": "test episodes, the same for all rows under one protocol",
    "rank": "1 + the rows that are significantly better; empty with fewer than 3 seeds",
    "disjoint": "disjoint episodes that the data allow, no item in two of them; empty under two",
    "disjoint_score": "mean of the metric over the disjoint episodes and training seeds",
    "ci95_items": "half-width of the 95% interval of disjoint_score for new items of these classes",
    "ci95_classes": "half-width of the 95% interval of disjoint_score for new classes like these",
    "macro_f1": "F1 score, mean over the classes of an episode, over episodes, over seeds",
    "worst_episodes": "mean score of the worst 5% of the test episodes, then over seeds",
    "worst_class": "lowest recall of a class of the data set, over all seeds",
    "worst_class_id": "which class of the test split that is",
    "ece": "expected calibration error, where the algorithm gives probabilities",
    "nll": "mean negative log-likelihood in nats, where the algorithm gives probabilities",
    "adapt_ms": "milliseconds to adapt to one support set, median, one machine, nothing beside it",
    "predict_ms": "milliseconds to predict the queries of one episode, likewise",
    "train_s": "seconds of one training run, shared phases included, mean over seeds",
    "train_items": "items seen in training, repetitions counted",
    "budget": "steps of training",
    "parameters": "numbers in the model's parameters",
    "status": "ok: all training runs of the row are finished; no other row is published",
    "device": "type of the device that the row was trained and tested on",
    "protocol_digest": "digest of the protocol; rows are compared only under one",
    "dataset_digest": "digest of the decoded content of the data set and its class names",
    "recipe_digest": "digest of how the row was trained",
    "code_version": "digest of the code of algorithm and backbone, and of metabench's core",
    "trust": "self-reported, recomputed from its predictions, or reproduced by a second run",
}


def meaning(column: str) -> str:
    """What a column means; its name where nobody said more."""
    return MEANINGS.get(column, column.replace("_", " "))


def kinds(rows: Sequence[Row], columns: Iterable[str]) -> dict[str, Kind]:
    """What the values of each column are; text where all are missing."""
    found: dict[str, Kind] = {}
    for column in columns:
        values = [row[column] for row in rows if row.get(column) is not None]
        if not values or not all(_is_number(value) for value in values):
            found[column] = "sc:Text"
        else:
            whole = all(isinstance(value, int) for value in values)
            found[column] = "sc:Integer" if whole else "sc:Float"
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
