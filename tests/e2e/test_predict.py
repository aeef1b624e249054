"""A user's own images: `leokit predict`, `fit` and `export`, on a tiny backbone and coloured pictures."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.cells import cell_len
from safetensors.torch import load_file, save_file

from leokit import manifest
from leokit.config import ExtractConfig, FitConfig, MetaTrainConfig, PredictConfig, build
from leokit.engine import cache, studying
from leokit.images.queries import find_images, in_blocks
from leokit.leo.learners import make_learner
from leokit.runs import open_run
from leokit.stages import extract, fit, meta_train, predict

BACKBONE, SIZE = "test_resnet", 32
SPLITS = {"train": 8, "val": 8, "test": 6}
PER_CLASS = 14
WORK = "leokit-work"
RUN = f"{WORK}/runs/leo-5way-1shot"
TRAIN = {"steps": 6, "val_every": 3, "val_episodes": 10, "val_queries": 4, "queries": 4, "num_latents": 8}
FEW = ("--episodes", 30, "--workers", 0)


def picture(rng, colour):
    pixels = np.clip(rng.normal(colour + rng.normal(0, 25, 3), 40, (40, 36, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pictures of classes of a colour each, features of them, and three runs; used by copies."""
    root = tmp_path_factory.mktemp("predict")
    rng, lines = np.random.default_rng(0), ["class_name,split"]
    for split, count in SPLITS.items():
        for number in range(count):
            name, colour = f"{split}{number}", rng.uniform(40, 215, 3)
            (root / "images" / name).mkdir(parents=True)
            for image in range(PER_CLASS):
                picture(rng, colour).save(root / "images" / name / f"{image:02}.png")
            lines.append(f"{name},{split}")
    (root / "images" / "splits.csv").write_text("\n".join(lines) + "\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model(BACKBONE).state_dict(), root / "weights.safetensors")
    work = root / WORK
    options = {"backbone": BACKBONE, "weights": str(root / "weights.safetensors"), "image_size": SIZE, "workers": 0}
    extract.run(build(ExtractConfig, {"images": root / "images", "work": work, **options}))
    with chdir(root):  # places in manifests are relative, so that copies find their own
        for options in ({}, {"train_on_val": True}, {"variant": "meta-sgd"}):
            meta_train.run(build(MetaTrainConfig, {"work": Path(WORK), **TRAIN, **options}))
    return root


@pytest.fixture
def there(leokit, made, tmp_path):
    """A folder with the run, and `support` and `queries` of four classes of the test."""
    shutil.copytree(made / WORK, tmp_path / WORK)
    for number in range(4):
        name = f"test{number}"
        for image in range(PER_CLASS):
            place = tmp_path / ("support" if image < number + 1 else "queries") / f"the {name}"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(made / "images" / name / f"{image:02}.png", place / f"{image:02}.png")
    return leokit


OF_RUN = ("--run", RUN, "--support", "support")


def lines_of(text):
    """Label and image of each printed line."""
    head, *rows = text.splitlines()
    label = head.index("  probability")
    return [(row[:label].removesuffix(" ?").strip().removesuffix(" ?"), row[head.index("image") :]) for row in rows]


def test_a_table_of_labels_from_ragged_support(there, tmp_path):
    done = there("predict", "queries", *OF_RUN, "--method", "class-mean", *FEW)
    rows = lines_of(done.stdout)
    assert len(rows) == 4 * PER_CLASS - 10
    right = [image.startswith(f"queries/{label}/") for label, image in rows]
    assert np.mean(right) > 0.6  # of four: the colours differ
    assert "class-mean" in done.stderr
    again = there("predict", "--query", "queries", *OF_RUN, "--method", "class-mean", *FEW)
    assert again.stdout == done.stdout


def test_the_column_of_labels_fits_them_all(there, tmp_path):
    """However long a label is, of narrow letters or wide ones, numbers and images stand below their heads."""
    names = ("a class with a name that is a good deal longer than thirty letters", "漢字のクラス")
    for number, name in enumerate(names):
        shutil.move(tmp_path / "support" / f"the test{number}", tmp_path / "support" / name)
    rows = there("predict", "queries", *OF_RUN, "--method", "class-mean", *FEW).stdout.splitlines()
    places = {cell_len(row[: row.index("queries/" if index else "image")]) for index, row in enumerate(rows)}
    assert len(places) == 1 and len({*lines_of("\n".join(rows))}) == len(rows) - 1
    assert all(any(row.startswith(name) for row in rows) for name in names)


def test_it_predicts_what_the_features_of_the_same_images_give(there, made, tmp_path):
    """By another way: rows of the store, class means by hand, probabilities at the temperature that it names."""
    store = extract.FeatureStore.open(tmp_path / WORK / "features")
    printed = json.loads(there("predict", "queries", *OF_RUN, "--method", "class-mean", *FEW, "--json").stdout)
    rows = {}
    for image, vector in zip(store.images("test"), store.load("test").embeddings.astype(np.float64), strict=True):
        rows[image] = vector / np.linalg.norm(vector)
    means = []
    for number in range(4):
        mean = np.mean([rows[f"test{number}/{image:02}.png"] for image in range(number + 1)], axis=0)
        means.append(mean / np.linalg.norm(mean))
    assert printed["classes"] == [f"the test{number}" for number in range(4)]
    for entry in printed["predictions"]:
        image = entry["image"].removeprefix("queries/the ")
        logits = 10 * np.array(means) @ rows[image] / printed["temperature"]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert entry["label"] == printed["classes"][int(shares.argmax())]
        assert entry["probability"] == pytest.approx(shares.max(), abs=1e-5)
        assert entry["entropy"] == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-4)


