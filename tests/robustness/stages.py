"""Every command that writes something, at its smallest: its arguments, and what its result is."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from leokit import manifest
from leokit.cli import app

TRAINING = "--steps=4 --val-every=2 --val-episodes=5 --val-queries=2 --queries=2 --num-latents=4".split()
TESTING = "--episodes=20 --queries=2 --workers=0".split()
NAMES = (
    "demo",
    "pretrain",
    "extract",
    "import",
    "meta-train",
    "eval",
    "uncertainty",
    "analyze",
    "table",
    "report",
    "regress train",
    "regress plot",
    "regress eval",
    "fit",
    "predict",
    "search",
)
# Those whose output is the folder of an artifact.
FOLDERS = tuple(name for name in NAMES if name not in ("report", "predict"))


@dataclass(frozen=True)
class Made:
    """Inputs of all commands in a folder, the result of each by its name, and how long it took."""

    folder: Path
    results: dict[str, dict[str, str]]
    seconds: dict[str, float]  # that each took

    def arguments(self, name, out):
        """The words after `leokit` that make a result at `out`, from inputs found in the working directory."""
        if name == "predict":
            return [*COMMANDS[name], "--work", f"{out}.work", "--csv", f"{out}.csv"]
        work = ["--work", f"{out}.work"] if name == "fit" else []
        return [*COMMANDS[name], *work, *(["--out"] if name != "demo" else []), str(out)]


_PHOTOS = "--run inputs/photo-run --features inputs/photos --support support --episodes 20 --workers 0 --device cpu"
COMMANDS = {
    "demo": "demo --per-class 1 --size 32 --workers 1".split(),
    "pretrain": (
        "pretrain images --backbone wrn10_1 --image-size 16 --batch-size 8 --epochs 2 --val-every 1 --val-episodes 5 "
        "--val-queries 1 --val-shots 1 --val-ways 2 --workers 0 --device cpu"
    ).split(),
    "extract": (
        "extract images --backbone test_resnet --weights weights.safetensors --image-size 32 --workers 0 --device cpu"
    ).split(),
    "import": ["import", "arrays", "--backbone-name", "x"],
    "meta-train": ["meta-train", "--features", "inputs/features", *TRAINING],
    "eval": ["eval", "--features", "inputs/features", "--run", "inputs/run", *TESTING],
    "uncertainty": (
        "uncertainty inputs/run --features inputs/features --episodes 6 --calibration-episodes 6 --samples 2 "
        "--queries 2 --curve-shots none --resamples 100"
    ).split(),
    "analyze": (
        "analyze inputs/run --features inputs/features --val-episodes 6 --test-episodes 4 --perplexity 3"
    ).split(),
    "table": ["table", "1", "inputs/eval"],
    "report": ["report", "--work", "inputs"],
    "regress train": "regress train --steps 4 --meta-batch 2 --samples 2 --queries 4 --inner-steps 1".split(),
    "regress plot": "regress plot --regression inputs/model --tasks 64 --samples 4".split(),
    "regress eval": "regress eval --regression inputs/model --tasks 4 --ambiguous 2 --samples 4 --queries 3".split(),
    "fit": ["fit", *_PHOTOS.split()],
    "predict": ["predict", "images", *_PHOTOS.split()],
    "search": (
        "search --features inputs/features --trials 2 --steps 2 --val-every 1 --val-episodes 4 --val-queries 2 "
        "--fresh-episodes 4 --space space.toml --jobs 1 --device cpu"
    ).split(),
}
_INPUTS = {"import": "features", "meta-train": "run", "eval": "eval", "regress train": "model", "extract": "photos"}
_ORDER = ("import", "meta-train", "eval", "regress train", "extract", "photo-run")
_PHOTO_RUN = "meta-train --features inputs/photos --ways 2 --steps 2 --val-every 1 --val-episodes 4 --val-queries 2"
_PHOTO_RUN += " --queries 2 --num-latents 4 --out inputs/photo-run"


def prepare(folder):
    """Make the inputs, and each command's result under `whole/`, in this process."""
    rng = np.random.default_rng(0)
    (folder / "arrays").mkdir()
    for split, classes in {"train": 7, "val": 6, "test": 6}.items():
        labels = np.repeat([f"{split}{number}" for number in range(classes)], 8)
        rows = rng.normal(size=(len(labels), 12)).astype(np.float32)
        np.savez(folder / f"arrays/{split}.npz", embeddings=rows, labels=labels)
    lines = ["class_name,split"]
    for number, split in enumerate(("train", "train", "train", "val", "val", "test")):
        (folder / f"images/c{number}").mkdir(parents=True)
        lines.append(f"c{number},{split}")
        for index in range(4):
            pixels = rng.integers(0, 256, (18, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"images/c{number}/{index}.png")
    for number in (4, 5):
        for index in range(2):
            place = folder / f"support/c{number}/{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / f"images/c{number}/{index}.png", place)
    (folder / "space.toml").write_text("queries = 2\nnum_latents = 4\nouter_lr = { log_uniform = [1e-4, 1e-3] }\n")
    (folder / "images/splits.csv").write_text("\n".join(lines) + "\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet").state_dict(), folder / "weights.safetensors")
    made = Made(folder, {}, {})
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in (*_ORDER, *(name for name in NAMES if name not in _ORDER)):
            if name == "photo-run":
                done = CliRunner().invoke(app, _PHOTO_RUN.split())
                assert done.exit_code == 0, (name, done.stderr, done.exception)
                continue
            out = folder / "whole" / name
            begun = time.monotonic()
            done = CliRunner().invoke(app, made.arguments(name, out))
            made.seconds[name] = time.monotonic() - begun
            assert done.exit_code == 0, (name, done.stderr, done.exception)
            made.results[name] = result(out)
            if name in _INPUTS:
                shutil.copytree(out, folder / "inputs" / _INPUTS[name])
    finally:
        os.chdir(before)
    return made


def result(out):
    """What must be the same however often a command was interrupted: the id and the bytes that it is of.

    Nothing else may be left: what no manifest lists is under the name `strays`.
    """
    if not out.exists():
        out = out.with_name(f"{out.name}.csv")
    if out.is_file():
        return {"bytes": manifest.hash_file(out), "strays": _strays(out.parent, {out.name})}
    found = manifest.read(out)
    manifest.check_files(out, found)
    kept = {name: entry.sha256 for name, entry in found.files.items() if entry.in_id}
    state = out / "last/state.safetensors"
    more = {"state": manifest.hash_file(state)} if state.exists() else {}
    return {"id": found.id, **kept, **more, "strays": _strays(out, {*found.files, manifest.MANIFEST})}


def _strays(folder, known):
    return " ".join(
        sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and str(path.relative_to(folder)) not in known and path.name.startswith(".")
        )
    )
