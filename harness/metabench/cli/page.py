"""A page on one thing: headings, paragraphs, tables, quoted text, as text or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from metabench.cli.output import print_rows, print_text
from metabench.errors import UsageError
from metabench.rendering import Format, Row, markdown_cell, plain, to_json


@dataclass(frozen=True)
class Text:
    """A paragraph, or several: each line is printed by itself."""

    text: str


@dataclass(frozen=True)
class Quote:
    """Text that is shown as it is, such as a log or a command."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows and their columns."""

    rows: Sequence[Row]
    columns: Sequence[str]


Block = Text | Quote | Table


@dataclass
class Page:
    """What is shown of something.

    Attributes:
        title: its kind and name.
        data: the same as JSON.
        sections: headings (the first one is empty) and what stands under them.
    """

    title: str
    data: dict[str, object]
    sections: list[tuple[str, Block]] = field(default_factory=list)

    def add(self, heading: str, block: Block) -> None:
        """Add a section, unless there's nothing in it."""
        if block.rows if isinstance(block, Table) else block.text.strip():
            self.sections.append((heading, block))


def facts(table: dict[str, object]) -> Text:
    """`name: value`, a line each; what is missing or empty is left out."""
    there = {name: value for name, value in table.items() if value not in (None, "")}
    return Text("\n".join(f"{name}: {value}" for name, value in there.items()))


def lines(texts: Iterable[str]) -> Text:
    """A line each, whatever line breaks are in them: names of others may forge none."""
    return Text("\n".join(map(plain, texts)))


def print_page(page: Page, fmt: Format) -> None:
    """Print a page on standard output.

    Raises:
        UsageError: as a CSV, which holds one table.
    """
    if fmt == "csv":
        raise UsageError("a page is no table", "use --format table, json or markdown")
    if fmt == "json":
        print_text(to_json(page.data))
        return
    markdown = fmt == "markdown"
    print_text(f"# {markdown_cell(page.title)}\n" if markdown else f"{plain(page.title)}\n")
    for heading, block in page.sections:
        if heading:
            print_text(f"\n## {markdown_cell(heading)}\n" if markdown else f"\n{plain(heading)}\n")
        if markdown or not heading:
            print_text("\n")
        _print_block(block, fmt)


def _print_block(block: Block, fmt: Format) -> None:
    if isinstance(block, Table):
        print_rows(block.rows, block.columns, fmt)
    elif isinstance(block, Quote):
        indent = "    " if fmt == "markdown" else "  "
        print_text("".join(f"{indent}{line}\n" for line in _lines(block.text)))
    elif fmt == "markdown":
        # Two spaces at the end keep the lines of a paragraph apart.
        lines = [markdown_cell(line) for line in _lines(block.text)]
        print_text("".join(f"{line}  \n" if line else "\n" for line in lines))
    else:
        print_text("".join(f"{line}\n" for line in _lines(block.text)))


def _lines(text: str) -> list[str]:
    """The visible lines, with their indentation."""
    lines = text.expandtabs(4).splitlines()
    return [" " * (len(line) - len(line.lstrip(" "))) + plain(line) for line in lines]
