"""Figures 3 and 4 of the paper: codes before and after adapting, and curvature, expansion and steps as boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leokit.figures.style import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, written_figure
from leokit.metrics import PERCENTILES
from leokit.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.floating[Any]]
Box = tuple[str, Mapping[str, float], str, float]  # label, percentiles, colour, opacity

_HUES, _SHAPES = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK, GREY), "o^sD"
_DECADES = 500.0  # span of an axis up to which 2 and 5 are marked too
_PALE = "#D0D0D0"
_MOST_CLASSES = 20  # that a panel names


@dataclass(frozen=True)
class CodesPicture:
    """What a picture of codes is drawn from.

    Attributes:
        title: of the figure.
        positions: by method (t-SNE, PCA), in the plane: (2, n, 2), before and after adapting.
        labels: (n,), numbers of the codes' classes.
        classes: names of all classes.
        silhouettes: by class, before and after adapting with the 95 % interval, as `leokit analyze` summarises them.
        highlighted: the class that is shown by itself.
    """

    title: str
    positions: Mapping[str, Floats]
    labels: NDArray[np.int64]
    classes: Sequence[str]
    silhouettes: Mapping[str, Any]
    highlighted: str


def draw_codes(path: Path, picture: CodesPicture) -> None:
    """Draw codes in the plane as a PNG (`written_figure`).

    The panels: t-SNE by stage, by class, and the highlighted class alone; silhouettes by class; PCA by stage and class.
    """
    shown = _shown_classes(picture)
    with written_figure(path, 11, picture.title, colours=128) as figure:
        axes = figure.subplots(3, 2)
        for row, name, letters in ((0, "t-SNE", "ab"), (2, "PCA", "ef")):
            _by_stage(axes[row, 0], picture.positions[name])
            _by_class(axes[row, 1], picture.positions[name], picture, shown)
            axes[row, 0].set_title(f"({letters[0]}) {name}: before and after adaptation")
            axes[row, 1].set_title(f"({letters[1]}) {name}: by class, numbered as in (d)")
            for panel in axes[row]:
                _plane(panel, name)
        _highlight(axes[1, 0], picture)
        _silhouettes(axes[1, 1], picture, shown)


def _shown_classes(picture: CodesPicture) -> list[int]:
    """Numbers of the classes that a panel has room for, those that change most, by their silhouette after adapting."""
    known = picture.silhouettes
    numbers = [number for number, name in enumerate(picture.classes) if name in known]
    numbers.sort(key=lambda number: -abs(known[picture.classes[number]]["difference"]["mean"]))
    return sorted(numbers[:_MOST_CLASSES], key=lambda number: known[picture.classes[number]]["after"]["mean"])


def _plane(axes: "Axes", name: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    unit = "dimension" if name == "t-SNE" else "component"
    axes.set_xlabel(f"{name}, {unit} 1")
    axes.set_ylabel(f"{name}, {unit} 2")


def _xy(points: Floats) -> tuple[Floats, Floats]:
    return points[..., 0].reshape(-1), points[..., 1].reshape(-1)


def _by_stage(axes: "Axes", positions: Floats) -> None:
    for points, colour, name in zip(positions, (BLUE, ORANGE), ("z, from the encoder", "z', adapted"), strict=True):
        axes.scatter(*_xy(points), s=2, color=colour, alpha=0.35, lw=0, label=name)
    legend = axes.legend(loc="best", markerscale=5)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _by_class(axes: "Axes", positions: Floats, picture: CodesPicture, shown: Sequence[int]) -> None:
    """Both stages by class; a class of many is told by hue and shape, and its number stands at its adapted codes."""
    from matplotlib.patheffects import withStroke

    for number in np.unique(picture.labels).tolist():
        points = positions[:, picture.labels == number]
        shape = _SHAPES[number // len(_HUES) % len(_SHAPES)]
        axes.scatter(*_xy(points), s=3, color=_HUES[number % len(_HUES)], alpha=0.4, lw=0, marker=shape)
    for number in shown:
        place = np.median(positions[1, picture.labels == number], axis=0)
        text = axes.annotate(str(number + 1), place, ha="center", va="center", fontsize=9, fontweight="bold")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _highlight(axes: "Axes", picture: CodesPicture) -> None:
    positions, own = picture.positions["t-SNE"], picture.labels == picture.classes.index(picture.highlighted)
    axes.scatter(*_xy(positions[:, ~own]), s=2, color=_PALE, lw=0)
    for points, colour, shape, name in zip(positions, (BLUE, ORANGE), "o^", ("before", "after"), strict=True):
        axes.scatter(*_xy(points[own]), s=9, color=colour, marker=shape, alpha=0.8, lw=0, label=name)
    axes.legend(loc="best", markerscale=2)
    axes.set_title(f"(c) t-SNE: the class {visible(picture.highlighted)}")
    _plane(axes, "t-SNE")


def _silhouettes(axes: "Axes", picture: CodesPicture, shown: Sequence[int]) -> None:
    """Before and after for each class, with intervals."""
    for row, number in enumerate(shown):
        entry = picture.silhouettes[picture.classes[number]]
        axes.plot([entry["before"]["mean"], entry["after"]["mean"]], [row, row], color=_PALE, lw=2, zorder=1)
        for stage, colour, shape, shift in (("before", BLUE, "o", 0.13), ("after", ORANGE, "^", -0.13)):
            value, half_width = entry[stage]["mean"], entry[stage]["half_width_95_over_episodes"] or 0
            axes.hlines(row + shift, value - half_width, value + half_width, color=colour, lw=1.2)
            axes.plot(value, row + shift, shape, color=colour, ms=4.5, ls="", label=stage if row == 0 else None)
    axes.axvline(0, color=GREY, lw=0.8, ls=":")
    axes.set_yticks(range(len(shown)), [f"{picture.classes[number]}  {number + 1}" for number in shown], fontsize=8)
    axes.set_xlabel("silhouette of codes, 95 % interval over episodes")
    some = f", {len(shown)} that change most" if len(shown) < len(picture.silhouettes) else ""
    axes.set_title(f"(d) silhouette by class{some}")
    axes.legend(loc="lower right")


def draw_geometry(path: Path, runs: Mapping[str, Any]) -> None:
    """Draw curvature, singular values and steps of runs as boxes in a PNG (`written_figure`).

    A box reaches from the 25th to the 75th percentile, with a line at the median; whiskers from the 5th to the 95th.

    Args:
        path: of the file.
        runs: by name, as `leokit analyze` summarises them.
    """
    size, short = _without_size(runs)
    panels = {
        "(a) curvature": ("eigenvalues, those not 0, of the Hessian of the support loss", _curvatures(short)),
        "(b) the decoder from codes to weights": ("singular values; above 1 it expands", _singular(short)),
        "(c) steps": ("Euclidean length, over all classes of an episode", _steps(short)),
    }
    panels = {title: panel for title, panel in panels.items() if panel[1]}
    rows = [len(boxes) for _, boxes in panels.values()]
    whole = f"{size}: boxes are quartiles, whiskers go from 5 to 95 %".removeprefix(": ")
    with written_figure(path, 0.27 * sum(rows) + 0.85 * len(panels) + 0.5, whole) as figure:
        axes = figure.subplots(len(panels), 1, height_ratios=[count + 0.6 for count in rows], squeeze=False)[:, 0]
        for panel, (title, (unit, boxes)) in zip(axes, panels.items(), strict=True):
            _draw_boxes(panel, boxes)
            panel.set_title(title)
            panel.set_xlabel(unit)
            if "decoder" in title:
                panel.axvline(1, color=GREY, ls=":", lw=1.2)


def _without_size(runs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The size that all runs have in common, as 5-way 1-shot, and the runs by names without it; else '' and as is."""
    sizes = {(entry["ways"], entry["shots"]) for entry in runs.values()}
    if len(sizes) > 1:
        return "", dict(runs)
    ways, shots = sizes.pop()
    return f"{ways}-way {shots}-shot", {
        name.replace(f"-{ways}way-{shots}shot", ""): entry for name, entry in runs.items()
    }


