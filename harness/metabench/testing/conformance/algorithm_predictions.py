"""Checks of an algorithm's predictions: their shape, and what they may depend on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from metabench.api.items import EpisodeBatch, Items, Targets
from metabench.engine.evaluate import evaluate
from metabench.engine.gather import ItemStore
from metabench.engine.numerics import generator_states, same_states, seed_all
from metabench.engine.verify import TOLERANCE, depends_on_other_queries
from metabench.testing.conformance.finding import Checks, NonconformityError, NotApplicableError
from metabench.testing.conformance.subject import (
    CPU,
    AlgorithmSubject,
    context,
    episodes,
    predictions,
    relabelled,
    reordered,
    share_of_range,
    some_episodes,
    some_queries,
    source_of,
)
from metabench.testing.conformance.tasks import IMAGE, PROTOCOL, bank, noise

SAME = TOLERANCE["float32"]
"""Of the range of the predictions: rounding may differ by as much."""
REORDERED = 10 * SAME
"""The same where sums over the support set are added up in another order.

The many steps of a solver amplify that: Adam's, which divide by small gradients, to .00025 of the
range on a CPU with AVX2, where with AVX-512 it was under `SAME`.
"""
SHAPES = ((2, 1, 1), (3, 5, 2), (7, 1, 4), (5, 2, 3))
"""Ways, shots, queries a class."""
ODD_QUERIES = (1, 4, 11)
RELABELLED_EPISODES = 60
NOISE_EPISODES = 120
ERRORS = 4.0
"""Standard errors that chance stays within, but for once in 16,000 times."""


def add_checks_of_predictions(checks: Checks) -> None:
    """Add them in the order in which a reader wants to know."""
    for what, check in (
        ("(B, Q, ways) finite real numbers, for odd ways, shots and numbers of queries", shapes),
        ("the same again, one episode at a time, and after other episodes", episodes_apart),
        ("an inductive algorithm predicts a query from the support set and that query", inference),
        ("predictions move with their queries", query_order),
        ("query targets are never used at test", query_targets),
        ("on noise, where there is nothing to know, accuracy is chance", nothing_from_noise),
        ("the order of the support set changes nothing, where that is declared", support_order),
        ("class labels are names and nothing else, where that is declared", class_labels),
        ("accuracy does not hang on what the classes are called", relabelling),
        ("all randomness comes from ctx.rng", randomness),
    ):
        checks.add(what)(check)


def shapes(subject: AlgorithmSubject) -> None:
    for ways, shots, queries in SHAPES:
        protocol = PROTOCOL.model_copy(update={"ways": ways, "shots": shots, "queries": queries})
        algorithm = subject.build(protocol)
        for count in (1, 3):
            batch = episodes(range(count), protocol)
            _check_shape(subject, algorithm, batch, batch.queries, ways)
    # Queries needn't be as many of each class, nor a multiple of the ways.
    algorithm, batch = subject.build(), episodes()
    for number in ODD_QUERIES:
        _check_shape(subject, algorithm, batch, some_queries(batch.queries, range(number)), 5)


def _check_shape(
    subject: AlgorithmSubject,
    algorithm: torch.nn.Module,
    batch: EpisodeBatch,
    queries: Items,
    ways: int,
) -> None:
    count, asked = queries.data.shape[:2]
    found = predictions(algorithm, batch.support, queries, range(count))  # type: ignore[arg-type]
    task = (
        f"{count} episodes of {ways} ways, {batch.support.targets.values.shape[1]} support items"
        f" and {asked} queries"
    )
    if found.shape != (count, asked, ways):
        raise NonconformityError(
            f"predictions (B, Q, ways) = ({count}, {asked}, {ways}) for {task}",
            f"predict returned {tuple(found.shape)}",
            subject.cls.predict,
        )
    if not found.is_floating_point() or not bool(torch.isfinite(found).all()):
        raise NonconformityError(
            f"finite real numbers for {task}",
            f"predict returned {found.dtype} with"
            f" {int((~torch.isfinite(found)).sum())} values that are not finite",
            subject.cls.predict,
        )


def episodes_apart(subject: AlgorithmSubject) -> None:
    numbers = (0, 1, 2, 3)
    batch = episodes(numbers)
    fresh = subject.trained()
    together = predictions(fresh, batch.support, batch.queries, numbers)
    again = predictions(fresh, batch.support, batch.queries, numbers)
    ways = {"asked again": again}
    singly = []
    for number in numbers:
        one = some_episodes(batch, [number])
        singly.append(predictions(subject.trained(), one.support, one.queries, [number]))
    ways["each by itself"] = torch.cat(singly)
    # Other items under the same numbers, in between: what is kept of them would show.
    used = subject.trained()
    other = episodes((7, 8, 9, 10))
    predictions(used, other.support, other.queries, numbers)
    ways["after other episodes of the same numbers"] = predictions(
        used, batch.support, batch.queries, numbers
    )
    for how, found in ways.items():
        _check_same(
            together,
            found,
            "an episode's predictions depend on that episode alone: nothing is kept of another",
            f"episodes {how}",
            subject.cls.adapt,
        )


def inference(subject: AlgorithmSubject) -> str:
    declared = subject.cls.inference_mode(subject.hp)
    store, source = ItemStore(bank("test"), IMAGE, CPU), source_of()
    for algorithm in (subject.build(), subject.trained()):
        why = depends_on_other_queries(algorithm, source, store, episodes=3)
        if why and declared == "inductive":
            raise NonconformityError(
                "declared inductive: a query gets the same predictions whatever else is asked",
                f"{why}; it is transductive (batch norm on the queries is, too)",
                subject.cls.predict,
            )
    return declared


def query_order(subject: AlgorithmSubject) -> None:
    algorithm, batch = subject.trained(), episodes()
    count = batch.queries.data.shape[1]
    order = np.random.default_rng(0).permutation(count).tolist()
    straight = predictions(algorithm, batch.support, batch.queries)
    turned = predictions(algorithm, batch.support, some_queries(batch.queries, order))
    _check_same(
        straight[:, order],
        turned,
        "in another order, the same queries get the same predictions in that order",
        "queries in another order",
        subject.cls.predict,
    )


def query_targets(subject: AlgorithmSubject) -> None:
    """What was told of an episode in training must not be remembered by its items."""
    if not subject.episodic:
        raise NotApplicableError("it does not train on episodes")
    batch = episodes()
    found = []
    for shift in (0, 1):
        algorithm = subject.trained().train()
        before = {name: value.clone() for name, value in algorithm.state_dict().items()}
        targets = Targets((batch.query_targets.values + shift) % PROTOCOL.ways)
        seed_all("query targets")
        algorithm.training_step(batch._replace(query_targets=targets), context(stage="train"))
        algorithm.zero_grad(set_to_none=True)
        algorithm.load_state_dict(before)  # what it learns, it may learn in buffers
        found.append(predictions(algorithm.eval(), batch.support, batch.queries))
    _check_same(
        found[0],
        found[1],
        "at test an algorithm knows no query target, not even of an episode that it has seen",
        "a meta-step (without the optimiser's) on the same episode with other query targets",
        subject.cls.training_loss,
    )


def nothing_from_noise(subject: AlgorithmSubject) -> str:
    here = noise()
    outcome = evaluate(
        subject.trained(),
        source_of(PROTOCOL, here),
        ItemStore(here, IMAGE, CPU),
        NOISE_EPISODES,
        "test",
    )
    scores = outcome.scores("accuracy")
    chance, error = 1 / PROTOCOL.ways, scores.std(ddof=1) / np.sqrt(len(scores))
    mean = float(scores.mean())
    if mean > chance + ERRORS * error + 1e-9:
        raise NonconformityError(
            f"{chance:.4f}, within {ERRORS:g} standard errors ({error:.4f} each), where items tell"
            " nothing of their classes",
            f"accuracy {mean:.4f} over {len(scores)} episodes: the answers come from elsewhere (the"
            " order of the queries, targets)",
            subject.cls.predict,
        )
    return f"{mean:.4f}"


def support_order(subject: AlgorithmSubject) -> None:
    _declared(subject, "support-order")
    batch = episodes()
    size = batch.support.targets.values.shape[1]
    order = np.random.default_rng(1).permutation(size).tolist()
    for algorithm in (subject.build(), subject.trained()):
        _check_same(
            predictions(algorithm, batch.support, batch.queries),
            predictions(algorithm, reordered(batch.support, order), batch.queries),
            "declared equivariant to the support's order",
            "the same support set in another order",
            subject.cls.adapt,
            within=REORDERED,
        )


def class_labels(subject: AlgorithmSubject) -> None:
    _declared(subject, "class-labels")
    batch = episodes()
    for algorithm in (subject.build(), subject.trained()):
        _check_same(
            predictions(algorithm, batch.support, batch.queries).roll(1, -1),
            predictions(algorithm, relabelled(batch.support), batch.queries),
            "declared equivariant to class labels: class c called c + 1 moves its column by one",
            "the same support set under other labels",
            subject.cls.adapt,
            within=REORDERED,
        )


def _declared(subject: AlgorithmSubject, what: str) -> None:
    if what not in subject.cls.equivariances(subject.hp):
        raise NotApplicableError(f"{what!r} is not in equivariant_to")


def relabelling(subject: AlgorithmSubject) -> str:
    algorithm, ways = subject.trained(), PROTOCOL.ways
    numbers = range(RELABELLED_EPISODES)
    batch = episodes(numbers)
    known = batch.query_targets.values
    straight = predictions(algorithm, batch.support, batch.queries, numbers).argmax(-1)
    renamed = predictions(algorithm, relabelled(batch.support), batch.queries, numbers).argmax(-1)
    right = (straight == known).double().mean(1), (renamed == (known + 1) % ways).double().mean(1)
    difference = (right[1] - right[0]).numpy()
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    mean = float(difference.mean())
    if abs(mean) > ERRORS * error + 1e-9:
        raise NonconformityError(
            "accuracy under other class labels stays within its paired interval"
            f" ({ERRORS:g} standard errors of {error:.4f})",
            f"it changed by {mean:+.4f} over {len(difference)} episodes",
            subject.cls.adapt,
        )
    return f"{mean:+.4f}"


def randomness(subject: AlgorithmSubject) -> None:
    batch = episodes()
    at_test, in_training = subject.trained(), subject.trained().train()

    def test() -> None:
        predictions(at_test, batch.support, batch.queries)

    def training() -> None:
        seed_all("conformance")
        in_training.training_step(batch, context(stage="train"))

    stages: list[tuple[str, Callable[[], None], object]] = [
        ("adapt and predict", test, subject.cls.predict)
    ]
    if subject.episodic:
        stages.append(("training_step", training, subject.cls.training_loss))
    for stage, call, where in stages:
        call()  # what is drawn once, to set up, is drawn here
        seed_all("conformance")
        before = generator_states()
        call()
        after = generator_states()
        # Layers such as dropout draw from PyTorch's own in training, which the engine seeds.
        if call is training:
            after = (before[0], *after[1:])
        if not same_states(before, after):
            raise NonconformityError(
                "random numbers come from ctx.rng, which gives each episode its own",
                f"{stage} drew from a global generator (of PyTorch, NumPy or Python)",
                where,
            )
    one = predictions(at_test, batch.support, batch.queries)
    other = predictions(copy.deepcopy(at_test), batch.support, batch.queries)
    _check_same(
        one,
        other,
        "the same call twice gives the same predictions",
        "called again, with nothing else changed: it draws from a generator that nobody seeds",
        subject.cls.predict,
    )


def _check_same(
    one: Tensor, other: Tensor, expected: str, how: str, at: object, within: float = SAME
) -> None:
    if one.shape != other.shape:
        raise NonconformityError(
            expected, f"{how}: {tuple(other.shape)} instead of {tuple(one.shape)}", at
        )
    difference = share_of_range(one, other)
    if not difference <= within:  # not a number is not equal either
        raise NonconformityError(
            f"{expected} (within {within:g} of their range)",
            f"{how}: predictions differ by {difference:.2g} of their range",
            at,
        )
