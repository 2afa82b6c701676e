"""The workbench: what a process keeps between cells, and what a cell means on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metabench.api.backbone import ItemSpec
from metabench.api.dataset import Dataset
from metabench.api.phases import Batches, Phase
from metabench.data.folder import using_data_folder
from metabench.engine.build import Blueprint, training_bank
from metabench.engine.modes import engines_of
from metabench.engine.numerics import numerics
from metabench.engine.precision import Precision
from metabench.engine.train import planned_phases
from metabench.engine.trial import Trial
from metabench.episodes.bank import ClassBank, assert_disjoint
from metabench.episodes.digest import digest
from metabench.errors import MetabenchError
from metabench.registry import Registry
from metabench.runner.cells import Cell, Choice
from metabench.runner.resolve import load_choice
from metabench.runner.served import check_served
from metabench.store.code import code_digest
from metabench.store.keys import (
    CellIdentity,
    DatasetIdentity,
    Numerics,
    PhaseIdentity,
    PluginIdentity,
    fresh_code,
)

log = logging.getLogger("metabench.runner")


@dataclass
class Workbench:
    """Plugins, data and device of one process.

    Attributes:
        registry: where plugins come from.
        data_folder: where data sets are.
        device: what everything runs on.
        engine: how inner loops are run, or `auto`.
        precision: in which networks are computed.
        threads: cores among which the tasks of a meta-step are shared; changes no digit.
        unread: stands for plugin code without a source; another in every run, the same in the
            workers of one.
    """

    registry: Registry
    data_folder: Path
    device: torch.device
    unread: str = field(default_factory=fresh_code)
    engine: str = "auto"
    precision: Precision = "float32"
    threads: int = 1
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _banks: dict[tuple[str, str, int | None], Mapping[str, ClassBank]] = field(default_factory=dict)
    _code: dict[tuple[type, ...], str] = field(default_factory=dict)

    # Data.

    def dataset(self, cell: Cell) -> Dataset:
        """The cell's data set, prepared or not."""
        name = _choice_key(cell.dataset)
        if name not in self._datasets:
            cls, hp = load_choice(self.registry, "dataset", cell.dataset)
            self._datasets[name] = cls(self.data_folder, hp)
        return self._datasets[name]

    def banks(self, cell: Cell) -> Mapping[str, ClassBank]:
        """The cell's splits; no class stands in two of them."""
        protocol = cell.protocol
        key = (_choice_key(cell.dataset), protocol.class_split, protocol.image_size)
        if key not in self._banks:
            banks = self.dataset(cell).banks(protocol.class_split, protocol.image_size)
            assert_disjoint(banks)
            self._banks[key] = banks
        return self._banks[key]

    def item(self, cell: Cell) -> ItemSpec:
        """What one item of the cell's data set is."""
        return self.dataset(cell).item(cell.protocol.image_size)

    def check(self, cell: Cell) -> None:
        """Raise before anything is trained if the data cannot serve the protocol or a phase.

        Raises:
            ProtocolError: it cannot; the message begins with the cell.
        """
        try:
            check_served(self.banks(cell), cell.protocol, cell.recipe, self.sketch(cell))
        except MetabenchError as error:
            raise type(error)(f"{cell.id}: {error.message}", error.hint) from None

    # Algorithms.

    def blueprint(self, cell: Cell) -> Blueprint:
        """The cell's plugins and settings, typed."""
        algorithm, algorithm_hp = load_choice(self.registry, "algorithm", cell.algorithm)
        backbone, backbone_hp = load_choice(self.registry, "backbone", cell.backbone)
        return Blueprint(
            algorithm, algorithm_hp, backbone, backbone_hp, cell.recipe, cell.protocol, cell.seed
        )

    def trial(self, cell: Cell) -> Trial:
        """The cell's training and test, on this process's device."""
        return Trial(
            self.blueprint(cell),
            self.item(cell),
            self.banks(cell),
            self.device,
            self.engine,
            self.precision,
        )

    def sketch(self, cell: Cell) -> list[Phase]:
        """The cell's phases, from a build without memory or arithmetic where that works.

        Returns:
            the phases; none where the plugin raises: then the cell fails when it is run, as a
            row with a status, and the run goes on.

        Raises:
            MetabenchError: something that the user can mend before anything is trained.
        """
        bank = training_bank(self.banks(cell)["train"], cell.recipe, cell.protocol)
        for device in ("meta", "cpu"):  # not everything that may stand in `build` works on meta
            try:
                with torch.device(device), using_data_folder(self.data_folder):
                    algorithm = self.blueprint(cell).build(self.item(cell), bank, device)
                    return planned_phases(algorithm, cell.recipe, cell.seed)
            except MetabenchError:
                raise
            except (Exception, SystemExit) as error:
                log.debug("%s cannot be sketched on %s: %s", cell.id, device, error)
        return []

    def shared_phase_key(self, cell: Cell) -> str | None:
        """The key of the cell's shared phase, if another process would know it by the same."""
        first = next(iter(self.sketch(cell)), None)
        if not isinstance(first, Batches) or not first.shared:
            return None
        bank = training_bank(self.banks(cell)["train"], cell.recipe, cell.protocol)
        identity = self.phase_identity(cell, first, bank)
        return identity.key if identity.reusable else None

    # Identities.

    def identity(self, cell: Cell) -> CellIdentity:
        """Everything that decides the cell's numbers."""
        algorithm = self.registry.get("algorithm", cell.algorithm.name).load()
        return CellIdentity(
            protocol=cell.protocol.identity,
            recipe=cell.recipe.identity,
            dataset=self._dataset_identity(cell),
            algorithm=self._plugin(cell.algorithm, algorithm),
            backbone=self._backbone_identity(cell),
            seed=cell.seed,
            numerics=self._numerics(str(engines_of(algorithm, self.engine, self.device.type))),
        )

    def phase_identity(self, cell: Cell, phase: Batches, bank: ClassBank) -> PhaseIdentity:
        """Everything that decides a shared phase's artefact; `bank` is what it is trained on."""
        return PhaseIdentity(
            dataset=self._dataset_identity(cell),
            classes={
                "class_split": cell.protocol.class_split,
                "image_size": cell.protocol.image_size,
                "split": bank.split,
                "views": bank.views,
                **({} if phase.labels else {"labels": False}),
            },
            backbone=self._backbone_identity(cell),
            name=phase.name,
            recipe=phase.recipe.batch_identity,
            module=_module_digest(phase.module),
            code=self._code_of(*_classes(phase.module), phase.loss, unread=f"{self.unread}-phase"),
            seed=cell.seed,
            numerics=self._numerics(),
        )

    def _dataset_identity(self, cell: Cell) -> DatasetIdentity:
        choice = cell.dataset
        classes = {split: list(bank.names) for split, bank in self.banks(cell).items()}
        return DatasetIdentity(
            name=choice.name,
            hp=choice.hyperparameters,
            digest=self.dataset(cell).digest(),
            classes=digest(classes),
            item=asdict(self.item(cell)),
            code=self._code_of(type(self.dataset(cell)), unread=f"{self.unread}-{choice.name}"),
        )

    def _backbone_identity(self, cell: Cell) -> PluginIdentity:
        return self._plugin(cell.backbone, self.registry.get("backbone", cell.backbone.name).load())

    def _plugin(self, choice: Choice, cls: type) -> PluginIdentity:
        code = self._code_of(cls, unread=f"{self.unread}-{cls.__qualname__}")
        return PluginIdentity(name=choice.name, hp=choice.hyperparameters, code=code)

    def _code_of(self, *things: Any, unread: str = "") -> str:
        # Kept, so that code without a source stays the same within this process.
        if things not in self._code:
            self._code[things] = code_digest(*things) or unread or fresh_code()
        return self._code[things]

    def _numerics(self, engine: str = "loop") -> Numerics:
        return Numerics(**numerics(self.device.type, engine, self.precision))


def _classes(module: nn.Module) -> list[type]:
    """The classes of a module's layers, each once."""
    return sorted({type(layer) for layer in module.modules()}, key=lambda cls: cls.__qualname__)


def _module_digest(module: nn.Module) -> str:
    """What a module is made of: its layers, and the plain settings that they hold."""
    settings = [
        [name, {k: v for k, v in vars(layer).items() if _is_setting(k, v)}]
        for name, layer in module.named_modules()
    ]
    return digest([repr(module), settings])


def _is_setting(name: str, value: object) -> bool:
    return name != "training" and isinstance(value, bool | int | float | str)


def _choice_key(choice: Choice) -> str:
    return f"{choice.name} {digest(choice.hyperparameters)}"
