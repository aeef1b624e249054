"""From a file to pixels: as timm does it, rightly for every type of image, and with a reason where there are none."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import timm.data
from PIL import Image

from leokit.images import kinds, preprocess
from leokit.images.preprocess import Preprocessing, UnreadableImage, load_image

HALF = (0.5, 0.5, 0.5)


def prep(size=16, crop_pct=1.0, mode="center", interpolation="bicubic", mean=HALF):
    return Preprocessing(size, crop_pct, mode, mean, HALF, interpolation)


def picture(width, height, seed=0):
    """Smooth colours with some noise: as a photograph, every step of a resize shows in it."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = np.stack([np.sin(x * 3 + y), np.cos(y * 4), np.sin(x * y)], axis=-1)
    pixels = 128 + 90 * waves + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(path, image, **options):
    image.save(path, **options)
    return path


def by_timm(path, how):
    transform = timm.data.create_transform(
        how.image_size,
        is_training=False,
        normalize=False,
        crop_pct=how.crop_pct,
        crop_mode=how.crop_mode,
        interpolation=how.interpolation,
        mean=how.mean,
    )
    with Image.open(path) as image:
        return transform(image.convert("RGB")).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize(("size", "crop_pct"), [(84, 0.875), (84, 1.0), (65, 0.95), (224, 0.9), (33, 0.5)])
def test_pixels_are_those_of_timm(tmp_path, mode, interpolation, size, crop_pct):
    how = prep(size, crop_pct, mode, interpolation, mean=(0.485, 0.456, 0.406))
    for seed, (width, height) in enumerate([(84, 84), (97, 61), (60, 131), (300, 201), (5, 4), (96, 96)]):
        path = saved(tmp_path / "image.jpg", picture(width, height, seed), quality=90)
        expected = by_timm(path, how)
        np.testing.assert_array_equal(load_image(path, how), expected)


def test_originals_give_the_pixels_of_timm(shared):
    how = prep(224, 0.875)
    for path in sorted((shared / "data" / "imagenet_originals" / "train").rglob("*.JPEG"))[::12]:
        np.testing.assert_array_equal(load_image(path, how), by_timm(path, how))


def pixel(path, at=(8, 8)):
    return load_image(path, prep())[at].tolist()


def constant(mode, colour, **info):
    image = Image.new(mode, (16, 16), colour)
    image.info.update(info)
    return image


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGB", (10, 20, 30), ".png", [10, 20, 30]),
        ("L", 77, ".png", [77, 77, 77]),
        ("1", 1, ".png", [255, 255, 255]),
        ("LA", (50, 255), ".png", [50, 50, 50]),
        ("LA", (50, 0), ".png", [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), ".png", [10, 20, 30]),
        ("RGBA", (0, 0, 0, 0), ".png", [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), ".png", [204, 204, 204]),  # a fifth of black over white
        ("CMYK", (255, 0, 0, 0), ".tif", [0, 255, 255]),
        ("I;16", 65535, ".png", [255, 255, 255]),
        ("I;16", 257 * 100, ".png", [100, 100, 100]),
        ("I;16", 257 * 100, ".tif", [100, 100, 100]),
        ("I;16", 200, ".png", [1, 1, 1]),  # scaled, where a clip would give 200
    ],
)
def test_types_of_images(tmp_path, mode, colour, suffix, expected):
    assert pixel(saved(tmp_path / f"image{suffix}", constant(mode, colour))) == expected


def test_grey_and_cmyk_jpegs(tmp_path):
    assert pixel(saved(tmp_path / "grey.jpg", constant("L", 77))) == [77, 77, 77]
    cyan = pixel(saved(tmp_path / "cmyk.jpg", constant("CMYK", (255, 0, 0, 0)), quality=100))
    assert np.abs(np.array(cyan) - [0, 255, 255]).max() <= 3


def test_palettes_with_and_without_transparency(tmp_path):
    image = constant("P", 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert pixel(saved(tmp_path / "plain.png", image)) == [200, 100, 50]
    assert pixel(saved(tmp_path / "plain.gif", image)) == [200, 100, 50]
    assert pixel(saved(tmp_path / "clear.png", image, transparency=1)) == [255, 255, 255]
    assert pixel(saved(tmp_path / "half.png", image, transparency=bytes([255, 0]))) == [255, 255, 255]


def test_a_transparent_grey_value_is_laid_over_white(tmp_path):
    assert pixel(saved(tmp_path / "grey.png", constant("L", 9), transparency=9)) == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = picture(16, 16)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a viewer has to undo
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "image.png", stored, exif=exif)
    np.testing.assert_array_equal(load_image(path, prep()), np.asarray(upright))


