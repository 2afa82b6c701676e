"""The episodes that were tested: all of them, each once, and those that the protocol draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metabench.api.dataset import Dataset
from metabench.engine.trial import FEWEST_DISJOINT
from metabench.episodes.bank import ClassBank
from metabench.episodes.digest import digest
from metabench.episodes.disjoint import DisjointSource
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key
from metabench.errors import DataCorruptError, DataMissingError, EvidenceError, MetabenchError
from metabench.publishing.evidence import Proof
from metabench.publishing.verify.identities import choice_of, protocol_of
from metabench.publishing.verify.reading import RowOf
from metabench.publishing.verify.report import CannotCheckError, Report, require
from metabench.registry import Registry
from metabench.runner.resolve import load_choice
from metabench.store.keys import CellIdentity
from metabench.store.results import EpisodeResults

LARGEST_SIDE = 256
"""Pixels to which images are resized for a stranger's protocol; episodes don't hang on it."""
_NEVER = 1e-9
"""A chance under which two random episodes aren't the same one by chance."""


@dataclass
class DataHere:
    """Data sets of this machine, as a stranger's records ask for them."""

    registry: Registry
    folder: Path
    _known: dict[str, tuple[Dataset, Mapping[str, ClassBank]]] = field(default_factory=dict)
    _asked: dict[str, tuple[EpisodeResults, EpisodeResults | None]] = field(default_factory=dict)

    def banks(self, identity: CellIdentity) -> tuple[Dataset, Mapping[str, ClassBank]]:
        """The data set of a record and its splits.

        Raises:
            CannotCheckError: nobody has it here.
            EvidenceError: it has no such class split.
        """
        protocol, choice = protocol_of(identity), choice_of(identity, "dataset", "")
        key = digest([choice.name, choice.hyperparameters, protocol.class_split])
        if key in self._known:
            return self._known[key]
        if self.registry.find("dataset", choice.name) is None:
            raise CannotCheckError(f"no data set called {choice.name} is installed here")
        if (protocol.image_size or 0) > LARGEST_SIDE:
            raise CannotCheckError(f"images of {protocol.image_size} pixels are not prepared")
        try:
            cls, hp = load_choice(self.registry, "dataset", choice)
            dataset: Dataset = cls(self.folder, hp)
            require(
                protocol.class_split in cls.class_splits,
                f"data set {choice.name} has no class split {protocol.class_split}",
            )
            if dataset.availability() == "missing":
                raise CannotCheckError(
                    f"data set {choice.name} isn't on this machine: metabench data prepare"
                )
            if dataset.availability() == "unprepared":
                dataset.prepare()
            self._known[key] = dataset, dataset.banks(protocol.class_split, protocol.image_size)
        except EvidenceError:
            raise
        except MetabenchError as error:
            raise CannotCheckError(f"data set {choice.name}: {error.message}") from error
        return self._known[key]

    def asked(self, identity: CellIdentity) -> tuple[EpisodeResults, EpisodeResults | None]:
        """What the protocol asks on that data: its test episodes, and the disjoint ones."""
        key = digest([identity.protocol, identity.dataset.name, identity.dataset.hp])
        if key not in self._asked:
            protocol, (_, banks) = protocol_of(identity), self.banks(identity)
            test = banks["test"]
            source = EpisodeSource(test, protocol.shape, protocol_key(test, protocol))
            apart = DisjointSource(test, protocol)
            disjoint = _drawn(apart, apart.count) if apart.count >= FEWEST_DISJOINT else None
            self._asked[key] = _drawn(source, protocol.episodes), disjoint
        return self._asked[key]


def _drawn(source: EpisodeSource, count: int) -> EpisodeResults:
    """Episodes as they stand in results, with the right answers in the place of predictions."""
    drawn = source.draw(range(count))
    classes = np.take_along_axis(drawn.classes, drawn.query_labels, axis=1)
    return EpisodeResults(drawn.query_labels, drawn.query_labels, classes)


def check_episodes(row: RowOf, here: DataHere, report: Report) -> None:
    """Findings on the data of a row and what was asked of it."""
    if not row.proofs:
        return
    report.check("labels", row.what, lambda: _labels(row))
    if report.check("data", row.what, lambda: _data(row.proofs[0].record.identity, here)):
        report.check("episodes", row.what, lambda: _episodes(row, here))


def _data(identity: CellIdentity, here: DataHere) -> None:
    try:
        dataset, banks = here.banks(identity)
        own = dataset.digest()
    except (DataMissingError, DataCorruptError) as error:
        raise CannotCheckError(error.message) from error
    told, name = identity.dataset, identity.dataset.name
    require(own == told.digest, f"its data is d-{told.digest[:8]}, that of {name} is d-{own[:8]}")
    classes = digest({split: list(bank.names) for split, bank in banks.items()})
    require(classes == told.classes, f"its classes are split otherwise than those of {name}")


