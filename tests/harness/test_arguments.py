"""Backbones whose name has an argument: `library:NAME`, wherever a backbone is named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from click.testing import CliRunner
from pydantic import field_validator
from small_registry import REGISTRY, SUITE
from torch import Tensor

from metabench import Backbone, Field, Hyperparameters, Lazy
from metabench.cli import complete, main
from metabench.cli.list import rows_of
from metabench.errors import PluginError, UnknownNameError, UsageError
from metabench.registry import Registry, make_entry
from metabench.runner.cells import Cell
from metabench.runner.matrix import Filters, build_matrix
from metabench.runner.resolve import load_choice, settings_of
from metabench.runner.suite import load_suite
from metabench.testing.benchmarks.asked import Asked
from metabench.testing.conformance import target


class LibrarySettings(Hyperparameters):
    network: Annotated[str, Field(description="its name")] = "small"
    width: Annotated[int, Field(ge=1, description="channels")] = 8

    @field_validator("network")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in {"small", "large.v2"}:
            raise ValueError("there is no such network")
        return name


class Library(Backbone):
    """Networks by name."""

    name = "library"
    reference = "none"
    summary = "Networks by name."
    hyperparameters = LibrarySettings
    argument = "network"

    def forward(self, data: Tensor) -> Tensor:
        return data


ENTRY = make_entry("backbone", Library, "p", "p")
KNOWN = Registry(
    REGISTRY.algorithms, {**REGISTRY.backbones, "library": ENTRY}, REGISTRY.datasets, {}
)


def cells(tmp_path: Path, backbone: str, **filters: Any) -> list[Cell]:
    """The cells of the usual suite with another backbone beside its own, on that one alone."""
    path = tmp_path / "mine.toml"
    path.write_text(SUITE + f'\n[[backbone]]\n{backbone}\n[[algorithm]]\nname = "learner"\n')
    filters = {"seeds": 1, "protocols": ["5w1s"], "backbones": ["library*"], **filters}
    found = build_matrix(load_suite(path), KNOWN, Filters(**filters))
    return [cell for cell in found if cell.algorithm.name == "learner"]


def test_a_name_sets_the_hyper_parameter_that_the_class_says() -> None:
    entry = KNOWN.get("backbone", "library:large.v2")
    assert entry.load() is Library
    assert entry.name == "library:large.v2"
    assert entry.plain_name == "library"
    assert entry.settings == {"network": "large.v2"}
    assert settings_of(entry) == LibrarySettings(network="large.v2")
    plain = KNOWN.get("backbone", "library")
    assert plain.settings == {}
    assert settings_of(plain) == LibrarySettings()


@pytest.mark.parametrize("name", ["library:", "net:small", ":small", "librari:small", "net:"])
def test_other_names_are_nobodys(name: str) -> None:
    assert KNOWN.find("backbone", name) is None
    with pytest.raises(UnknownNameError, match="there is no backbone called"):
        KNOWN.get("backbone", name)


def test_who_takes_no_argument_says_how_it_is_called() -> None:
    with pytest.raises(UnknownNameError) as found:
        KNOWN.get("backbone", "net:small")
    assert found.value.hint == "it is called net"
    with pytest.raises(UnknownNameError) as found:
        KNOWN.get("backbone", "library:")
    assert found.value.hint == "it is called library:NAME"


def test_a_value_that_is_not_possible_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"library:huge: network = .huge.: there is no such netw"):
        settings_of(KNOWN.get("backbone", "library:huge"))


def test_in_a_cell_it_is_the_plugin_with_that_setting(tmp_path: Path) -> None:
    [cell] = cells(tmp_path, 'name = "library:large.v2"')
    assert cell.backbone.name == "library"
    assert cell.backbone.label == "library:large.v2"
    assert cell.backbone.hyperparameters == {"network": "large.v2", "width": 8}
    assert cell.id == "points/5w1s15q/learner/library:large.v2/seed0"
    assert load_choice(KNOWN, "backbone", cell.backbone) == (
        Library,
        LibrarySettings(network="large.v2"),
    )
    # Written out, it is the same backbone, and so has the same key.
    [written] = cells(tmp_path, 'name = "library"\nhyperparameters = {network = "large.v2"}')
    assert written.backbone.hyperparameters == cell.backbone.hyperparameters
    assert written.backbone.name == cell.backbone.name
    [default] = cells(tmp_path, 'name = "library"')
    assert default.backbone.label == "library"
    assert default.backbone.hyperparameters["network"] == "small"


def test_settings_beside_it_stand_in_the_label(tmp_path: Path) -> None:
    [cell] = cells(tmp_path, 'name = "library:large.v2"\nhyperparameters = {width = 3}')
    assert cell.backbone.label == "library:large.v2,width=3"
    assert cell.backbone.hyperparameters == {"network": "large.v2", "width": 3}


def test_one_network_by_the_name_and_another_beside_it_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"network is 'large.v2' by the name") as found:
        cells(tmp_path, 'name = "library:large.v2"\nhyperparameters = {network = "small"}')
    assert found.value.hint == "say it once: name = 'library:small'"


@pytest.mark.parametrize("pattern", ["library", "library:large.v2", "library:*", "*large*", "mine"])
def test_filters_and_settings_know_it_by_each_of_its_names(tmp_path: Path, pattern: str) -> None:
    text = 'name = "library:large.v2"\nlabel = "mine"'
    [cell] = cells(tmp_path, text, backbones=[pattern])
    assert cell.backbone.label == "mine"
    [cell] = cells(tmp_path, text, backbones=["mine"], settings=[f"backbone.{pattern}.width=5"])
    assert cell.backbone.hyperparameters == {"network": "large.v2", "width": 5}
    assert cell.variant == "backbone.width=5"
    left = cells(tmp_path, text, backbones=["*"], exclude=[pattern])
    assert {cell.backbone.label for cell in left} == {"net-32", "pixels"}


def test_the_arguments_that_choose_a_cell_choose_it_again(tmp_path: Path) -> None:
    [cell] = cells(tmp_path, 'name = "library:large.v2"')
    at = cell.arguments.index("--backbone")
    assert cells(tmp_path, 'name = "library:large.v2"', backbones=[cell.arguments[at + 1]]) == [
        cell
    ]


def test_an_unknown_name_in_a_suite_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"\[\[backbone\]\] 3 \(net:x\)") as found:
        cells(tmp_path, 'name = "net:x"\nlabel = "library-x"')
    assert found.value.hint == "it is called net"


def test_it_is_listed_by_a_name_that_can_be_used_and_where_its_argument_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = rows_of(KNOWN, "backbones")
    assert [row["name"] for row in rows] == ["net", "pixels", "library"]
    assert [row["argument"] for row in rows] == ["", "", "network"]
    assert all(KNOWN.find("backbone", str(row["name"])) for row in rows)
    monkeypatch.setattr("metabench.cli.list.registry", lambda: KNOWN)
    for fmt in ("table", "markdown"):
        shown = CliRunner().invoke(main, ["list", "backbones", "--format", fmt]).stdout
        assert "library:NAME" in shown
        assert "argument" not in shown
    assert "library:NAME" in CliRunner().invoke(main, ["list"]).stdout
    as_csv = CliRunner().invoke(main, ["list", "backbones", "--format", "csv"]).stdout
    assert "\nlibrary,network," in as_csv


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("libary:large.v2", "library:large.v2"),
        ("libary:", "library:NAME"),
        ("libary", "library"),
        ("pixel", "pixels"),
        ("nte:small", None),  # has no argument, and another name would be as far off
    ],
)
def test_a_misspelt_family_is_recognised_and_what_stands_behind_it_kept(
    name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KNOWN.nearest(name, ("backbone",)) == meant
    hint = f"did you mean {meant!r}?" if meant else "known: library, net, pixels"
    with pytest.raises(UnknownNameError) as found:
        KNOWN.get("backbone", name)
    assert found.value.hint == hint
    with pytest.raises(UnknownNameError) as found:
        Asked(backbones=(name,)).check(KNOWN)
    assert found.value.hint == hint
    monkeypatch.setattr("metabench.cli.show.registry", lambda: KNOWN)
    monkeypatch.setattr(target, "registry", lambda: KNOWN)
    if meant:
        assert hint in CliRunner().invoke(main, ["show", name]).stderr
        with pytest.raises(UsageError) as refused:
            target.resolved(name)
        assert refused.value.hint == hint


def test_a_name_with_nothing_behind_its_colon_is_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there may be one called so, as there is `torchvision`."""
    monkeypatch.setattr(target, "registry", lambda: KNOWN)
    with pytest.raises(UnknownNameError) as refused:
        target.resolved("library:")
    assert refused.value.hint == "it is called library:NAME"


