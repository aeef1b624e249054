"""How long to train, and on what: `--steps-from`, `--train-on-val`, `--patience`; and runs that are killed."""

import json
import random
import shutil
import time

import numpy as np
import pytest

from leokit import manifest
from leokit.features import write_store
from leokit.runs import load_state
from tests.e2e.conftest import make_store
from tests.processes import start

SIZES = ("--val-episodes", 20, "--val-queries", 5, "--queries", 5)
TRAIN = ("meta-train", "--val-every", 10, *SIZES)
EARLIER = "leokit-work/runs/leo-5way-1shot"
STUCK = ("--outer-lr", 1e-30)  # no step changes a weight, so that no validation is better than the first


def parameters(folder):
    tensors, _ = load_state(folder / "last/state.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith("parameters/")}


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


SAME = ("--outer-lr", 0.003)  # as `earlier`


def with_facts(folder, **facts):
    """Write a run's manifest with other facts, as if selection had come to them; facts are outside of the id."""
    found = manifest.read(folder)
    extras = [name for name, entry in found.files.items() if not entry.in_id]
    changed = {"facts": {**found.facts, **facts}, "info": found.info}
    return manifest.finish(
        folder, found.schema, found.config, found.inputs, results=["weights.safetensors"], extras=extras, **changed
    )


@pytest.fixture
def earlier(leokit, features, tmp_path):
    """The manifest of a run of 30 steps on train alone, that was best after 20."""
    leokit(*TRAIN, *SAME, "--steps", 30)
    return with_facts(tmp_path / EARLIER, best_step=20, best_is_fallback=False)


def test_training_on_val_is_training_on_a_train_split_that_holds_its_classes_too(leokit, features, tmp_path):
    """Only the place of a class in the matrix counts, so the store's split of it must not."""
    images = [f"{number:02}.png" for number in range(24)]
    rows = {
        (split, name): features.read_class(split, name) for split in features.splits for name in features.classes(split)
    }
    together = {name: (images, rows[split, name]) for split, name in rows if split != "test"}
    others = {name: (images, rows[split, name]) for split, name in rows if split == "test"}
    write_store(tmp_path / "merged", {"train": together, "val": others}, dtype="float32")
    trained = json.loads(leokit(*TRAIN, "--train-on-val", "--steps", 15, "--json").stdout)
    leokit(*TRAIN, "--features", "merged", "--steps", 15, "--out", "as-train")
    leokit(*TRAIN, "--steps", 15, "--out", "train-alone")
    folder = tmp_path / "leokit-work/runs/leo-5way-1shot-trainval"
    assert trained["out"] == str(folder.relative_to(tmp_path))
    ours, theirs, alone = map(parameters, (folder, tmp_path / "as-train", tmp_path / "train-alone"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert not all(np.array_equal(ours[name], alone[name]) for name in ours)


def test_classes_of_both_splits_count_together(leokit, tmp_path):
    make_store(tmp_path / "leokit-work/features", classes=(4, 3, 6))
    assert "The train split has 4 classes, 5-way" in leokit(*TRAIN, "--steps", 3, code=3).stderr
    trained = json.loads(leokit(*TRAIN, "--steps", 3, "--train-on-val", "--json").stdout)
    assert trained["classes"] == {"train": 4, "val": 3}
    done = leokit(*TRAIN, "--steps", 3, "--train-on-val", "--ways", 8, code=3)
    assert "The train + val split has 7 classes" in done.stderr


def test_the_protocol_of_published_results(leokit, earlier, tmp_path):
    done = leokit(*TRAIN, *SAME, "--train-on-val", "--steps-from", EARLIER)
    folder = tmp_path / f"{EARLIER}-trainval"
    made = manifest_of(folder)
    facts = made["facts"]
    assert facts["steps"] == facts["best_step"] == made["config"]["steps"] == 20
    assert facts["meta_trained_on"] == ["train", "val"]
    assert made["config"]["train_on_val"] is True
    assert made["inputs"]["steps_from"]["id"] == earlier.id
    assert facts["val_accuracy"] is facts["val_half_width"] is None
    assert "val_accuracy" not in (folder / "metrics.jsonl").read_text()
    assert "train and val, 18 classes" in done.stdout
    assert "meta-val" not in done.stdout
    assert f"Next: leokit eval --run {EARLIER}-trainval" in done.stderr
    assert "Already done" in leokit(*TRAIN, *SAME, "--train-on-val", "--steps-from", EARLIER).stderr
    leokit(*TRAIN, *SAME, "--train-on-val", "--steps", 20, "--out", "by-number")
    assert (tmp_path / "by-number/weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()
    assert manifest_of(tmp_path / "by-number")["id"] != made["id"]  # another way to come by the steps


def test_training_on_val_is_said_when_val_is_tested(leokit, features):
    leokit(*TRAIN, "--train-on-val", "--steps", 3)
    test = ("eval", "--run", f"{EARLIER}-trainval", "--episodes", 20, "--queries", 5)
    words = "was trained on the val classes that it is tested on"
    assert words in " ".join(leokit(*test, "--split", "val").stdout.split())
    assert words in " ".join(leokit(*test, "--split", "val").stdout.split())  # already done
    assert "Warning" not in leokit(*test).stdout


def test_steps_from_an_earlier_run_without_training_on_val(leokit, earlier):
    again = json.loads(leokit(*TRAIN, *SAME, "--steps-from", EARLIER, "--seed", 1, "--out", "again", "--json").stdout)
    assert again["steps"] == 20
    assert again["val_accuracy"] > 0
    plan = json.loads(leokit(*TRAIN, *SAME, "--steps-from", EARLIER, "--out", "new", "--dry-run", "--json").stdout)
    assert plan["steps"] == 20
    refused = leokit(*TRAIN, *SAME, "--steps-from", EARLIER, code=4)  # its own place
    assert "inputs.steps_from" in refused.stderr
    assert "choose another --out" in leokit(*TRAIN, *SAME, "--steps-from", EARLIER, "--overwrite", code=4).stderr


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--outer-lr", 0.004), "outer_lr: 0.003 → 0.004"),
        ((*SAME, "--shots", 2), "shots: 1 → 2"),
        ((*SAME, "--ways", 4), "ways: 5 → 4"),
        ((*SAME, "--variant", "deterministic"), 'variant: "leo" → "deterministic"'),
    ],
)
def test_steps_from_a_run_with_other_options_are_refused(leokit, earlier, tmp_path, options, difference):
    done = leokit(*TRAIN, *options, "--train-on-val", "--steps-from", EARLIER, code=4)
    assert difference in done.stderr
    assert f"--steps-from {EARLIER} ({earlier.id[:12]})" in done.stderr
    assert [path.name for path in (tmp_path / "leokit-work/runs").iterdir()] == ["leo-5way-1shot"]


def test_steps_from_a_run_that_has_none_to_give_are_refused(leokit, features, tmp_path):
    leokit(*TRAIN, *STUCK, "--steps", 10)
    done = leokit(*TRAIN, *STUCK, "--train-on-val", "--steps-from", EARLIER, code=4)
    assert "its weights before the first step (best step 0)" in done.stderr
    with_facts(tmp_path / EARLIER, best_is_fallback=True)
    done = leokit(*TRAIN, *STUCK, "--train-on-val", "--steps-from", EARLIER, code=4)
    assert "were the class means (best step 0)" in done.stderr
    leokit(*TRAIN, "--train-on-val", "--steps", 3)
    done = leokit(*TRAIN, "--steps-from", f"{EARLIER}-trainval", "--out", "new", code=4)
    assert "was trained on val" in done.stderr
    assert "There is no artifact at nowhere" in leokit(*TRAIN, "--steps-from", "nowhere", code=4).stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--train-on-val",), "give --steps-from RUN"),
        (("--train-on-val", "--steps", 9, "--patience", 2), "--patience 2 waits for validations"),
        (("--steps", 9, "--steps-from", "run"), "give one of them"),
        (("--patience", 0), "patience = 0"),
        (("--variant", "random-prior", "--no-sampling"), "its codes are draws"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(leokit, features, tmp_path, options, words):
    for more in ((), ("--dry-run",)):
        assert words in leokit("meta-train", *options, *more, code=2).stderr
    assert not (tmp_path / "leokit-work/runs").exists()


def test_print_config_says_the_steps(leokit):
    assert "steps = 100000" in leokit("meta-train", "--print-config").stdout
    assert "steps = " not in leokit("meta-train", "--print-config", "--steps-from", "run").stdout.replace("_steps", "")


def test_patience_ends_a_run_and_more_patience_trains_on(leokit, features, tmp_path):
    short = (*TRAIN, *STUCK, "--patience", 2)
    done = leokit(*short, "--steps", 100)
    made = manifest_of(tmp_path / EARLIER)
    assert (made["facts"]["steps"], made["facts"]["stopped_early"]) == (20, True)
    assert "Patience ended it at step 20: 2 validations in a row" in " ".join(done.stdout.split())
    assert "Already done" in leokit(*short, "--steps", 100).stderr
    more = leokit(*short, "--steps", 200)  # the run that these options give from the start, and no step of it
    assert "more --steps do not" in " ".join(more.stdout.split())
    assert "20 (0 of them now" in more.stdout
    leokit(*short, "--steps", 200, "--out", "from-the-start")
    ids = [manifest_of(folder)["id"] for folder in (tmp_path / EARLIER, tmp_path / "from-the-start")]
    assert ids[0] == ids[1] != made["id"]
    longer = json.loads(leokit(*TRAIN, *STUCK, "--steps", 200, "--patience", 3, "--json").stdout)
    assert longer["steps"] == 30
    at_once = json.loads(leokit(*TRAIN, *STUCK, "--steps", 200, "--patience", 3, "--json", "--out", "at-once").stdout)
    assert longer["id"] == at_once["id"]
    assert "patience: 3 → 2" in leokit(*short, "--steps", 200, code=4).stderr
    forever = json.loads(leokit(*TRAIN, *STUCK, "--steps", 45, "--json").stdout)
    assert (forever["steps"], forever["stopped_early"]) == (45, False)


def test_an_unfinished_run_goes_on_with_its_own_options_only(leokit, features, tmp_path):
    process = start(tmp_path, *TRAIN, "--steps", 100000)
    renewed(tmp_path / EARLIER / "last/state.safetensors", process, 0)
    process.kill()
    process.join()
    done = leokit(*TRAIN, "--steps", 100000, "--dropout", 0.25, "--inner-steps", 4, code=4)
    assert "dropout: 0.307651 → 0.25; config.inner_steps: 5 → 4" in done.stderr
    done = leokit(*TRAIN, "--steps", 100000, "--train-on-val", "--out", EARLIER, code=4)
    assert "train_on_val: false → true" in done.stderr


@pytest.mark.parametrize("options", [("--outer-lr", 0.003), ("--train-on-val",)])
def test_ten_kills_at_random_moments_change_nothing(features, tmp_path, options):
    """SIGKILL while it opens its inputs, in steps, in validations, and between the files that a validation writes."""
    small = ("--meta-batch", 2, "--num-latents", 8, "--inner-steps", 2, "--finetuning-steps", 2)
    arguments = ("meta-train", "--steps", 150, "--val-every", 3, *small, *SIZES, *options, "--out")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    state = killed / "last/state.safetensors"
    process = start(tmp_path, *arguments, "whole")
    renewed(whole / "last/state.safetensors", process, 0)
    began = time.monotonic()
    process.join()
    seconds = time.monotonic() - began
    assert process.exitcode == 0
    rng, kills, resumed = random.Random(0), 0, set()
    while kills < 10:
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = start(tmp_path, *arguments, "killed", stderr=tmp_path / "said")
        opening = kills % 5 == 0
        if not opening:
            renewed(state, process, before)
        process.join(rng.uniform(0, 0.3 if opening else seconds / 8))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            resumed.add(load_state(state)[1]["step"] if state.exists() else 0)
        else:  # it came to its end: what is left of the kills falls on a run that begins anew
            assert process.exitcode == 0, (tmp_path / "said").read_text()
            assert_same_run(whole, killed)
            shutil.rmtree(killed)
    process = start(tmp_path, *arguments, "killed")
    process.join()
    assert process.exitcode == 0
    assert len(resumed) > 3
    assert_same_run(whole, killed)


def assert_same_run(whole, killed):
    assert manifest_of(killed)["id"] == manifest_of(whole)["id"]
    for name in ("weights.safetensors", "last/state.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def renewed(path, process, before):
    """Wait until a process has written a file anew, or has ended."""
    while process.is_alive() and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.005)
