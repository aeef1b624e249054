"""Learning curves of a run: losses, accuracies, and what is learned beside the matrices."""

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leokit.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, band, guessing, legend, plot, written_figure
from leokit.text import method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]

_WIDE, _SMALL, _EDGE = 2.5, 1.75, 0.7  # inches: heights of the panels, and of title and axis
_RATES = {
    "inner_lr": "learned rate in latent space (α)",
    "finetuning_lr": "learned rate of fine-tuning",
    "lr": "learned rate",
}
_SCALARS = {"scale": "scale of the class means (τ)", "gate": "gate on the correction"}


def draw_curves(path: Path, lines: Lines, *, title: str, ways: int) -> None:
    """Draw a run's metrics over its steps as a PNG (`written_figure`).

    The panels: losses in nats; accuracies in % with the 95 % interval of those on meta-val and the best one marked;
    then, where the run has them, each learned rate (mean, and range of its entries), the scale and the gate of
    `anchored`, and the share of deviations at their floor.

    Args:
        path: of the file.
        lines: of metrics.jsonl, in order; any number, also none.
        title: of the figure.
        ways: N, for the loss and the accuracy of guessing.
    """
    trained = [line for line in lines if "loss" in line]
    small = _small_panels(trained)
    rows = -(-len(small) // 2)
    with written_figure(path, 2 * _WIDE + rows * _SMALL + _EDGE, title) as figure:
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


def curves_in_words(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What the picture of `draw_curves` shows, in place of it.

    Args:
        config: of the run.
        facts: of the run, when it ended.
    """
    about = (
        f"Learning curves of {method_name(config['variant'])}, {config['ways']}-way {config['shots']}-shot, seed "
        f"{config['seed']}, over {facts['steps']:,} meta-training steps: losses, accuracies, and what is learned "
        "beside the matrices."
    )
    if facts["val_accuracy"] is None:
        return f"{about} It was trained on {' and '.join(facts['meta_trained_on'])}, so no step was selected on val."
    best = "the class means alone" if facts["best_is_fallback"] else f"step {facts['best_step']:,}"
    accuracy, half_width = 100 * facts["val_accuracy"], 100 * facts["val_half_width"]
    return f"{about} Best on meta-val: {best}, with {accuracy:.1f} ± {half_width:.1f} %, 95 % interval over episodes."


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
    plot(axes, trained, "loss", BLUE, "objective: queries and penalties")
    plot(axes, trained, "query_loss", ORANGE, "queries", style="--")
    guessing(axes, log(ways))
    legend(axes)


def _draw_accuracies(axes: "Axes", trained: Lines, lines: Lines, ways: int) -> None:
    axes.set_title("accuracy")
    axes.set_ylabel("accuracy (%)")
    plot(axes, trained, "accuracy", BLUE, "meta-train, with dropout and noise", scale=100)
    validated = [line for line in lines if "val_accuracy" in line]
    plot(axes, validated, "val_accuracy", ORANGE, "meta-val, 95 % interval", scale=100, marker="o")
    band(axes, validated, "val_accuracy", "val_half_width", ORANGE)
    best = best_validation(lines)
    for line in lines:
        if "fallback_accuracy" in line:
            plain = max(("fallback", "uncentred_fallback"), key=lambda name: line.get(f"{name}_accuracy", -1.0))
            _draw_fallback(axes, line, plain, kept=best is not None and line[f"{plain}_accuracy"] >= best[1])
    if best:
        step, share = best[0], 100 * best[1]
        text = f"best of training on meta-val: {share:.1f} % at step {step:,}"
        axes.plot(step, share, "*", ms=14, color=PURPLE, mec="white", mew=0.8, ls="", zorder=5, label=text)
    guessing(axes, 100 / ways)
    legend(axes)


def _draw_fallback(axes: "Axes", line: Mapping[str, Any], name: str, *, kept: bool) -> None:
    """The accuracy of the class means alone, the run's other candidate, across the panel."""
    share, half_width = 100 * line[f"{name}_accuracy"], 100 * line[f"{name}_half_width"]
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
            plot(axes, shares, key, colour, part, scale=100, style=style)
        legend(axes)
    elif key in _SCALARS:
        plot(axes, trained, key, BLUE, "")
    else:
        rates = [{"step": line["step"], **line["rates"][key]} for line in trained if key in line.get("rates", {})]
        steps, low, high = ([rate[part] for rate in rates] for part in ("step", "min", "max"))
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.18, lw=0, label="range of its entries")
        plot(axes, rates, "mean", BLUE, "mean")
        legend(axes)


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
