"""What a run leaves to look at: metrics.jsonl, TensorBoard's events, curves.png; and that looking changes nothing."""

import json
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from leokit import manifest
from tests.processes import ended, interrupted, start

TRAIN = ("meta-train", "--val-every", 50, "--val-episodes", 20, "--val-queries", 5, "--queries", 5, "--meta-batch", 4)
RUN = "leokit-work/runs/leo-5way-1shot"


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def raw_points(folder):
    """Every (tag, step) with its value in the event files of a run, as they lie there, nothing purged."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted((folder / "tensorboard").iterdir())
    values = [
        ((value.tag, event.step), value.tensor.float_val[0])
        for path in files
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]
    assert max(Counter(key for key, _ in values).values()) == 1
    return dict(values)


def expected_points(folder):
    points = {}
    for line in metrics(folder):
        for name, value in line.items():
            if name == "rates" or name.endswith("_std") or name == "gradient_norms":
                for key, entry in value.items():
                    for last, number in entry.items() if isinstance(entry, dict) else [(None, entry)]:
                        points["/".join(filter(None, (name, key, last))), line["step"]] = number
            elif name != "step":
                points[name, line["step"]] = value
    return points


def assert_events_are_the_metrics(folder):
    found, expected = raw_points(folder), expected_points(folder)
    assert found.keys() == expected.keys()
    assert {tag for tag, _ in found} >= {"loss", "val_accuracy", "gradient_norms/encoder", "rates/inner_lr/mean"}
    assert [found[key] for key in found] == pytest.approx([expected[key] for key in found], rel=1e-6)  # float32


def assert_is_a_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == 960
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # Not blank: white alone is less than all, and the curves' colours (blue, orange) are there.
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels == colour).all(1).sum() > 50


def test_events_change_neither_weights_nor_id(leokit, features, tmp_path):
    plain = json.loads(leokit(*TRAIN, "--steps", 200, "--out", "plain", "--json").stdout)
    seen = json.loads(leokit(*TRAIN, "--steps", 200, "--out", "seen", "--tensorboard", "--json").stdout)
    assert plain["id"] == seen["id"]
    for name in ("weights.safetensors", "last/state.safetensors", "metrics.jsonl", "config.toml"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "seen" / name).read_bytes(), name
    assert not (tmp_path / "plain/tensorboard").exists()
    assert_events_are_the_metrics(tmp_path / "seen")
    recorded = manifest.read(tmp_path / "seen").files
    names = {path.relative_to(tmp_path / "seen").as_posix() for path in (tmp_path / "seen/tensorboard").iterdir()}
    assert names | {"curves.png", "metrics.jsonl"} <= {name for name, entry in recorded.items() if not entry.in_id}
    leokit("verify", "seen")


def test_a_killed_run_has_each_step_once(features, tmp_path):
    run = (*TRAIN, "--steps", 500)
    assert ended(start(tmp_path, *run, "--out", "whole")) == 0
    cut = (*run, "--tensorboard", "--out", "cut")
    for number in (signal.SIGTERM, signal.SIGKILL):
        code = interrupted(tmp_path, cut, 4, number)
        if code == 0:
            pytest.skip("the machine was too fast to interrupt it")
        if number == signal.SIGTERM:
            assert code == 130
            assert_is_a_picture(tmp_path / "cut/curves.png")  # of what was done
    assert ended(start(tmp_path, *cut)) == 0
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    steps = [line["step"] for line in metrics(tmp_path / "cut") if "loss" in line]
    assert steps == list(range(100, 501, 100))
    assert_events_are_the_metrics(tmp_path / "cut")


def test_training_longer_drops_the_validation_that_a_longer_run_has_not(leokit, features, tmp_path):
    leokit(*TRAIN, "--steps", 120, "--tensorboard")
    assert ("val_accuracy", 120) in raw_points(tmp_path / RUN)
    leokit(*TRAIN, "--steps", 200, "--tensorboard")
    assert ("val_accuracy", 120) not in raw_points(tmp_path / RUN)
    assert_events_are_the_metrics(tmp_path / RUN)


def test_events_asked_for_late_are_all_there(leokit, features, tmp_path):
    leokit(*TRAIN, "--steps", 100)
    leokit(*TRAIN, "--steps", 200, "--tensorboard")
    assert ("val_accuracy", 0) in raw_points(tmp_path / RUN)
    assert_events_are_the_metrics(tmp_path / RUN)


def test_tensorboard_itself_reads_each_step_once(leokit, features, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    leokit(*TRAIN, "--steps", 100, "--tensorboard")
    leokit(*TRAIN, "--steps", 200, "--tensorboard")
    events = EventAccumulator(str(tmp_path / RUN / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [100, 200]
    assert [event.step for event in events.Scalars("val_accuracy")] == [0, 50, 100, 150, 200]


def test_starting_anew_leaves_no_events_and_spares_other_files(leokit, features, tmp_path):
    leokit(*TRAIN, "--steps", 100, "--tensorboard")
    (tmp_path / RUN / "tensorboard/notes.txt").write_text("mine")
    leokit(*TRAIN, "--steps", 120, "--no-resume", "--overwrite")
    assert [path.name for path in (tmp_path / RUN / "tensorboard").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("variant", ["leo", "anchored", "generator", "meta-sgd", "random-prior"])
def test_every_kind_of_run_has_its_picture(leokit, features, tmp_path, variant):
    leokit(*TRAIN, "--steps", 200, "--inner-lr", 0.1, "--variant", variant, "--out", "run")
    assert_is_a_picture(tmp_path / "run/curves.png")


@pytest.mark.parametrize("steps", [1, 100])
def test_a_run_of_one_point_or_none_has_a_picture(leokit, features, tmp_path, steps):
    leokit(*TRAIN, "--steps", steps, "--out", "run")
    assert len([line for line in metrics(tmp_path / "run") if "loss" in line]) == steps // 100
    with Image.open(tmp_path / "run/curves.png") as picture:
        picture.load()


def test_without_the_package_it_says_so_before_it_starts(features, tmp_path):
    code = "import sys; sys.modules['tensorboard'] = None; from leokit.cli import main; main()"
    for extra in ((), ("--dry-run",)):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, TRAIN), "--tensorboard", *extra],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "pip install 'leokit[tensorboard]'" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert not (tmp_path / RUN).exists()