def test_auto_takes_the_best_on_meta_val_and_says_by_how_much(there):
    done = there("predict", "queries", *OF_RUN, *FEW)
    assert "the best on meta-val at 4-way 1-to-4-shot" in done.stderr
    assert "ahead of" in done.stderr and "over 30 episodes" in done.stderr
    each = {}
    for method in ("leo", "class-mean", "logistic"):
        plan = {"run": Path(RUN), "support": Path("support"), "method": method, "episodes": 30, "workers": 0}
        each[method] = fit.run(build(FitConfig, {**plan, "out": Path(method)})).classifier.evidence.accuracy
    chosen = fit.run(build(FitConfig, {**plan, "method": "auto", "out": Path("auto")})).classifier
    assert each[chosen.method] == max(each.values())
    assert f"Method: {chosen.method}" in done.stderr


def test_a_classifier_that_was_made_without_the_features_is_not_taken_for_one_with_them(there, made, tmp_path):
    options = (*OF_RUN, *FEW, "--weights", made / "weights.safetensors")
    (tmp_path / WORK / "features").rename(tmp_path / "away")
    assert "(name them by --features)" in there("fit", *options).stdout.replace("\n", " ")
    told = there("fit", *options, "--features", "away", code=4).stderr
    assert "features" in told and "--overwrite" in told
    there("fit", *options, "--features", "away", "--overwrite")
    assert "Already done" in there("fit", *options, "--features", "away").stderr


def test_labels_of_a_list_stay_as_they_are(there, tmp_path):
    label = "A\\B, \u2028 ü"
    rows = [["the test0/00.png", label], ["the test1/00.png", "b"], ["the test2/00.png", "c"]]
    with (tmp_path / "support/list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *rows])
    printed = json.loads(
        there("predict", "queries", "--run", RUN, "--support", "support/list.csv", *FEW, "--json").stdout
    )
    assert set(printed["classes"]) == {label, "b", "c"}


def test_what_the_backbone_has_seen_is_told():
    assert studying.remark(["cat"], ["dog", "cow"]) == ""
    assert "has seen 1 of the 2 meta-val classes" in studying.remark(["cat", "dog"], ["dog", "cow"])
    assert "cannot be told" in studying.remark("unknown", ["dog", "cow"])


def test_copies_and_images_that_cannot_be_read_are_no_shots(there, tmp_path):
    before = json.loads(there("predict", "queries", *OF_RUN, *FEW, "--json").stdout)
    for number in range(4):
        folder = tmp_path / "support" / f"the test{number}"
        (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:90])  # readable as a file alone
        for image in list(folder.glob("0?.png")) if number == 1 else ():
            shutil.copy(image, folder / f"copy of {image.name}")
    after = json.loads(there("predict", "queries", *OF_RUN, *FEW, "--json").stdout)
    assert after["predictions"] == before["predictions"]
    assert (after["method"], after["temperature"]) == (before["method"], before["temperature"])
    assert next(note for note in after["notes"] if "Method" in note) in before["notes"]


