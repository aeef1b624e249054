"""The trials of a search as lines over parallel axes: one axis for each option, the last one for accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leokit.figures.style import BLACK, GREY, ORANGE, written_figure
from leokit.text import in_short, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 4.6  # inches
_COLOURS = "viridis_r"  # even steps of lightness, told apart by the colour-blind and in grey: the darker the better
_PALE = 0.25  # of its range, at the pale end, that is not used: it cannot be seen on white
_LABEL = 0.05  # the height of a label, of an axis
_STEP = 0.06  # between lines through the same choice


@dataclass(frozen=True)
class Axis:
    """An option that was drawn.

    Attributes:
        name: of the option.
        values: the two ends, or the choices.
        scale: how values are spread over the axis.
    """

    name: str
    values: tuple[Any, ...]
    scale: Literal["linear", "log", "choice"]

    def place(self, value: Any) -> float:
        """Where a value lies, from 0 at the foot to 1 at the top."""
        if self.scale == "choice":
            return (self.values.index(value) + 0.5) / len(self.values)
        low, high, value = (log(each) if self.scale == "log" else float(each) for each in (*self.values, value))
        return (value - low) / (high - low) if high > low else 0.5


@dataclass(frozen=True)
class Line:
    """A trial.

    Attributes:
        values: by option.
        accuracy: the best on meta-val; None where there is none.
        status: finished, stopped (early), or failed.
        role: best, preset, or nothing.
    """

    values: Mapping[str, Any]
    accuracy: float | None
    status: str
    role: str = ""


def draw_search(path: Path, title: str, axes: Sequence[Axis], lines: Sequence[Line]) -> None:
    """Draw trials over parallel axes as a PNG (`written_figure`).

    A line is as dark as its trial was good on meta-val; the best one and the preset stand out, trials that were stopped
    early are dashed, and those that failed end in a cross below the last axis.

    Args:
        path: of the file.
        title: of the figure.
        axes: for the options; one for the accuracy is added.
        lines: of trials, in any order.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known = [100 * line.accuracy for line in lines if line.accuracy is not None and line.status != "failed"]
    low, high = (min(known), max(known)) if known else (0.0, 100.0)
    accuracy = Axis("meta-val accuracy (%)", (low, high), "linear")
    span = high - low if high > low else 1.0
    pale = low - span * _PALE / (1 - _PALE)
    colours = ScalarMappable(Normalize(pale, low + span), colormaps[_COLOURS])
    with written_figure(path, _HEIGHT, title) as figure:
        panel = figure.subplots()
        ordered = sorted(lines, key=lambda line: (line.role != "", line.role == "best", line.accuracy or 0.0))
        for number, line in enumerate(ordered):
            _draw(panel, line, [*axes, accuracy], colours, number / max(1, len(ordered) - 1) - 0.5)
        for column, axis in enumerate([*axes, accuracy]):
            _draw_axis(panel, column, axis)
        _decorate(panel, [*axes, accuracy], lines)


def _draw(panel: "Axes", line: Line, axes: Sequence[Axis], colours: Any, shift: float) -> None:
    failed = line.status == "failed" or line.accuracy is None
    heights = [
        axis.place(line.values[axis.name]) + (_STEP * shift if axis.scale == "choice" else 0) for axis in axes[:-1]
    ]
    heights.append(-0.08 if failed or line.accuracy is None else axes[-1].place(100 * line.accuracy))
    style: dict[str, Any] = {"color": GREY if failed else colours.to_rgba(100 * (line.accuracy or 0)), "lw": 1.1}
    style |= {"ls": ":"} if failed else {"ls": (0, (4, 2))} if line.status == "stopped" else {}
    if line.role == "best":
        style |= {"color": ORANGE, "lw": 3.2, "ls": "-", "zorder": 6}
    elif line.role == "preset":
        style |= {"color": BLACK, "lw": 2.2, "ls": (0, (1, 1)), "zorder": 7}
    panel.plot(range(len(axes)), heights, solid_joinstyle="round", alpha=0.85 if not line.role else 1, **style)
    if failed:
        panel.plot(len(axes) - 1, heights[-1], "x", color=style["color"], ms=6, clip_on=False)


def _draw_axis(panel: "Axes", column: int, axis: Axis) -> None:
    panel.plot([column, column], [0, 1], color=BLACK, lw=1, zorder=4)
    values = list(axis.values)
    if axis.scale == "log":
        values += _decades(*axis.values)
    if axis.scale == "linear":
        values = [axis.values[0] + share * (axis.values[1] - axis.values[0]) for share in (0, 0.5, 1)]
    for value in values:
        text = in_short(value)
        last = axis.name.endswith("(%)")
        panel.annotate(
            text,
            (column, axis.place(value)),
            xytext=(5 if last else 4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            zorder=8,
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
        )


def _decades(low: float, high: float) -> list[float]:
    """At most four powers of ten between two ends, so far from both that no label lies on another one."""
    apart = max(0.3, _LABEL * (log10(high) - log10(low)))
    first, last = ceil(log10(low) + apart), floor(log10(high) - apart)
    return [10.0**power for power in range(first, last + 1, max(1, -(-(last - first + 1) // 4)))]


def _decorate(panel: "Axes", axes: Sequence[Axis], lines: Sequence[Line]) -> None:
    from matplotlib.lines import Line2D

    panel.set_xticks(
        range(len(axes)),
        [_broken(f"{axis.name} (log)" if axis.scale == "log" else axis.name) for axis in axes],
        fontsize=8.5,
    )
    panel.set_yticks([])
    panel.set_xlim(-0.15, len(axes) - 0.5)
    panel.set_ylim(-0.12, 1.05)
    panel.grid(visible=False)
    panel.tick_params(length=0)
    for side in panel.spines.values():
        side.set_visible(False)
    entries = [Line2D([], [], color=ORANGE, lw=3.2, label="best on meta-val")]
    if any(line.role == "preset" for line in lines):
        entries.append(Line2D([], [], color=BLACK, lw=2.2, ls=(0, (1, 1)), label="the preset"))
    entries.append(Line2D([], [], color="#2D708E", lw=1.1, label="others, the darker the better"))
    if any(line.status == "stopped" for line in lines):
        entries.append(Line2D([], [], color="#2D708E", lw=1.1, ls=(0, (4, 2)), label="stopped early"))
    if any(line.status == "failed" for line in lines):
        entries.append(Line2D([], [], color=GREY, lw=1.1, ls=":", marker="x", label="failed"))
    panel.legend(handles=entries, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(entries))


def _broken(name: str) -> str:
    """A name on short lines."""
    return name.replace("_", "\n").replace(" ", "\n")


def search_in_words(summary: Mapping[str, Any]) -> str:
    """What the picture of `draw_search` shows, in place of it, from the summary of a search."""
    best, preset = (summary[f"{name}_on_the_episodes_that_chose"] for name in ("best", "preset"))
    against = "the preset failed" if preset is None else f"the preset {100 * preset['mean']:.1f} %"
    return (
        f"{summary['trials']} trials of {method_name(summary['variant'])}, {summary['ways']}-way "
        f"{summary['shots']}-shot, as lines over parallel axes: {', '.join(summary['drawn'])}, and accuracy on "
        f"meta-val. Best: trial {summary['best_trial']} with {100 * best['mean']:.1f} %; {against}, on the episodes "
        "that chose. "
        f"{summary['stopped']} were stopped early, {summary['failed']} failed."
    )