def _curvatures(runs: Mapping[str, Any]) -> list[Box]:
    return [
        (f"{name}: by {space}, {'at the start' if point == 'start' else point}", found[space], colour, opacity)
        for name, entry in runs.items()
        for space, colour in (("codes", ORANGE), ("weights", BLUE))
        for (point, found), opacity in zip(entry["curvature"].items(), (0.35, 0.85), strict=True)
        if found[space]
    ]


def _singular(runs: Mapping[str, Any]) -> list[Box]:
    return [(name, found, GREEN, 0.6) for name, entry in runs.items() if (found := entry["singular_values"])]


def _steps(runs: Mapping[str, Any]) -> list[Box]:
    boxes: list[Box] = []
    for name, entry in runs.items():
        latent, plain = entry["steps"]["latent"], entry["steps"]["weights"]
        if latent:
            boxes.append((f"{name}: in codes", latent["codes"], ORANGE, 0.6))
            boxes.append((f"{name}: in weights, by those in codes", latent["weights"], BLUE, 0.85))
        if plain:
            what = "in weights, fine-tuning" if entry["has_codes"] else "in weights"
            boxes.append((f"{name}: {what}", plain["weights"], BLUE, 0.35))
    return boxes


def _draw_boxes(axes: "Axes", boxes: "Sequence[Box]") -> None:
    """Horizontal boxes over a logarithmic axis, the first on top."""
    from matplotlib.ticker import LogLocator, NullLocator

    for row, (_, box, colour, opacity) in enumerate(boxes):
        low, first, median, third, high = (box[key] for key in PERCENTILES)
        axes.hlines(row, low, high, color=BLACK, lw=1)
        axes.vlines([low, high], row - 0.15, row + 0.15, color=BLACK, lw=1)
        axes.barh(row, third - first, left=first, height=0.62, color="white", edgecolor="none", zorder=2)
        axes.barh(row, third - first, left=first, height=0.62, color=colour, alpha=opacity, zorder=3)
        axes.vlines(median, row - 0.31, row + 0.31, color=BLACK, lw=2, zorder=4)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < _DECADES else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(boxes)), [label for label, *_ in boxes])
    axes.set_ylim(len(boxes) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
