"""The picture of a run: whatever lines there are, it is drawn, and its best step is that of training."""

import numpy as np
import pytest
from PIL import Image

from leokit.figures.curves import best_validation, draw_curves

GREEN = (0x00, 0x9E, 0x73)  # of the class means


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def trained(step, **more):
    return {"step": step, "loss": 1.0, "query_loss": 0.9, "accuracy": 0.5, "rates": {}} | more


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 0, "val_accuracy": 0.2, "val_half_width": 0.1}],
        [trained(100)],
        [trained(100, loss=NAN), trained(200, loss=INF)],
        [trained(100, rates={"lr": {"min": NAN, "mean": NAN, "max": NAN}}, decoder_std={"at_floor": 0.5})],
    ],
    ids=["none", "validation", "one", "not finite", "rates not finite"],
)
def test_any_lines_are_drawn(tmp_path, lines):
    draw_curves(tmp_path / "curves.png", lines, title="a run", ways=5)
    assert len(np.unique(pixels(tmp_path / "curves.png"), axis=0)) > 5
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_the_class_means_have_their_line(tmp_path):
    line = {"step": 0, "val_accuracy": 0.2, "val_half_width": 0.1}
    draw_curves(tmp_path / "without.png", [line], title="a run", ways=5)
    draw_curves(
        tmp_path / "with.png",
        [line | {"fallback_accuracy": 0.4, "fallback_half_width": 0.05}],
        title="a run",
        ways=5,
    )
    assert (pixels(tmp_path / "without.png") == GREEN).all(1).sum() == 0
    assert (pixels(tmp_path / "with.png") == GREEN).all(1).sum() > 200


def test_best_is_the_first_of_equals():
    lines = [{"step": step, "val_accuracy": share} for step, share in ((0, 0.2), (5, 0.6), (10, 0.6), (15, 0.5))]
    assert best_validation([trained(3), *lines]) == (5, 0.6)
    assert best_validation([trained(3)]) is None


@pytest.mark.parametrize(("shares", "guess"), [((0.61, 0.65), False), ((0.27, 0.65), False), ((0.18, 0.65), True)])
def test_the_axis_of_accuracies_fits_them(tmp_path, monkeypatch, shares, guess):
    """What guessing gives is drawn where the accuracies come near it, and never widens their axis."""
    limits, labels = [], []

    def look(axes):
        limits.append(axes.get_ylim())
        labels.append(axes.get_legend_handles_labels()[1])

    monkeypatch.setattr("leokit.figures.curves.legend", look)
    lines = [{"step": 9 * n, "val_accuracy": share, "val_half_width": 0.001} for n, share in enumerate(shares)]
    draw_curves(tmp_path / "curves.png", lines, title="a run", ways=5)
    low, high = limits[1]
    assert ("guessing" in labels[1]) == guess
    assert 100 * min(shares) - 5 < low < 100 * min(shares) and 100 * max(shares) < high < 100 * max(shares) + 5
