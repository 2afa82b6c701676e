"""What can't be: scores that don't follow, spreads under chance's own, times no machine reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabench.api.recipe import Recipe
from metabench.engine.probabilities import A_ROOT
from metabench.errors import EvidenceError
from metabench.publishing.evidence import CellTimes, Proof
from metabench.publishing.verify.identities import protocol_of, recipe_of
from metabench.publishing.verify.reading import Read, RowOf
from metabench.publishing.verify.report import CannotCheckError, Report, require
from metabench.registry import Registry
from metabench.store.record import CellRecord
from metabench.store.results import EpisodeResults

SCORE = 1e-9
"""By how much a record's score may differ from what its predictions come to."""
LEAST_SPREAD = 0.1
"""Of the variance that queries drawn independently give, what episodes must have at least.

Drawn without replacement from classes of 20 items, 15 queries a class have 4/18 of it.
"""
_NEVER = 1e-6
COPIED = 0.02
"""Of the queries that one of two trainings or both get wrong, the share for which they differ under
which they are the same training.

Where both are right they agree of course. Two heads on one pre-training differ for a quarter and
more of the rest, two trainings for half.
"""
FEWEST_WRONG = 20
"""Queries that either gets wrong, under which nothing can be told."""
COLLAPSED = 0.9
"""The share of an episode's predictions in one class from which on a model has learnt nothing."""
MOST_COMPARED, LEAST_COMPARED = 10**11, 10**4
"""Pairs of predictions in all, a minute or two; and as how many a pair of cells counts at least."""
FASTEST = 1e16
"""Operations a second that no machine of one device reaches."""
STEP_S = 1e-5
"""Seconds that a step of training takes at the least."""
ROUNDING = 1e-6
"""By how much probabilities may be off beside their codes."""
OVER_PEAK = 1.5
"""Times the measured peak that a counted operation may be done faster: convolutions by other
algorithms need fewer operations than are counted, and the peak is a measurement too."""
CLOCK = timedelta(days=1)
"""By how much a clock may be wrong."""


def check_plausible(row: RowOf, registry: Registry, report: Report) -> None:
    """Findings on what can't be, of one row."""
    if not row.proofs:
        return
    report.check("scores", row.what, lambda: _scores(row))
    report.check("spread", row.what, lambda: _spread(row))
    report.check("probabilities", row.what, lambda: _probabilities(row, registry))
    report.check("times", row.what, lambda: _times(row))


def check_apart(read: Read, report: Report) -> None:
    """Findings on predictions that stand under two names or two seeds."""
    rows = [row for row in read.rows() if row.proofs]
    asked: dict[str, list[_Cell]] = {}
    for row in rows:
        for proof in row.proofs:
            if not _collapsed(proof.episodes):
                asked.setdefault(proof.cell.queries, []).append(_Cell(row, proof))
    twins: list[tuple[_Cell, _Cell]] = []
    left = MOST_COMPARED
    unchecked: set[str] = set()
    for cells in asked.values():
        size = cells[0].proof.episodes.targets.size
        left -= max(size, LEAST_COMPARED) * len(cells) ** 2 // 2
        if left < 0:
            unchecked |= {one.row.what for one in cells}
            continue
        twins += _twins(cells)
    for row in rows:
        many = row.what in unchecked
        report.check("predictions are its own", row.what, partial(_own, row, twins, many))


class _Cell(NamedTuple):
    """A cell and its row."""

    row: RowOf
    proof: Proof

    @property
    def trained(self) -> bool:
        """By its recipe; it may have had nothing to train all the same."""
        return self.proof.record.identity.recipe.get("steps") != 0

    @property
    def without_parameters(self) -> bool:
        result = self.proof.record.result
        return result.parameters == result.budget == 0


