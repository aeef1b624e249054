"""Where the parts of a dot plot stand: a drawing in units of about a pixel, which the page scales to its width."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from leokit.report.model import Dot, DotPlot
from leokit.text import visible

WIDTH = 460.0
_TOP, _ROW, _BOTTOM = 8.0, 26.0, 40.0
_LETTER, _GAP, _RIGHT = 7.3, 14.0, 52.0  # width of a letter of a name; room on the right for the number
_LONGEST = 22  # letters of a name that is drawn
_TICKS = 5  # about


@dataclass(frozen=True)
class Mark:
    """A method's row: its name, its number in words, where its parts stand, and whether it is meta-trained."""

    name: str
    value: str
    y: float
    x: float
    low: float
    high: float
    seeds: tuple[float, ...]
    learned: bool


@dataclass(frozen=True)
class Drawing:
    """A dot plot: size, marks from top to bottom, ticks with their labels, and where the field of dots lies."""

    width: float
    height: float
    left: float
    right: float
    bottom: float
    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    words: str


def draw(plot: DotPlot) -> Drawing:
    """Lay a plot out: a row for each method, the axis in per cent below."""
    names = [_short(dot.name) for dot in plot.dots]
    left = _GAP + _LETTER * max(map(len, names))
    right = WIDTH - _RIGHT
    low, high, step = _axis(plot.dots)

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    marks = tuple(
        Mark(
            name,
            f"{dot.mean:.2f}",
            _TOP + _ROW * (row + 0.5),
            x(dot.mean),
            x(dot.mean - dot.half_width),
            x(dot.mean + dot.half_width),
            tuple(map(x, dot.seeds)),
            dot.learned,
        )
        for row, (name, dot) in enumerate(zip(names, plot.dots, strict=True))
    )
    bottom = _TOP + _ROW * len(marks)
    digits = max(0, -floor(log10(step)))
    values = [low + step * number for number in range(round((high - low) / step) + 1)]
    ticks = tuple((x(value), f"{value:.{digits}f}") for value in values)
    return Drawing(WIDTH, bottom + _BOTTOM, left, right, bottom, marks, ticks, _words(plot))


def _axis(dots: Sequence[Dot]) -> tuple[float, float, float]:
    """Ends of the axis and the step between its ticks: round numbers around all that is drawn."""
    ends = [end for dot in dots for end in (dot.mean - dot.half_width, dot.mean + dot.half_width, *dot.seeds)]
    raw = max(max(ends) - min(ends), 0.5) / _TICKS
    magnitude = 10.0 ** floor(log10(raw))
    step = magnitude * next(factor for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    first = floor(min(ends) / step)
    return first * step, max(first + 1, ceil(max(ends) / step)) * step, step


def _short(name: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _words(plot: DotPlot) -> str:
    """What the plot shows, in place of it."""
    values = "; ".join(f"{dot.name} {dot.mean:.2f} ± {dot.half_width:.2f}" for dot in plot.dots)
    return f"Accuracy in %, {plot.title}, ± the 95 % interval over episodes, the best first: {values}."
