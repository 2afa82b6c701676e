"""Running published cells again: some that chance picks, and one more training of a row.

Predictions that somebody made up look like any others; only the training tells. What is run is
built from the validated fields of records: protocol, recipe, names of plugins installed here and
settings that these plugins take. The line noted in a bundle is never used.
"""

from __future__ import annotations

import math
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch

from metabench.engine.modes import engines_of
from metabench.engine.precision import Precision, resolve_precision
from metabench.errors import EvidenceError, MetabenchError
from metabench.leaderboard.source import StoreSource
from metabench.publishing.evidence import Proof
from metabench.publishing.published import PublishedSource
from metabench.publishing.reproduction import ELSEWHERE, Reproduction
from metabench.publishing.verify.identities import choice_of, protocol_of, recipe_of
from metabench.publishing.verify.reading import RowOf
from metabench.publishing.verify.report import CannotCheckError, Report, require
from metabench.registry import Registry
from metabench.runner.cells import Cell, Choice
from metabench.runner.resolve import PluginKind, load_choice
from metabench.runner.run import RunOptions, Unwatched, Watch, run_cells
from metabench.store.record import Failure
from metabench.store.store import Store

SUITE = "rerun"
LEVEL = 0.99
"""Of the prediction interval in which the score of another training seed must lie."""
_NOT_ITS_FAULT = ("timeout", "out-of-memory", "killed")


@dataclass(frozen=True)
class Where:
    """On what cells are run again.

    Attributes:
        data_folder: where data sets are.
        device: such as cpu or cuda:0, resolved.
        timeout: seconds that a cell may take; None: as long as it takes, in this process.
    """

    data_folder: Path
    device: torch.device
    timeout: float | None = None


@dataclass
class Reruns:
    """What came of running cells again.

    Attributes:
        report: findings, one for each cell.
        reproductions: by key, of the cells that ran; none where other code is installed here
            and it is so near that nothing can be told.
    """

    report: Report
    reproductions: dict[str, Reproduction] = field(default_factory=dict)


class _Drawn(NamedTuple):
    """A cell to be run; `published` is None for a training seed that the row hasn't got."""

    row: RowOf
    cell: Cell
    model: Proof
    published: Proof | None

    @property
    def what(self) -> str:
        return f"{self.row.what}/seed{self.cell.seed}"


def rerun(
    source: PublishedSource,
    registry: Registry,
    where: Where,
    count: int,
    watch: Watch | None = None,
) -> Reruns:
    """Run `count` cells again, drawn by chance, and one more training seed of a row of theirs.

    Nobody can know beforehand which: the draws come from the system's source of randomness.

    Args:
        source: verified (`verify_files`): all its evidence could be read.
        watch: is told how far it is.
    """
    found = Reruns(Report(source.files.place))
    groups: dict[tuple[str, Precision], list[_Drawn]] = {}
    for row, model, seed in _draw(_rows(source), count):
        mine = model.record.identity.seed == seed
        try:
            cell = cell_of(row, model, registry, seed)
            how = _engine_here(model, registry, where), _precision_here(model, where)
        except MetabenchError as error:
            what = f"{row.what}/seed{seed}"
            found.report.check("run again", what, partial(_cannot, error))
            continue
        groups.setdefault(how, []).append(_Drawn(row, cell, model, model if mine else None))
    with tempfile.TemporaryDirectory(prefix="metabench-rerun-") as folder:
        for number, ((engine, precision), group) in enumerate(groups.items()):
            options = RunOptions(
                results=Path(folder) / str(number),
                data_folder=where.data_folder,
                device=where.device,
                jobs=None if where.timeout is None else 1,
                timeout=where.timeout,
                engine=engine,
                precision=precision,
                timings=False,
            )
            _run(group, registry, options, found, watch or Unwatched())
    return found


def cell_of(row: RowOf, proof: Proof, registry: Registry, seed: int) -> Cell:
    """The cell of a record, with nothing in it that wasn't validated.

    Raises:
        MetabenchError: a plugin isn't installed here, or takes no such settings.
    """
    identity, labels = proof.record.identity, row.row.labels
    kinds: tuple[tuple[PluginKind, str], ...] = (
        ("algorithm", labels.algorithm),
        ("backbone", labels.backbone),
        ("dataset", labels.dataset),
    )
    choices: dict[PluginKind, Choice] = {}
    for kind, label in kinds:
        choice = choice_of(identity, kind, label)
        _, hp = load_choice(registry, kind, choice)
        choices[kind] = choice.model_copy(update={"hyperparameters": hp.model_dump(mode="json")})
    algorithm, hp = load_choice(registry, "algorithm", choices["algorithm"])
    return Cell(
        suite=SUITE,
        dataset=choices["dataset"],
        protocol=protocol_of(identity),
        algorithm=choices["algorithm"],
        variant=labels.variant,
        backbone=choices["backbone"],
        inference=algorithm.inference_mode(hp),
        recipe=recipe_of(identity),
        seed=seed,
    )


def _rows(source: PublishedSource) -> list[RowOf]:
    return [
        RowOf(suite, row, [source.proofs[row.cells[seed]] for seed in sorted(row.cells, key=int)])
        for suite, table in source.tables.items()
        for row in table.rows
    ]


