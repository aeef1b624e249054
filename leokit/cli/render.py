"""How things look: results on stdout, progress and log on stderr. The only home of rich.

Whatever `Output` prints may hold names from disk: only here are control and other unseen characters spelled out, so
that no name of a folder moves a cursor, sets a title or ends a line.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leokit.text import visible, visible_json

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 110  # columns of a terminal that has room for a bar
_NUMBER = (*"0123456789+-", "")  # how a number, or nothing, begins
PLAIN_SECONDS = 10.0  # between lines of progress where stderr is no terminal
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Common:
    """What the options say that stand before a subcommand or after it."""

    quiet: bool = False
    verbose: bool = False
    no_progress: bool = False


class Output:
    """Where a subcommand writes.

    Attributes:
        common: the options of every subcommand.
        json: whether the result is one JSON object.
        dry_run: whether to say only what would be done.
    """

    def __init__(self, common: Common, *, json: bool = False, dry_run: bool = False) -> None:
        self.common = common
        self.json = json
        self.dry_run = dry_run

    def _console(self, *, stderr: bool) -> "Console":
        from rich.console import Console

        return Console(stderr=stderr, markup=False, highlight=False, emoji=False)

    def text(self, text: str) -> None:
        """Print a result that is whole lines already, as a file of TOML, at once."""
        sys.stdout.write(visible(text, "\n\t"))
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Print one line of a result, at once."""
        print(visible(text), flush=True)

    def note(self, text: str) -> None:
        """Log a line, unless quiet."""
        if not self.common.quiet:
            print(visible(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Print an error: one line, red where there are colours."""
        self._console(stderr=True).print(f"error: {visible(text)}", style="red", soft_wrap=True)

    def stopped(self, text: str) -> None:
        """Say that the user ended it, in one line; that is no error."""
        self._console(stderr=True).print(visible(text), style="yellow", soft_wrap=True)

    def next_command(self, command: str) -> None:
        """Tell what to run next."""
        self.note(f"Next: {command}")

    def plan(self, data: dict[str, Any], title: str) -> None:
        """Print what would be done, in the form of `result`: a row for each key, of several values their list."""
        rows = [[key, ", ".join(map(str, v)) if isinstance(v, list | dict) else str(v)] for key, v in data.items()]
        self.result(data, [TableData(title, ["", ""], rows, numeric=False)])

    def result(self, data: dict[str, Any], tables: Sequence["TableData"], sentences: Sequence[str] = ()) -> None:
        """Print a result: as JSON where asked for, else as tables with sentences below."""
        if self.json:
            print(visible_json(data))
            return
        console = self._console(stderr=False)
        for table in tables:
            for line, style in table.lines(console.width):
                console.print(line, style=style, soft_wrap=True)
        for sentence in sentences:
            for line in wrapped(visible(sentence), console.width):
                console.print(line, soft_wrap=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A progress bar, or now and then a line where stderr is no terminal; the yielded function moves it."""
        if self.common.no_progress or self.common.quiet:
            yield _nothing
        elif sys.stderr.isatty():
            with self._bar(what) as move:
                yield move
        else:
            yield _lines(what)

    @contextmanager
    def _bar(self, what: str) -> Iterator[Progress]:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.table import Column

        console = self._console(stderr=True)
        columns: list[ProgressColumn] = [
            TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        ]
        if console.width >= _WIDE:
            columns.insert(0, BarColumn(bar_width=20))
        pace = _Pace()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None, line=f"{what} …")

            def move(done: int, total: int, text: str = "") -> None:
                rate, left, _ = pace.at(done, total)
                # What may be cut off at the end of a narrow terminal is the text, not the numbers.
                parts = [f"{what} {done}/{total}", rate, left, visible(text)]
                bar.update(task, completed=done, total=total, line="  ".join(part for part in parts if part))

            yield move


class TableData:
    """A table to print: a title, column names and rows of text; if numeric, columns of numbers are flush right.

    Columns get narrower until the table fits the terminal, but no word, path or number is broken: where a line is
    still too long, its last cell is put below.
    """

    def __init__(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: bool = True
    ) -> None:
        self.title = title
        self.columns = [visible(column, "\n") for column in columns]
        self.rows = [[visible(cell) for cell in row] for row in rows]
        self.numeric = numeric

    def lines(self, room: int) -> Iterator[tuple[str, str]]:
        """The table as lines of a terminal of `room` columns, each with its style."""
        widths = self._widths(room)
        yield from ((line, "bold") for line in wrapped(visible(self.title), room))
        yield "", ""
        if any(self.columns):
            yield from ((line, "bold") for line in self._row(self.columns, widths, room, last=True))
            yield f" {'─' * min(sum(widths) + 3 * len(widths) - 1, room - 1)}", ""
        for row in self.rows:
            yield from ((line, "") for line in self._row(row, widths, room))
        yield "", ""

    def _row(self, cells: Sequence[str], widths: Sequence[int], room: int, *, last: bool = False) -> Iterator[str]:
        """A row as lines: of a cell that needs fewer of them these are the first ones, or the last."""
        from rich.cells import cell_len

        columns = [wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
        for number in range(height := max(map(len, columns))):
            line, text = "", ""
            for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
                place = number - (height - len(column)) * last
                text = column[place] if 0 <= place < len(column) else ""
                space = " " * (width - cell_len(text))
                line += "  " + (space + text if self._is_number(index) else text + space) + " "
            if cell_len(line := line.rstrip()) > room and line != f"  {text}":
                yield line.removesuffix(text).rstrip()
                line = f"      {text}"
            yield line

    def _is_number(self, index: int) -> bool:
        return bool(self.numeric and index) and all(row[index][:1] in _NUMBER for row in self.rows)

    def _widths(self, room: int) -> list[int]:
        """Of the columns: as wide as their texts are, or narrower where words can go to a further line."""
        from rich.cells import cell_len

        widths, least = [], []
        for index, column in enumerate(self.columns):
            cells = [row[index] for row in self.rows]
            words = [*column.split(), *(cells if self._is_number(index) else " ".join(cells).split())]
            widths.append(max(map(cell_len, [*column.split("\n"), *cells]), default=0))
            least.append(max(map(cell_len, words), default=0))
        fits = sum(least) + 3 * len(least) < room
        narrowed = range(len(widths) if fits else len(widths) - 1)  # the last cell can be put below
        while sum(widths[index] + 3 for index in narrowed) >= room:
            spare = [index for index in narrowed if widths[index] > least[index]]
            if not spare:
                break
            widths[max(spare, key=widths.__getitem__)] -= 1
        return widths


def wrapped(text: str, width: int) -> list[str]:
    """A text as lines of at most `width` columns; a word that is longer is a line of its own, whole."""
    from rich.cells import cell_len

    lines = []
    for paragraph in text.split("\n"):
        if cell_len(paragraph) <= width:
            lines.append(paragraph)
            continue
        lines.append("")
        for word in paragraph.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if lines[-1] and cell_len(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines


def _nothing(done: int, total: int, text: str = "") -> None:
    """Show no progress."""


class _Pace:
    """How fast a piece of work goes; another total is another piece.

    It is measured from the first step that was done: what comes before, as a first validation, says nothing of it.
    """

    def __init__(self) -> None:
        self.started, self.first, self.total = time.monotonic(), 0, -1
        self.moving: float | None = None  # since when

    def at(self, done: int, total: int) -> tuple[str, str, float]:
        """Rate and time left as words, and seconds since the piece began."""
        if total != self.total:
            if self.total >= 0:
                self.started = time.monotonic()
            self.first, self.total, self.moving = done, total, None
        now = time.monotonic()
        if self.moving is None and done > self.first:
            self.first, self.moving = done, now
        steps, seconds = done - self.first, now - (self.moving or now)
        return _rate(steps, seconds), _left(steps, total - done, seconds), now - self.started


def _lines(what: str) -> Progress:
    """Progress as plain lines: when a piece of work ends, and every ten seconds before."""
    last, pace = time.monotonic(), _Pace()

    def move(done: int, total: int, text: str = "") -> None:
        nonlocal last
        rate, left, seconds = pace.at(done, total)
        now = time.monotonic()
        if now - last < PLAIN_SECONDS and not (done == total and seconds > 2):
            return
        last = now
        parts = [f"{what}: {done}/{total}", rate, left, text]
        print(visible("  ".join(part for part in parts if part)), file=sys.stderr, flush=True)

    return move


def _left(done: int, remaining: int, seconds: float) -> str:
    """The time that is left at the rate so far, as `1:02:03 left`."""
    if not done or not remaining:
        return ""
    minutes, rest = divmod(round(remaining * seconds / done), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


def _rate(done: int, seconds: float) -> str:
    return f"{few_digits(done / seconds)}/s" if done and seconds > 0 else ""


def few_digits(value: float) -> str:
    """A rate as `0.399`, `27.1` or `1,525`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(mean: float, half_width: float | None = None, *, sign: bool = False) -> str:
    """A share as `63.82 ± 0.40`, in per cent."""
    text = f"{100 * mean:+.2f}" if sign else f"{100 * mean:.2f}"
    return text if half_width is None else f"{text} ± {100 * half_width:.2f}"
