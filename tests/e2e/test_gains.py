"""What training gained over class means on meta-val: on the episodes that chose the weights, and always told."""

import json
from dataclasses import replace

import pytest

from leokit import manifest
from leokit.evaluations import gain_in_words
from tests.e2e.conftest import learnable_store

SIZE = ("--val-every", 10, "--val-episodes", 40, "--val-queries", 5, "--queries", 5)
RUN = "leokit-work/runs/run"
NOTHING = "Training gained nothing over class means on meta-val"
LEARNING = ("--variant", "leo", "--outer-lr", "3e-3", "--dropout", 0, "--steps", 60)
FACTS = ("class_mean_method", "class_mean_accuracy", "class_mean_half_width", "gain", "gain_half_width")


def one_line(text):
    return " ".join(text.split())


def trained(leokit, *options):
    printed = leokit("meta-train", *SIZE, *options, "--out", RUN)
    return one_line(printed.stdout), json.loads(leokit("meta-train", *SIZE, *options, "--out", RUN, "--json").stdout)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--preset", "own-images", "--steps", 1), f"{NOTHING}; this run is the class means."),
        (("--preset", "own-images", "--no-centring", "--steps", 1), f"{NOTHING}; this run is the class means."),
        (("--steps", 1), f"{NOTHING}"),
    ],
    ids=["centred class means", "class means", "leo below class means"],
)
def test_a_run_that_gained_nothing_says_so_in_every_account(leokit, features, tmp_path, options, said):
    printed, facts = trained(leokit, *options)
    assert said in printed
    assert gain_in_words(facts).startswith(said)
    assert facts["gain"] <= 0 <= facts["gain_half_width"]
    assert facts["gain"] == pytest.approx(facts["val_accuracy"] - facts["class_mean_accuracy"], abs=1e-12)
    mean, half_width = (100 * facts[f"class_mean_{key}"] for key in ("accuracy", "half_width"))
    cell = f"{mean:.2f} ± {half_width:.2f}"
    assert f"class means {cell} %" in printed
    inspected = leokit("inspect", RUN)
    assert said in one_line(inspected.stdout)
    assert "class_mean_accuracy" in inspected.stdout
    assert {key: json.loads(leokit("inspect", RUN, "--json").stdout)["facts"][key] for key in FACTS} == {
        key: facts[key] for key in FACTS
    }
    leokit("report", "--format", "markdown", "--out", "report.md")
    page = (tmp_path / "report.md").read_text()
    assert f"runs/run: {said}" in one_line(page)
    assert cell in page
    leokit("report", "--card", "--run", RUN, "--out", "card")
    assert said in one_line((tmp_path / "card" / "README.md").read_text())


@pytest.mark.parametrize("options", [LEARNING, ("--preset", "own-images", "--steps", 1)], ids=["leo", "own-images"])
def test_class_means_are_measured_on_the_episodes_that_chose_the_weights(leokit, tmp_path, options):
    learnable_store(tmp_path / "leokit-work" / "features")
    _, facts = trained(leokit, *options)
    leokit("meta-train", *SIZE, "--variant", "anchored", "--steps", 1, "--out", "other")
    leokit("meta-train", *SIZE, "--variant", "anchored", "--centring", "--steps", 1, "--out", "centred")
    lines = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("other", "centred")
    ]
    measured = {"centred-class-mean": lines[1]["fallback_accuracy"], "class-mean": lines[0]["fallback_accuracy"]}
    names = list(measured) if "own-images" in options else ["class-mean"]  # of equal ones, the centred
    best = max(names, key=lambda name: measured[name])
    assert facts["class_mean_method"] == best
    assert facts["class_mean_accuracy"] == pytest.approx(measured[best], abs=1e-12)


def test_a_gain_is_a_paired_difference_and_no_complaint(leokit, tmp_path):
    learnable_store(tmp_path / "leokit-work" / "features")
    printed, facts = trained(leokit, *LEARNING)
    assert facts["gain"] == pytest.approx(facts["val_accuracy"] - facts["class_mean_accuracy"], abs=1e-12)
    assert facts["gain"] > facts["gain_half_width"] > 0
    assert f"gain +{100 * facts['gain']:.2f} ± {100 * facts['gain_half_width']:.2f} points" in printed
    assert "gained" not in printed
    assert not gain_in_words(facts)


def test_each_of_several_seeds_says_what_it_gained(leokit, features):
    printed = leokit("meta-train", *SIZE, "--steps", 1, "--seeds", 2, "--parallel", "batched", "--json").stdout
    runs = json.loads(printed)["runs"]
    shown = leokit("meta-train", *SIZE, "--steps", 1, "--seeds", 2, "--parallel", "batched").stdout
    for run in runs:
        assert f"{100 * run['gain']:+.2f}" in shown
    assert f"Seed 0, 1: {NOTHING}" in one_line(shown)
    assert f"{100 * runs[0]['class_mean_accuracy']:.2f} ±" in shown


@pytest.mark.parametrize(
    "options", [("--steps", 1), ("--preset", "own-images", "--steps", 1)], ids=["leo", "own-images"]
)
def test_a_run_of_an_earlier_version_counts_as_done_and_its_accounts_leave_the_gain_out(
    leokit, features, tmp_path, options
):
    _, facts = trained(leokit, *options)
    folder = tmp_path / RUN
    now = manifest.read(folder)
    earlier = replace(now, facts={key: value for key, value in now.facts.items() if key not in FACTS})
    (folder / manifest.MANIFEST).write_bytes(manifest.to_bytes(earlier))
    done = leokit("meta-train", *SIZE, *options, "--out", RUN)
    assert "Already done" in done.stderr
    assert "class means   " not in done.stdout
    assert json.loads(leokit("meta-train", *SIZE, *options, "--out", RUN, "--json").stdout)["id"] == facts["id"]
    leokit("inspect", RUN)
    leokit("eval", "--run", RUN, "--episodes", 10, "--queries", 5)
    leokit("report", "--format", "markdown", "--out", "report.md")
    assert "Not, or not wholly" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, ""),
        ({"best_is_fallback": True}, "this run is the class means"),
        ({"val_accuracy": 0.5, "best_step": 0}, "weights from before the first step"),
        ({"val_accuracy": 0.5, "best_step": 9, "gain": 0.01, "gain_half_width": 0.02}, "within its 95 % interval"),
        ({"val_accuracy": 0.5, "best_step": 9, "gain": -0.01, "gain_half_width": 0.02}, "nothing over class means"),
        ({"val_accuracy": None, "best_step": 0, "gain": None}, ""),
    ],
)
def test_what_is_said_follows_from_the_facts(facts, words):
    said = gain_in_words(facts)
    assert words in said
    assert bool(said) == bool(words)
