"""Several runs in one `leokit eval`: seeds as groups, work that is shared, workers and batches that change nothing."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from leokit.baselines import class_mean
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.features import write_store
from leokit.leo.learners import make_learner
from leokit.runs import open_run
from leokit.stages import evaluate

TRAIN = ("meta-train", "--steps", 4, "--val-every", 2, "--val-episodes", 20, "--val-queries", 5, "--queries", 5)
RUNS = "leokit-work/runs/leo-5way-1shot"


def accuracies(folder, method):
    table = pq.read_table(folder / "episodes.parquet").to_pydict()
    return np.array([value for name, value in zip(table["method"], table["accuracy"], strict=True) if name == method])


@pytest.fixture
def three_seeds(leokit, features):
    for seed in range(3):
        leokit(*TRAIN, "--seed", seed)
    return (RUNS, f"{RUNS}-seed1", f"{RUNS}-seed2")


def test_a_group_is_the_mean_over_seeds_with_both_spreads(leokit, three_seeds, tmp_path):
    result = json.loads(leokit("eval", *three_seeds, "--episodes", 60, "--queries", 5, "--json").stdout)
    (group,) = result["groups"]
    folders = [tmp_path / entry["out"] for entry in result["evaluations"]]
    runs = np.array([accuracies(folder, "leo") for folder in folders])  # (3, 60)
    means = runs.mean(1)
    assert group["seeds"] == [0, 1, 2]
    leo = group["accuracy"]["leo"]
    assert leo["mean"] == pytest.approx(sum(means) / 3)
    assert leo["sd_over_seeds"] == pytest.approx(np.sqrt(sum((means - means.mean()) ** 2) / 2))
    each = runs.mean(0)
    half_width = 1.96 * np.sqrt(sum((each - each.mean()) ** 2) / 59 / 60)
    assert leo["half_width_95_over_episodes"] == pytest.approx(half_width)
    paired = each - accuracies(folders[0], "class-mean")
    difference = group["difference"]["leo - class-mean"]
    assert difference["mean"] == pytest.approx(paired.mean())
    assert difference["half_width_95_over_episodes"] == pytest.approx(1.96 * paired.std(ddof=1) / np.sqrt(60))


def test_the_table_names_both_spreads_and_fits_80_columns(leokit, three_seeds):
    text = leokit("eval", *three_seeds, "--episodes", 40, "--queries", 5, "--methods", "centred-class-mean").stdout
    assert max(map(len, text.splitlines())) <= 80
    for words in ("Mean over 3 seeds", "95 % interval over episodes", "sd over", "Each run", "leo-5way-1shot-seed2"):
        assert words in text


def test_other_options_another_split_or_the_same_run_twice_make_no_group(leokit, features):
    leokit(*TRAIN)
    leokit(*TRAIN, "--seed", 1, "--outer-lr", 0.01)
    leokit(*TRAIN, "--shots", 2, "--seed", 2)
    runs = (RUNS, f"{RUNS}-seed1", "leokit-work/runs/leo-5way-2shot-seed2", RUNS)
    result = leokit("eval", *runs, "--episodes", 20, "--queries", 5, "--json")
    found = json.loads(result.stdout)
    assert [group["seeds"] for group in found["groups"]] == [[0], [1], [2]]
    assert all(group["accuracy"]["leo"]["sd_over_seeds"] is None for group in found["groups"])
    again = leokit("eval", *runs, "--episodes", 20, "--queries", 5)
    assert "leo-5way-1shot-seed1" in again.stdout  # two of one setting are told apart by their folders


def test_an_evaluation_is_the_same_alone_and_among_others_and_baselines_are_scored_once(
    leokit, three_seeds, tmp_path, monkeypatch
):
    calls = []

    def counted(support, _):
        calls.append(len(support))
        return class_mean(support)

    monkeypatch.setitem(evaluate.BASELINES, "class-mean", counted)
    options = ("--episodes", 30, "--queries", 5, "--json")
    together = json.loads(leokit("eval", *three_seeds, *options).stdout)["evaluations"]
    assert sum(calls) == 30
    alone = json.loads(leokit("eval", "--run", three_seeds[1], "--out", "alone", *options).stdout)
    assert alone["id"] == together[1]["id"]
    assert sum(calls) == 60


def test_all_runs_are_checked_before_the_first_is_tested(leokit, three_seeds, tmp_path):
    shutil.rmtree(tmp_path / three_seeds[2])
    assert "There is no artifact" in leokit("eval", *three_seeds, code=4).stderr
    assert not (tmp_path / "leokit-work/eval").exists()


@pytest.mark.parametrize("queries", [5, "all"])
def test_workers_and_batch_size_change_no_byte(leokit, features, tmp_path, monkeypatch, queries):
    leokit(*TRAIN)
    monkeypatch.setattr("leokit.engine.scoring._BLOCK_ELEMENTS", 20_000)  # several blocks of so few episodes
    options = ("--episodes", 50, "--queries", queries, "--methods", "class-mean,logistic", "--json")
    found = {}
    for workers, batch in ((0, 1), (0, 7), (2, 1), (2, 7), (2, 1000), (None, None)):
        flags = () if workers is None else ("--workers", workers, "--batch-size", batch)
        done = json.loads(leokit("eval", *options, *flags, "--out", f"e{workers}-{batch}").stdout)
        found[done["id"]] = (tmp_path / done["out"] / "episodes.parquet").read_bytes()
    assert len(found) == 1
    assert len(set(found.values())) == 1
    assert "Already done" in leokit("eval", *options, "--workers", 1, "--out", "e0-1").stderr


def test_a_run_that_was_trained_on_val_says_so_and_is_warned_of_on_val(leokit, features):
    for seed in range(2):
        leokit(*TRAIN, "--train-on-val", "--seed", seed)
    runs = (f"{RUNS}-trainval", f"{RUNS}-seed1-trainval")
    tested = leokit("eval", *runs, "--episodes", 20, "--queries", 5)
    assert "leo, train+val" in tested.stdout
    assert "trained on train+val" in " ".join(tested.stdout.split())
    assert "Warning" not in tested.stdout
    on_val = leokit("eval", runs[0], "--split", "val", "--episodes", 20, "--queries", 5)
    assert "Warning: leo was trained on the val classes that it is tested on" in " ".join(on_val.stdout.split())
    assert max(map(len, on_val.stdout.splitlines())) <= 80
    result = json.loads(leokit("eval", *runs, "--episodes", 20, "--queries", 5, "--json").stdout)
    assert result["groups"][0]["meta_trained_on"] == ["train", "val"]
    assert result["evaluations"][0]["run"]["meta_trained_on"] == ["train", "val"]


def test_seeds_that_stopped_at_other_steps_are_a_group_on_train_and_val_alone(leokit, features):
    for seed, steps in ((0, 2), (1, 3)):
        leokit(*TRAIN, "--train-on-val", "--seed", seed, "--steps", steps)
        leokit(*TRAIN, "--seed", seed, "--steps", steps)
    runs = (f"{RUNS}-trainval", f"{RUNS}-seed1-trainval", RUNS, f"{RUNS}-seed1")
    result = json.loads(leokit("eval", *runs, "--episodes", 20, "--queries", 5, "--json").stdout)
    assert [group["seeds"] for group in result["groups"]] == [[0, 1], [0], [1]]


def ragged_store(folder):
    """Ten test classes of 9 to 18 images; separable in part."""
    rng = np.random.default_rng(0)

    def split(name, sizes):
        return {
            f"{name}{number:02}": (
                [f"{image:02}.png" for image in range(size)],
                (rng.normal(size=(1, 32)) + 2 * rng.normal(size=(size, 32))).astype(np.float32),
            )
            for number, size in enumerate(sizes)
        }

    sizes = {"train": [24] * 8, "val": [24] * 6, "test": range(9, 19)}
    return write_store(folder, {name: split(name, counts) for name, counts in sizes.items()}, dtype="float32")


@pytest.mark.parametrize(("ways", "shots"), [(3, 1), (10, 7)])
def test_other_sizes_and_ragged_classes_equal_a_loop_over_episodes_and_images(leokit, tmp_path, ways, shots):
    store = ragged_store(tmp_path / "leokit-work/features")
    leokit(*TRAIN)
    sizes = ("--ways", ways, "--shots", shots, "--queries", "all", "--episodes", 12, "--split", "test")
    done = json.loads(leokit("eval", "--run", RUNS, *sizes, "--json").stdout)
    assert (done["ways"], done["shots"]) == (ways, shots)
    run = open_run(tmp_path / RUNS)
    matrix = FeatureMatrix(store.load("test"))
    learner = make_learner(run.config, store.dim)
    sampler = EpisodeSampler(matrix.offsets, ways=ways, seed=0, purpose="evaluation")
    ours = {name: accuracies(tmp_path / done["out"], name) for name in ("leo", "class-mean")}
    for episode in range(12):
        rows = sampler.draw(range(episode, episode + 1), shots=shots, queries=1)
        with torch.no_grad():
            support = matrix.rows[rows.support]
            weights = {
                "leo": learner.weights(run.parameters, support, range(episode, episode + 1))[0],
                "class-mean": torch.stack([images.mean(0) / images.mean(0).norm() for images in support[0]]),
            }
        for name, value in weights.items():
            shares = []
            for label, number in enumerate(rows.classes[0].tolist()):
                images = range(*matrix.offsets[number : number + 2].tolist())
                others = [row for row in images if row not in rows.support[0, label].tolist()]
                right = [int((value @ matrix.rows[row]).argmax()) == label for row in others]
                shares.append(sum(right) / len(right))
            assert ours[name][episode] == pytest.approx(sum(shares) / ways)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--queries", "rest600"), "'test00' of the test split has 9 images, but 1 shots + 599 queries need 600"),
        (
            ("--shots", 9, "--queries", "all"),
            "'test00' of the test split has 9 images, but 9 shots + 1 queries need 10",
        ),
        (("--shots", 2, "--queries", 15), "need 17 (7 more classes have too few)"),
        (("--ways", 11, "--queries", 5), "The test split has 10 classes, 11-way episodes need 11"),
    ],
)
def test_too_few_images_are_found_before_any_work(leokit, tmp_path, options, words):
    ragged_store(tmp_path / "leokit-work/features")
    leokit(*TRAIN)
    assert words in leokit("eval", "--run", RUNS, *options, code=3).stderr
    assert not (tmp_path / "leokit-work/eval").exists()


def test_runs_whose_evaluations_would_go_to_one_folder_are_refused(leokit, features, tmp_path):
    for seed in (0, 1):
        leokit(*TRAIN, "--seed", seed, "--out", f"seed{seed}/leo")
    done = leokit("eval", "seed0/leo", "seed1/leo", "--overwrite", code=2)
    assert "would both go to leokit-work/eval/leo" in done.stderr
    assert not (tmp_path / "leokit-work/eval").exists()


def test_a_meta_sgd_run_at_other_ways_is_refused_before_any_work(leokit, features, tmp_path):
    leokit(*TRAIN, "--variant", "meta-sgd", "--out", "sgd")
    leokit(*TRAIN, "--out", "leo")
    assert "tested at its own 5 only" in leokit("eval", "leo", "sgd", "--ways", 3, code=2).stderr
    assert not (tmp_path / "leokit-work/eval").exists()
