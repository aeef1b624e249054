"""The page as one Markdown file, whose pictures are links to those of the artifacts, relative to where it lies."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from leokit.report.html import MARK
from leokit.report.model import (
    Block,
    Cell,
    Commands,
    DotPlots,
    Facts,
    Figure,
    Figures,
    Fold,
    Highlight,
    Note,
    Page,
    Part,
    Table,
    Text,
)
from leokit.text import visible

_SPECIAL = re.compile(r"[\\`*_\[\]|~#]")
_REFERENCES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def to_markdown(page: Page, folder: Path) -> str:
    """A page as Markdown with tables as GitHub and others take them; numbers and sentences are those of the HTML.

    Args:
        page: what to write.
        folder: in which the file will lie.
    """
    parts = [MARK, f"# {escape(page.title)}", escape(page.lead)]
    parts += [_highlight(best) for best in page.highlights]
    parts += [_note(note) for note in page.notes]
    for section in page.sections:
        parts += [f"## {escape(section.title)}", *in_markdown(section.blocks, folder)]
    return "\n\n".join([*parts, escape(page.footer)]) + "\n"


def escape(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    plain = "".join(_REFERENCES.get(character, character) for character in visible(text))
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", plain)


def in_markdown(blocks: Sequence[Block], folder: Path, level: int = 3) -> Iterator[str]:
    """Blocks, one after the other, with headings of this level for their parts."""
    for block in blocks:
        match block:
            case Table():
                yield f"{escape(block.caption)}:"
                yield _table(block)
            case Text():
                yield escape(block.text)
            case Note():
                yield _note(block)
            case Figures():
                yield from (_figure(figure, folder) for figure in block.figures)
            case DotPlots():
                pass  # the table below it has all its numbers
            case Commands():
                yield from (f"{_fenced(command)}\n\n{escape(made)}" for command, made in block.lines)
            case Facts():
                yield "\n".join(f"- {escape(name)}: {_cell(cell)}" for name, cell in block.pairs)
            case Fold() | Part():
                yield f"{'#' * min(level, 6)} {escape(block.title)}"
                yield from in_markdown(block.blocks, folder, level + 1)


def _highlight(best: Highlight) -> str:
    result = f"**{escape(best.setting)}: {best.accuracy:.2f} ± {best.half_width:.2f} %**, {escape(best.method)}"
    return f"{result} ({'; '.join(map(escape, best.details))})"


def _note(note: Note) -> str:
    return f"> {escape(note.text)}"


def _table(table: Table) -> str:
    heads = [escape(column.name) or " " for column in table.columns]
    lines = [heads, ["---:" if column.numeric else "---" for column in table.columns]]
    lines += [[_cell(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    return escape(f"{cell.text} {_noted(cell.note)}".strip())


def _noted(note: str) -> str:
    return note if note.startswith("±") or not note else f"({note})"


def _figure(figure: Figure, folder: Path) -> str:
    place = quote(os.fsencode(Path(os.path.relpath(figure.path, folder)).as_posix()))
    return f"![{escape(figure.alternative)}]({place})\n\n{escape(figure.caption)}"


def _fenced(command: str) -> str:
    text = visible(command)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"
