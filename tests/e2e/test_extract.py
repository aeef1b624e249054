"""Extraction from an image tree to a feature store: nothing hidden, nothing invented, and the same result every way."""

import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from leokit import backbones
from leokit.config import ExtractConfig
from leokit.engine.embedding import embed_shards
from leokit.errors import ArtifactError, DataError, Interrupted, UsageError
from leokit.features import FeatureStore, Shard
from leokit.images.decoding import WorkerDied
from leokit.images.preprocess import load_image
from leokit.stages import extract
from leokit.tables import read_table
from tests.unit.test_decoding import children

CLASSES = [f"class{number}" for number in range(7)]
PER_CLASS = 12  # seven classes are more than one block
BACKBONE = "test_resnet"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several threads would mostly wait for each other on a machine that does other things too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model(BACKBONE).state_dict(), path)
    return str(path)


def make_tree(root, classes=CLASSES, per_class=PER_CLASS):
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
            mode = ("RGB", "L", "RGB", "P")[number % 4]
            Image.fromarray(pixels).convert(mode).save(root / name / f"{number:02}.png")
    return root


def write_splits(root, classes=CLASSES):
    splits = ["train", "train", "train", "val", "val", "test", "test"]
    lines = [f"{name},{split}" for name, split in zip(classes, splits, strict=True)]
    (root / "splits.csv").write_text("\n".join(["class_name,split", *lines]) + "\n")


@pytest.fixture
def tree(tmp_path):
    """Seven classes of twelve images, divided three, two, two."""
    root = make_tree(tmp_path / "images")
    write_splits(root)
    return root


@pytest.fixture
def run(tree, weights):
    """Extract from the tree, with a tiny backbone and no worker processes unless told."""

    def call(out, *, on_progress=None, on_message=None, **options):
        settings = {"images": tree, "backbone": BACKBONE, "weights": weights, "image_size": 32, "workers": 0, **options}
        config = ExtractConfig(out=tree.parent / out, **settings)
        return extract.run(config, on_progress=on_progress, on_message=on_message)

    return call


def failures(store):
    return {row["image"]: row["reason"] for row in read_table(store.folder / "failures.parquet").to_pylist()}


def hashes(store):
    return {name: record.sha256 for name, record in store.manifest.files.items()}


def test_every_row_is_the_embedding_of_its_image(tree, run, weights):
    store = run("features", dtype="float32")
    backbone = backbones.load(BACKBONE, weights, image_size=32)
    for split in store.splits:
        table, images = store.load(split), store.images(split)
        assert images == [f"{name}/{number:02}.png" for name in store.classes(split) for number in range(PER_CLASS)]
        pixels = torch.from_numpy(np.stack([load_image(tree / image, backbone.preprocessing) for image in images]))
        expected = backbones.embed(backbone.module, pixels, backbone.preprocessing).numpy()
        np.testing.assert_allclose(table.embeddings, expected, atol=1e-5)
    assert failures(store) == {}


def test_normalised_rows_have_unit_norm_and_are_recorded(run):
    plain, unit = run("plain", dtype="float32"), run("unit", dtype="float32", normalize="l2")
    rows = plain.load("train").embeddings
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.load("train").embeddings, expected, atol=1e-6)
    assert [store.facts["backbone"]["normalize"] for store in (plain, unit)] == ["none", "l2"]


def test_facts_say_all_that_a_later_stage_needs(run, weights):
    facts = run("features", trained_on="web").facts
    assert facts["counts"] == {
        split: {name: PER_CLASS for name in names}
        for split, names in {"train": CLASSES[:3], "val": CLASSES[3:5], "test": CLASSES[5:]}.items()
    }
    assert (facts["dim"], facts["dtype"], facts["trained_on"], facts["failures"]) == (96, "float16", "web", 0)
    assert (facts["split_source"], facts["note"]) == ("class list", None)
    backbone = backbones.load(BACKBONE, weights, image_size=32)
    assert facts["backbone"] == backbone.to_plain()
    assert facts["backbone"]["views"] == "center"
    assert facts["backbone"]["preprocessing"]["image_size"] == 32


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(run, workers):
    alone, together = run("alone"), run("together", workers=workers)
    assert together.id == alone.id
    assert hashes(together) == hashes(alone)


