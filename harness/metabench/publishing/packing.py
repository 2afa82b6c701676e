"""Predictions in few bytes: what little is left of them once it's known what was asked.

A prediction is kept as how far it is off, so that most are 0; of the two probabilities, that of
what was predicted, and by how much that of the target is less likely: nothing where they are the
same. Bytes of one kind lie together (Parquet's BYTE_STREAM_SPLIT), where zstd packs them to about
their entropy. For 75,000 predictions of five classes at 60%, with probabilities, it comes to 90 KB;
labels and codes as they are took 125 KB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from metabench.store.parquet import Column, narrow, parquet_bytes
from metabench.store.results import EpisodeResults

LEVEL = 19
"""Of zstd's compression: these files are written once, and kept in version control."""
SHIFT, CONFIDENCE, EXCESS = "shift", "confidence", "excess"
SURE = (CONFIDENCE, EXCESS)
"""Columns of algorithms that give probabilities."""


def packed(parts: Sequence[EpisodeResults], ways: int) -> bytes:
    """The Parquet file of some predictions, one part after the other, a row a query.

    shift: (predicted - target) modulo `ways`; 0 is right.
    confidence: the code of the probability of what was predicted.
    excess: the code of that of the target, less `confidence`, modulo 256; 0 where it's the same.

    The last two only where all parts have codes; `metabench.engine.probabilities` says what
    codes stand for.

    Raises:
        ValueError: a label isn't one of 0 to `ways` - 1.
    """
    for part in parts:
        for labels in (part.targets, part.predictions):
            if labels.min() < 0 or labels.max() >= ways:
                raise ValueError(f"a label that is not one of 0 to {ways - 1}")
    shifts = [(part.predictions - part.targets) % ways for part in parts]
    kind = np.uint8 if ways <= 256 else np.uint16
    columns = {SHIFT: np.concatenate([narrow(shift, kind) for shift in shifts])}
    confidence = [part.confidence.ravel() for part in parts if part.confidence is not None]
    surprise = [part.surprise.ravel() for part in parts if part.surprise is not None]
    if len(confidence) == len(surprise) == len(parts):
        columns[CONFIDENCE] = np.concatenate(confidence)
        # Of 8 bits each: the difference is modulo 256.
        columns[EXCESS] = np.concatenate(surprise) - columns[CONFIDENCE]
    return parquet_bytes(columns, streams=True, level=LEVEL)


def unpacked(
    columns: Mapping[str, Column], asked: Sequence[EpisodeResults], ways: int
) -> list[EpisodeResults]:
    """The parts again.

    Args:
        columns: of the file; nobody has looked at them yet.
        asked: for each part its targets and classes.

    Raises:
        ValueError: these are no predictions of those queries.
    """
    rows = len(columns[SHIFT])
    expected = sum(part.targets.size for part in asked)
    if rows != expected:
        raise ValueError(f"it has {rows} predictions for {expected} queries")
    there = [name for name in SURE if name in columns]
    if len(there) == 1 or any(columns[name].dtype != np.uint8 for name in there):
        raise ValueError("it has codes of another kind")
    shift = columns[SHIFT].astype(np.int64)
    if shift.min() < 0 or shift.max() >= ways or max(p.targets.max() for p in asked) >= ways:
        raise ValueError(f"it has labels that are not of 0 to {ways - 1}")
    found, start = [], 0
    for part in asked:
        shape, rest = part.targets.shape, slice(start, start + part.targets.size)
        codes = {}
        if there:
            confidence = columns[CONFIDENCE][rest].reshape(shape)
            excess = columns[EXCESS][rest].reshape(shape)
            codes = {"confidence": confidence, "surprise": confidence + excess}
        predicted = (part.targets + shift[rest].reshape(shape)) % ways
        found.append(EpisodeResults(part.targets, predicted, part.classes, **codes))
        start = rest.stop
    return found