def test_a_shell_offers_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "_known", lambda: KNOWN)
    context: Any = None
    offered = complete.names_of("backbone")(context, context, "lib")
    assert [item.value for item in offered] == ["library", "library:"]
    assert [i.value for i in complete.anything(context, context, "lib")] == ["library", "library:"]


def test_show_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metabench.cli.show.registry", lambda: KNOWN)
    for name in ("library:large.v2", "backbone:library:large.v2"):
        done = CliRunner().invoke(main, ["show", name, "--json"])
        assert done.exit_code == 0, done.output
        assert '"name": "library:large.v2"' in done.stdout
        assert '"default": "large.v2"' in done.stdout


# What a plugin may state.


class Without(Library):
    argument = "network"
    hyperparameters = Hyperparameters


def test_an_argument_has_to_be_a_hyper_parameter() -> None:
    with pytest.raises(PluginError, match="no hyper-parameter 'network'"):
        make_entry("backbone", Without, "p", "p")


def test_only_a_backbone_may_have_one() -> None:
    lazy = Lazy("net", "a.b:C", "metric", "inductive", "none", "none", argument="network")
    with pytest.raises(PluginError, match="only a backbone's name"):
        make_entry("algorithm", lazy, "p", "p")


def test_a_lazy_entry_is_loaded_under_its_plain_name() -> None:
    lazy = Lazy("library", f"{__name__}:Library", "network", "", "none", "Networks.", "network")
    known = Registry(backbones={"library": make_entry("backbone", lazy, "p", "p")})
    assert known.get("backbone", "library:small").load().name == "library"
