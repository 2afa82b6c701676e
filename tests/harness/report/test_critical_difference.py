"""The critical-difference diagram: what is drawn, names that are not trusted, libraries missing."""

from importlib.util import find_spec
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from metabench.errors import UsageError
from metabench.report import critical_difference as diagram
from metabench.stats.across import across_datasets


def compared(algorithms, datasets=14, gap=0.012, names=None):
    rng = np.random.default_rng(0)
    scores = rng.normal(0.6, 0.02, (datasets, algorithms)) - gap * np.arange(algorithms)
    return across_datasets(
        scores,
        [f"data-{i}" for i in range(datasets)],
        names or [f"algorithm-{i}" for i in range(algorithms)],
    )


def drawn(found):
    """Names from left to right and bottom, and the ranks that each bar's dots stand on."""
    axes = Figure().subplots()
    with matplotlib.rc_context(diagram._STYLE):
        diagram._draw(found, axes)
    bars = [line for line in axes.lines if line.get_marker() == "o"]
    return [text.get_text() for text in axes.texts], [list(bar.get_xdata()) for bar in bars]


@pytest.mark.parametrize("algorithms", [2, 6, 30])
def test_every_algorithm_and_every_group_is_drawn(algorithms):
    found = compared(algorithms)
    texts, bars = drawn(found)
    for name, rank in zip(found.algorithms, found.mean_ranks, strict=True):
        assert {f"{name}  {rank:.2f}", f"{rank:.2f}  {name}"} & set(texts)
    assert len(texts) == algorithms
    expected = [
        sorted(round(found.mean_ranks[i], 6) for i in group)
        for group in found.groups
        if len(group) > 1
    ]
    assert sorted(sorted(round(float(x), 6) for x in bar) for bar in bars) == sorted(expected)
    assert algorithms == 2 or len(bars) > 0


def test_the_picture_is_the_same_each_time():
    found = compared(6)
    for image, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        once = diagram.critical_difference(found, image)
        assert once.startswith(start)
        assert once == diagram.critical_difference(found, image)


HOSTILE = [
    "$\\frac{1}{0}$",
    "$unclosed",
    "<script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "{label} {0} %s",
    "\x1b[31mred\x07\nline",
    "n" * 500,
]


def test_names_are_text_and_nothing_else():
    found = compared(len(HOSTILE), names=HOSTILE)
    texts, _ = drawn(found)
    assert any("$\\frac{1}{0}$" in text for text in texts)
    assert any("{label} {0} %s" in text for text in texts)
    assert any("red line" in text for text in texts)
    assert max(map(len, texts)) < 60
    root = ElementTree.fromstring(diagram.critical_difference(found, "svg"))
    assert not [node for node in root.iter() if "script" in str(node.tag).lower()]
    assert not [node for node in root.iter() if node.get("onload") or node.get("href")]


def test_a_users_own_style_is_not_asked():
    found = compared(4)
    before = diagram.critical_difference(found)
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "red", "font.size": 30}):
        assert diagram.critical_difference(found) == before


def test_too_few_data_sets_are_said():
    few, enough = compared(6, datasets=6), compared(6, datasets=14)
    assert "too few data sets" in diagram._caption(few)
    assert "Wilcoxon" in diagram._caption(enough)


@pytest.mark.parametrize("missing", ["matplotlib", "scikit_posthocs"])
def test_without_its_libraries_it_says_what_to_install(monkeypatch, missing):
    monkeypatch.setattr(
        diagram, "find_spec", lambda name: None if name == missing else find_spec(name)
    )
    with pytest.raises(UsageError) as error:
        diagram.critical_difference(compared(3))
    assert "pip install 'metabench[plots]'" in str(error.value)