def test_broken_exif_is_no_reason(tmp_path):
    path = saved(tmp_path / "image.jpg", picture(16, 16), exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert load_image(path, prep()).shape == (16, 16, 3)


def reason(path, how=None):
    with pytest.raises(UnreadableImage) as caught:
        load_image(path, how or prep())
    assert str(path) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".gif", ".bmp"])
def test_truncated_files(tmp_path, suffix):
    path = saved(tmp_path / f"image{suffix}", picture(100, 100))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "truncated" in reason(path) or "damaged" in reason(path)


def test_a_truncated_jpeg_says_so(tmp_path):
    path = saved(tmp_path / "image.jpg", picture(100, 100))
    path.write_bytes(path.read_bytes()[:2000])
    assert reason(path) == "truncated: the file ends before the image does"


def test_reasons(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert reason(tmp_path / "empty.jpg") == "empty file"
    (tmp_path / "text.jpg").write_text("not an image, whatever its name says")
    assert reason(tmp_path / "text.jpg") == "not an image of a kind that Pillow reads"
    (tmp_path / "program.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    assert reason(tmp_path / "program.jpg") == "not an image of a kind that Pillow reads"
    assert reason(tmp_path / "missing.jpg") == "no such file (a broken link?)"
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "folder.jpg") == "a folder without images"
    floats = Image.fromarray(np.ones((16, 16), np.float32))
    assert "no defined way" in reason(saved(tmp_path / "floats.tif", floats))
    narrow = reason(saved(tmp_path / "narrow.png", Image.new("L", (1, 30000))), prep(224))
    assert narrow == "too narrow to be resized: 1 x 30000 pixels"


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"
PLUGIN = """
from io import BytesIO
from PIL import Image, PngImagePlugin

def read(file, name):
    return PngImagePlugin.PngImageFile(BytesIO(file.read()[24:]))

Image.register_open("HEIF", read, lambda head: head[4:12] == b"ftypheic")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plugin of Pillow as pillow-heif is one, for PNGs that begin as HEIC does."""
    (tmp_path / "packages" / "pillow_heif").mkdir(parents=True)
    (tmp_path / "packages" / "pillow_heif" / "__init__.py").touch()
    (tmp_path / "packages" / "pillow_heif" / "HeifImagePlugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    for remembered in (kinds.missing_plugin, preprocess._formats):
        remembered.cache_clear()
    yield
    for remembered in (kinds.missing_plugin, preprocess._formats):
        remembered.cache_clear()
    for name in ("pillow_heif", "pillow_heif.HeifImagePlugin"):
        sys.modules.pop(name, None)


def heic(path):
    whole = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 10)).save(whole, "PNG")
    path.write_bytes(HEIC + whole.getvalue())
    return path


@pytest.mark.parametrize("name", ["1.HEIC", "1.jpg"])
def test_heic_is_read_where_a_plugin_is_installed(tmp_path, plugin, name):
    assert load_image(heic(tmp_path / name), prep(16)).reshape(-1, 3).mean(0).tolist() == [200, 30, 10]


@pytest.mark.parametrize(
    ("head", "package"),
    [
        (HEIC, "pillow-heif"),
        (b"\xff\x0a", "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow-jxl-plugin"),
    ],
)
@pytest.mark.parametrize("name", ["1.HEIC", "1.jpg", "1"])
def test_what_needs_a_plugin_names_it(tmp_path, monkeypatch, head, package, name):
    monkeypatch.setattr(preprocess, "_formats", lambda: ["JPEG", "PNG"])
    monkeypatch.setattr(kinds, "missing_plugin", kinds.PLUGINS.get)
    (tmp_path / name).write_bytes(head + bytes(99))
    assert reason(tmp_path / name).endswith(f"which Pillow reads by a plugin: pip install {package}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = saved(tmp_path / "image.png", picture(16, 16))
    path.chmod(0)
    assert reason(path) == "no permission to read the file"


def png_of(width, height):
    """The start of a PNG of this size, with hardly any data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("width", [20_000, 200_000])
def test_a_decompression_bomb_is_not_decoded(tmp_path, width):
    (tmp_path / "bomb.png").write_bytes(png_of(width, 10_000))
    assert reason(tmp_path / "bomb.png").startswith("too large")


def test_only_what_can_be_decoded_counts(tmp_path):
    whole = io.BytesIO()
    picture(64, 64).save(whole, "JPEG")
    (tmp_path / "named.png").write_bytes(whole.getvalue())  # a JPEG by another name, as there is one in ImageNet
    assert load_image(tmp_path / "named.png", prep()).shape == (16, 16, 3)
