"""The digest of a plugin's code changes with what the code does, and with nothing else."""

from __future__ import annotations

import importlib
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from metabench.api.algorithm import Algorithm
from metabench.store import code as code_module
from metabench.store.code import code_digest, core_digest, syntax_digest

PLUGIN = '''
"""A plugin."""
from typing import TYPE_CHECKING
from .distances import euclidean
from ..shared import heads
if TYPE_CHECKING:
    from ..shared import typing_only

class Base:
    """An idea."""
    def adapt(self, x):
        """Adapt."""
        return euclidean(x)  # equation 1

class Mine(Base):
    rate = 0.4
    def loss(self, x):
        from . import late
        return late.loss(x)

def pretrain_loss(x):
    return x

def make():
    class Inner:
        pass
    return Inner
'''

FILES = {
    "pack/__init__.py": "PLUGINS = ['pack.algorithms.mine']\n",
    "pack/algorithms/__init__.py": "",
    "pack/algorithms/mine.py": PLUGIN,
    "pack/algorithms/distances.py": "import neighbour\ndef euclidean(x):\n    return x * x\n",
    "pack/algorithms/late.py": "def loss(x):\n    return x\n",
    "pack/algorithms/other.py": "def other(x):\n    return x\n",
    "pack/shared/__init__.py": "from .deep import depth\n",
    "pack/shared/heads.py": "from pack.shared import depth\n",
    "pack/shared/deep.py": "depth = 3\n",
    "pack/shared/typing_only.py": "x = 1\n",
    "neighbour.py": "def n():\n    return 1\n",
    "stranger.py": "def n():\n    return 1\n",
}


