"""The preset for a user's own images, from features to episodes: what it is at its start, and that it learns."""

import json
import re

import numpy as np
import pytest

from leokit.features import write_store
from leokit.runs import open_run
from tests.e2e.test_eval_groups import accuracies

TRAIN = ("meta-train", "--preset", "own-images", "--val-episodes", 20, "--val-queries", 5, "--queries", 5)
RUN = "leokit-work/runs/anchored-5way-1shot"
TEST = ("eval", "--run", RUN, "--episodes", 50, "--queries", 10, "--methods", "class-mean,centred-class-mean")


@pytest.mark.parametrize("centring", ["centring", "no-centring"])
def test_with_gate_zero_and_no_steps_it_is_the_class_mean_episode_by_episode(leokit, features, tmp_path, centring):
    still = ("--anchor-gate", 0, "--inner-steps", 0, "--finetuning-steps", 0)
    leokit(*TRAIN, *still, "--steps", 1, f"--{centring}")
    leokit(*TEST)
    folder = tmp_path / "leokit-work" / "eval" / "anchored-5way-1shot"
    name = "centred-class-mean" if open_run(tmp_path / RUN).facts["centred"] else "class-mean"
    assert np.array_equal(accuracies(folder, "anchored"), accuracies(folder, name))


def test_the_centre_is_the_mean_of_what_was_trained_on_and_travels_with_the_weights(leokit, features, tmp_path):
    leokit(*TRAIN, "--steps", 2, "--train-on-val", "--out", RUN)  # no selection that might drop the centre
    run = open_run(tmp_path / RUN)
    rows = features.load("train", "val").embeddings.astype(np.float64)
    expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(run.centre.numpy(), expected, atol=1e-6)
    assert set(run.parameters) == {
        *("encoder", "relation_1", "relation_2", "relation_3", "decoder", "inner_lr", "finetuning_lr"),
        *("log_scale", "gate"),
    }
    leokit("verify", RUN)


def test_it_is_selected_against_the_class_means_and_never_below_them_on_val(leokit, features, tmp_path):
    leokit(*TRAIN, "--steps", 4, "--val-every", 2)
    lines = [json.loads(line) for line in (tmp_path / RUN / "metrics.jsonl").read_text().splitlines()]
    (first,) = [line for line in lines if "fallback_accuracy" in line]
    accuracy = open_run(tmp_path / RUN).facts["val_accuracy"]
    assert accuracy >= max(first["fallback_accuracy"], first["uncentred_fallback_accuracy"])


@pytest.mark.parametrize(
    ("origin", "better"), [((0.0, 0.0), "class-mean"), ((0.0, 3.0), "centred-class-mean")], ids=["harms", "helps"]
)
def test_of_centred_and_plain_class_means_the_better_on_val_are_kept(leokit, tmp_path, origin, better):
    """Where the other classes lie around another origin than the training classes, their mean is no centre of these."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, (left, up) in (("train", (0.0, 3.0)), ("val", origin), ("test", origin)):
        splits[split] = {}
        for number in range(8):
            rows = 1.2 * rng.normal(size=(20, 12)) + 0.9 * rng.normal(size=12)
            rows[:, 0] += left
            rows[:, 1] += up
            splits[split][f"{split}{number}"] = ([f"{i:02}.png" for i in range(20)], rows.astype(np.float32))
    write_store(tmp_path / "leokit-work/features", splits, dtype="float32")
    still = ("--anchor-gate", 0, "--inner-steps", 0, "--finetuning-steps", 0, "--outer-lr", 1e-9)
    leokit(*TRAIN, *still, "--steps", 1)
    run = open_run(tmp_path / RUN)
    line = json.loads((tmp_path / RUN / "metrics.jsonl").read_text().splitlines()[0])
    found = {
        "class-mean": line["uncentred_fallback_accuracy"],
        "centred-class-mean": line["fallback_accuracy"],
    }
    assert max(found, key=found.get) == better, found
    assert run.facts["val_accuracy"] == found[better]
    assert run.facts["centred"] == (run.centre is not None) == (better == "centred-class-mean")
    leokit("verify", RUN)
    leokit(*TEST)
    folder = tmp_path / "leokit-work" / "eval" / "anchored-5way-1shot"
    assert np.array_equal(accuracies(folder, "anchored"), accuracies(folder, better))


def test_it_is_called_own_images_wherever_it_is_shown(leokit, features, tmp_path):
    """The stored value `anchored` is shown as part of a folder's name alone, and as the value of a run's `variant`."""
    trained = leokit(*TRAIN, "--steps", 4, "--val-every", 2)
    assert trained.stdout.startswith("own-images, 5-way 1-shot")
    last = leokit(*TRAIN, "--steps", 4, "--train-on-val")
    tested = leokit(*TEST)
    both = leokit("eval", RUN, f"{RUN}-trainval", "--episodes", 50, "--queries", 10, "--overwrite")
    table = leokit("table", "1")
    leokit("report", "--format", "markdown")
    texts = [trained.stdout, last.stdout, tested.stdout, both.stdout, table.stdout, leokit("inspect", RUN).stdout]
    texts.append((tmp_path / "leokit-work/report.md").read_text())
    texts.append((tmp_path / "leokit-work/tables/table1/table1.md").read_text())
    texts.append((tmp_path / "leokit-work/tables/table1/table1.csv").read_text())
    for text in texts:
        assert "own-images" in text
        shown = re.sub(r"anchored-5way-1shot|variant\W+anchored", "", text)
        assert "anchored" not in shown, [line for line in shown.splitlines() if "anchored" in line]
    assert "own-images was trained on train+val" in both.stdout
    assert open_run(tmp_path / RUN).config.variant == "anchored"
