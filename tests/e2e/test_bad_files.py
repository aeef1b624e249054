"""Every bad file has its row in failures.parquet with a reason for a person; odd but whole ones are read right."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leokit.images.preprocess import load_image
from leokit.stages import extract
from leokit.tables import read_table
from tests.e2e.test_extract import BACKBONE, failures, make_tree, one_thread, run, tree, weights, write_splits

__all__ = ["one_thread", "run", "tree", "weights"]  # fixtures

RED = (200, 40, 30)
NOBODY = 65534


def picture():
    """A picture whose left half is red and whose right half is blue."""
    image = Image.new("RGB", (64, 48), RED)
    image.paste((20, 60, 220), (32, 0, 64, 48))
    return image


def bomb():
    """A PNG that says it has 30,000 x 30,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bad_files(folder):
    """Put files that cannot be read into a folder; their names with the reasons."""
    picture().save(folder / "truncated.jpg")
    data = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("The quick brown fox")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe")
    (folder / "piped.png").symlink_to("pipe")
    (folder / "two\nlines of name.png").write_bytes(b"")
    return {
        "truncated.jpg": "truncated: the file ends before the image does",
        "empty.jpg": "empty file",
        "text.jpg": "not an image of a kind that Pillow reads",
        "bomb.png": "too large: more than 178956970 pixels",
        "dangling.png": "no such file (a broken link?)",
        "loop.png": "a link that leads back to itself",
        "piped.png": "no regular file",
        "two\nlines of name.png": "empty file",
    }


def odd_files(folder):
    """Put files into a folder that are odd but whole, and that all show the same picture."""
    image = picture()
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.quantize(4).save(folder / "palette.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    image.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", image.size, "green")] * 3)
    image.save(folder / "with space.png")
    image.save(folder / "zwei\nZeilen.png")
    return ["cmyk.jpg", "palette.png", "turned.jpg", "animated.gif", "with space.png", "zwei\nZeilen.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_bad_file_has_its_reason(tree, run, workers):
    expected = bad_files(tree / "class0")
    store = run("features", workers=workers, max_failures="50%")
    assert failures(store) == {f"class0/{name}": reason for name, reason in expected.items()}
    assert store.facts["counts"]["train"]["class0"] == 12


def test_odd_files_decode_right(tree, run, weights):
    names = odd_files(tree / "class0")
    grey = (np.linspace(0, 65535, 48 * 64).reshape(48, 64)).astype(np.uint16)
    Image.fromarray(grey).save(tree / "class0" / "sixteen.png")
    store = run("features", crop_pct=1.0)
    assert failures(store) == {}
    assert store.facts["backbone"]["preprocessing"]["exif"] == "transpose"
    assert {f"class0/{name}" for name in [*names, "sixteen.png"]} <= set(store.images("train"))
    preprocessing = extract.load_backbone(
        extract.ExtractConfig(images=tree, backbone=BACKBONE, weights=weights, image_size=32, crop_pct=1.0)
    ).preprocessing
    for name in names:
        pixels = load_image(tree / "class0" / name, preprocessing).astype(int)
        assert np.abs(pixels[16, 4] - RED).max() < 12, name
        assert np.abs(pixels[16, 28] - (20, 60, 220)).max() < 12, name
    ramp = load_image(tree / "class0" / "sixteen.png", preprocessing).astype(int)
    assert abs(ramp.mean() - 127.5) < 2  # scaled, not cut off
    assert ramp[2, 16, 0] < 30 < 225 < ramp[29, 16, 0]


AS_NOBODY = """
import os, sys
from pathlib import Path
import torch
from leokit.config import ExtractConfig
from leokit.stages import extract

torch.set_num_threads(1)
root, backbone = Path(sys.argv[1]), sys.argv[2]
options = dict(images=root / "images", backbone=backbone, weights=str(root / "weights.safetensors"), image_size=32)
for name in ("root", "nobody"):
    extract.run(ExtractConfig(out=root / "out" / name, workers=0, max_failures="1", **options))
    if name == "root":
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)  # everything is imported by now
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may act as another user")
def test_a_file_without_permission_as_another_user(weights):
    """Root may read everything; so the second of two extractions runs as nobody."""
    root = Path(tempfile.mkdtemp(prefix="leokit-nobody-"))
    try:
        write_splits(make_tree(root / "images", per_class=3))
        (root / "images" / "class4" / "01.png").chmod(0)
        shutil.copy(weights, root / "weights.safetensors")
        (root / "weights.safetensors").chmod(0o644)
        root.chmod(0o755)
        (root / "out").mkdir()
        os.chown(root / "out", NOBODY, NOBODY)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(root), BACKBONE], capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        failed = {name: read_table(root / "out" / name / "failures.parquet").to_pylist() for name in ("root", "nobody")}
        assert failed["root"] == []
        reasons = [(row["image"], row["reason"]) for row in failed["nobody"]]
        assert reasons == [("class4/01.png", "no permission to read the file")]
    finally:
        shutil.rmtree(root)