class Package:
    """A package on disk, whose digest is taken of a freshly imported class."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def module(self):
        for name in [n for n in sys.modules if n.split(".")[0] in {"pack", "neighbour"}]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module("pack.algorithms.mine")

    def digest(self) -> str | None:
        return code_digest(self.module().Mine)


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Package(tmp_path)


def test_the_digest_is_a_function_of_the_files(package, tmp_path):
    first = package.digest()
    assert first is not None
    assert len(first) == 32
    assert package.digest() == first
    elsewhere = tmp_path / "moved"
    shutil.copytree(tmp_path / "pack", elsewhere / "pack")
    shutil.copy(tmp_path / "neighbour.py", elsewhere)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pack.algorithms.mine import Mine; from metabench.store.code import code_digest;"
            "print(code_digest(Mine))",
        ],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == first


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pack/algorithms/mine.py", "# equation 1", "# equation 2 of the paper"),
        ("pack/algorithms/mine.py", '"""Adapt."""', '"""Adapt to a support set."""'),
        ("pack/algorithms/mine.py", '"""An idea."""\n', "\n\n"),
        ("pack/algorithms/mine.py", "rate = 0.4", "rate = (0.4)"),
        ("pack/algorithms/mine.py", '"""A plugin."""', ""),
        ("pack/algorithms/other.py", "return x", "return x + 1"),
        ("pack/__init__.py", "PLUGINS", "ALL_PLUGINS"),
        ("pack/shared/typing_only.py", "x = 1", "x = 2"),
        ("stranger.py", "return 1", "return 2"),
    ],
)
def test_what_cannot_change_a_number_changes_nothing(package, name, old, new):
    before = package.digest()
    package.replace(name, old, new)
    assert package.digest() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pack/algorithms/mine.py", "rate = 0.4", "rate = 0.5"),
        ("pack/algorithms/mine.py", "rate = 0.4", "rate = '0.4'"),
        ("pack/algorithms/mine.py", "return euclidean(x)", "return euclidean(-x)"),
        ("pack/algorithms/distances.py", "x * x", "x + x"),
        ("pack/algorithms/late.py", "return x", "return -x"),
        ("pack/shared/heads.py", "pack.shared import depth", "pack.shared import depth as deep"),
        ("pack/shared/__init__.py", "depth", "depth as depth"),
        ("pack/shared/deep.py", "3", "4"),
        ("neighbour.py", "return 1", "return 2"),
    ],
)
def test_a_change_of_any_module_that_it_stands_on_shows(package, name, old, new):
    before = package.digest()
    package.replace(name, old, new)
    after = package.digest()
    assert after is not None
    assert after != before


def test_a_change_of_the_core_shows(package, monkeypatch):
    before = package.digest()
    monkeypatch.setattr(code_module, "core_digest", lambda: "0" * 32)
    assert package.digest() != before


def test_the_core_is_what_decides_numbers_and_nothing_else(tmp_path, monkeypatch):
    package = Path(code_module.__file__).parents[1]
    copy = tmp_path / "metabench"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_module, "__file__", str(copy / "store" / "code.py"))

    def digest():
        core_digest.cache_clear()
        return core_digest()

    try:
        before = digest()
        others = ("cli/__init__.py", "store/keys.py", "errors.py", "data/folder.py")
        for name in (*others, "report/__init__.py"):
            with open(copy / name, "a") as file:
                file.write("\nx = 1\n")
        with open(copy / "episodes" / "source.py", "a") as file:
            file.write("\n# a comment\n")
        assert digest() == before
        core = ("episodes/source.py", "api/items.py", "engine/__init__.py", "data/weights.py")
        for name in core:
            with open(copy / name, "a") as file:
                file.write("\nx = 1\n")
            assert digest() != before
            before = digest()
    finally:
        monkeypatch.undo()
        core_digest.cache_clear()


def test_a_class_that_was_typed_or_made_is_not_readable(package):
    typed: dict[str, type] = {}
    exec("class Typed:\n    pass", {"__name__": "nowhere"}, typed)
    assert code_digest(typed["Typed"]) is None
    pretender: dict[str, type] = {}
    exec("class Pretender:\n    pass", {"__name__": __name__}, pretender)
    assert code_digest(pretender["Pretender"]) is None
    assert code_digest(package.module().make()) is None
    assert code_digest(type("Made", (Algorithm,), {})) is None


def test_a_subclass_of_what_is_not_readable_is_not_readable(package):
    text = (package.root / "pack/algorithms/mine.py").read_text()
    package.write("pack/algorithms/mine.py", text + "class Late(make()):\n    pass\n")
    module = package.module()
    assert code_digest(module.Mine) is not None
    assert code_digest(module.Late) is None


def test_a_class_of_a_session_is_read_from_no_file(package, monkeypatch):
    module = package.module()
    monkeypatch.setattr(module.Mine, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    assert code_digest(module.Mine) is not None
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert code_digest(module.Mine) is None


def test_a_script_has_one_digest_in_itself_and_in_its_workers(package, monkeypatch):
    module = package.module()
    digests = set()
    for name in ("__main__", "__mp_main__"):
        monkeypatch.setattr(module.Mine, "__module__", name)
        monkeypatch.setattr(module.Base, "__module__", name)
        monkeypatch.setitem(sys.modules, name, module)
        digests.add(code_digest(module.Mine))
    assert len(digests) == 1
    assert None not in digests


def test_functions_and_methods_stand_for_their_modules(package):
    module = package.module()
    before = code_digest(module.pretrain_loss)
    bound = code_digest(module.Mine().loss)
    assert None not in {before, bound}
    assert code_digest(lambda x: x) is None
    assert code_digest(nn.Linear) != code_digest(nn.Bilinear)
    package.replace("pack/algorithms/late.py", "return x", "return -x")
    module = package.module()
    assert code_digest(module.pretrain_loss) != before
    assert code_digest(module.Mine().loss) != bound


def test_packages_side_by_side_are_apart_unless_installed_as_one(package, monkeypatch):
    site = package.root / "site-packages"
    site.mkdir()
    for name in ("pack", "neighbour.py"):
        shutil.move(package.root / name, site / name)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(code_module, "_distributions", dict)
    before = package.digest()
    (site / "neighbour.py").write_text("def n():\n    return 2\n")
    assert package.digest() == before
    together = {"pack": ["one"], "neighbour": ["one"]}
    monkeypatch.setattr(code_module, "_distributions", lambda: together)
    monkeypatch.setattr(code_module, "version", lambda name: "1.0")
    before = package.digest()
    (site / "neighbour.py").write_text("def n():\n    return 3\n")
    assert package.digest() != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = None", "x = 0"),
        ("f(a, b)", "f(b, a)"),
        ("f(a=1)", "f(1)"),
        ("[[1], 2]", "[[1, 2]]"),
        ("x = 'a'", "x = b'a'"),
        ("{**a}", "{'a': a}"),
        ("def f(): 'doc'; return 1", "def f(): return 'doc'"),
        ("x = a < b", "x = a <= b"),
        ("'doc'\n'second'", "'doc'"),
    ],
)
def test_different_syntax_has_different_digests(one, other):
    assert syntax_digest(one.encode()) != syntax_digest(other.encode())


TAKEN = ("chunk", "telnetlib")


def test_a_module_called_like_one_of_pythons_own_is_read_where_it_is_not(tmp_path, monkeypatch):
    """`telnetlib` and `chunk` are names of the standard library, which a user may use too."""
    monkeypatch.setattr(sys, "stdlib_module_names", {*sys.stdlib_module_names, *TAKEN})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "chunk").mkdir()
    (tmp_path / "chunk" / "__init__.py").touch()
    mine, helper = tmp_path / "chunk" / "mine.py", tmp_path / "telnetlib.py"
    mine.write_text("import json\nfrom telnetlib import n\n\nclass Mine:\n    rate = 1\n")
    helper.write_text("n = 1\n")

    def digest():
        importlib.invalidate_caches()
        try:
            return code_digest(importlib.import_module("chunk.mine").Mine)
        finally:
            for name in [n for n in sys.modules if n.partition(".")[0] in TAKEN]:
                del sys.modules[name]

    digests = [digest()]
    mine.write_text(mine.read_text().replace("rate = 1", "rate = 2"))
    digests.append(digest())
    helper.write_text("n = 2\n")
    digests.append(digest())
    (tmp_path / "json.py").write_text("n = 1\n")  # Python's own was loaded before
    assert digest() == digests[-1]
    assert None not in digests
    assert len(set(digests)) == 3


def test_python_knows_its_own_modules():
    for name in sys.stdlib_module_names:
        assert code_module._is_standard(name), name
    assert not any(map(code_module._is_standard, ("numpy", "metabench", "pack")))


def test_the_versions_of_imported_libraries_count(package, monkeypatch):
    versions = {"numpy": "2.1.0", "scipy": "1.13.0", "torch": "2.14.0", "pandas": "2.2.0"}
    monkeypatch.setattr(code_module, "_distributions", lambda: {n: [n] for n in versions})
    monkeypatch.setattr(code_module, "version", versions.__getitem__)
    package.write("neighbour.py", "import os, torch.nn, pytest\nfrom numpy import linalg\n")
    late = "def loss(x):\n    import scipy.special\n    return x\n"
    package.write("pack/algorithms/late.py", late)
    package.write("pack/algorithms/other.py", "import pandas\n")
    digests = [package.digest()]
    for name in versions:
        versions[name] += ".1"
        digests.append(package.digest())
    numpy, scipy, torch, pandas = [a != b for a, b in itertools.pairwise(digests)]
    assert (numpy, scipy, torch, pandas) == (True, True, False, False)
    versions["numpy"], before = "2.1.0+cpu", digests[-1]
    with_label = package.digest()
    versions["numpy"] = "2.1.0"
    assert package.digest() == with_label != before


OPTIONAL = """
import claimless
try:
    import nowhere_at_all
except ImportError:
    pass
"""


def test_a_library_that_no_distribution_claims_is_read(package, monkeypatch, tmp_path):
    monkeypatch.setattr(code_module, "_distributions", dict)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "claimless").mkdir()
    package.write("neighbour.py", OPTIONAL)
    digests = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        (tmp_path / "claimless" / "__init__.py").write_text(text)
        code_module._whole.cache_clear()
        digests.append(package.digest())
    assert digests[0] == digests[2] != digests[1]


def test_distributions_are_looked_up_only_where_something_is_imported(package, monkeypatch):
    monkeypatch.setattr(code_module, "_distributions", lambda: pytest.fail("looked up"))
    assert package.digest() is not None
    assert code_digest(nn.Linear) is not None
