"""How leokit's figures look and are written, and the lines, bands and legends that several have."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leokit import manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, told apart by the colour-blind too.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6B6B6B"
SKY, AMBER, BLACK = "#56B4E9", "#E69F00", "#1A1A1A"
WIDTH, DPI = 8.0, 120  # inches
STYLE: Any = {  # matplotlib names every key in its types
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called $x$
    "legend.fontsize": 9,
}


@contextmanager
def written_figure(path: Path, height: float, title: str, colours: int | None = None) -> "Iterator[Figure]":
    """An empty figure to draw on, which is then written as a PNG, 960 pixels wide, atomically.

    Args:
        path: of the file.
        height: of the figure in inches; its width is `WIDTH`.
        title: above it.
        colours: how many the file has, where not all: clouds of points then take a quarter of the bytes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from PIL import Image

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        yield figure
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    if colours:
        with Image.open(picture) as drawn:
            palette = drawn.convert("RGB").quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        picture = io.BytesIO()
        palette.save(picture, format="png", optimize=True)
    manifest.write_atomically(path, picture.getvalue())


def plot(
    axes: "Axes",
    lines: Lines,
    key: str,
    colour: str,
    label: str,
    *,
    scale: float = 1,
    style: str = "-",
    marker: str = "",
    x: str = "step",
) -> None:
    """A number of each line over another one; what is not finite leaves a gap, a single point shows as one."""
    points = [(line[x], line[key] * scale if _is_number(line[key]) else float("nan")) for line in lines]
    if points:
        marker = marker or ("o" if len(points) == 1 else "")
        axes.plot(*zip(*points, strict=True), color=colour, label=label, ls=style, marker=marker, ms=3.5)


def _is_number(value: float | None) -> bool:
    return value is not None and isfinite(value)


def band(axes: "Axes", lines: Lines, key: str, half_width: str, colour: str, x: str = "step") -> None:
    """An interval, in %, around a share of each line."""
    steps = [line[x] for line in lines]
    low = [100 * (line[key] - line[half_width]) for line in lines]
    high = [100 * (line[key] + line[half_width]) for line in lines]
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)


def guessing(axes: "Axes", value: float) -> None:
    """A line at what guessing gives, where the lines that were drawn come near it: the axis is theirs."""
    low, high = axes.get_ylim()
    if low <= value <= high:
        axes.axhline(value, color=GREY, ls=":", lw=1.2, label="guessing")


def legend(axes: "Axes") -> None:
    """A legend where there is something to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
