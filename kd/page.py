"""A page of sections, written once and read as HTML or as Markdown.

The HTML is one file that asks nothing of any other and runs no script; whatever stands in a text is
shown as text. This room knows pictures, and not what they are about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

from kd.pictures import Picture

__all__ = ["Block", "Code", "Page", "Section", "Table", "as_html", "as_markdown", "as_plain"]

_TEMPLATE = Path(__file__).with_name("page.html")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$])")  # what Markdown does not read as itself


@dataclass(frozen=True)
class Table:
    """Rows whose first cell says what they are about.

    Args:
        caption: What the table is.
        heading: Name of each column; empty names for plain facts.
        rows: Their cells.
        words: How many columns, from the left, hold words and not numbers.
    """

    caption: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


@dataclass(frozen=True)
class Code:
    """A command or a file, as it is typed.

    Args:
        text: The lines.
        title: What it is; then it is folded.
    """

    text: str
    title: str | None = None


Block = str | Table | Code | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Args:
        title: The heading.
        blocks: Sentences, tables, pictures, in their order.
    """

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """All of it.

    Args:
        title: What it is about.
        lead: What is to be known first.
        sections: In their order.
        foot: Where it comes from.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    foot: str

    def pictures(self) -> Iterator[Picture]:
        """Yield every picture, in the order of the page."""
        for section in self.sections:
            yield from (block for block in section.blocks if isinstance(block, Picture))


def as_html(page: Page) -> str:
    """Return a page as one file of HTML."""
    links, sections = [], []
    for section in page.sections:
        name = re.sub(r"\W+", "-", section.title.casefold()).strip("-")
        links.append(f'<a href="#{name}">{escape(section.title)}</a>')
        lines = [f'<section aria-labelledby="{name}">']
        lines += [f'<h2 id="{name}">{escape(section.title)}</h2>']
        for is_picture, blocks in groupby(section.blocks, lambda block: isinstance(block, Picture)):
            written = "\n".join(_block_as_html(block) for block in blocks)
            lines.append(f'<div class="pictures">\n{written}\n</div>' if is_picture else written)
        sections += [*lines, "</section>"]
    parts = {"title": page.title, "lead": page.lead, "foot": page.foot}
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        {name: escape(text) for name, text in parts.items()},
        links="\n".join(links),
        sections="\n".join(sections),
    )


def as_markdown(page: Page) -> str:
    """Return a page as Markdown; its pictures are the files ``<name>.png`` beside it."""
    parts = [f"# {as_plain(page.title)}", f"**{as_plain(page.lead)}**"]
    for section in page.sections:
        parts += [f"## {as_plain(section.title)}", *map(_block_as_markdown, section.blocks)]
    return "\n\n".join([*parts, as_plain(page.foot)]) + "\n"


def _block_as_html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, Picture):
        return f"<figure>\n{block.svg()}</figure>"
    if isinstance(block, Code):
        code = f"<pre><code>{escape(block.text)}</code></pre>"
        if block.title is None:
            return code
        return f"<details><summary>{escape(block.title)}</summary>{code}</details>"
    return _table_as_html(block)


def _table_as_html(table: Table) -> str:
    """Return a table that scrolls in a box of its own where it is too wide for the screen."""
    style = [' class="words"' if place < table.words else "" for place in range(len(table.heading))]

    def cells(tag: str, scope: str, texts: Sequence[str], style: Sequence[str]) -> str:
        pairs = zip(texts, style, strict=True)
        return "".join(f"<{tag}{scope}{kind}>{escape(text)}</{tag}>" for text, kind in pairs)

    head = cells("th", ' scope="col"', table.heading, style)
    rows = [
        cells("th", ' scope="row"', row[:1], style[:1]) + cells("td", "", row[1:], style[1:])
        for row in table.rows
    ]
    if not any(table.heading):
        head = ""
    kind = "numbers" if table.words == 1 else "texts" if any(table.heading) else "facts"
    caption, body = escape(table.caption), "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<p class="caption">{caption}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">'
        f'<table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _block_as_markdown(block: Block) -> str:
    if isinstance(block, str):
        return as_plain(block)
    if isinstance(block, Picture):
        return f"![{as_plain(block.alt)}]({block.name}.png)"
    if isinstance(block, Code):
        text = "\n".join(f"    {line}" for line in block.text.splitlines())  # no fence to break
        return text if block.title is None else f"{as_plain(block.title)}:\n\n{text}"
    rule = [":--" if place < block.words else "--:" for place in range(len(block.heading))]
    rows = [block.heading, rule, *block.rows]
    lines = [f"| {' | '.join(row if row is rule else map(as_plain, row))} |" for row in rows]
    return f"{as_plain(block.caption)}:\n\n" + "\n".join(lines)


def as_plain(text: str) -> str:
    """Return a text on one line, that Markdown reads as itself."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")
