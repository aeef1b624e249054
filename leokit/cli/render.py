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
    """What the options before the subcommand say."""

    quiet: bool = False
    verbose: bool = False
    progress: bool = True


class Output:
    """Where a subcommand writes.

    Attributes:
        common: the options before the subcommand.
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
        from rich import box
        from rich.table import Table
        from rich.text import Text

        console = self._console(stderr=False)
        for table in tables:
            drawn = Table(
                title=visible(table.title),
                box=box.SIMPLE_HEAD,
                show_header=any(table.columns),
                title_justify="left",
                title_style="bold",
            )
            for index, column in enumerate(table.columns):
                numeric = table.numeric and index and all(row[index][:1] in _NUMBER for row in table.rows)
                drawn.add_column(visible(column, "\n"), justify="right" if numeric else "left", overflow="fold")
            for row in table.rows:
                drawn.add_row(*(Text(visible(cell)) for cell in row))
            console.print(drawn)
        for sentence in sentences:
            console.print(visible(sentence))

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A progress bar, or now and then a line where stderr is no terminal; the yielded function moves it."""
        if not self.common.progress:
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
    """A table to print: a title, column names and rows of text; if numeric, columns of numbers are flush right."""

    def __init__(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: bool = True
    ) -> None:
        self.title = title
        self.columns = columns
        self.rows = rows
        self.numeric = numeric


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