def test_unknown_and_sets_keep_their_rates_on_meta_val(there, tmp_path):
    """The share of own images called unknown, and the coverage, on the very episodes that they were fitted on."""
    there("fit", *OF_RUN, "--method", "class-mean", "--episodes", 200, "--workers", 0)
    evidence = fit.classifiers.open_classifier(tmp_path / WORK / "classifier")[0].evidence
    for rate in (0.01, 0.05, 0.3):
        share = (evidence.inside < evidence.threshold(rate)).mean()
        assert rate - 0.01 <= share <= rate
        assert (evidence.conformal <= evidence.quantile(1 - rate)).mean() >= 1 - rate
    assert evidence.found_unknown(0.3) > 0.3  # better than chance: colours that the classes do not have
    done = there("predict", "queries", *OF_RUN, "--method", "class-mean", *FEW, "--sets", 0.8, "--json")
    sets = [entry["set"] for entry in json.loads(done.stdout)["predictions"]]
    assert all(sets) and any(len(members) > 1 for members in sets)


def test_a_stranger_is_unknown_more_often(there, made, tmp_path):
    options = ("--method", "class-mean", "--unknown-rate", 0.2, "--json", "--episodes", 200, "--workers", 0)
    share = {}
    for name, place in (("own", "queries"), ("other", made / "images" / "val0")):
        found = json.loads(there("predict", place, *OF_RUN, *options).stdout)["predictions"]
        share[name] = np.mean([entry["unknown"] for entry in found])
    assert share["other"] > share["own"]
    off = json.loads(there("predict", "queries", *OF_RUN, *options[:2], "--unknown-rate", 0, "--json", *FEW).stdout)
    assert not any("unknown" in entry for entry in off["predictions"])


@pytest.mark.parametrize(
    ("own", "words"), [(4, "4 spare meta-val classes"), (3, "5 spare meta-val classes"), (2, None)]
)
def test_unknown_that_rests_on_few_classes_says_so(there, tmp_path, own, words):
    """Meta-val has eight classes; what an episode of it does not have is all that can be unknown there."""
    for number in range(own, 4):
        shutil.rmtree(tmp_path / "support" / f"the test{number}")
    there("fit", *OF_RUN, "--method", "class-mean", *FEW)
    by_support = there("predict", "queries", *OF_RUN, "--method", "class-mean", *FEW).stderr
    by_classifier = there("predict", "queries", "--classifier", f"{WORK}/classifier", "--workers", 0).stderr
    for printed in (by_support, by_classifier):
        assert "unknown: on meta-val" in printed
        assert words in printed if words else "rests on" not in printed
    folder = tmp_path / WORK / "classifier"
    now = manifest.read(folder)
    evidence = {key: value for key, value in now.facts["evidence"].items() if key != "spare"}  # as earlier versions
    earlier = replace(now, facts={**now.facts, "evidence": evidence})
    (folder / manifest.MANIFEST).write_bytes(manifest.to_bytes(earlier))
    printed = there("predict", "queries", "--classifier", folder, "--workers", 0).stderr
    assert "unknown: on meta-val" in printed and "rests on" not in printed


