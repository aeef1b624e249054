"""The preset for a user's own images, from features to episodes: what it is at its start, and that it learns."""

import json

import numpy as np
import pytest

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
    name = "centred-class-mean" if centring == "centring" else "class-mean"
    assert np.array_equal(accuracies(folder, "anchored"), accuracies(folder, name))


def test_the_centre_is_the_mean_of_what_was_trained_on_and_travels_with_the_weights(leokit, features, tmp_path):
    leokit(*TRAIN, "--steps", 2)
    run = open_run(tmp_path / RUN)
    rows = np.concatenate([features.load("train").embeddings]).astype(np.float64)
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
    (fallback,) = [line["fallback_accuracy"] for line in lines if "fallback_accuracy" in line]
    assert open_run(tmp_path / RUN).facts["val_accuracy"] >= fallback
