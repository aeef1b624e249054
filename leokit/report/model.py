"""What a page holds, as plain data that knows neither HTML nor Markdown.

Texts are as they were found, escaped by whoever writes them. A block is one of the classes in `Block`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Tone = Literal["good", "plain", "warning"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        note: beside it in small print, as an interval.
        value: what it sorts by, where that is a number.
        code: whether it is an id or a command.
    """

    text: str
    note: str = ""
    value: float | None = None
    code: bool = False


@dataclass(frozen=True)
class Column:
    """The head of a column; numbers are flush right."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it.

    Attributes:
        caption: what the numbers are, with their unit.
        columns: from left to right.
        rows: as many cells as columns.
        sortable: whether a column holds numbers of one kind, so that sorting by it means something.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = True
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A picture of an artifact.

    Attributes:
        caption: whose picture it is.
        alternative: what it shows, for who cannot see it.
        path: of the PNG file.
        data: its bytes.
        width: in pixels.
        height: in pixels.
    """

    caption: str
    alternative: str
    path: Path
    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Figures:
    """Pictures side by side where there is room."""

    figures: Sequence[Figure]
    kind: str = "figures"


@dataclass(frozen=True)
class Dot:
    """A method in a dot plot: mean and half-width of its interval, and the means of single seeds; in per cent."""

    name: str
    mean: float
    half_width: float
    seeds: tuple[float, ...]
    learned: bool


@dataclass(frozen=True)
class DotPlot:
    """Accuracies of methods on the same episodes, the best first."""

    title: str
    dots: Sequence[Dot]


@dataclass(frozen=True)
class DotPlots:
    """Dot plots side by side where there is room; what they show also stands in a table."""

    plots: Sequence[DotPlot]
    kind: str = "dotplots"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Note:
    """A sentence that must not be missed."""

    tone: Tone
    text: str
    kind: str = "note"


@dataclass(frozen=True)
class Commands:
    """Command lines, each with what it made."""

    lines: Sequence[tuple[str, str]]
    kind: str = "commands"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: Sequence[tuple[str, Cell]]
    kind: str = "facts"


@dataclass(frozen=True)
class Fold:
    """Blocks that are folded away until they are asked for."""

    title: str
    blocks: "Sequence[Block]"
    kind: str = "fold"


@dataclass(frozen=True)
class Part:
    """A part of a section under its own heading."""

    title: str
    blocks: "Sequence[Block]"
    kind: str = "part"


Block = Table | Figures | DotPlots | Text | Note | Commands | Facts | Fold | Part


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: of its place in the page, for links: letters and hyphens.
        title: its heading.
        blocks: what it holds.
    """

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Highlight:
    """The best result of a setting.

    Attributes:
        setting: as `5-way 1-shot`.
        accuracy: in per cent.
        half_width: of its 95 % interval over episodes, in per cent.
        method: whose it is.
        details: a phrase each: seeds, the next best, the episodes.
    """

    setting: str
    accuracy: float
    half_width: float
    method: str
    details: Sequence[str]


@dataclass(frozen=True)
class Page:
    """The whole report.

    Attributes:
        title: of the page.
        lead: what it is about, in a sentence.
        highlights: the best results.
        notes: what must be known to read them.
        sections: in order.
        footer: how it was made.
    """

    title: str
    lead: str
    highlights: Sequence[Highlight]
    notes: Sequence[Note]
    sections: Sequence[Section]
    footer: str
