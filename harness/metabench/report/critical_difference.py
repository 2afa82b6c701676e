"""The critical-difference diagram: mean ranks over data sets, bars over who can't be told apart."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from metabench.errors import UsageError
from metabench.rendering import plain
from metabench.stats.across import Across
from metabench.stats.differences import ALPHA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

ImageFormat = Literal["svg", "png"]

_LONGEST = 40
"""Characters of a name; a longer one would leave no room for the ranks."""
_LINE = 0.24
"""Inches from one line of names to the next."""
_STYLE = {
    "text.usetex": False,
    "text.parse_math": False,  # a name may hold dollars
    "font.size": 9.0,
    "svg.hashsalt": "metabench",  # the same picture is the same file
    "svg.fonttype": "path",  # names are drawn, never markup of the file
}


def critical_difference(found: Across, image: ImageFormat = "svg") -> bytes:
    """The diagram of Demsar 2006 as a picture; the best algorithm stands left on top.

    A bar with dots joins the algorithms of one of `found.groups`. Names are untrusted text: neither
    mathtext nor markup in them is read.

    Args:
        found: what `across_datasets` says.
        image: `svg`, or `png` at 200 dots an inch. Equal input makes equal bytes with one version
            of matplotlib.

    Raises:
        UsageError: the libraries that draw it are missing.
    """
    if any(find_spec(name) is None for name in ("matplotlib", "scikit_posthocs")):
        raise UsageError(
            "a critical-difference diagram is drawn by matplotlib and scikit-posthocs",
            "pip install 'metabench[plots]'",
        )
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(8.0, 1.0))
        FigureCanvasAgg(figure)
        lines = _draw(found, figure.subplots())
        figure.set_size_inches(8.0, _LINE * lines + 0.4)
        dates: dict[str, str | None] = {"Date": None} if image == "svg" else {}
        figure.savefig(out, format=image, dpi=200, bbox_inches="tight", metadata=dates)
    return out.getvalue()


def _draw(found: Across, axes: Axes) -> float:
    """Draw into the axes; how many lines of text they are high."""
    from pandas import DataFrame, Series
    from scikit_posthocs import critical_difference_diagram

    count = len(found.algorithms)
    together = {(i, j) for group in found.groups for i in group for j in group}
    p = [[1.0 if (i, j) in together else 0.0 for j in range(count)] for i in range(count)]
    artists = critical_difference_diagram(
        # Tied means would be sorted anew; the order of `found` is kept.
        Series([rank + i * 1e-9 for i, rank in enumerate(found.mean_ranks)]),
        DataFrame(p),
        ax=axes,
        label_fmt_left="{label}",
        label_fmt_right="{label}",
        elbow_props={"color": "black", "linewidth": 0.7, "clip_on": False},
        marker_props={"s": 9, "clip_on": False},
        # Dots on a bar say whose it is: what lies between two that are tied may differ from both.
        crossbar_props={"color": "#c04000", "linewidth": 1.6, "marker": "o", "markersize": 3.6},
    )
    margin = 0.02 * (count - 1)
    for text, elbow in zip(artists["labels"], artists["elbows"], strict=True):
        _name(text, found)
        left = text.get_horizontalalignment() == "right"
        edge, away = (1 - margin, -margin / 2) if left else (count + margin, margin / 2)
        elbow.set_xdata([edge, *elbow.get_xdata()[1:]])
        text.set_x(edge + away)
    bottom = float(min(text.get_position()[1] for text in artists["labels"])) - 1.0
    axes.set_ylim(bottom, 1.5)
    axes.set_xlim(1 - margin, count + margin)
    axes.spines["top"].set_bounds(1, count)
    axes.set_xticks([1, *range(5, count, 5), count] if count > 15 else range(1, count + 1))
    axes.set_xlabel(_caption(found), loc="left", color="#555555")
    return 1.5 - bottom


def _name(text: Text, found: Across) -> None:
    """Put an algorithm's name and rank where the drawing library put its number."""
    which = int(text.get_text())
    name, rank = plain(found.algorithms[which]), f"{found.mean_ranks[which]:.2f}"
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    left = text.get_horizontalalignment() == "right"
    text.set_text(f"{name}  {rank}" if left else f"{rank}  {name}")


def _caption(found: Across) -> str:
    said = f"mean rank over {len(found.datasets)} data sets, 1 is the best"
    if found.friedman_p is not None:
        said += f"; Friedman p = {found.friedman_p:.2g}"
        if found.friedman_p >= ALPHA:
            return f"{said}, so nobody is told apart"
    if found.least_p >= ALPHA:
        return f"{said}; too few data sets to tell any pair of {len(found.algorithms)} apart"
    return f"{said}; bars: not told apart (Wilcoxon, Holm, p ≥ {ALPHA:g})"
