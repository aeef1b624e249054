"""Pictures of how far predictions can be trusted. Each function returns the picture's alternative text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leokit.assessment import Assessment
from leokit.calibration import Floats
from leokit.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, legend, written_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, ORANGE, PURPLE, GREEN, GREY)


def _panels(figure: "Figure", count: int, **options: Any) -> "list[Axes]":
    """So many panels in rows of three."""
    panels: list[Axes] = list(figure.subplots(-(-count // 3), 3, squeeze=False, **options).flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[max(0, count - 3) : count]:
        axes.tick_params(labelbottom=True)
    return panels[:count]


def draw_reliability(
    path: Path, raw: Mapping[str, Assessment], tempered: Mapping[str, Assessment], *, title: str
) -> str:
    """Accuracy against confidence of each predictive, with and without its temperature, and how many there are."""
    with written_figure(path, 3.0 * -(-len(raw) // 3) + 0.5, title) as figure:
        panels = _panels(figure, len(raw), sharex=True, sharey=True)
        for axes, (name, assessment) in zip(panels, raw.items(), strict=True):
            axes.set_title(name)
            axes.plot([0, 1], [0, 1], color=GREY, ls=":", lw=1.2)
            _draw_bins(axes, assessment, ORANGE, "as it is")
            if name in tempered:
                _draw_bins(axes, tempered[name], BLUE, "tempered")
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
        figure.axes[0].legend(loc="upper left")
        figure.supxlabel("confidence (largest probability)", fontsize=10)
        figure.supylabel("accuracy in the bin", fontsize=10)
    errors = ", ".join(f"{name} {_error(found):.1f} %" for name, found in raw.items())
    after = ", ".join(f"{name} {_error(found):.1f} %" for name, found in tempered.items())
    return (
        "Reliability diagrams: accuracy against confidence, a panel for each predictive. Expected calibration error "
        f"as it is: {errors}" + (f"; at the fitted temperature: {after}." if after else ".")
    )


def _error(assessment: Assessment) -> float:
    return 100 * assessment.measures["expected_calibration_error"].value


def _draw_bins(axes: "Axes", assessment: Assessment, colour: str, label: str) -> None:
    """A dot for each bin, its area the share of queries in it."""
    bins = assessment.reliability
    shares = bins.counts / bins.counts.sum()
    axes.plot(bins.confidence, bins.accuracy, color=colour, lw=1, alpha=0.7)
    axes.scatter(bins.confidence, bins.accuracy, s=6 + 220 * shares, color=colour, label=label, lw=0, alpha=0.85)


def draw_risk_coverage(path: Path, raw: Mapping[str, Assessment], *, title: str) -> str:
    """Share of errors among the most confident queries against how many of them are kept."""
    with written_figure(path, 4.0, title) as figure:
        axes = figure.subplots()
        for (name, assessment), colour in zip(raw.items(), _COLOURS, strict=False):
            curve = assessment.risk
            places = np.unique(np.linspace(len(curve.risk) // 200, len(curve.risk) - 1, 400).astype(int))
            axes.plot(100 * curve.coverage[places], 100 * curve.risk[places], color=colour, label=name)
        axes.set_xlabel("coverage: most confident queries that are kept (%)")
        axes.set_ylabel("risk: errors among them (%)")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        legend(axes)
    areas = ", ".join(f"{name} {found.measures['area_under_risk_coverage'].value:.3f}" for name, found in raw.items())
    return f"Risk against coverage, a line for each predictive. Areas under the curves: {areas}."


def draw_open_set(path: Path, scores: Mapping[str, Mapping[str, tuple[Floats, Floats]]], *, title: str) -> str:
    """Largest probability of inside and outside queries, and the telling-apart by each score."""
    key = "maximum_probability"
    with written_figure(path, 2.6 * -(-len(scores) // 3) + 0.6, title) as figure:
        panels = _panels(figure, len(scores), sharex=True)
        for axes, (name, found) in zip(panels, scores.items(), strict=True):
            inside, outside = found[key]
            bins = np.linspace(min(inside.min(), outside.min()), 1, 41).tolist()
            for values, colour, label in ((inside, BLUE, "classes of the episode"), (outside, ORANGE, "other classes")):
                axes.hist(values.ravel(), bins, density=True, color=colour, alpha=0.5, label=label)
            axes.set_title(name)
            axes.set_yticks([])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
        figure.supxlabel("largest probability", fontsize=10)
        figure.supylabel("density of queries", fontsize=10)
    return (
        "Histograms of the largest probability, of queries of the episode's classes and of queries of other classes, a "
        "panel for each predictive."
    )


def draw_shots(path: Path, curve: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """Parts of the predictive entropy against shots, a row for each predictive, a line for each label noise."""
    names = list(dict.fromkeys(point["predictive"] for point in curve))
    with written_figure(path, 2.8 * len(names) + 0.6, title) as figure:
        rows = figure.subplots(len(names), 3, sharex=True, squeeze=False)
        for row, name in zip(rows, names, strict=True):
            for axes, key in zip(row, ("total", "aleatoric", "epistemic"), strict=True):
                axes.set_title(f"{name}: {key}")
                _draw_noises(axes, [point for point in curve if point["predictive"] == name], key)
        rows[0][0].legend(loc="best")
        figure.supxlabel("shots (support images of each class)", fontsize=10)
        figure.supylabel("entropy (nats)", fontsize=10)
    first = [point for point in curve if point["predictive"] == names[0] and not point["noise"]]
    ends = [f"{point['epistemic']:.3f} nats at {point['shots']} shots" for point in (first[0], first[-1])]
    return (
        "Entropy of the mean prediction and its two parts against the number of shots, a line for each share of "
        f"mislabelled support images. The epistemic part of {names[0]} goes from {' to '.join(ends)}."
    )


def _draw_noises(axes: "Axes", points: Sequence[Mapping[str, Any]], key: str) -> None:
    for noise, colour in zip(sorted({point["noise"] for point in points}), _COLOURS, strict=False):
        line = [(point["shots"], point[key]) for point in points if point["noise"] == noise]
        axes.plot(*zip(*line, strict=True), color=colour, marker="o", ms=3.5, label=f"{100 * noise:.0f} % mislabelled")
    axes.set_xscale("log")
    ticks = sorted({point["shots"] for point in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
