"""A click choice that names the nearest valid word when it is handed another."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # not a generic class before click 8.2
    _Choice = click.Choice


class NearestChoice(_Choice):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            near = nearest(str(value), [str(choice) for choice in self.choices])
            self.fail(f"{error.message}{near}", param, ctx)


def nearest(word: str, known: list[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `known`, or nothing where none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
