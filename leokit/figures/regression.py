"""Figures of the regression experiment: training, sampled functions (the paper's Figure 2), coverage, spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leokit.figures.style import BLUE, GREEN, GREY, ORANGE, legend, plot, written_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
_LOOK = {"leo": (BLUE, "o", "-"), "exact posterior": (GREY, "s", "--")}


@dataclass(frozen=True)
class Panel:
    """A task as it is drawn."""

    number: int
    family: str
    probability: float  # exact, of a sine
    grid: Floats  # (X,)
    truth: Floats  # (X,)
    inputs: Floats  # (K,)
    targets: Floats  # (K,)
    samples: Floats  # (S, X)
    sines: NDArray[np.bool_]  # (S,) whether a sample is nearer to a sine than to a line
    band: Floats  # (2, X), of the exact posterior's functions


def draw_regression_curves(path: Path, lines: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Draw the metrics of a training over its steps as a PNG (`written_figure`).

    Args:
        path: of the file.
        lines: of metrics.jsonl, in order; any number, also none.
        title: of the figure.
    """
    with written_figure(path, 5.0, title) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        above.set_title("loss of queries, on tasks that were never seen before")
        above.set_ylabel("nats a query")
        plot(above, lines, "query_loss", BLUE, "")
        if lines and min(line["query_loss"] for line in lines) > 0:
            above.set_yscale("log")
        below.set_title("KL divergence of the codes from a standard normal")
        below.set_ylabel("nats a task")
        below.set_xlabel("step")
        plot(below, lines, "kl", ORANGE, "")
        if not lines:
            above.text(0.5, 0.5, "nothing measured yet", transform=above.transAxes, ha="center")


def draw_functions_figure(path: Path, panels: Sequence[Panel], *, title: str) -> None:
    """Draw tasks with samples of functions, two in a row, as a PNG (`written_figure`)."""
    with written_figure(path, 7.2, title) as figure:
        grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel()
        for axes, panel, letter in zip(grid, panels, "abcdefgh", strict=False):
            _draw_panel(axes, panel, letter)
        handles, labels = grid[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _draw_panel(axes: "Axes", panel: Panel, letter: str) -> None:
    share = f"sines: {panel.sines.mean():.0%} of samples, exactly {panel.probability:.0%}"
    axes.set_title(f"({letter}) a {panel.family}; {share}")
    axes.fill_between(panel.grid, *panel.band, color=GREY, alpha=0.25, lw=0, label="exact posterior, 90 %")
    for is_sine, colour, name in (
        (True, BLUE, "sample, nearer to a sine"),
        (False, ORANGE, "sample, nearer to a line"),
    ):
        chosen = panel.samples[panel.sines == is_sine]
        axes.plot([], [], color=colour, ls=":", lw=1.2, label=name)
        if len(chosen):
            axes.plot(panel.grid, chosen.T, color=colour, ls=":", lw=0.8, alpha=0.75)
    axes.plot(panel.grid, panel.truth, color="black", lw=1.8, label="true function")
    for x in panel.inputs:
        axes.axvline(x, color=GREY, ls="--", lw=0.6)
    axes.plot(panel.inputs, panel.targets, "o", color="#B00020", ms=6, mec="white", label="points given", zorder=5)
    shown = np.concatenate([panel.band.ravel(), panel.truth, panel.targets, np.quantile(panel.samples, [0.05, 0.95])])
    low, high = float(shown.min()), float(shown.max())
    axes.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    axes.set_xlim(panel.grid[0], panel.grid[-1])
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.grid(False)


def draw_coverage(path: Path, predictives: Mapping[str, Any]) -> None:
    """Draw coverage of central intervals against their probability, as a PNG (`written_figure`)."""
    with written_figure(path, 4.5, "Coverage of the predictive intervals") as figure:
        axes = figure.subplots()
        axes.plot([45, 100], [45, 100], color=GREEN, lw=1.0, label="as it should be")
        for name, summary in predictives.items():
            colour, marker, style = _LOOK[name]
            levels = [100 * float(level) for level in summary["coverage"]]
            means = [100 * entry["mean"] for entry in summary["coverage"].values()]
            halves = [100 * entry["half_width"] for entry in summary["coverage"].values()]
            axes.errorbar(levels, means, halves, color=colour, marker=marker, ls=style, ms=5, capsize=3, label=name)
        axes.set_xlabel("probability of the central interval (%)")
        axes.set_ylabel("noisy queries inside (%), 95 % interval over tasks")
        legend(axes)


def draw_spread(path: Path, predictives: Mapping[str, Any]) -> None:
    """Draw spread and error against the distance to the nearest given point, as a PNG (`written_figure`)."""
    with written_figure(path, 4.2, "Spread and error away from the points") as figure:
        panels = figure.subplots(1, 2, sharey=True)
        titles = {"spread": "spread of the functions", "root_mean_squared_error_of_mean": "error of their mean"}
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            axes.set_title(f"{title} (root mean square)")
            axes.set_xlabel("distance of x to the nearest point given")
            for name, summary in predictives.items():
                colour, marker, style = _LOOK[name]
                rows = summary["by_distance"]
                plot(axes, rows, key, colour, name, x="mean_distance", marker=marker, style=style)
            legend(axes)
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("units of y")
