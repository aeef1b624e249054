"""The command line as a user meets it: real processes, real folders."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

from leokit.cli import app
from leokit.features import write_store

COMMAND = (sys.executable, "-m", "leokit")


class Done(NamedTuple):
    """What a command left behind."""

    stdout: str
    stderr: str


@pytest.fixture
def leokit(tmp_path, monkeypatch):
    """Run `leokit ARGUMENTS` in this process, in a folder of its own; the exit code must be `code`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments, code=0, **environment):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"{arguments}: exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
        return Done(result.stdout, result.stderr)

    return call


@pytest.fixture
def leokit_process(tmp_path):
    """Run `leokit ARGUMENTS` as a user does, in a process of its own; the exit code must be `code`."""

    def call(*arguments, code=0, **environment):
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "80", **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return Done(done.stdout, done.stderr)

    return call


def make_store(folder: Path, *, classes=(12, 6, 6), images=24, dim=96, seed=0, spread=4.0, **facts):
    """A store of separable classes; `facts` go to `write_store`."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in zip(("train", "val", "test"), classes, strict=True):
        splits[split] = {
            f"{split}{number:02}": (
                [f"{split}{number:02}/{image:04}.png" for image in range(images)],
                (rng.normal(size=(1, dim)) + spread * rng.normal(size=(images, dim))).astype(np.float32),
            )
            for number in range(count)
        }
    return write_store(folder, splits, dtype="float32", **facts)


def learnable_store(folder):
    """Classes that differ in half of the features, the rest being loud noise: a few steps of training help a lot."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 20), ("val", 6), ("test", 6)):
        splits[split] = {}
        for number in range(count):
            rows = rng.normal(size=(24, 96)).astype(np.float32) * np.repeat([0.3, 2], 48)
            rows[:, :48] += rng.normal(size=48)
            splits[split][f"{split}{number}"] = ([f"{image:02}.png" for image in range(24)], rows.astype(np.float32))
    return write_store(folder, splits, dtype="float32")


@pytest.fixture
def features(tmp_path):
    """A small feature store at its default place under the work folder."""
    return make_store(tmp_path / "leokit-work" / "features")
