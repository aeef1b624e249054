"""Small classes: told when they are found, left out where asked; and a next command that can work."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

import leokit
from leokit import manifest
from leokit.features import FeatureStore, write_store
from leokit.runs import open_run
from leokit.splits import small_remarks
from tests.e2e.conftest import make_store

SIZE = ("--val-every", 5, "--val-episodes", 10, "--steps", 5, "--num-latents", 8, "--meta-batch", 2)


def store_of(folder, **counts):
    """A store with classes of so many images, by split."""
    rng = np.random.default_rng(0)
    splits = {
        split: {
            f"{split}{number:02}": (
                [f"{split}{number:02}/{image:03}.png" for image in range(images)],
                rng.normal(size=(images, 16)).astype(np.float32),
            )
            for number, images in enumerate(of_split)
        }
        for split, of_split in counts.items()
    }
    return write_store(folder, splits, dtype="float32")


def tree_of(folder, **counts):
    """An image tree with such classes."""
    lines = ["class_name,split"]
    for split, of_split in counts.items():
        for number, images in enumerate(of_split):
            name = f"{split}{number:02}"
            (folder / name).mkdir(parents=True)
            lines.append(f"{name},{split}")
            for image in range(images):
                Image.new("RGB", (8, 8), (image, number, 9)).save(folder / name / f"{image}.png")
    (folder / "splits.csv").write_text("\n".join(lines) + "\n")


def next_command(printed):
    return shlex.split(printed.stderr[printed.stderr.index("Next: leokit ") + 13 :].splitlines()[0])


SMALL = {"train": [20, 20, 3, 20, 20, 20], "val": [20, 12, 20, 20, 20, 20], "test": [20, 20, 20, 20, 20, 10]}
EXTRACT = ("--backbone", "test_resnet", "--weights", "weights.safetensors", "--image-size", 32, "--workers", 0)


@pytest.fixture
def weights(tmp_path):
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")


def test_extract_names_all_small_classes_at_once_and_what_it_suggests_works(leokit, tmp_path, weights):
    tree_of(tmp_path / "images", **SMALL)
    planned = leokit("extract", "images", *EXTRACT, "--dry-run")
    extracted = leokit("extract", "images", *EXTRACT)
    for printed in (planned, extracted):
        assert "train 'train02' (3); val 'val01' (12); test 'test05' (10)" in printed.stderr
        assert "--queries is 9 or less" in printed.stderr
    words = next_command(extracted)
    assert words == ["meta-train", "--preset", "own-images", "--shots", "1", "--skip-small-classes"]
    tested = next_command(leokit(*words, *SIZE))
    assert tested[-2:] == ["--queries", "9"]
    leokit(*tested, "--episodes", 10)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"train": {"a": 15, "b": 16}}, "train 'a' (15)."),
        ({"train": {"a": 15, "b": 3}, "val": {"c": 1}}, "train all 2 classes (3 to 15); val 'c' (1)."),
        ({"test": {"a": 1, "b": 20}}, "test 'a' (1). Those of test stop `leokit eval` and `leokit uncertainty`."),
        ({"test": {"a": 5, "b": 20}}, "unless --queries is 4 or less."),
        ({"val": {"a": 16}}, None),
    ],
)
def test_small_classes_are_told_in_a_sentence(counts, words):
    said = small_remarks(counts)
    assert bool(said) == bool(words)
    assert all(words in sentence for sentence in said)


def test_no_small_class_no_word(leokit, tmp_path, weights):
    tree_of(tmp_path / "images", train=[16] * 5, val=[16] * 5, test=[16] * 5)
    extracted = leokit("extract", "images", *EXTRACT)
    assert "fewer than" not in extracted.stderr
    assert next_command(extracted)[-1] == "1"


def test_small_classes_stop_meta_train_or_are_left_out_and_recorded(leokit, tmp_path):
    store_of(tmp_path / "leokit-work/features", **SMALL)
    refused = leokit("meta-train", *SIZE, code=3)
    assert "--skip-small-classes" in refused.stderr
    planned = leokit("meta-train", *SIZE, "--skip-small-classes", "--dry-run", "--json")
    assert json.loads(planned.stdout)["left_out"] == "train 'train02' (3); val 'val01' (12)"
    leokit("meta-train", *SIZE, "--skip-small-classes", "--out", "run")
    found = manifest.read(tmp_path / "run")
    assert found.config["used_classes"] == {
        "train": [f"train{number:02}" for number in (0, 1, 3, 4, 5)],
        "val": [f"val{number:02}" for number in (0, 2, 3, 4, 5)],
    }
    assert found.facts["classes"] == {"train": 5, "val": 5}
    assert "skip_small_classes" not in found.config
    leokit("verify", "run")
    assert "Already done" in leokit("meta-train", *SIZE, "--skip-small-classes", "--out", "run").stderr
    leokit("meta-train", "--config", "run/config.toml", "--out", "again")
    assert open_run(tmp_path / "again").id == found.id
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    leokit("eval", "--run", "run", "--episodes", 10, "--queries", 9)
    longer = leokit("meta-train", *SIZE, "--skip-small-classes", "--out", "run", "--steps", 10)
    assert "Going on from step 5" in longer.stderr
    assert (tmp_path / "run/metrics.jsonl").read_text().startswith(lines)


def test_a_run_that_skips_is_that_of_a_store_without_these_classes(leokit, tmp_path):
    store = store_of(tmp_path / "whole", **SMALL)
    splits = {
        split: {
            name: ([f"{name}/{image:03}.png" for image in range(count)], np.array(store.read_class(split, name)))
            for name, count in zip(store.classes(split), store.counts(split), strict=True)
            if count >= 16
        }
        for split in store.splits
    }
    write_store(tmp_path / "less", splits, dtype="float32")
    leokit("meta-train", *SIZE, "--features", "whole", "--skip-small-classes", "--out", "a")
    leokit("meta-train", *SIZE, "--features", "less", "--out", "b")
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (tmp_path / "b/weights.safetensors").read_bytes()
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_without_small_classes_the_option_changes_no_id(leokit, tmp_path):
    make_store(tmp_path / "leokit-work/features", dim=16)
    leokit("meta-train", *SIZE, "--out", "a")
    leokit("meta-train", *SIZE, "--skip-small-classes", "--out", "b")
    assert open_run(tmp_path / "a").id == open_run(tmp_path / "b").id


def test_several_seeds_and_the_package_skip_them_too(tmp_path):
    store_of(tmp_path / "features", **SMALL)
    values = {key[2:].replace("-", "_"): value for key, value in zip(SIZE[::2], SIZE[1::2], strict=True)}
    options = {"work": tmp_path, "on_nan": "decay", "skip_small_classes": True, **values}
    runs = leokit.meta_train_seeds(2, parallel="none", **options)
    assert runs[0].id == leokit.meta_train(out=tmp_path / "alone", **options).id
    assert all(run.facts["classes"] == {"train": 5, "val": 5} for run in runs)


@pytest.mark.parametrize(
    ("counts", "added"),
    [
        ({"train": [20] * 6, "val": [20] * 6, "test": [20] * 6}, []),
        ({"train": [20] * 6 + [2], "val": [20] * 6, "test": [20] * 6}, ["--skip-small-classes"]),
        ({"train": [20] * 6, "val": [20] * 3, "test": [20] * 6}, ["--ways", "3"]),
        ({"train": [9] * 6, "val": [8] * 6, "test": [7] * 6}, ["--queries", "7", "--val-queries", "7"]),
        ({"train": [9] * 6, "val": [8] * 4, "test": [7] * 2}, ["--ways", "4", "--queries", "7", "--val-queries", "7"]),
    ],
    ids=["all", "a small one", "few classes", "few images", "few of both"],
)
def test_the_next_commands_work_from_embeddings_to_a_report(leokit, tmp_path, counts, added):
    store = store_of(tmp_path / "made", **counts)
    (tmp_path / "embeddings").mkdir()
    for split in store.splits:
        table = store.load(split)
        labels = np.repeat(table.classes, np.diff(table.offsets))
        np.savez(tmp_path / f"embeddings/{split}.npz", embeddings=table.embeddings, labels=labels)
    printed = leokit("import", "embeddings", "--work", "my work")
    words = next_command(printed)
    assert words == ["meta-train", "--shots", "1", *added, "--work", "my work"]
    leokit(*next_command(leokit(*words, *SIZE)), "--episodes", 10)


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ({"train": [20] * 6, "val": [20], "test": [20] * 6}, "The val split has 1 classes"),
        ({"train": [20] * 6, "val": [20] * 5 + [1]}, None),
        ({"train": [1] * 6, "val": [1] * 6}, "--skip-small-classes"),
        ({"train": [20] * 6}, "has no split 'val'"),
    ],
    ids=["one val class", "a class of one", "classes of one", "no val"],
)
def test_no_next_command_where_none_can_work(leokit, tmp_path, counts, why):
    store = store_of(tmp_path / "made", **counts)
    (tmp_path / "embeddings").mkdir()
    for split in store.splits:
        table = store.load(split)
        labels = np.repeat(table.classes, np.diff(table.offsets))
        np.savez(tmp_path / f"embeddings/{split}.npz", embeddings=table.embeddings, labels=labels)
    printed = leokit("import", "embeddings")
    if why is None:
        done = leokit(*next_command(printed), *SIZE)
        assert "Next:" not in done.stderr
        assert "leokit eval cannot test this" in done.stderr
    else:
        assert "Next:" not in printed.stderr
        assert "cannot be meta-trained on" in printed.stderr
        assert why in printed.stderr


STUDY = ("--episodes", 4, "--calibration-episodes", 4, "--samples", 2, "--resamples", 100, "--curve-shots", "none")
LOOK = ("--val-episodes", 10, "--test-episodes", 4)


@pytest.mark.parametrize(
    ("arguments", "is_next"),
    [
        (("uncertainty", *STUDY), True),
        (("uncertainty", *STUDY, "--out", "elsewhere"), False),
        (("analyze", *LOOK), True),
        (("regress", "train", "--steps", 2), True),
    ],
    ids=["uncertainty", "uncertainty elsewhere", "analyze", "regress"],
)
def test_the_next_command_finds_the_work_folder(leokit, tmp_path, arguments, is_next):
    make_store(tmp_path / "my work" / "features", dim=16)
    if arguments[0] != "regress":
        leokit("meta-train", *SIZE, "--work", "my work")
    printed = leokit(*arguments, "--work", "my work")
    assert ("Next:" in printed.stderr) == is_next
    if not is_next:
        return
    found = printed.stderr[printed.stderr.index("Next: leokit ") + 13 :].splitlines()[0].split("; leokit ")
    for command in map(shlex.split, found):
        assert command[-2:] == ["--work", "my work"]
        leokit(*command, "--dry-run")


@pytest.mark.parametrize(
    ("fewest", "shots", "advice"),
    [
        (1, 1, "need 16: leave such classes out by --skip-small-classes."),
        (4, 1, "need 16: lower --queries, or leave such classes out by --skip-small-classes."),
        (4, 5, "need 20: lower --shots or --queries, or leave such classes out by --skip-small-classes."),
    ],
)
def test_the_advice_on_a_small_class_is_what_can_be_done(leokit, tmp_path, fewest, shots, advice):
    store_of(tmp_path / "leokit-work/features", train=[20] * 5 + [fewest], val=[20] * 5)
    assert advice in leokit("meta-train", *SIZE, "--shots", shots, code=3).stderr


def test_a_store_without_classes_reads_the_others(tmp_path):
    store = store_of(tmp_path / "features", **SMALL)
    less = store.without({"val": {"val01"}})
    assert less.classes("val") == [name for name in store.classes("val") if name != "val01"]
    assert len(less.load("val").embeddings) == len(store.load("val").embeddings) - 12
    assert store.classes("val") == FeatureStore.open(tmp_path / "features").classes("val")
