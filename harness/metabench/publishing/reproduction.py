"""Reproductions: that a cell was run again, on what, and whether it predicted the same."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metabench.errors import EvidenceError
from metabench.publishing.evidence import DIGEST, REPRODUCED, Proof
from metabench.publishing.files import Files, read_json
from metabench.store.files import json_bytes
from metabench.store.record import RunInfo

ELSEWHERE = 0.01
"""By how much two scores of one training run may differ on devices of two kinds.

Rounding differs there, and training amplifies it into the third digit of a score. Of the suite
`fewshot`, 26 rows of seed 0 on CPUs with AVX-512 and with AVX2: standard deviation .0039, at most
.0095.
"""


class Reproduction(BaseModel):
    """`evidence/reproduced/<key>.json`.

    Attributes:
        key: of the cell.
        published: digest of the predictions that were published.
        predictions: digest of those of the new run.
        agreement: the share of queries for which both predict the same class.
        score: the mean score of the new run.
        difference: of the mean scores, new - published.
        device, torch: the kind of device and the minor version of PyTorch of the new run.
        same_device: whether both are known to have run on one kind of device, see `_same_device`.
        run: on what it ran again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    format: Literal[1] = 1
    key: str = Field(pattern=DIGEST)
    published: str = Field(pattern=DIGEST)
    predictions: str = Field(pattern=DIGEST)
    agreement: float = Field(ge=0, le=1)
    score: float
    difference: float
    device: str = Field(min_length=1, max_length=50)
    torch: str = Field(min_length=1, max_length=50)
    same_device: bool
    run: RunInfo

    @property
    def holds(self) -> bool:
        """The same predictions on the same kind of device; elsewhere within `ELSEWHERE`."""
        if self.same_device:
            return self.predictions == self.published
        return abs(self.difference) <= ELSEWHERE

    @classmethod
    def between(cls, old: Proof, new: Proof) -> Self:
        """What a new run of a cell says of what was published of it."""
        ran = new.record.identity.numerics
        metric = str(old.record.identity.protocol.get("metric"))
        alike = old.episodes.predictions == new.episodes.predictions
        score = float(new.episodes.scores(metric).mean())
        return cls(
            key=old.record.key,
            published=old.record.result.predictions,
            predictions=new.record.result.predictions,
            agreement=float(np.mean(alike)),
            score=score,
            difference=score - float(old.episodes.scores(metric).mean()),
            device=ran.device,
            torch=ran.torch,
            same_device=_same_device(_Kind.of(old), _Kind.of(new)),
            run=new.cell.run,
        )

    @classmethod
    def read(cls, files: Files, name: str, proof: Proof) -> Self:
        """What was noted of a cell; EvidenceError where it's nothing of the kind."""
        try:
            found = cls.model_validate(read_json(files, name))
        except ValidationError as error:
            raise EvidenceError(f"{name}: {error.errors()[0]['msg']}") from error
        record = proof.record
        if (found.key, found.published) != (record.key, record.result.predictions):
            raise EvidenceError(f"{name} is about other predictions than those published")
        run = found.run
        again = _Kind(found.device, run.device, run.instructions, found.torch)
        if found.same_device != _same_device(_Kind.of(proof), again):
            raise EvidenceError(f"{name} says same_device otherwise than its devices do")
        return found

    def files(self) -> dict[str, bytes]:
        """Its file by name."""
        name = f"{REPRODUCED}/{self.key}.json"
        return {name: json_bytes(self.model_dump(mode="json"))}


def _same_device(one: _Kind, other: _Kind) -> bool:
    """One type and model of device, minor version of PyTorch, and known vector instructions."""
    return one == other and bool(one.instructions)


class _Kind(NamedTuple):
    """What decides how numbers are rounded, the code apart."""

    type: str
    model: str
    instructions: str
    torch: str

    @classmethod
    def of(cls, proof: Proof) -> Self:
        ran = proof.record.identity.numerics
        return cls(ran.device, proof.cell.run.device, proof.cell.run.instructions, ran.torch)
