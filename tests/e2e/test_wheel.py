"""The wheel, outside the checkout: all data are inside it and the command runs."""

import os
import subprocess
import sys
import zipfile

from tests.conftest import REPOSITORY


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_works_outside_the_checkout(tmp_path):
    # A copy is built: setuptools leaves files in the tree that it builds from.
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY).splitlines()
    for name in tracked:
        source = REPOSITORY / name
        if source.is_file() and name.startswith(("leokit/", "pyproject.toml", "README.md", "LICENSE")):
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / name).write_bytes(source.read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", tmp_path / "source")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in tracked if name.startswith("leokit/") and (REPOSITORY / name).is_file()}
    assert package <= names
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    outside = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(site)}}
    assert str(site) in run(sys.executable, "-c", "import leokit; print(leokit.__file__)", **outside)
    leokit = site / "bin" / "leokit"
    assert "meta-train" in run(leokit, "--help", **outside)
    assert "outer_lr = 0.0002739071" in run(leokit, "meta-train", "--print-config", **outside)
    run(leokit, "demo", "glyphs", "--per-class", 1, "--size", 32, **outside)
    assert len(list((tmp_path / "glyphs").glob("*/*.jpg"))) > 120
    lists = "from leokit.splits import classes_seen; print(classes_seen('imagenet-1k', ['n01440764', 'n99999999']))"
    assert run(sys.executable, "-c", lists, **outside).strip() == "1"
