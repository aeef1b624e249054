"""Kill an extraction by SIGKILL at random moments, start it again each time, and compare with one that was let run.

    python tests/kill_extraction.py IMAGES [--images 6000] [--kills 20] [--backbone test_resnet] [--seed 0]

Takes the first images of IMAGES, as many of each class, in a tree of links. Prints a line for each kill, and at the end
whether the ids and all result files are equal.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from leokit import manifest
from leokit.engine.shards import RECORDS
from leokit.stages.extract import LISTING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IMAGES")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leokit-kill-") as folder:
        work = Path(folder)
        link_images(options.source, work / "images", options.images)
        weights = work / "weights.safetensors"
        save_weights(options.backbone, weights)
        arguments = ["--backbone", options.backbone, "--weights", str(weights), "--image-size", "128"]
        equal = kill_and_compare(work, arguments, kills=options.kills, seed=options.seed, say=print)
    print("equal" if equal else "DIFFERENT")
    sys.exit(not equal)


def link_images(source: Path, target: Path, images: int) -> None:
    """A tree of links to the first images of each class, so many in all, with a random half of classes for training."""
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    each = -(-images // len(classes))
    rest = images
    for folder in classes:
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[: min(each, rest)]:
            (target / folder.name / path.name).symlink_to(path.resolve())
            rest -= 1
    names = [folder.name for folder in classes]
    splits = ["train" if number % 5 < 3 else ("val", "test")[number % 2] for number in range(len(names))]
    lines = [f"{name},{split}" for name, split in zip(names, splits, strict=True)]
    (target / "splits.csv").write_text("\n".join(["class_name,split", *lines]) + "\n")


def save_weights(backbone: str, path: Path) -> None:
    """Random weights in a file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model(backbone).state_dict(), path)


def kill_and_compare(work: Path, arguments: list[str], *, kills: int, seed: int, say) -> bool:
    """Extract `work/images` uninterrupted, and again with so many kills; whether all is equal."""

    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "leokit", "extract", "images", *arguments, "--workers", "1", "--out", out]

    quiet = {"cwd": work, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    listing = work / "whole" / LISTING  # written when the start is over and the work begins
    with subprocess.Popen(command("whole"), **quiet) as process:
        renewed(listing, process, 0)
        began = time.monotonic()
        _, stderr = process.communicate()
    if process.returncode:
        raise RuntimeError(stderr)
    files = len(list((work / "whole" / RECORDS).glob("*.json")))
    seconds = time.monotonic() - began
    say(f"uninterrupted: {files} files in {seconds:.1f} s of work")
    rng, folder, done = random.Random(seed), work / "killed", 0
    listing = folder / LISTING
    while done < kills:
        before = listing.stat().st_mtime_ns if listing.exists() else 0
        process = subprocess.Popen(command("killed"), start_new_session=True, **quiet)
        start = rng.random() < 0.2  # killed while it starts
        if not start:
            renewed(listing, process, before)
        moment = rng.uniform(0, 3 if start else 1 + 1.5 * seconds / files)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
            finished = len(list(folder.glob(f"{RECORDS}/*.json")))
            say(
                f"kill {done}: {moment:.2f} s into its {'start' if start else 'work'}, {finished} of {files} files done"
            )
            continue
        _, stderr = process.communicate()
        if process.returncode:
            raise RuntimeError(stderr)
        say(f"finished after {done} kills; the others fall on an extraction that begins anew")
        if not compare(work, say):
            return False
        shutil.rmtree(folder)
    subprocess.run(command("killed"), check=True, **quiet)
    return compare(work, say)


def renewed(path: Path, process: subprocess.Popen, before: int) -> None:
    """Wait until a process has written a file anew, or has ended."""
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.005)


def compare(work: Path, say) -> bool:
    """Whether the extraction that was killed has the id and every result file of the other."""
    whole, killed = manifest.read(work / "whole"), manifest.read(work / "killed")
    manifest.check_files(work / "killed", killed)
    say(json.dumps({"whole": whole.id, "killed": killed.id}))
    leftovers = {str(path.relative_to(work / "killed")) for path in (work / "killed").rglob("*") if path.is_file()}
    return whole.id == killed.id and whole.files == killed.files and leftovers == {*killed.files, manifest.MANIFEST}


if __name__ == "__main__":
    main()