def _collapsed(results: EpisodeResults) -> bool:
    """Whether it predicts one class for nearly all of an episode: it learnt nothing."""
    middle = np.sort(results.predictions, axis=1)[:, results.predictions.shape[1] // 2, None]
    return bool((results.predictions == middle).mean() >= COLLAPSED)


def _twins(cells: Sequence[_Cell]) -> Iterator[tuple[_Cell, _Cell]]:
    """Those that were asked the same, and answer the same but for a few queries.

    Not two that were not trained: these may.
    """
    targets = cells[0].proof.episodes.targets.ravel().astype(np.int16)
    answers = [cell.proof.episodes.predictions.ravel().astype(np.int16) for cell in cells]
    wrong = [own != targets for own in answers]
    for place, one in enumerate(cells):
        for before in range(place):
            if not (one.trained or cells[before].trained):
                continue
            either = np.count_nonzero(wrong[place] | wrong[before])
            differ = np.count_nonzero(answers[place] != answers[before])
            if either >= FEWEST_WRONG and differ < COPIED * either:
                yield one, cells[before]


def _own(row: RowOf, twins: Iterable[tuple[_Cell, _Cell]], many: bool) -> None:
    """Training leaves its mark: what was trained twice doesn't predict the same throughout.

    Two cells of one training that differ in settings of the algorithm may, where these decide
    nothing, and models without parameters: what is the case can't be told here.
    """
    open_ = "there are too many predictions to compare" if many else ""
    for pair in twins:
        if all(one.row is not row for one in pair):
            continue
        mine, other = pair if pair[0].row is row else pair[::-1]
        if mine.without_parameters and other.without_parameters:
            open_ = "it says that it has nothing to train"
            continue
        if other.row is row:
            seeds = " and ".join(str(one.proof.record.identity.seed) for one in (other, mine))
            raise EvidenceError(f"its seeds {seeds} predict the same, query by query")
        told = f"it predicts the same as {other.row.what}, query by query"
        same = _how_same(mine.proof.record, other.proof.record)
        require(same != "no", told)
        if same == "but for settings":
            open_ = f"{told}: settings that decide nothing, or a copy"
    if open_:
        raise CannotCheckError(open_)


def _how_same(one: CellRecord, other: CellRecord) -> Literal["yes", "but for settings", "no"]:
    """Whether two records are of one training, run twice perhaps, as far as they say.

    Of a recipe, what only decides which step is kept may differ, and of supervised training what
    is of episodes.
    """
    mine, theirs = one.identity, other.identity
    parts = [
        (i.seed, i.algorithm.name, i.backbone.name, i.backbone.hp, i.dataset.name, i.dataset.hp)
        for i in (mine, theirs)
    ]
    if parts[0] != parts[1]:
        return "no"
    if (mine.recipe, mine.algorithm.hp) == (theirs.recipe, theirs.algorithm.hp):
        return "yes"
    supervised = bool(one.phases) and bool(other.phases)
    recipes = [_deciding(recipe_of(identity), supervised) for identity in (mine, theirs)]
    return "but for settings" if recipes[0] == recipes[1] else "no"


def _deciding(recipe: Recipe, supervised: bool) -> dict[str, object]:
    if supervised:
        return recipe.batch_identity
    return {name: value for name, value in recipe.identity.items() if name not in _OF_SELECTION}


_OF_SELECTION = {"validate_every", "validation_episodes", "select"}


def _scores(row: RowOf) -> None:
    """The record's own score and counts are those of its predictions."""
    for proof in row.proofs:
        result = proof.record.result
        metric = str(proof.record.identity.protocol.get("metric"))
        score = float(proof.episodes.scores(metric).mean())
        require(0 <= score <= 1, f"its score is {score}")
        require(
            math.isclose(result.score, score, rel_tol=SCORE, abs_tol=SCORE),
            f"its record says {result.score:.6f}, its predictions give {score:.6f}",
        )
        count = len(proof.episodes.targets)
        require(
            result.episodes == count, f"its record says {result.episodes} episodes, not {count}"
        )


def _spread(row: RowOf) -> None:
    """Episodes vary no less than their queries do by being drawn.

    Within a class of one episode the hits are so many of q independent draws; the sum of their
    variances over classes is what hits vary by between episodes at least (law of total variance).
    """
    from scipy.stats import chi2

    told = False
    for proof in row.proofs:
        hits, expected = _variances(proof.episodes)
        freedom = len(hits) - 1
        if expected <= 0 or freedom < 1:
            continue
        found = float(hits.var(ddof=1))
        # Hits are whole numbers: in few episodes they are all the same by chance.
        likeliest = 1 / math.sqrt(max(1.0, 2 * math.pi * expected))
        if found == 0 and likeliest**freedom > _NEVER:
            continue
        told = True
        least = LEAST_SPREAD * expected * float(chi2.ppf(_NEVER, freedom)) / freedom
        require(
            found >= least,
            f"its episodes vary by {math.sqrt(found):.4f} hits (standard deviation), independent"
            f" queries by {math.sqrt(expected):.4f}",
        )
    if not told:
        raise CannotCheckError(
            "few episodes, one query a class, or classes alike say nothing of spread"
        )


def _variances(results: EpisodeResults) -> tuple[NDArray[np.float64], float]:
    """(E,) hits of each episode, and the mean variance that drawing its queries gives."""
    right = (results.predictions == results.targets).astype(np.float64)
    # Only labels that an episode has are counted: a protocol may say that there are many more.
    episode = np.arange(len(right), dtype=np.int64)[:, None]
    labels = (episode * (int(results.targets.max()) + 1) + results.targets).ravel()
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    share = np.bincount(of, right.ravel()) / counts
    several = counts > 1
    unbiased = counts * share * (1 - share) * counts / np.maximum(counts - 1, 1)
    return right.sum(1), float(unbiased[several].sum() / len(right))


def _probabilities(row: RowOf, registry: Registry) -> None:
    """What was predicted is what was likeliest, and no two probabilities come to more than 1."""
    for proof in row.proofs:
        ways = protocol_of(proof.record.identity).ways
        for results in filter(None, (proof.episodes, proof.disjoint)):
            _likeliest(results, ways)
    name = row.proofs[0].record.identity.algorithm.name
    entry = registry.find("algorithm", name)
    if entry is None:  # which another check says
        return
    told = entry.load().output == "logits"
    for proof in row.proofs:
        for results in filter(None, (proof.episodes, proof.disjoint)):
            why = f"{name} gives {'' if told else 'no '}probabilities, its evidence otherwise"
            require((results.confidence is not None) == told, why)


def _likeliest(results: EpisodeResults, ways: int) -> None:
    target, predicted = results.surprise, results.confidence
    if target is None or predicted is None:
        return
    right = results.predictions == results.targets
    same = "a right prediction has another probability than its target"
    require(bool((target == predicted)[right].all()), same)
    require(bool((target >= predicted).all()), "a wrong prediction is less likely than its target")
    codes = np.arange(256)
    least, most = (np.exp(-np.square(np.maximum(codes + by, 0) / A_ROOT)) for by in (0.5, -0.5))
    least[255] = 0.0  # that code stands for all that is less likely too
    chance = bool((most[predicted] >= 1 / ways - ROUNDING).all())
    require(chance, f"what it predicts is less likely than one of {ways} by chance")
    both = (least[predicted] + least[target])[~right]
    require(bool((both <= 1 + ROUNDING).all()), "two probabilities of a query come to more than 1")


def _times(row: RowOf) -> None:
    """No time is below what its arithmetic takes, and nothing began after now."""
    uncounted = False
    for proof in row.proofs:
        _duration(proof)
        _start(proof.cell.run.started)
        if proof.cell.times is not None:
            uncounted |= not all(_time(proof.cell.times, part) for part in ("adapt", "predict"))
    if uncounted:
        raise CannotCheckError("a time of it stands without operations, or without a peak")


def _time(times: CellTimes, part: str) -> bool:
    """Whether there is something to compare a time with, if there is one."""
    ms, flops = getattr(times, f"{part}_ms"), getattr(times, f"{part}_flops")
    if ms is None:
        return True
    require(ms > 0, f"{part}_ms is {ms}")
    require((flops or 0) >= 0, f"{part} took {flops} operations")
    if flops is None or times.peak_flops is None:
        return False
    peak = times.peak_flops
    require(0 < peak <= FASTEST, f"its machine reaches {peak:g} FLOP/s")
    least = 1000 * flops / (peak * OVER_PEAK)
    require(
        ms >= least, f"{part}_ms is {ms:g}: its {flops} operations take {least:g} ms at the least"
    )
    return True


def _duration(proof: Proof) -> None:
    run, train_s = proof.cell.run, proof.cell.train_s
    for name, value in (("train_s", run.train_s), ("test_s", run.test_s)):
        require(value is None or value >= 0, f"its {name} is {value}")
    if train_s is None:
        return
    # With the phases that it shares with others, so not less than its own.
    alone = run.train_s or 0.0
    require(train_s >= alone - 1e-9, f"its train_s is {train_s}, of which {alone} alone")
    steps = proof.record.result.budget
    require(train_s >= steps * STEP_S, f"it was trained in {train_s:g} s, for {steps} steps")


def _start(started: str) -> None:
    if not started:
        return
    try:
        when = datetime.fromisoformat(started)
    except ValueError as error:
        raise EvidenceError(f"it was started {started!r}, which is no time") from error
    require(when.tzinfo is not None, "it was started at a time of no zone")
    require(when <= datetime.now(UTC) + CLOCK, f"it was started {started}, which is to come")
