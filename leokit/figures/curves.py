"""Learning curves of a run: losses, accuracies, and what is learned beside the matrices."""

import io
from collections.abc import Mapping, Sequence
from math import isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leokit import manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, told apart by the colour-blind too.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6B6B6B"
_WIDTH, _WIDE, _SMALL, _EDGE, _DPI = 8.0, 2.5, 1.75, 0.7, 120  # inches; heights of the panels and of title and axis
_RATES = {
    "inner_lr": "learned rate in latent space (α)",
    "finetuning_lr": "learned rate of fine-tuning",
    "lr": "learned rate",
}
_SCALARS = {"scale": "scale of the class means (τ)", "gate": "gate on the correction"}
_STYLE: Any = {  # matplotlib names every key in its types
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
    "legend.fontsize": 9,
}


def draw_curves(path: Path, lines: Lines, *, title: str, ways: int) -> None:
    """Draw a run's metrics over its steps as a PNG, 960 pixels wide, written atomically.

    The panels: losses in nats; accuracies in % with the 95 % interval of those on meta-val and the best one marked;
    then, where the run has them, each learned rate (mean, and range of its entries), the scale and the gate of
    `anchored`, and the share of deviations at their floor.

    Args:
        path: of the file.
        lines: of metrics.jsonl, in order; any number, also none.
        title: of the figure.
        ways: N, for the loss and the accuracy of guessing.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    trained = [line for line in lines if "loss" in line]
    small = _small_panels(trained)
    rows = -(-len(small) // 2)
    with rc_context(_STYLE):
        height = 2 * _WIDE + rows * _SMALL + _EDGE
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
        grid = figure.add_gridspec(2 + rows, 2, height_ratios=[_WIDE] * 2 + [_SMALL] * rows)
        axes = [figure.add_subplot(grid[0, :])]
        axes.append(figure.add_subplot(grid[1, :]))
        _draw_losses(axes[0], trained, ways)
        _draw_accuracies(axes[1], trained, lines, ways)
        for number, (key, name) in enumerate(small):
            place = slice(None) if number == len(small) - 1 and number % 2 == 0 else number % 2
            axes.append(figure.add_subplot(grid[2 + number // 2, place]))
            _draw_small(axes[-1], key, name, trained)
        _label_steps(axes, lines)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    manifest.write_atomically(path, picture.getvalue())


def best_validation(lines: Lines) -> tuple[int, float] | None:
    """Step and accuracy of the first of the best validations of trained weights; None where there was none."""
    found = [(line["step"], line["val_accuracy"]) for line in lines if "val_accuracy" in line]
    return max(found, key=lambda point: point[1]) if found else None


def _small_panels(trained: Lines) -> list[tuple[str, str]]:
    """What the last line of training has beside losses: key and title of each panel."""
    last = trained[-1] if trained else {}
    panels = [(key, name) for key, name in _RATES.items() if key in last.get("rates", {})]
    panels += [(key, name) for key, name in _SCALARS.items() if key in last]
    return panels + ([("at_floor", "share of deviations σ at their floor")] if "decoder_std" in last else [])


def _draw_losses(axes: "Axes", trained: Lines, ways: int) -> None:
    axes.set_title("loss on meta-train")
    axes.set_ylabel("loss (nats)")
    _guessing(axes, log(ways))
    _plot(axes, trained, "loss", BLUE, "objective: queries and penalties")
    _plot(axes, trained, "query_loss", ORANGE, "queries", style="--")
    _legend(axes)


def _draw_accuracies(axes: "Axes", trained: Lines, lines: Lines, ways: int) -> None:
    axes.set_title("accuracy")
    axes.set_ylabel("accuracy (%)")
    _guessing(axes, 100 / ways)
    _plot(axes, trained, "accuracy", BLUE, "meta-train, with dropout and noise", scale=100)
    validated = [line for line in lines if "val_accuracy" in line]
    _plot(axes, validated, "val_accuracy", ORANGE, "meta-val, 95 % interval", scale=100, marker="o")
    _band(axes, validated, "val_accuracy", "val_half_width", ORANGE)
    best = best_validation(lines)
    for line in lines:
        if "fallback_accuracy" in line:
            _draw_fallback(axes, line, kept=best is not None and line["fallback_accuracy"] >= best[1])
    if best:
        step, share = best[0], 100 * best[1]
        text = f"best of training on meta-val: {share:.1f} % at step {step:,}"
        axes.plot(step, share, "*", ms=14, color=PURPLE, mec="white", mew=0.8, ls="", zorder=5, label=text)
    _legend(axes)


def _draw_fallback(axes: "Axes", line: Mapping[str, Any], *, kept: bool) -> None:
    """The accuracy of the class means alone, the run's other candidate, across the panel."""
    share, half_width = 100 * line["fallback_accuracy"], 100 * line["fallback_half_width"]
    text = f"class means alone on meta-val: {share:.1f} %" + (", kept" if kept else "")
    axes.axhspan(share - half_width, share + half_width, color=GREEN, alpha=0.15, lw=0)
    axes.axhline(share, color=GREEN, ls="-.", label=text)