def _draw(rows: Sequence[RowOf], count: int) -> list[tuple[RowOf, Proof, int]]:
    """`count` cells of these rows, each once, and another training seed of one of their rows."""
    chance = secrets.SystemRandom()
    cells = {proof.record.key: (row, proof) for row in rows for proof in row.proofs}
    picked = chance.sample(sorted(cells), min(count, len(cells)))
    drawn = [(*cells[key], cells[key][1].record.identity.seed) for key in picked]
    if not drawn:
        return []
    row, proof, _ = chance.choice(drawn)
    known = {int(seed) for seed in row.row.cells}
    unknown = next(s for s in iter(lambda: secrets.randbelow(2**31), None) if s not in known)
    return [*drawn, (row, proof, unknown)]


def _engine_here(model: Proof, registry: Registry, where: Where) -> str:
    """The engine of a record where this is a device of its kind, else what is usual here."""
    identity = model.record.identity
    if identity.numerics.device != where.device.type:
        return "auto"
    engine = identity.numerics.engine.partition("+")[0]
    # Which raises for one that there isn't.
    engines_of(registry.get("algorithm", identity.algorithm.name).load(), engine, where.device.type)
    return engine


def _precision_here(model: Proof, where: Where) -> Precision:
    return resolve_precision(model.record.identity.numerics.dtype, where.device.type)


def _run(
    group: Sequence[_Drawn], registry: Registry, options: RunOptions, found: Reruns, watch: Watch
) -> None:
    """Run cells of one engine and precision, and compare them with what was published."""
    result = run_cells([d.cell for d in group], registry, options, suite=SUITE, watch=watch)
    source = StoreSource(Store.open(options.results, create=False))
    for one, key in zip(group, result.plan.keys, strict=True):
        check = "run again" if one.published else "another seed"
        if key in result.failures:
            found.report.check(check, one.what, partial(_failed, result.failures[key]))
            continue
        record = source.store.find(key)
        if record is None:
            found.report.check(check, one.what, partial(_cannot, EvidenceError("it didn't run")))
            continue
        new = Proof.of(source, record)
        if one.published is None:
            found.report.check(check, one.what, partial(_within, one, new))
            continue
        again = Reproduction.between(one.published, new)
        found.report.check(check, one.what, partial(_reproduced, one.published, new, again))
        if found.report.findings[-1].state != "not checked":
            found.reproductions[one.published.record.key] = again


def _cannot(error: MetabenchError) -> None:
    raise CannotCheckError(error.message) from error


def _failed(failure: Failure) -> None:
    text = f"it ended by {failure.status}: {failure.exception} {failure.message}"
    raise CannotCheckError(text) if failure.status in _NOT_ITS_FAULT else EvidenceError(text)


def _reproduced(old: Proof, new: Proof, again: Reproduction) -> None:
    """The same predictions on the same kind of device and by the same code, else near enough."""
    _same_inference(old, new)
    same_code = old.record.identity.codes == new.record.identity.codes
    if same_code and again.same_device:
        _same_costs(old, new)
    if again.holds:
        return
    told = (
        f"{again.agreement:.2%} of its predictions are the same, its score moved by"
        f" {again.difference:+.4f}"
    )
    if not same_code and abs(again.difference) <= ELSEWHERE:
        raise CannotCheckError(f"other code is installed here; {told}, within {ELSEWHERE}")
    require(same_code, f"other code is installed here; {told}, more than {ELSEWHERE}")
    raise EvidenceError(told)


def _same_inference(old: Proof, new: Proof) -> None:
    told, found = old.record.inference, new.record.inference
    require(told == found, f"its record says {told}, it was found to be {found} here")


def _same_costs(old: Proof, new: Proof) -> None:
    """What the table says of a training run, and no timer decides."""
    for name in ("budget", "train_items", "parameters"):
        told, found = (getattr(proof.record.result, name) for proof in (old, new))
        require(told == found, f"its {name} is {told}, and {found} when it is run again")


def _within(one: _Drawn, new: Proof) -> None:
    """The score of a seed that nobody could know lies where the row's own seeds predict it."""
    _same_inference(one.model, new)
    metric = str(one.model.record.identity.protocol["metric"])
    own = [float(proof.episodes.scores(metric).mean()) for proof in one.row.proofs]
    score = float(new.episodes.scores(metric).mean())
    if len(own) < 2:
        raise CannotCheckError(f"it scores {score:.4f}; one seed predicts no interval")
    low, high = prediction_interval(own)
    old = one.model.record.identity
    if (old.numerics.device, old.numerics.torch) != (
        new.record.identity.numerics.device,
        new.record.identity.numerics.torch,
    ):
        low, high = low - ELSEWHERE, high + ELSEWHERE
    inside = low <= score <= high
    require(
        inside,
        f"it scores {score:.4f}, and {low:.4f} to {high:.4f} is where {LEVEL:.0%} of the other"
        f" seeds' kind lie",
    )


def prediction_interval(scores: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Where one more score lies with this probability, if all are independent and normal.

    mean +- t s sqrt(1 + 1/n), with the quantile of Student's t of n - 1 degrees of freedom.
    """
    from scipy.stats import t

    count = len(scores)
    spread = stdev(scores) * math.sqrt(1 + 1 / count) * float(t.ppf((1 + level) / 2, count - 1))
    slack = 1e-12  # equal scores may differ in the last digit of their sum
    return fmean(scores) - spread - slack, fmean(scores) + spread + slack