def test_places_change_nothing(tree, run):
    here = run("here")
    elsewhere = shutil.copytree(tree, tree.parent / "moved" / "images")
    (elsewhere / "splits.csv").rename(elsewhere.parent / "mine.csv")
    moved = run("there", images=elsewhere, splits=str(elsewhere.parent / "mine.csv"))
    assert moved.id == here.id


def test_another_image_or_option_is_another_artifact(tree, run):
    ids = {
        run("plain").id,
        run("size", image_size=33).id,
        run("type", dtype="float32").id,
        run("crop", crop_pct=0.5).id,
    }
    ids.add(run("random", splits="random:3/2/2").id)
    ids.add(run("seed", splits="random:3/2/2", seed=1).id)
    (tree / CLASSES[0] / "00.png").unlink()
    ids.add(run("fewer").id)
    assert len(ids) == 7


def damage(tree):
    """Make five of the images unreadable, each in another way."""
    one, two = tree / CLASSES[1], tree / CLASSES[5]
    Image.new("RGB", (200, 200), (9, 99, 199)).save(one / "03.jpg")
    data = (one / "03.jpg").read_bytes()
    (one / "03.jpg").write_bytes(data[: len(data) * 2 // 3])
    (one / "04.png").write_bytes(b"")
    (two / "00.png").write_text("no image")
    (two / "11.png").unlink()
    (two / "11.png").symlink_to("nowhere.png")
    return {
        f"{CLASSES[1]}/03.jpg": "truncated: the file ends before the image does",
        f"{CLASSES[1]}/04.png": "empty file",
        f"{CLASSES[5]}/00.png": "not an image of a kind that Pillow reads",
        f"{CLASSES[5]}/11.png": "no such file (a broken link?)",
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_listed_and_never_replaced(tree, run, workers):
    whole = run("whole", dtype="float32")
    expected = damage(tree)
    store = run("damaged", dtype="float32", workers=workers, max_failures="10%")
    assert failures(store) == expected
    assert store.facts["failures"] == 4
    assert store.counts("train").tolist() == [12, 11, 12]
    assert store.counts("test").tolist() == [10, 12]
    for split in store.splits:
        before = dict(zip(whole.images(split), whole.load(split).embeddings, strict=True))
        after = dict(zip(store.images(split), store.load(split).embeddings, strict=True))
        assert after.keys() == before.keys() - expected.keys()
        for image, row in after.items():
            np.testing.assert_allclose(row, before[image], atol=1e-5)


def test_too_many_unreadable_images_stop_it_and_nothing_is_lost(tree, run):
    expected = damage(tree)
    with pytest.raises(DataError, match=r"4 of 85 images .* --max-failures 1% allows 0") as caught:
        run("features")
    assert caught.value.exit_code == 3
    with pytest.raises(ArtifactError, match="is unfinished"):
        FeatureStore.open(tree.parent / "features")
    listed = read_table(tree.parent / "features" / "failures.parquet").to_pylist()
    assert [row["image"] for row in listed] == list(expected)
    assert {row["split"] for row in listed} == {"train", "test"}
    with pytest.raises(DataError, match="--max-failures 3 allows 3"):
        run("features", max_failures="3")
    store = run("features", max_failures="4")
    assert store.manifest.info["images_embedded"] == 0
    assert store.id == run("afresh", max_failures="5%").id


def test_a_class_without_a_readable_image_is_refused(tree, run):
    for path in (tree / CLASSES[6]).iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class 'class6' has no image that could be read"):
        run("features", max_failures="50%")


class Stop(Exception):
    """Stands for a crash."""


def test_after_a_crash_the_same_command_goes_on(run):
    whole = run("whole")

    def crash_at(images):
        def report(done, total, line):
            assert total == 84
            if done >= images:
                raise Stop

        return report

    with pytest.raises(Stop):
        run("features", on_progress=crash_at(1))  # before the first file is whole
    with pytest.raises(Stop):
        run("features", on_progress=crash_at(40))  # 36 of train are on disk
    seen = []
    store = run("features", on_progress=lambda done, total, line: seen.append(done))
    assert seen == [60, 84]
    assert store.manifest.info["images_embedded"] == 48
    assert store.id == whole.id
    assert hashes(store) == hashes(whole)
    there = [str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()]
    assert sorted(there) == sorted([*store.manifest.files, "manifest.json"])


def test_a_finished_file_that_was_altered_since_is_made_again(tree, run):
    def stop(done, total, line):
        if done > 36:
            raise Stop

    with pytest.raises(Stop):
        run("features", on_progress=stop)
    (tree.parent / "features" / "train-00000-of-00001.parquet").write_bytes(b"altered")
    assert run("features").id == run("whole").id


def test_a_finished_extraction_is_not_repeated(tree, run):
    store = run("features")
    written = (store.folder / "manifest.json").stat().st_mtime_ns
    again = run("features", on_progress=lambda *args: pytest.fail("embedded again"), workers=2, max_failures="0")
    assert again.id == store.id
    assert (store.folder / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(ArtifactError, match=r"image_size: 32 → 33.*--overwrite"):
        run("features", image_size=33)
    assert run("features", image_size=33, overwrite=True).id != store.id


def test_what_is_no_image_is_named(tree, run):
    (tree / ".DS_Store").touch()
    (tree / CLASSES[0] / "notes.txt").touch()
    messages = []
    store = run("features", on_message=messages.append)
    assert messages[0] == "Left alone, being no images of a class: 2 (.DS_Store, class0/notes.txt)."
    assert store.manifest.info["ignored"] == {"files": 2, "as": [".DS_Store", "class0/notes.txt"]}


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a file system that takes any bytes as a name")
def test_names_that_are_no_text_go_all_the_way(tree, run):
    name = b"caf\xe9\\\xff.png"
    shutil.copy(tree / CLASSES[0] / "00.png", os.fsencode(tree / CLASSES[0]) + b"/" + name)
    store = run("features", workers=1)
    assert f"{CLASSES[0]}/caf\\xe9\\\\\\xff.png" in store.images("train")
    assert failures(store) == {}


def test_a_built_in_list_on_other_images_is_noted(tmp_path, run):
    rows = resource("miniimagenet.csv").split()[1:]
    root = make_tree(tmp_path / "mini", [row.split(",")[0] for row in rows], per_class=1)
    messages = []
    store = run("features", images=root, splits="miniimagenet", on_message=messages.append)
    assert [len(store.classes(split)) for split in store.splits] == [64, 16, 20]
    assert store.facts["note"] == messages[0]
    assert "miniImageNet itself has 60000" in messages[0]


def resource(name):
    from importlib.resources import files

    return (files("leokit.splits") / name).read_text()


def test_image_lists_choose(tree, run):
    lists = tree.parent / "lists"
    lists.mkdir()
    for split, name in zip(("train", "val", "test"), CLASSES[:3], strict=True):
        (lists / f"{split}.csv").write_text(f"filename,label\n05.png,{name}\n01.png,{name}\n")
    store = run("features", splits=str(lists))
    assert store.images("val") == ["class1/01.png", "class1/05.png"]


def test_the_plan_is_what_is_done(tree, run, weights):
    planned = extract.plan(ExtractConfig(images=tree))
    store = run("features")
    assert planned.counts == {split: store.facts["counts"][split] for split in ("train", "val", "test")}
    assert planned.total == 84
    results = {name for name, record in store.manifest.files.items() if record.in_id}
    assert {shard.name for shard in planned.shards} == results - {"failures.parquet"}
    assert planned.images_id == store.manifest.inputs["images"].id


def test_the_originals(shared, run):
    """Full-size photographs in the layout of ILSVRC, five of them grey, with a stray file."""
    messages = []
    root = shared / "data" / "imagenet_originals"
    store = run("features", images=root, splits="random:10/4/4", workers=1, on_message=messages.append)
    assert sum(int(store.counts(split).sum()) for split in store.splits) == 216
    assert failures(store) == {}
    left_alone, small = messages
    assert left_alone == "Left alone, being no images of a class: 1 (.DS_Store)."
    assert small.startswith("Classes with fewer than 16 images") and "train all 10 classes (12 to 12)" in small


@pytest.mark.parametrize(
    ("text", "total", "allowed"),
    [("0", 100, 0), ("7", 100, 7), ("1%", 216, 2), ("1%", 99, 0), ("0.5%", 1000, 5), ("0%", 9, 0), ("100%", 9, 9)],
)
def test_max_failures(text, total, allowed):
    assert extract.parse_share(text)(total) == allowed


@pytest.mark.parametrize("text", ["", "%", "-1", "101%", "1.5", "many", "nan", "inf%", "1 %%"])
def test_max_failures_that_make_no_sense(text):
    with pytest.raises(UsageError, match="max_failures"):
        extract.parse_share(text)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see which processes there are")
@pytest.mark.parametrize(("asked", "error"), [(True, Interrupted), (False, WorkerDied)])
def test_workers_that_a_stop_ended_first_are_no_failure(tree, weights, asked, error):
    """A batch system stops every process of a job, and the workers may be gone before the parent has heard of it."""
    killed = False

    def kill(done, total, line):
        nonlocal killed
        server_and_tracker = children(os.getpid())
        for worker in (child for process in server_and_tracker for child in children(process)):
            os.kill(worker, signal.SIGKILL)
            killed = True

    def stopped():  # not yet heard of when the next block is asked for
        return asked and killed and sys.exc_info()[0] is not None

    shard = Shard("train-00000-of-00001.parquet", "train", {CLASSES[0]: (f"{CLASSES[0]}/00.png",) * 5000})
    backbone = backbones.load(BACKBONE, weights, image_size=32)
    with pytest.raises(error):
        embed_shards(
            [shard], backbone, root=tree, folder=tree.parent, dtype="float16", device=torch.device("cpu"), workers=1,
            on_progress=kill, stopped=stopped,
        )  # fmt: skip
    assert [path.name for path in tree.parent.glob("*.parquet*")] == []


@pytest.fixture
def cli(leokit, tree, weights):
    """`leokit extract` on the tree, with further options; those given last count."""

    def call(*arguments, code=0, images=tree, backbone=BACKBONE, weights=weights):
        common = ["--image-size", 32, "--workers", 0]
        return leokit("extract", images, "--backbone", backbone, "--weights", weights, *common, *arguments, code=code)

    return call


def test_from_the_command_line(cli, tmp_path):
    done = cli("--json")
    store = FeatureStore.open(tmp_path / "leokit-work" / "features")
    assert json.loads(done.stdout)["id"] == store.id
    assert json.loads(cli("--json").stdout)["id"] == store.id


def test_bad_data_has_exit_code_3(cli, tree):
    assert "no image folder" in cli(images=tree / "missing", code=3).stderr
    (tree / "splits.csv").write_text("class_name,split\nclass0,train\nclass1,val\nother,test\n")
    assert "'other'" in cli(code=3).stderr
    (tree / "splits.csv").write_text("class_name,split\nclass0,train\nclass0,test\n")
    assert "two splits" in cli(code=3).stderr


def test_an_unknown_backbone_has_exit_code_2_and_names_like_it(cli):
    assert "resnet50" in cli(backbone="resnet_50", code=2).stderr


def test_weights_and_artifacts_that_do_not_fit_have_exit_code_4(cli, leokit, tmp_path):
    assert "do not fit" in cli(backbone="test_efficientnet", code=4).stderr
    cli()
    assert "--overwrite" in cli("--dtype", "float32", code=4).stderr
    (tmp_path / "leokit-work" / "features" / "val-00000-of-00001.parquet").write_bytes(b"altered")
    assert "damaged" in cli(code=4).stderr
    few = ("--ways", 2, "--queries", 3, "--val-queries", 3)
    assert "damaged" in leokit("meta-train", *few, code=4).stderr
    (tmp_path / "leokit-work" / "features" / "manifest.json").unlink()
    assert "no artifact" in leokit("meta-train", code=4).stderr
