"""What a search shows and takes: its picture, its sentences, and the preset that it begins from."""

from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from leokit.checks import _resolved
from leokit.cli.search import _sentences
from leokit.config import SearchConfig, build
from leokit.figures.search import Axis, Line, _decades, _draw_axis, draw_search
from leokit.stages.search import Search

AXES = [
    Axis("hold_as", ("float16", None), "choice"),
    Axis("centring", (False, True), "choice"),
    Axis("outer_lr", (1e-5, 1e-2), "log"),
]


def labels(axis):
    panel = Figure().subplots()
    _draw_axis(panel, 0, axis)
    return [text.get_text() for text in panel.texts]


def test_an_axis_names_its_values():
    assert [labels(axis) for axis in AXES] == [
        ["float16", "none"],
        ["false", "true"],
        ["1e-5", "0.01", "0.0001", "0.001"],
    ]
    assert labels(Axis("num_latents", (16, 32, 64), "choice")) == ["16", "32", "64"]
    assert labels(Axis("dropout", (0.1, 0.5), "linear")) == ["0.1", "0.3", "0.5"]


@pytest.mark.parametrize(("low", "high"), [(1e-5, 1e-2), (1e-10, 1e-3), (1e-300, 1e300), (2e-4, 6e-4), (0.09, 12.0)])
def test_a_logarithmic_axis_has_few_labels_none_on_another_one(low, high):
    axis = Axis("outer_lr", (low, high), "log")
    decades = _decades(low, high)
    assert len(decades) <= 4
    places = [0, *(axis.place(value) for value in decades), 1]
    assert all(after - before > 0.0499 for before, after in pairwise(places))


def test_the_picture_of_a_search_whose_preset_leaves_an_option_open(tmp_path):
    def line(number, status="finished", role=""):
        values = {"hold_as": None if role == "preset" else "float16", "centring": number % 2 == 0, "outer_lr": 1e-4}
        return Line(values, None if status == "failed" else 0.4 + number / 100, status, role)

    lines = [line(2, role="preset"), line(0), line(1, "stopped"), line(3, "failed"), line(4, role="best"), line(5)]
    draw_search(tmp_path / "search.png", "six trials", AXES, lines)
    with Image.open(tmp_path / "search.png") as picture:
        assert picture.size[0] == 960
        seen = {colour for _, colour in picture.convert("RGB").getcolors(10**6)}
    yellow = [255 * part for part in to_rgb("#FDE725")]
    assert not any(max(abs(a - b) for a, b in zip(colour, yellow, strict=True)) < 40 for colour in seen)


@pytest.mark.parametrize(("rungs", "words"), [([100], "200 steps."), ([50, 100], "200 steps, 33 % fewer than all")])
def test_steps_are_saved_by_halving_alone(rungs, words):
    accuracy = {"mean": 0.5, "half_width": 0.01}
    summary = {"finished": 2, "stopped": 1, "failed": 0, "steps_taken": 200, "steps_saved": 1 / 3, "rungs": rungs}
    summary |= {"best_on_the_episodes_that_chose": accuracy, "val_episodes": 10, "fresh_episodes": 10, "best_trial": 0}
    first = next(_sentences(Search(Path("there"), "id", summary | {"on_fresh_episodes": {"best": accuracy}})))
    assert words in first
    assert ("fewer" in first) == (len(rungs) > 1)


@pytest.mark.parametrize(
    ("fixed", "given", "shots", "variant", "preset"),
    [
        ("shots = 5", {}, 5, "leo", "miniimagenet-5shot"),
        ("shots = 5", {"shots": 1}, 1, "leo", "miniimagenet-1shot"),
        ("shots = 5\nvariant = 'anchored'", {}, 5, "anchored", "miniimagenet-5shot"),
        ("variant = 'anchored'", {"variant": "leo"}, 1, "leo", "miniimagenet-1shot"),
        ("shots = 5", {"preset": "miniimagenet-1shot"}, 5, "leo", "miniimagenet-1shot"),
        ("", {"shots": 5}, 5, "leo", "miniimagenet-5shot"),
    ],
)
def test_what_a_space_fixes_holds_where_the_command_gives_nothing(tmp_path, fixed, given, shots, variant, preset):
    (tmp_path / "space.toml").write_text(f"{fixed}\ndropout = {{ uniform = [0.1, 0.5] }}\n")
    base, _ = _resolved(build(SearchConfig, {"space": str(tmp_path / "space.toml"), **given}))
    assert (base.shots, base.variant, base.preset) == (shots, variant, preset)
