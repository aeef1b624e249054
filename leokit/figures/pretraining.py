"""Curves of a pre-training: loss, accuracy on its own classes, few-shot accuracy on others, learning rate."""

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leokit.figures.style import BLUE, GREEN, ORANGE, PURPLE, band, guessing, legend, plot, written_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]


def draw_pretraining(path: Path, lines: Lines, *, title: str, classes: int, ways: int) -> None:
    """Draw the metrics of a pre-training over its epochs as a PNG (`written_figure`).

    Args:
        path: of the file.
        lines: of metrics.jsonl, in order; any number, also none.
        title: of the figure.
        classes: that are told apart, for the loss of guessing.
        ways: N of the few-shot episodes, for the accuracy of guessing.
    """
    with written_figure(path, 9.6, title) as figure:
        axes = figure.subplots(4, 1, sharex=True, height_ratios=[2, 2, 2, 1])
        held = [line for line in lines if "holdout_loss" in line]
        axes[0].set_title("loss on the classes it is trained on")
        axes[0].set_ylabel("loss (nats)")
        plot(axes[0], lines, "loss", BLUE, "training, with augmentation", x="epoch")
        plot(axes[0], held, "holdout_loss", ORANGE, "images held out", x="epoch", marker="o")
        guessing(axes[0], log(classes))
        axes[1].set_title("accuracy on the classes it is trained on")
        axes[1].set_ylabel("accuracy (%)")
        plot(axes[1], lines, "accuracy", BLUE, "training, with augmentation", scale=100, x="epoch")
        plot(axes[1], held, "holdout_accuracy", ORANGE, "images held out", scale=100, x="epoch", marker="o")
        _draw_few_shot(axes[2], lines, ways)
        axes[3].set_title("learning rate")
        plot(axes[3], lines, "lr", BLUE, "", x="epoch")
        axes[3].set_xlabel("epoch")
        for panel in axes:
            legend(panel)
            panel.locator_params(axis="x", integer=True)
        if not lines:
            axes[0].text(0.5, 0.5, "nothing measured yet", transform=axes[0].transAxes, ha="center")


def pretraining_in_words(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What the picture of `draw_pretraining` shows, in place of it.

    Args:
        config: of the backbone.
        facts: of the backbone, when it was trained.
    """
    about = (
        f"Curves of pre-training {facts['model']} on {len(facts['trained_on'])} classes over {facts['epochs']} epochs: "
        "loss and accuracy on these classes, few-shot accuracy on others, learning rate."
    )
    measured = "; ".join(
        f"{shots}, {100 * mean:.1f} ± {100 * half_width:.1f} %"
        for shots, (mean, half_width) in (facts["few_shot"] or {}).items()
    )
    few_shot = f", with nearest class mean on meta-val {config['val_ways']}-way {measured}" if measured else ""
    return f"{about} The weights of epoch {facts['best_epoch']} were kept{few_shot}."


def _draw_few_shot(axes: "Axes", lines: Lines, ways: int) -> None:
    """Accuracy of nearest class mean on meta-val, a line for each layer and number of shots."""
    axes.set_title(f"nearest class mean on meta-val, {ways}-way, 95 % interval over episodes")
    axes.set_ylabel("accuracy (%)")
    measured = [line for line in lines if "few_shot" in line]
    layers = list(measured[-1]["few_shot"]) if measured else []
    shots = list(measured[-1]["few_shot"][layers[0]]) if layers else []
    colours = dict(zip(shots, (ORANGE, BLUE, GREEN), strict=False))
    styles = ("-", "--", ":", "-.")
    for number, layer in enumerate(layers):
        for shot in shots:
            rows = [
                {
                    "epoch": line["epoch"],
                    "accuracy": line["few_shot"][layer][shot][0],
                    "half": line["few_shot"][layer][shot][1],
                }
                for line in measured
            ]
            label = f"{shot.removesuffix('shot')}-shot, {layer}"
            colour = colours.get(shot, PURPLE)
            plot(axes, rows, "accuracy", colour, label, scale=100, x="epoch", marker="o", style=styles[number % 4])
            band(axes, rows, "accuracy", "half", colour, x="epoch")
    guessing(axes, 100 / ways)