def _draw_small(axes: "Axes", key: str, name: str, trained: Lines) -> None:
    """One learned rate, scale or gate, or the share of deviations at their floor."""
    axes.set_title(name)
    if key == "at_floor":
        axes.set_ylabel("share (%)")
        axes.set_ylim(-4, 104)
        for part, colour, style in (("encoder", BLUE, "-"), ("decoder", ORANGE, "--")):
            shares = [{"step": line["step"], **line[f"{part}_std"]} for line in trained if f"{part}_std" in line]
            _plot(axes, shares, key, colour, part, scale=100, style=style)
        _legend(axes)
    elif key in _SCALARS:
        _plot(axes, trained, key, BLUE, "")
    else:
        rates = [{"step": line["step"], **line["rates"][key]} for line in trained if key in line.get("rates", {})]
        steps, low, high = ([rate[part] for rate in rates] for part in ("step", "min", "max"))
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.18, lw=0, label="range of its entries")
        _plot(axes, rates, "mean", BLUE, "mean")
        _legend(axes)


def _plot(
    axes: "Axes",
    lines: Lines,
    key: str,
    colour: str,
    label: str,
    *,
    scale: float = 1,
    style: str = "-",
    marker: str = "",
) -> None:
    """A number of each line over the steps; what is not finite leaves a gap, and a single point shows as one."""
    points = [(line["step"], line[key] * scale if isfinite(line[key]) else float("nan")) for line in lines]
    if points:
        marker = marker or ("o" if len(points) == 1 else "")
        axes.plot(*zip(*points, strict=True), color=colour, label=label, ls=style, marker=marker, ms=3.5)


def _band(axes: "Axes", lines: Lines, key: str, half_width: str, colour: str) -> None:
    """An interval, in %, around a share of each line."""
    steps = [line["step"] for line in lines]
    low = [100 * (line[key] - line[half_width]) for line in lines]
    high = [100 * (line[key] + line[half_width]) for line in lines]
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)


def _guessing(axes: "Axes", value: float) -> None:
    axes.axhline(value, color=GREY, ls=":", lw=1.2, label="guessing")


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _label_steps(axes: "Sequence[Axes]", lines: Lines) -> None:
    """The same steps below every panel, named below the lowest, and a word where there is nothing to draw yet."""
    last = max((line["step"] for line in lines), default=0) or 1
    for panel in axes:
        place = panel.get_subplotspec()
        assert place is not None  # all were added to a grid
        panel.set_xlim(-0.03 * last, 1.03 * last)
        panel.locator_params(axis="x", nbins=4 if len(place.colspan) == 1 else 7, integer=True)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if place.is_last_row():
            panel.set_xlabel("meta-training step")
    if not lines:
        axes[0].text(0.5, 0.7, "nothing measured yet", transform=axes[0].transAxes, ha="center", color=GREY)