def _episodes(row: RowOf, here: DataHere) -> None:
    for proof in row.proofs:
        protocol = protocol_of(proof.record.identity)
        shape = protocol.episodes, protocol.ways * protocol.queries
        # Before anything is drawn: a stranger's protocol may ask for a billion.
        require(proof.episodes.targets.shape == shape, "its episodes are not as many as asked for")
        test, apart = here.asked(proof.record.identity)
        _same(proof.episodes, test, "test episode")
        if apart is None or proof.disjoint is None:
            require(
                apart is proof.disjoint,
                "it has disjoint episodes where the data allow none, or none",
            )
        else:
            _same(proof.disjoint, apart, "disjoint episode")


def _same(found: EpisodeResults, expected: EpisodeResults, what: str) -> None:
    if found.queries_digest == expected.queries_digest:
        return
    here, there = found.targets.shape[0], expected.targets.shape[0]
    require(here == there, f"it has {here} {what}s, the protocol draws {there}")
    same_shape = found.targets.shape == expected.targets.shape
    require(same_shape, f"its {what}s have another number of queries")
    odd = (found.targets != expected.targets) | (found.classes != expected.classes)
    number = int(np.flatnonzero(odd.any(1))[0])
    raise EvidenceError(f"its {what} {number} is not the one that the protocol draws")


def _labels(row: RowOf) -> None:
    """What can be told of episodes without their data."""
    for proof in row.proofs:
        protocol = protocol_of(proof.record.identity)
        for results in _parts(proof):
            _in_range(results, protocol)
            _as_many_of_each(results, protocol)
        _each_once(proof.episodes, protocol)


def _parts(proof: Proof) -> list[EpisodeResults]:
    return [part for part in (proof.episodes, proof.disjoint) if part is not None]


def _in_range(results: EpisodeResults, protocol: Protocol) -> None:
    for name, labels in (("target", results.targets), ("prediction", results.predictions)):
        inside = labels.min() >= 0 and labels.max() < protocol.ways
        require(bool(inside), f"a {name} is no label of {protocol.ways} ways")


def _as_many_of_each(results: EpisodeResults, protocol: Protocol) -> None:
    """One class a label, another for each, and as many queries of each as the protocol says."""
    ways = protocol.ways
    require(results.targets.shape[1] == ways * protocol.queries, "its episodes are of another size")
    # As many counts as queries at the most; labels are in range.
    episode = np.arange(len(results.targets))[:, None]
    counts = np.bincount((episode * ways + results.targets).ravel(), minlength=episode.size * ways)
    if protocol.dirichlet is None:
        same = bool((counts == protocol.queries).all())
        require(same, f"an episode has other than {protocol.queries} queries a class")
    order = np.argsort(results.targets, axis=1, kind="stable")
    label = np.take_along_axis(results.targets, order, axis=1)
    of = np.take_along_axis(results.classes, order, axis=1)
    within = np.diff(label, axis=1) == 0
    require(bool((np.diff(of, axis=1)[within] == 0).all()), "a label stands for two classes")
    firsts = np.sort(_firsts(label, of, ways), axis=1)
    twice = (np.diff(firsts, axis=1) == 0) & (firsts[:, 1:] >= 0)
    require(not twice.any(), "two labels of an episode stand for one class")


def _firsts(label: NDArray[np.int64], of: NDArray[np.int64], ways: int) -> NDArray[np.int64]:
    """(E, N) the class of each label; below 0, and each another, where it has no query."""
    found = np.tile(-1 - np.arange(ways), (len(label), 1))
    np.put_along_axis(found, label, of, axis=1)
    return found


def _each_once(results: EpisodeResults, protocol: Protocol) -> None:
    """No episode stands there twice, unless there are so few that chance may draw one twice."""
    episodes, asked = results.targets.shape
    ways, known = protocol.ways, len(np.unique(results.classes))
    # Ways to order the queries and to choose classes, of those that are met at all.
    orders = math.lgamma(asked + 1) - ways * math.lgamma(protocol.queries + 1)
    orders += math.lgamma(known + 1) - math.lgamma(max(known - ways, 0) + 1)
    if protocol.dirichlet is not None or 2 * math.log(episodes) - orders > math.log(_NEVER):
        return
    both = np.concatenate([results.targets, results.classes], axis=1)
    _, first, counts = np.unique(both, axis=0, return_index=True, return_counts=True)
    twice = first[counts > 1]
    require(not len(twice), f"its test episode {int(twice.min(initial=2**62))} stands there twice")
