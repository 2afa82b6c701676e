"""The models of what is written about a cell: its record, how it ran, how it failed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from metabench.episodes.digest import digest
from metabench.errors import StoreError
from metabench.store.files import json_bytes
from metabench.store.keys import SCHEMA, CellIdentity, Identity, PhaseIdentity

RECORD = "record.json"
RUN = "run.json"
EPISODES = "episodes.parquet"
DISJOINT = "disjoint.parquet"
CHECKPOINT = "checkpoint.safetensors"
CURVE = "training.csv"
LOG = "log.txt"
TIMING = "timing"

UNLISTED = frozenset({RECORD, RUN, LOG, TIMING})
"""What a record doesn't vouch for, because it differs from one run to the next."""

FailureStatus = Literal["error", "out-of-memory", "nan", "timeout", "killed"]

Count = Annotated[int, Field(ge=0)]


class CorruptError(ValueError):
    """A record or a file that isn't what was written."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileFacts(_Model):
    """Size in bytes and BLAKE2b-128 of a file beside a record."""

    size: Count
    blake2b: str


class Result(_Model):
    """What came out of a cell.

    Attributes:
        score: the mean over episodes; tables recompute it from `episodes.parquet`.
        episodes: how many were tested.
        validation_score: of the checkpoint that was selected; None without validation.
        selected_step: the meta-step of that checkpoint; None where nothing was trained.
        parameters: numbers in the model's parameters.
        train_items: items seen in training, repetitions counted, shared phases included.
        budget: meta-steps.
        figures: what the algorithm measured of itself on meta-validation, by name; it decides
            nothing.
        predictions: `EpisodeResults.digest` of `episodes.parquet`, and
        disjoint: of `disjoint.parquet`, empty where the data allow none; by these the numbers
            are known again in another file.

    The last three are left out of the file where there is nothing in them.
    """

    score: float
    episodes: Annotated[int, Field(ge=1)]
    validation_score: float | None = None
    selected_step: Count | None = None
    parameters: Count
    train_items: Count
    budget: Count
    figures: dict[str, float] = {}
    predictions: str = ""
    disjoint: str = ""

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        late = ("figures", "predictions", "disjoint")
        return {k: v for k, v in fields.items() if v or k not in late}


class PhaseResult(_Model):
    """What a shared phase cost: items seen, repetitions counted, and steps."""

    train_items: Count
    budget: Count


class Record(_Model):
    """What stands in `record.json`: nothing of it depends on time, host or duration.

    Attributes:
        key: of the identity, and the folder's name.
        files: size and digest of each file beside it, but for `UNLISTED`.
        digest: of all other fields of the record.
    """

    LABEL: ClassVar[str] = "record"

    schema_version: int = SCHEMA
    key: str
    identity: Identity
    files: dict[str, FileFacts]
    digest: str

    @classmethod
    def seal(cls, identity: Identity, files: dict[str, FileFacts], **fields: Any) -> Self:
        """The record of an identity and the files beside it."""
        draft = cls(identity=identity, key=identity.key, files=files, digest="", **fields)
        return draft.model_copy(update={"digest": _seal(draft.to_json())})

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Check and read the content of a `record.json`.

        Raises:
            CorruptError: it is not what was written.
            StoreError: a newer version wrote it.
        """
        if not isinstance(value, dict):
            raise CorruptError("no table")
        version = value.get("schema_version")
        if isinstance(version, int) and version > SCHEMA:
            raise newer_version(f"{cls.LABEL} {value.get('key')}", version)
        try:
            record = cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CorruptError(f"{where}: {first['msg']}") from error
        if value["digest"] != _seal(value) or record.key != record.identity.key:
            raise CorruptError("its digest is of another content")
        return record

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.model_dump(mode="json")

    def to_bytes(self) -> bytes:
        """The content of `record.json`."""
        return json_bytes(self.to_json())


class CellRecord(Record):
    """The record of a finished cell.

    Attributes:
        inference: as declared and verified.
        phases: keys of the shared phases that it stands on.
    """

    LABEL: ClassVar[str] = "cell"

    identity: CellIdentity
    inference: Literal["inductive", "transductive"]
    result: Result
    phases: tuple[str, ...] = ()


class PhaseRecord(Record):
    """The record of a finished shared phase."""

    LABEL: ClassVar[str] = "shared phase"

    identity: PhaseIdentity
    result: PhaseResult


class RunInfo(_Model):
    """`run.json`: on what and how a cell ran. Not deterministic, and no part of a record.

    Attributes:
        metabench, python, torch, numpy: versions.
        platform: operating system and processor.
        device: the device's name.
        instructions: vector instructions that PyTorch computes with on the CPU, such as `AVX2`.
        threads: of PyTorch.
        started: UTC, ISO 8601.
        train_s, test_s: seconds.
        command: the line that runs it again.
    """

    # What a later version adds is no reason to call the file corrupted.
    model_config = ConfigDict(extra="ignore")

    metabench: str = ""
    python: str = ""
    torch: str = ""
    numpy: str = ""
    platform: str = ""
    device: str = ""
    instructions: str = ""
    threads: int = 0
    started: str = ""
    train_s: float | None = None
    test_s: float | None = None
    command: str = ""


class Failure(_Model):
    """How a cell failed.

    Attributes:
        status: what stands in tables.
        exception: the exception's type; empty where the process ended without one.
        message, traceback: its texts.
        where: such as `train step 120`.
    """

    status: FailureStatus
    exception: str = ""
    message: str = ""
    traceback: str = ""
    where: str = ""


class FailedCell(_Model):
    """`failure.json`: a cell that failed, and on what it ran."""

    schema_version: int = SCHEMA
    key: str
    identity: CellIdentity
    failure: Failure
    run: RunInfo = RunInfo()


def newer_version(what: str, version: int) -> StoreError:
    """The error for something that a newer metabench wrote."""
    return StoreError(
        f"{what} is of a newer version (schema {version}; this metabench knows {SCHEMA})",
        "upgrade metabench, or choose another result folder with --out",
    )


def _seal(value: dict[str, Any]) -> str:
    try:
        return digest({name: item for name, item in value.items() if name != "digest"})
    except (ValueError, TypeError) as error:
        raise CorruptError(str(error)) from error
