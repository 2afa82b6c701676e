"""What can't be: scores that don't follow, spreads under chance's own, times no machine reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.digest import digest_bytes
from metabench.errors import EvidenceError
from metabench.publishing.evidence import Proof
from metabench.publishing.verify.reading import Read, RowOf
from metabench.publishing.verify.report import CannotCheckError, Report, require
from metabench.store.results import EpisodeResults

SCORE = 1e-9
"""By how much a record's score may differ from what its predictions come to."""
LEAST_SPREAD = 0.1
"""Of the variance that queries drawn independently give, what episodes must have at least.

Drawn without replacement from classes of 20 items, 15 queries a class have 4/18 of it.
"""
_NEVER = 1e-6
OVER_PEAK = 1.5
"""Times the measured peak that a counted operation may be done faster: convolutions by other
algorithms need fewer operations than are counted, and the peak is a measurement too."""
CLOCK = timedelta(days=1)
"""By how much a clock may be wrong."""


def check_plausible(row: RowOf, report: Report) -> None:
    """Findings on what can't be, of one row."""
    if not row.proofs:
        return
    report.check("scores", row.what, lambda: _scores(row))
    report.check("spread", row.what, lambda: _spread(row))
    report.check("times", row.what, lambda: _times(row))


def check_apart(read: Read, report: Report) -> None:
    """Findings on predictions that stand under two names or two seeds."""
    by_content: dict[bytes, list[tuple[RowOf, Proof]]] = {}
    rows = [row for row in read.rows() if row.proofs]
    for row in rows:
        for proof in row.proofs:
            by_content.setdefault(_content(proof.episodes), []).append((row, proof))
    twins = [found for found in by_content.values() if len(found) > 1]
    for row in rows:
        report.check("predictions are its own", row.what, partial(_own, row, twins))


def _content(results: EpisodeResults) -> bytes:
    """Of questions and answers, without how sure the answers were: that is changed too easily."""
    answers = np.ascontiguousarray(results.predictions, dtype="<i8").tobytes()
    return digest_bytes(results.queries_digest.encode(), answers)


def _own(row: RowOf, twins: Iterable[Sequence[tuple[RowOf, Proof]]]) -> None:
    """Training leaves its mark: what was trained twice doesn't predict the same throughout.

    What wasn't trained (budget 0) may, and what always predicts one class: it learnt nothing.
    """
    for found in twins:
        mine = [proof for other, proof in found if other is row]
        if not mine or _constant(mine[0].episodes):
            continue
        trained = any(proof.record.result.budget for proof in mine)
        if trained and len(mine) > 1:
            seeds = " and ".join(str(proof.record.identity.seed) for proof in mine[:2])
            raise EvidenceError(f"its seeds {seeds} predict the same, query by query")
        for other, proof in found:
            both = mine[0].record, proof.record
            same = len({(r.identity.algorithm.name, r.identity.backbone.name) for r in both}) == 1
            if other is row or same or other.row.cells == row.row.cells:
                continue
            if any(record.result.budget for record in both):
                raise EvidenceError(f"it predicts the same as {other.what}, query by query")


def _constant(results: EpisodeResults) -> bool:
    first = results.predictions[:, :1]
    return bool((results.predictions == first).all())


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
        told = True
        found = float(hits.var(ddof=1))
        least = LEAST_SPREAD * expected * float(chi2.ppf(_NEVER, freedom)) / freedom
        require(
            found >= least,
            f"its episodes vary by {math.sqrt(found):.4f} hits (standard deviation), independent"
            f" queries by {math.sqrt(expected):.4f}",
        )
    if not told:
        raise CannotCheckError("one query a class, or all of a class alike, say nothing of spread")


def _variances(results: EpisodeResults) -> tuple[NDArray[np.float64], float]:
    """(E,) hits of each episode, and the mean variance that drawing its queries gives."""
    right = (results.predictions == results.targets).astype(np.float64)
    ways = int(results.targets.max()) + 1
    variances = np.zeros(len(right))
    for label in range(ways):
        of = results.targets == label
        count = of.sum(1).astype(np.float64)
        share = (right * of).sum(1) / np.maximum(count, 1)
        several = count > 1
        unbiased = count * share * (1 - share) * count / np.maximum(count - 1, 1)
        variances += np.where(several, unbiased, 0.0)
    return right.sum(1), float(variances.mean())


def _times(row: RowOf) -> None:
    """No time is below what its arithmetic takes, and nothing began after now."""
    for proof in row.proofs:
        _duration(proof)
        _start(proof.cell.run.started)
        times = proof.cell.times
        if times is None:
            continue
        for part in ("adapt", "predict"):
            ms, flops = getattr(times, f"{part}_ms"), getattr(times, f"{part}_flops")
            if ms is None:
                continue
            require(ms > 0, f"{part}_ms is {ms}")
            require((flops or 0) >= 0, f"{part} took {flops} operations")
            if flops and times.peak_flops is not None:
                require(times.peak_flops > 0, f"its machine reaches {times.peak_flops} FLOP/s")
                least = 1000 * flops / (times.peak_flops * OVER_PEAK)
                require(
                    ms >= least,
                    f"{part}_ms is {ms:g}: its {flops} operations take {least:g} ms at the least",
                )


def _duration(proof: Proof) -> None:
    run, train_s = proof.cell.run, proof.cell.train_s
    for name, value in (("train_s", run.train_s), ("test_s", run.test_s)):
        require(value is None or value >= 0, f"its {name} is {value}")
    if train_s is None or run.train_s is None:
        return
    # With the phases that it shares with others, so not less than its own.
    require(
        train_s >= run.train_s - 1e-9, f"its train_s is {train_s}, of which {run.train_s} alone"
    )
    trained = proof.record.result.budget > 0
    require(train_s > 0 or not trained, "it was trained in no time")


def _start(started: str) -> None:
    if not started:
        return
    try:
        when = datetime.fromisoformat(started)
    except ValueError as error:
        raise EvidenceError(f"it was started {started!r}, which is no time") from error
    require(when.tzinfo is not None, "it was started at a time of no zone")
    require(when <= datetime.now(UTC) + CLOCK, f"it was started {started}, which is to come")
