"""Plugins: what is found, what is refused, and that one bad plugin costs one line."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from metabench import hookspecs, plugins
from metabench.errors import PluginError, UnknownNameError, UsageError
from metabench.plugins import PluginInfo, load_registry
from metabench.registry import KINDS, Registry

FACTS = 'family="metric", inference="inductive", reference="a paper", summary="A sentence."'
HEADER = "from pathlib import Path\nfrom metabench import Lazy, hookimpl\n\n"
ALGORITHMS = HEADER + "@hookimpl\ndef metabench_register_algorithms():\n    "

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path: a module and the metadata that an installer would write."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(plugins.DISABLE, raising=False)
    before = set(sys.modules)

    def put(code: str, *, module: str = "plug", distribution: str = "", point: str = "") -> Path:
        distribution = distribution or f"dist-{module}"
        file = tmp_path / f"{module}.py"
        file.write_text(code)
        info = tmp_path / f"{distribution.replace('-', '_')}-7.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 7.1\n"
        )
        (info / "entry_points.txt").write_text(f"[metabench]\n{point or module} = {module}\n")
        importlib.invalidate_caches()
        return file

    yield put
    for name in set(sys.modules) - before:
        if name.startswith(("plug", "other")):
            del sys.modules[name]


def load(**options: object) -> tuple[Registry, list[str]]:
    lines: list[str] = []
    return load_registry(warn=lines.append, **options), lines  # type: ignore[arg-type]


def info_of(registry: Registry, name: str = "plug") -> PluginInfo:
    [info] = [plugin for plugin in registry.plugins if plugin.name == name]
    return info


def test_builtin_plugins_come_through_the_entry_point_and_first() -> None:
    registry, lines = load()
    assert lines == []
    assert registry.plugins[0].name == "builtin"
    assert registry.plugins[0].distribution == "metabench"
    assert {"maml", "protonet", "nearest-centroid"} <= set(registry.algorithms)
    assert {"conv4", "resnet12", "mlp", "identity"} <= set(registry.backbones)
    assert {"quickdraw", "omniglot"} <= set(registry.datasets)


def test_every_hook_is_documented_and_exercised(install: Install, tmp_path: Path) -> None:
    """A hook without documentation, or one that this plugin does not use, fails here."""
    hooks = {n: f for n, f in vars(hookspecs).items() if hasattr(f, "metabench_spec")}
    assert set(hooks) == {f"metabench_register_{kind}s" for kind in KINDS}
    assert all(len(inspect.getdoc(hook) or "") > 30 for hook in hooks.values())
    (tmp_path / "tiny.toml").write_text('summary = "A tiny suite."\n')
    no_mode = FACTS.replace('inference="inductive", ', "")
    returned = {
        "algorithm": f'[Lazy("one", "plug:One", {FACTS})]',
        "backbone": f'[Lazy("two", "plug:Two", {no_mode})]',
        "dataset": f'(Lazy(name, "plug:Three", {no_mode}) for name in ["three", "3"])',
        "suite": '[Path(__file__).parent / "tiny.toml"]',
    }
    code = HEADER + "".join(
        f"@hookimpl\ndef metabench_register_{kind}s():\n    return {value}\n\n"
        for kind, value in returned.items()
    )
    install(code)
    registry, lines = load()
    assert lines == []
    assert info_of(registry) == PluginInfo("plug", "dist-plug", "7.1", "loaded")
    assert registry.get("algorithm", "one").inference == "inductive"
    assert registry.get("backbone", "two").family == "metric"
    assert registry.get("dataset", "3").plugin == "plug"
    assert registry.get("suite", "tiny").summary == "A tiny suite."
    assert registry.get("suite", "tiny").load() == tmp_path / "tiny.toml"


FAULTS = {
    "raises at import": ("x = 1\nraise RuntimeError('out of order')\n", "out of order", 2),
    "exits at import": ("import sys\nsys.exit(3)\n", "it called sys.exit(3)", 2),
    "a syntax error": ("x = 1\nif x\n", "SyntaxError", 2),
    "a missing dependency": ("import plug_needs_this\n", "No module named 'plug_needs_this'", 1),
    "an error that cannot be told": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd\n",
        "Odd (",
        4,
    ),
    "no hook at all": ("def metabench_register_algorithms():\n    return []\n", "hookimpl", None),
    "a misspelt hook": (
        HEADER + "@hookimpl\ndef metabench_register_dataset():\n    return []\n",
        "'metabench_register_dataset'; the nearest is 'metabench_register_datasets'",
        4,
    ),
    "an argument that the hook has not": (
        HEADER + "@hookimpl\ndef metabench_register_algorithms(config):\n    return []\n",
        "config",
        None,
    ),
    "a hook that raises": (ALGORITHMS + "return 1 / 0\n", "ZeroDivisionError", 6),
    "a hook that exits": (ALGORITHMS + "raise SystemExit('bye')\n", "sys.exit('bye')", 6),
    "a generator that raises": (ALGORITHMS + "yield 1 / 0\n", "ZeroDivisionError", 6),
    "a wrapper": (
        HEADER + "@hookimpl(wrapper=True)\ndef metabench_register_algorithms():\n    yield\n",
        "cannot be wrapped",
        4,
    ),
    "nothing returned": (ALGORITHMS + "pass\n", "returned NoneType, not a list", 4),
    "a string returned": (ALGORITHMS + "return 'protonet'\n", "returned str, not a list", 4),
    "neither class nor Lazy": (ALGORITHMS + "return [7]\n", "7 is neither a class nor", 4),
    "a class of something else": (ALGORITHMS + "return [dict]\n", "not a subclass of metabench", 4),
    "a bad target": (
        ALGORITHMS + f"return [Lazy('one', 'plug.One', {FACTS})]\n",
        "not 'package.module:Class'",
        4,
    ),
    "a bad name": (ALGORITHMS + f"return [Lazy('../x', 'plug:One', {FACTS})]\n", "'../x'", 4),
    "missing facts": (
        ALGORITHMS + "return [Lazy('one', 'plug:One', inference='inductive')]\n",
        "does not state its family, reference, summary",
        4,
    ),
    "an unknown inference mode": (
        ALGORITHMS + f"return [Lazy('one', 'plug:One', {FACTS.replace('inductive', 'both')})]\n",
        "'both'; possible: 'inductive' or 'transductive'",
        4,
    ),
    "a suite that is not there": (
        HEADER + "@hookimpl\ndef metabench_register_suites():\n    return [Path('none.toml')]\n",
        "none.toml does not exist",
        4,
    ),
    "a suite that is no path": (
        HEADER + "@hookimpl\ndef metabench_register_suites():\n    return ['x.toml']\n",
        "by the Path of its file",
        4,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_plugin_costs_one_line_and_registers_nothing(
    fault: str, install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    code, told, line = FAULTS[fault]
    without, _ = load()
    file = install(code)
    registry, lines = load()
    [warning] = lines
    assert warning.startswith("plugin 'plug' of dist-plug 7.1 is left out: ")
    assert "\n" not in warning
    assert told in warning
    assert f"{file}:{line}" in warning if line else str(file) in warning
    assert info_of(registry).status == "failed"
    assert [registry.of(kind) for kind in KINDS] == [without.of(kind) for kind in KINDS]
    assert capfd.readouterr() == ("", "")
    with pytest.raises(PluginError, match="dist-plug") as caught:
        load(strict=True)
    assert plugins.DISABLE in caught.value.hint


def test_a_broken_entry_point_file_harms_nobody(install: Install, tmp_path: Path) -> None:
    install(ALGORITHMS + f"return [Lazy('one', 'plug:One', {FACTS})]\n")
    broken = tmp_path / "aaa-1.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_bytes(b"[metabench]\nnot an entry point \xff\n")
    registry, lines = load()
    assert lines == []
    assert "one" in registry.algorithms


def test_a_taken_name_is_refused_and_both_sides_are_named(install: Install) -> None:
    both = [f"Lazy('{name}', 'plug:One', {FACTS})" for name in ("maml", "one")]
    install(ALGORITHMS + f"return [{', '.join(both)}]\n")
    registry, lines = load()
    [warning] = lines
    assert "plugin 'plug' of dist-plug 7.1 is loaded in part" in warning
    assert "'maml' is taken by plugin 'builtin' of metabench " in warning
    assert registry.get("algorithm", "maml").plugin == "builtin"
    assert registry.get("algorithm", "one").plugin == "plug"
    info = info_of(registry)
    assert info.status == "loaded in part"
    assert "the algorithm name 'maml' is taken" in info.error
    with pytest.raises(PluginError, match="taken by plugin 'builtin'"):
        load(strict=True)


def test_of_two_plugins_the_first_by_distribution_name_keeps_the_name(install: Install) -> None:
    one = ALGORITHMS + f"return [Lazy('one', 'plug:One', {FACTS})]\n"
    install(one, module="plug_late", distribution="Zeta")
    install(one, module="plug_early", distribution="alpha")
    registry, lines = load()
    assert registry.get("algorithm", "one").plugin == "plug_early"
    assert "'one' is taken by plugin 'plug_early' of alpha 7.1" in lines[0]
    assert len(lines) == 1


def test_of_two_installations_of_one_distribution_the_first_on_the_path_counts(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(ALGORITHMS + f"return [Lazy('one', 'plug:One', {FACTS})]\n", distribution="Some.Dist")
    shadowed = tmp_path / "later"
    (shadowed / "some_dist-9.dist-info").mkdir(parents=True)
    (shadowed / "some_dist-9.dist-info" / "METADATA").write_text("Name: some-dist\nVersion: 9\n")
    (shadowed / "some_dist-9.dist-info" / "entry_points.txt").write_text("[metabench]\nplug = no\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(shadowed)])
    registry, lines = load()
    assert lines == []
    assert info_of(registry).version == "7.1"


@pytest.mark.parametrize("word", ["plug", "dist-plug", "Dist_Plug", " ,plug", "all"])
def test_plugins_can_be_disabled_by_either_name(
    word: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("raise RuntimeError\n")
    monkeypatch.setenv(plugins.DISABLE, word)
    registry, lines = load(strict=True)
    assert lines == []
    assert info_of(registry) == PluginInfo("plug", "dist-plug", "7.1", "disabled")
    assert info_of(registry, "builtin").status == "loaded"
    assert "maml" in registry.algorithms


def test_a_name_that_disables_nothing_is_said_with_the_nearest(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(ALGORITHMS + f"return [Lazy('one', 'plug:One', {FACTS})]\n")
    monkeypatch.setenv(plugins.DISABLE, "plugg,xyzzy")
    registry, lines = load(strict=True)
    assert "one" in registry.algorithms
    assert lines == [
        f"{plugins.DISABLE} names 'plugg', and there is no such plugin; did you mean 'plug'?",
        f"{plugins.DISABLE} names 'xyzzy', and there is no such plugin;"
        " metabench list plugins shows their names",
    ]


def test_what_a_plugin_prints_at_import_goes_to_standard_error(
    install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    install("print('hello')\n" + ALGORITHMS + f"return [Lazy('one', 'plug:One', {FACTS})]\n")
    load()
    assert capfd.readouterr() == ("", "hello\n")


def test_a_warning_carries_no_terminal_escape(install: Install) -> None:
    install("raise RuntimeError('\\x1b]0;title\\x07\\x1b[31mred\\nsecond line')\n")
    registry, [warning] = load()
    assert "red second line" in warning
    assert warning.isprintable()
    assert "\x1b" in info_of(registry).error  # data stays as it was


def test_a_lazy_class_is_imported_when_it_is_loaded(install: Install) -> None:
    install(ALGORITHMS + f"return [Lazy('one', 'plug_one:One', {FACTS})]\n")
    registry, _ = load()
    entry = registry.get("algorithm", "one")
    with pytest.raises(PluginError, match=r"dist-plug 7.1 cannot be imported from plug_one:One"):
        entry.load()
    install(algorithm_code("One", "one"), module="plug_one")
    assert entry.load() is sys.modules["plug_one"].One
    install(algorithm_code("Two", "two"), module="plug_two")
    misnamed = replace(entry, source="plug_two:Two")
    with pytest.raises(PluginError, match="calls itself 'two'"):
        misnamed.load()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("sys:exit", "sys:exit is not a subclass of metabench.Algorithm"),
        ("metabench.api.algorithm:Algorithm", "does not implement adapt, predict"),
        ("metabench.api.algorithm:Nothing", "has no attribute 'Nothing'"),
    ],
)
def test_a_lazy_target_that_is_no_algorithm_is_refused_when_loaded(
    target: str, told: str, install: Install
) -> None:
    install(ALGORITHMS + f"return [Lazy('one', '{target}', {FACTS})]\n")
    registry, lines = load()
    assert lines == []
    with pytest.raises(PluginError, match=told):
        registry.get("algorithm", "one").load()


def algorithm_code(cls: str, name: str, facts: str = FACTS.replace(", ", "\n    ")) -> str:
    return (
        f"from metabench import Algorithm\n\nclass {cls}(Algorithm):\n    name = '{name}'\n"
        f"    {facts}\n"
        "    def adapt(self, support, ctx):\n        return None\n"
        "    def predict(self, state, queries, ctx):\n        return queries.data\n"
    )


def test_an_eager_class_is_registered_with_its_own_facts(install: Install) -> None:
    hook = "@hookimpl\ndef metabench_register_algorithms():\n    return [One]\n"
    install(algorithm_code("One", "one") + "from metabench import hookimpl\n" + hook)
    registry, lines = load()
    assert lines == []
    entry = registry.get("algorithm", "one")
    assert (entry.family, entry.reference, entry.summary) == ("metric", "a paper", "A sentence.")
    assert entry.load() is sys.modules["plug"].One


def test_an_unknown_name_comes_with_the_nearest_and_with_what_failed(install: Install) -> None:
    install("raise RuntimeError\n")
    registry, _ = load()
    with pytest.raises(UnknownNameError) as caught:
        registry.get("algorithm", "protonets")
    assert "did you mean 'protonet'?" in caught.value.hint
    assert "plugins that failed to load: plug" in caught.value.hint


def test_classes_of_a_notebook_can_be_added_for_one_run(install: Install) -> None:
    install(algorithm_code("Mine", "mine") + algorithm_code("Taken", "maml"), module="plug_nb")
    module = importlib.import_module("plug_nb")
    registry, _ = load()
    extended = registry.with_classes([module.Mine])
    assert extended.get("algorithm", "mine").load() is module.Mine
    assert "mine" not in registry.algorithms
    with pytest.raises(PluginError, match=r"plug_nb\.Taken: .*'maml' is taken by plugin 'builtin'"):
        registry.with_classes([module.Taken])
    with pytest.raises(UsageError, match="not a class of an algorithm"):
        registry.with_classes([int])


def test_the_registry_is_loaded_once_a_process() -> None:
    assert plugins.registry() is plugins.registry()