@pytest.mark.parametrize(
    ("run", "reason"), [("leo-5way-1shot-trainval", "was trained on val"), ("meta-sgd-5way-1shot", None)]
)
def test_what_cannot_be_told_is_not_said_and_why(there, made, tmp_path, run, reason):
    options = ("--run", f"{WORK}/runs/{run}", "--support", "support", "--sets", 0.9, *FEW)
    if reason is None:  # four classes, and a run of five ways only
        there("predict", "queries", *options, "--method", "leo", code=2)
        assert "class-mean" in (done := there("predict", "queries", *options)).stderr or "logistic" in done.stderr
        return
    done = there("predict", "queries", *options, "--json")
    printed = json.loads(done.stdout)
    assert "Support set: 4 classes, 1 to 4 images of each." in printed["notes"]
    assert printed["temperature"] == 1
    assert not any({"unknown", "set"} & set(entry) for entry in printed["predictions"])
    for words in ("No image is called unknown: ", "No sets with a level: ", "not calibrated: "):
        assert any(words in note and reason in note for note in printed["notes"])


def test_more_classes_than_meta_val_has(there, made, tmp_path):
    for name in ("train0", "train1", "train2", "train3", "train4"):
        (tmp_path / "support" / name).mkdir()
        shutil.copy(made / "images" / name / "00.png", tmp_path / "support" / name)
    done = there("predict", "queries", *OF_RUN, "--sets", 0.9, *FEW)
    assert "meta-val has 8 classes, and 9 are to be told apart" in done.stderr
    assert "calibrated at 8 classes" in done.stderr
    assert " ?" not in done.stdout and "set {" not in done.stdout


def test_a_classifier_predicts_without_run_and_support(there, tmp_path):
    direct = there("predict", "queries", *OF_RUN, *FEW, "--top", 2, "--sets", 0.8)
    there("fit", *OF_RUN, *FEW)
    assert "Already done" in there("fit", *OF_RUN, *FEW).stderr
    there("verify", f"{WORK}/classifier")
    shutil.rmtree(tmp_path / "support")
    shutil.rmtree(tmp_path / WORK / "runs")
    shutil.rmtree(tmp_path / WORK / "features")
    fitted = ("--classifier", f"{WORK}/classifier")
    assert there("predict", "queries", *fitted, "--top", 2, "--sets", 0.8).stdout == direct.stdout
    error = there("predict", "queries", *fitted, *OF_RUN, code=2).stderr
    assert "give one or the other" in error


def test_a_finished_fit_computes_nothing(there, monkeypatch):
    there("fit", *OF_RUN, *FEW)
    monkeypatch.setattr(fit, "make_classifier", None)  # calling it would fail
    assert "Already done" in there("fit", *OF_RUN, *FEW).stderr


def test_an_altered_classifier_and_other_weights_are_refused(there, made, tmp_path):
    there("fit", *OF_RUN, *FEW)
    fitted = ("--classifier", f"{WORK}/classifier")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(timm.create_model(BACKBONE).state_dict(), tmp_path / "other.safetensors")
    error = there("predict", "queries", *fitted, "--weights", "other.safetensors", code=4).stderr
    assert "is not the one" in error and "weights_sha256" in error
    error = there("predict", "queries", *fitted, "--weights", "missing", code=4).stderr
    assert "give the file by --weights" in error
    path = tmp_path / WORK / "classifier" / "classifier.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "was altered" in there("predict", "queries", *fitted, code=4).stderr


def test_unreadable_queries_are_lines_and_exit_code_3(there, tmp_path):
    (tmp_path / "queries" / "broken.png").write_bytes(b"no picture")
    Image.new("L", (9, 9), 100).save(tmp_path / "grey.png")
    (tmp_path / "empty").mkdir()
    done = there("predict", "queries", "grey.png", "absent.jpg", "empty", *OF_RUN, *FEW, code=3)
    rows = done.stdout.splitlines()
    assert len(rows) == 1 + 46 + 4
    (broken,) = [row for row in rows if "broken.png" in row]
    assert broken.startswith("-") and "not an image of a kind that Pillow reads" in broken
    assert next(row for row in rows if "grey.png" in row)[0] == "t"
    assert rows[-2].startswith("-") and "absent.jpg: " in rows[-2] and "empty: " in rows[-1]
    assert "3 of 50 images could not be read" in done.stderr


