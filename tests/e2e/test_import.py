"""`leokit import`: what others made becomes features, or is refused with the reason."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from leokit.errors import ArtifactError
from leokit.features import FeatureStore
from leokit.runs import Run, check_same_backbone
from leokit.splits import SPLIT_NAMES, read_listing

CLASSES = {"train": 8, "val": 5, "test": 6}
IMAGES = 6
DIM = 7


def rows_of(split, seed=0, images=IMAGES, dim=DIM):
    """Keys and embeddings of a split, shuffled."""
    rng = np.random.default_rng([seed, SPLIT_NAMES.index(split)])
    keys = [
        f"{rng.integers(10**9)}-n{split}{number}-n{split}{number}_{image}.JPEG"
        for number in range(CLASSES[split])
        for image in range(images)
    ]
    order = rng.permutation(len(keys))
    return [keys[row] for row in order], rng.normal(size=(len(keys), dim)).astype(np.float32)


def pickles(folder, *, seed=0, protocol=2, dim=DIM, change=None):
    """A folder of three pickles; `change` is given each dict by split."""
    folder.mkdir(parents=True)
    for split in SPLIT_NAMES:
        keys, embeddings = rows_of(split, seed, dim=dim)
        value = {"embeddings": embeddings, "keys": np.array(keys, dtype="S")}
        if change:
            change(split, value)
        (folder / f"{split}_embeddings.pkl").write_bytes(pickle.dumps(value, protocol))
    return folder


def arrays(split, seed=0):
    keys, embeddings = rows_of(split, seed)
    return embeddings, np.array([key.split("-")[1] for key in keys])


def imported(leokit, *arguments, **options):
    return json.loads(leokit("import", *arguments, "--json", **options).stdout)


def as_dict(store):
    """Each embedding by its image."""
    return {
        image: tuple(row)
        for split in store.splits
        for image, row in zip(store.images(split), store.load(split).embeddings.tolist(), strict=True)
    }


def test_deepminds_pickles_are_what_comes_out(leokit, tmp_path):
    pickles(tmp_path / "data/miniImageNet/center")
    done = leokit("import", "data")
    assert "deepmind-leo-embeddings (trained on: 8 classes), 7 features of float32." in done.stdout
    assert "Next: leokit meta-train --shots 1" in done.stderr
    store = FeatureStore.open(tmp_path / "leokit-work/features")
    expected = {}
    for split in SPLIT_NAMES:
        keys, embeddings = rows_of(split)
        expected |= {
            "/".join(key.split("-")[1:]): tuple(row.tolist()) for key, row in zip(keys, embeddings, strict=True)
        }
        assert store.classes(split) == sorted(f"n{split}{number}" for number in range(CLASSES[split]))
        assert set(store.counts(split)) == {IMAGES}
    assert as_dict(store) == expected
    assert store.facts["trained_on"] == store.classes("train")
    assert store.facts["backbone"]["name"] == "deepmind-leo-embeddings"


def test_the_stages_after_it_take_it(leokit, tmp_path):
    pickles(tmp_path / "data")
    leokit("import", "data")
    small = ("--queries", 2, "--ways", 3)
    leokit("meta-train", "--steps", 3, "--val-every", 3, "--val-episodes", 5, "--val-queries", 2, *small)
    run = ("--run", "leokit-work/runs/leo-3way-1shot", "--episodes", 5)
    tested = leokit("eval", *run, *small)
    assert "The backbone (trained on 8 classes) has seen 0 of the 6 test classes." in " ".join(tested.stdout.split())
    pickles(tmp_path / "others", seed=1)
    leokit("import", "others", "--out", "others-features")
    refused = leokit("eval", *run, *small, "--features", "others-features", code=4)
    assert "backbone.train_embeddings_sha256" in refused.stderr


def test_the_same_source_is_of_one_backbone_wherever_it_lies_and_whatever_wrote_it(leokit, tmp_path):
    def as_list(split, value):
        value["keys"] = [key.decode() for key in value["keys"]]

    first = imported(leokit, pickles(tmp_path / "a/miniImageNet/center"), "--out", "one")
    again = imported(leokit, pickles(tmp_path / "b"), "--out", "two", "--work", "elsewhere")
    assert first["id"] == again["id"]
    rewritten = imported(leokit, pickles(tmp_path / "c", protocol=4, change=as_list), "--out", "three")
    half = imported(leokit, tmp_path / "c", "--out", "four", "--dtype", "float16")
    assert first["backbone"] == rewritten["backbone"] == half["backbone"]
    other = imported(leokit, pickles(tmp_path / "d", seed=1), "--out", "five")
    stores = {name: FeatureStore.open(tmp_path / name) for name in ("one", "three", "four", "five")}
    run = Run(tmp_path / "run", stores["one"].manifest, None, None, None)  # a run's facts repeat those of its features
    check_same_backbone(run, stores["three"])
    check_same_backbone(run, stores["four"])
    assert other["backbone"] != first["backbone"]
    with pytest.raises(ArtifactError, match="another backbone"):
        check_same_backbone(run, stores["five"])


def test_a_name_makes_one_backbone_of_two_sources(leokit, tmp_path):
    made = [
        imported(leokit, pickles(tmp_path / f"data{seed}", seed=seed), "--out", f"out{seed}", "--backbone-name", "wrn")
        for seed in (0, 1)
    ]
    assert made[0]["backbone"] == made[1]["backbone"] == {"name": "wrn"}
    assert made[0]["trained_on"] == [f"ntrain{number}" for number in range(8)]


def test_dataset_and_crop_choose_below_a_root(leokit, tmp_path):
    for number, place in enumerate(("miniImageNet/center", "miniImageNet/multiview", "tieredImageNet/center")):
        pickles(tmp_path / "unpacked/embeddings" / place, seed=number)
    ambiguous = leokit("import", "unpacked", "--dataset", "miniImageNet", code=2)
    for place in ("miniImageNet/center", "miniImageNet/multiview", "tieredImageNet/center"):
        assert f"unpacked/embeddings/{place}" in ambiguous.stderr
    assert "--dataset and --crop" in ambiguous.stderr
    assert "several" in leokit("import", "unpacked", code=2).stderr
    none = leokit("import", "unpacked", "--dataset", "tieredImageNet", "--crop", "multiview", code=2)
    assert "--dataset tieredImageNet and --crop multiview; there are: unpacked" in none.stderr
    by_options = imported(leokit, "unpacked", "--dataset", "miniImageNet", "--crop", "multiview", "--out", "a")
    by_name = imported(leokit, "unpacked/embeddings/miniImageNet/multiview", "--out", "b")
    from_inside = imported(leokit, "unpacked/embeddings/tieredImageNet", "--out", "c")
    assert by_options["id"] == by_name["id"] != from_inside["id"]
    assert not (tmp_path / "leokit-work").exists()


@pytest.mark.parametrize("name", ["miniimagenet", "tieredimagenet"])
def test_the_published_classes_are_recognised(leokit, tmp_path, name):
    (tmp_path / "data").mkdir()
    for split, classes in read_listing(name).classes.items():
        keys = [f"{row}-{wnid}-{wnid}_{row}.JPEG" for row, wnid in enumerate([*classes, *classes])]
        value = {"embeddings": np.ones((len(keys), 2), np.float32), "keys": keys}
        (tmp_path / "data" / f"{split}_embeddings.pkl").write_bytes(pickle.dumps(value, 2))
    done = leokit("import", "data")
    assert ("--preset tieredimagenet-1shot" in done.stderr) == (name == "tieredimagenet")
    assert FeatureStore.open(tmp_path / "leokit-work/features").facts["split_source"] == f"DeepMind's pickles ({name})"


def test_npz_files_by_split(leokit, tmp_path):
    (tmp_path / "data").mkdir()
    for split in SPLIT_NAMES:
        embeddings, labels = arrays(split)
        np.savez(tmp_path / "data" / f"{split}.npz", features=embeddings.astype(np.float64), labels=labels)
    done = leokit("import", "data", "--trained-on", "train")
    assert "The embeddings are float64; they are stored as float32." in done.stderr
    assert "--backbone-name" in done.stderr
    store = FeatureStore.open(tmp_path / "leokit-work/features")
    assert store.facts["backbone"] is None
    assert store.facts["trained_on"] == store.classes("train")
    embeddings, labels = arrays("val")
    for name in store.classes("val"):  # in the order of the rows
        assert store.read_class("val", name).tolist() == embeddings[labels == name].tolist()
    leokit("verify", "leokit-work/features")


def test_some_splits_are_enough(leokit, tmp_path):
    (tmp_path / "data").mkdir()
    embeddings, labels = arrays("test")
    np.savez(tmp_path / "data/test.npz", embeddings=embeddings, labels=labels)
    done = leokit("import", "data", "--backbone-name", "wrn")
    assert "There is no file for train, val" in done.stderr
    assert "--backbone-name" not in done.stderr
    store = FeatureStore.open(tmp_path / "leokit-work/features")
    assert (store.splits, store.facts["backbone"]) == (["test"], {"name": "wrn"})
    assert "has no train split" in leokit("import", "data", "--out", "x", "--trained-on", "train", code=2).stderr


def one_npz(path, **more):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), 4)
    np.savez(path, embeddings=rng.normal(size=(36, DIM)).astype(np.float32), labels=labels, **more)


def test_one_file_is_divided_as_extract_does(leokit, tmp_path):
    one_npz(tmp_path / "all.npz")
    first = imported(leokit, "all.npz", "--splits", "random:4/2/3", "--out", "a")
    assert [len(first["counts"][split]) for split in SPLIT_NAMES] == [4, 2, 3]
    other = imported(leokit, "all.npz", "--splits", "random:4/2/3", "--out", "b", "--seed", 1)
    assert other["counts"] != first["counts"]
    (tmp_path / "my.csv").write_text("class_name,split\n0,train\n5,val\n8,test\n")
    mine = imported(leokit, "all.npz", "--splits", "my.csv", "--out", "c")
    assert mine["counts"] == {"train": {"0": 4}, "val": {"5": 4}, "test": {"8": 4}}
    (tmp_path / "my.csv").write_text("class_name,split\n1,train\n5,val\n8,test\n")
    assert "--overwrite" in leokit("import", "all.npz", "--splits", "my.csv", "--out", "c", code=4).stderr
    assert "100 of the 100 classes" in leokit("import", "all.npz", "--splits", "miniimagenet", code=3).stderr
    assert "say by --splits" in leokit("import", "all.npz", code=2).stderr


def test_image_lists_choose_rows_by_name(leokit, tmp_path):
    one_npz(tmp_path / "all.npz", images=np.array([f"{row // 4}/{row % 4}.jpg" for row in range(36)]))
    (tmp_path / "lists").mkdir()
    for split, name in zip(SPLIT_NAMES, "380", strict=True):
        (tmp_path / f"lists/{split}.csv").write_text(f"filename,label\n3.jpg,{name}\n1.jpg,{name}\n")
    imported(leokit, "all.npz", "--splits", "lists")
    store = FeatureStore.open(tmp_path / "leokit-work/features")
    assert store.images("train") == ["3/1.jpg", "3/3.jpg"]
    with np.load(tmp_path / "all.npz") as file:
        assert store.load("train").embeddings.tolist() == file["embeddings"][[13, 15]].tolist()


@pytest.mark.parametrize("form", ["npy", "bytes", "txt", "csv", "csv-images"])
def test_npy_with_labels_beside_it(leokit, tmp_path, form):
    embeddings = np.random.default_rng(0).normal(size=(6, DIM)).astype(np.float32)
    labels = ["ä", "b,c", "d\\e", "ä", "b,c", "d\\e"]
    np.save(tmp_path / "all.npy", embeddings)
    beside = tmp_path / f"all.labels.{form.split('-')[0].replace('bytes', 'npy')}"
    quoted = [f'"{label}"' for label in labels]
    if form == "npy":
        np.save(beside, np.array(labels))
    elif form == "bytes":
        np.save(beside, np.array([label.encode() for label in labels]))
    elif form == "txt":
        beside.write_text("\n".join(labels) + "\n", encoding="utf-8")
    elif form == "csv":
        beside.write_text("\n".join(["label", *quoted]) + "\n", encoding="utf-8")
    else:
        rows = [f"{row}.jpg,{label}" for row, label in enumerate(quoted)]
        beside.write_text("\n".join(["image,class_name", *rows]) + "\n", encoding="utf-8")
    counts = imported(leokit, "all.npy", "--splits", "random:1/1/1")["counts"]
    assert sorted(name for classes in counts.values() for name in classes) == ["b,c", "d\\\\e", "ä"]
    store = FeatureStore.open(tmp_path / "leokit-work/features")
    split = next(split for split in SPLIT_NAMES if "ä" in store.classes(split))
    assert store.read_class(split, "ä").tolist() == embeddings[[0, 3]].tolist()
    assert store.images(split) == (["0.jpg", "3.jpg"] if form == "csv-images" else ["ä/00000000", "ä/00000003"])


def test_the_same_command_is_done_already_and_another_is_refused(leokit, tmp_path):
    pickles(tmp_path / "data")
    first = leokit("import", "data")
    again = leokit("import", "data")
    assert "Already done" in again.stderr
    assert again.stdout == first.stdout
    shutil.rmtree(tmp_path / "data")
    pickles(tmp_path / "data", seed=1)
    assert "inputs.source" in leokit("import", "data", code=4).stderr
    leokit("import", "data", "--overwrite")


def test_a_dry_run_writes_nothing(leokit, tmp_path):
    pickles(tmp_path / "data")
    plan = json.loads(leokit("import", "data", "--dry-run", "--json").stdout)
    assert plan["counts"]["train"] == {f"ntrain{number}": IMAGES for number in range(8)}
    assert not (tmp_path / "leokit-work").exists()


class Hostile:
    def __reduce__(self):
        return os.system, ("touch it-ran",)


def spoilt(split, key, value):
    """A change that puts a value in one pickle."""

    def change(of, content):
        if of == split:
            content[key] = value(content.get(key)) if callable(value) else value

    return change


def with_value(value):
    def change(embeddings):
        embeddings = embeddings.copy()
        embeddings[3, 2] = value
        return embeddings

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoilt("val", "keys", Hostile()), f"asks for {os.name}.system"),
        (spoilt("test", "more", Hostile()), f"asks for {os.name}.system"),
        (spoilt("val", "embeddings", with_value(np.nan)), "has the value nan"),
        (spoilt("test", "embeddings", with_value(-np.inf)), "has the value -inf"),
        (spoilt("val", "embeddings", lambda rows: rows[:-1]), "29 embeddings, but 30 labels"),
        (spoilt("val", "embeddings", lambda rows: rows[:, :-1]), "differ in width"),
        (spoilt("val", "embeddings", lambda rows: rows.tolist()), "no array of floats (a list)"),
        (spoilt("val", "keys", lambda _: rows_of("train")[0][:30]), "in two splits"),
        (spoilt("val", "keys", lambda keys: [*keys.tolist()[:-1], b"x"]), "must be of the form"),
    ],
)
def test_bad_pickles_are_one_line_and_leave_nothing(leokit, tmp_path, change, words):
    pickles(tmp_path / "data", change=change)
    done = leokit("import", "data", code=3)
    assert words in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere",), 3, "There is nothing at nowhere: give a folder with train_embeddings.pkl"),
        (("empty",), 3, "empty has no embeddings"),
        (("data/val_embeddings.pkl",), 3, "is no file of embeddings that leokit reads"),
        (("half",), 3, "half has no val_embeddings.pkl"),
        (("cut",), 3, "cut/train_embeddings.pkl is no pickle, or not a whole one"),
        (("data", "--splits", "random:1/1/1"), 2, "leave --splits out"),
        (("arrays", "--crop", "center"), 2, "but arrays has none"),
        (("data", "--crop", "corner"), 2, "corner"),
        (("data", "--trained-on", "imagenet"), 2, "imagenet-1k"),
        (("arrays",), 3, "differ in width"),
        (("objects.npz", "--splits", "random:1/1/1"), 3, "without unpickling"),
        (("unlabelled.npz", "--splits", "random:1/1/1"), 3, "has the arrays embeddings: it needs"),
        (("short.npz", "--splits", "random:1/1/1"), 3, "4 embeddings, but 3 labels"),
        (("floats.npz", "--splits", "random:1/1/1"), 3, "a string or an integer for each row"),
        (("damaged.npz", "--splits", "random:1/1/1"), 3, "is no NumPy file"),
        (("alone.npy", "--splits", "random:1/1/1"), 3, "alone.labels.npy or alone.labels.csv or alone.labels.txt"),
        (("huge.npz", "--splits", "random:1/1/1", "--dtype", "float16"), 3, "Use --dtype float32"),
        (("named.npz", "--splits", "random:1/1/1"), 3, "the image 'a' more than once"),
        (("few.npz", "--splits", "random:2/2/2"), 3, "needs 6 classes"),
    ],
)
def test_bad_sources_and_options(leokit, tmp_path, arguments, code, words):
    pickles(tmp_path / "data")
    for name in ("half", "cut"):
        shutil.copytree(tmp_path / "data", tmp_path / name)
    (tmp_path / "half/val_embeddings.pkl").unlink()
    whole = (tmp_path / "cut/train_embeddings.pkl").read_bytes()
    (tmp_path / "cut/train_embeddings.pkl").write_bytes(whole[: len(whole) // 2])
    for name in ("empty", "arrays"):
        (tmp_path / name).mkdir()
    four, labels = np.ones((4, 3), np.float32), np.array(["a", "b", "c", "a"])
    np.savez(tmp_path / "arrays/train.npz", embeddings=four, labels=labels)
    np.savez(tmp_path / "arrays/test.npz", embeddings=four[:, :2], labels=np.char.add("x", labels))
    np.savez(tmp_path / "objects.npz", embeddings=four, labels=labels.astype(object))
    np.savez(tmp_path / "unlabelled.npz", embeddings=four)
    np.savez(tmp_path / "short.npz", embeddings=four, labels=labels[:3])
    np.savez(tmp_path / "floats.npz", embeddings=four, labels=np.ones(4))
    np.savez(tmp_path / "huge.npz", embeddings=four * 1e6, labels=labels)
    np.savez(tmp_path / "named.npz", embeddings=four, labels=labels, images=np.array(["a", "b", "c", "a"]))
    np.savez(tmp_path / "few.npz", embeddings=four, labels=labels)
    np.save(tmp_path / "alone.npy", four)
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "few.npz").read_bytes()[:100])
    assert words in leokit("import", *arguments, code=code).stderr
    assert not (tmp_path / "leokit-work/features/manifest.json").exists()


def test_a_real_source_of_another_python(leokit, tmp_path):
    """The pickle of Python 2.7 and NumPy 1.16 that tests/unit/pickles holds, as all three splits under other names."""
    source = Path(__file__).parents[1] / "unit/pickles/python2.7-numpy1.16-array-protocol2.pkl"
    (tmp_path / "data").mkdir()
    for number, split in enumerate(SPLIT_NAMES, 1):
        renamed = source.read_bytes().replace(b"n0", f"n{number}".encode())
        (tmp_path / "data" / f"{split}_embeddings.pkl").write_bytes(renamed)
    assert imported(leokit, "data")["counts"]["val"] == {"n21": 2, "n22": 2}
