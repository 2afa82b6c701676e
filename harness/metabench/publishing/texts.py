"""Texts from templates, in which whatever is put in is escaped unless it was made safe before."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files

from metabench.rendering import cell, markdown_cell


class Safe(str):
    """Text that goes into a template as it is."""

    __slots__ = ()


def json_text(value: object) -> str:
    """As `cell`, as a JSON string, which is a YAML string too."""
    return json.dumps(cell(value))


def filled(
    template: str, facts: dict[str, object], escape: Callable[[object], str] = markdown_cell
) -> str:
    """A template of `templates/` with these facts.

    Args:
        escape: makes text of a value that is harmless in the text that comes out.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # not HTML: `finalize` escapes
        finalize=lambda value: value if isinstance(value, Safe) else escape(value),
    )
    folder = files("metabench.publishing").joinpath("templates")
    text = folder.joinpath(f"{template}.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(facts)