def test_csv_support_and_csv_result_without_formulas(there, made, tmp_path):
    """Names that a spreadsheet would run are text in the CSV; paths are as seen from the support file."""
    names = ["=cmd()|' /C calc'!A0", "@x", "-3", "plain"]
    with (tmp_path / "support.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "image"])
        for number, name in enumerate(names):
            writer.writerow([name, f"support/the test{number}/00.png"])
    options = ("--run", RUN, "--support", "support.csv", "--method", "class-mean", *FEW)
    there("predict", "queries", *options, "--csv", "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 46
    assert {row["label"] for row in rows} <= {f"'{names[0]}", "'@x", "-3", "plain"}
    assert float(rows[0]["probability"]) > 0.25 and rows[0]["unknown"] in ("true", "false")
    assert "is there already" in there("predict", "queries", *options, "--csv", "found.csv", code=4).stderr


@pytest.mark.parametrize(
    ("content", "words", "code"),
    [
        ("image,label\n", "names no image", 3),
        ("picture,label\na.png,x\n", "must be image,label", 3),
        ("image,label\na.png,x\na.png,y\n", "stands in line 2 already", 3),
        ("image,label\na.png\n", "1 fields", 3),
        ("image,label\nsupport/the test0/00.png,x\n", "has one class, 'x'", 3),
        ("image,label\nsupport/the test0/00.png,x\nqueries/absent.png,y\n", "'y' of the support set has no image", 3),
    ],
)
def test_a_bad_support_list_is_a_sentence(there, tmp_path, content, words, code):
    (tmp_path / "s.csv").write_text(content)
    assert words in there("predict", "queries", "--run", RUN, "--support", "s.csv", *FEW, code=code).stderr


def test_what_is_missing_is_named(there, tmp_path):
    assert "No image to predict" in there("predict", *OF_RUN, code=2).stderr
    assert "No support set" in there("predict", "queries", "--run", RUN, code=2).stderr
    assert "There are 3 runs" in there("predict", "queries", "--support", "support", code=2).stderr
    assert "There is no support set at" in there("predict", "queries", "--support", "x", "--run", RUN, code=3).stderr
    error = there("predict", "queries", *OF_RUN, "--samples", 4, "--method", "class-mean", code=2).stderr
    assert "only leo has samples" in error
    assert "do not suffice" in there("predict", "queries", *OF_RUN, *FEW, "--sets", 0.99, code=2).stderr


def test_what_may_be_a_mistake_is_told(there, tmp_path):
    (tmp_path / "support" / "the empty one").mkdir()
    said = there("predict", "queries", *OF_RUN, *FEW).stderr
    assert "Without an image, and so no class: 'the empty one'." in said
    assert "Support set: 4 classes, 1 to 4 images of each." in said
    assert "in common" not in said
    for place in ("support/the test0", "."):
        assert "have images in common" in there("predict", place, *OF_RUN, *FEW).stderr
    assert "There is no image or folder at nowhere" in there("predict", "nowhere", *OF_RUN, *FEW, code=3).stderr
    said = there("predict", "queries", "--support", "support", "--run", "leokit-work/runs/other", code=4).stderr
    assert "In leokit-work/runs there are leo-5way-1shot, " in said


@pytest.mark.parametrize("file", [(), ("--csv", "labels.csv")])
def test_a_reader_that_has_seen_enough_ends_it_in_silence_but_for_the_file(there, tmp_path, file):
    command = [sys.executable, "-m", "leokit", "predict", "-", *map(str, OF_RUN), "--method", "class-mean"]
    process = subprocess.Popen(
        [*command, *map(str, FEW), *file],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with process:
        process.stdin.write("queries/the test0/05.png\n")
        assert "probability" in process.stdout.readline()
        process.stdout.close()
        process.stdin.write("queries/the test1/06.png\nqueries/the test1/07.png\n")
        process.stdin.close()
        assert "error" not in process.stderr.read()
    assert process.returncode == (0 if file else 141)
    if file:
        with (tmp_path / "labels.csv").open(newline="") as lines:
            assert [Path(row["image"]).name for row in csv.DictReader(lines)] == ["05.png", "06.png", "07.png"]


def test_without_the_features_the_runs_own_method_is_taken(there, tmp_path):
    shutil.move(tmp_path / WORK / "features", tmp_path / "elsewhere")
    weights = ("--weights", Path(open_weights(tmp_path)))
    done = there("predict", "queries", *OF_RUN, *weights, *FEW)
    assert "no methods were compared" in done.stderr and "--features" in done.stderr
    named = there("predict", "queries", *OF_RUN, *weights, *FEW, "--features", "elsewhere")
    assert "the best on meta-val" in named.stderr


def open_weights(root):
    data = json.loads((root / "elsewhere" / "manifest.json").read_text())
    return data["info"]["weights"]


def test_what_was_computed_once_is_taken_from_the_cache(there, tmp_path, monkeypatch):
    first = there("predict", "queries", *OF_RUN, *FEW)
    with monkeypatch.context() as patched:
        patched.setattr(studying, "_look", None)  # calling it would fail
        patched.setattr("leokit.engine.classifying.embed_images", None)  # so would embedding support images
        patched.setattr(predict, "find_images", lambda *places: iter(()))
        done = there("predict", "queries", *OF_RUN, *FEW, code=3)
    assert done.stdout.splitlines() == first.stdout.splitlines()[:1]
    for path in (tmp_path / WORK / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    assert there("predict", "queries", *OF_RUN, *FEW).stdout == first.stdout


def test_a_cache_entry_is_of_its_key_alone(tmp_path):
    cache.keep(tmp_path, {"a": 1}, {"x": np.arange(3.0)}, {"b": [1]})
    arrays, plain = cache.look_up(tmp_path, {"a": 1})
    assert arrays["x"].tolist() == [0, 1, 2] and plain == {"b": [1]}
    assert cache.look_up(tmp_path, {"a": 2}) is None
    os.rename(next(tmp_path.iterdir()), cache._path(tmp_path, {"a": 2}))
    assert cache.look_up(tmp_path, {"a": 2}) is None


def test_samples_agree_with_the_learner(there, tmp_path):
    there("fit", *OF_RUN, "--method", "leo", "--samples", 3, *FEW)
    tensors = load_file(tmp_path / WORK / "classifier" / "classifier.safetensors")
    assert tensors["weights"].shape == (
        3,
        4,
        64 if tensors["weights"].shape[-1] == 64 else tensors["weights"].shape[-1],
    )
    run = open_run(tmp_path / RUN)
    rows = np.random.default_rng(0).normal(size=(1, 4, 2, run.facts["dim"])).astype(np.float32)
    learner = make_learner(run.config, run.facts["dim"])
    drawn = learner.posterior(run.parameters, torch.from_numpy(rows), range(1), 3)
    assert drawn.shape == (3, 1, 4, run.facts["dim"])
    done = there("predict", "queries", "--classifier", f"{WORK}/classifier", "--json")
    entries = json.loads(done.stdout)["predictions"]
    assert all(entry["mutual_information"] >= 0 for entry in entries)


# Streams


def test_blocks_do_not_wait_for_a_slow_list():
    def slow():
        yield "a"
        yield "b"
        time.sleep(0.3)
        yield "c"

    blocks = list(in_blocks(slow(), 8))
    assert [block for block in blocks if block] == [("a", "b"), ("c",)]
    assert () in blocks
    many = list(in_blocks((str(number) for number in range(100)), 64))
    assert [len(block) for block in many if block] == [16, 64, 20]
    assert [name for block in many for name in block] == [str(number) for number in range(100)]


def test_an_error_of_the_list_reaches_the_reader():
    def bad():
        yield "a"
        raise OSError("the list is gone")

    with pytest.raises(OSError, match="the list is gone"):
        list(in_blocks(bad(), 8))


def test_a_list_names_images_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/deep/1.png", "b/.hidden.png", "b/notes.txt", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.png").touch()
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    listing = io.BytesIO(b"a.png\n\nb\r\nabsent.png\n")
    in_b = ["b/2.png", "b/deep/1.png", "b/linked/3.png"]
    assert list(find_images([Path("-")], listing)) == ["a.png", *in_b, "absent.png"]


def test_the_first_answer_comes_before_the_last_image_is_named(there, tmp_path):
    """A real process with a pipe: an answer is read before the list goes on."""
    command = [sys.executable, "-m", "leokit", "--quiet", "predict", "-", *map(str, OF_RUN), "--method", "class-mean"]
    process = subprocess.Popen(
        [*command, *map(str, FEW)], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        process.stdin.write("queries/the test0/05.png\n")
        process.stdin.flush()
        assert "probability" in process.stdout.readline()
        assert "05.png" in process.stdout.readline()
        process.stdin.write("queries/the test1/06.png\n")
        process.stdin.flush()
        assert "06.png" in process.stdout.readline()
        process.stdin.close()
        assert process.stdout.read() == ""
    assert process.returncode == 0


def test_worker_processes_change_nothing(there):
    alone = there("predict", "queries", *OF_RUN, "--method", "class-mean", *FEW)
    assert (
        there("predict", "queries", *OF_RUN, "--method", "class-mean", *FEW[:2], "--workers", 2).stdout == alone.stdout
    )


# ONNX


@pytest.mark.parametrize("views", ["center", "ten-crop"])
def test_the_onnx_file_gives_the_same_answers(there, made, tmp_path, views):
    pytest.importorskip("onnxruntime")
    import onnxruntime

    from leokit.images.preprocess import load_image

    work, weights = tmp_path / "views", str(made / "weights.safetensors")
    options = {"backbone": BACKBONE, "weights": weights, "image_size": SIZE, "workers": 0, "views": views}
    extract.run(build(ExtractConfig, {"images": made / "images", "work": work, **options}))
    meta_train.run(build(MetaTrainConfig, {"work": work, **TRAIN, "variant": "anchored", "centring": True}))
    of_work = ("--work", work, "--support", "support", "--method", "leo", *FEW)
    there("fit", *of_work)
    there("export", "--work", work, "--onnx", "c.onnx")
    assert "is there already" in there("export", "--work", work, "--onnx", "c.onnx", code=4).stderr
    assert "must end in .onnx" in there("export", "--work", work, "--onnx", "c.pt", code=2).stderr
    printed = json.loads(there("predict", "queries", *of_work, "--json").stdout)
    session = onnxruntime.InferenceSession("c.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == printed["classes"]
    (embedding,) = [predict.EmbeddingModel(**source(work)).model.backbone]
    images = [entry["image"] for entry in printed["predictions"]]
    pixels = np.stack([load_image(Path(image), embedding.preprocessing) for image in images])
    (found,) = session.run(["probabilities"], {"pixels": pixels})
    assert [printed["classes"][place] for place in found.argmax(1)] == [e["label"] for e in printed["predictions"]]
    np.testing.assert_allclose(found.max(1), [e["probability"] for e in printed["predictions"]], atol=1e-3)


def source(work):
    classifier, _ = fit.classifiers.open_classifier(work / "classifier")
    return {
        "recorded": classifier.backbone,
        "source": classifier.weights_from,
        "given": None,
        "device": torch.device("cpu"),
    }


def test_the_configurations_share_their_options():
    """A predict that makes its classifier is a fit: what both take, both take alike."""
    plain = PredictConfig(support=Path("s"), episodes=77, seed=3, samples=2)
    found = predict._fit_config(plain)
    assert (found.support, found.episodes, found.seed, found.samples) == (Path("s"), 77, 3, 2)
