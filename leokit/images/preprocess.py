"""From an image file to the pixels that a backbone wants, as timm's transform for evaluation makes them.

Pillow and NumPy only: decoding runs in worker processes, which shall start fast and stay small. Where timm hands an
image to `convert("RGB")` and hopes, the ways to RGB are chosen here: the picture is turned as its EXIF orientation
says; 16-bit grey values are scaled to 8 bits; transparency is laid over white; types without a defined range of
values are refused. For ordinary RGB and grey images the result equals timm's bit for bit.
"""

import errno
import math
import os
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from leokit.images import kinds

CropMode = Literal["center", "squash", "border"]
Views = Literal["center", "flip", "ten-crop"]
Triple = tuple[float, float, float]
Span = tuple[int, int]  # offset and length in bytes

RESAMPLING: Mapping[str, Image.Resampling] = {entry.name.lower(): entry for entry in Image.Resampling}

MAX_PIXELS = 178_956_970  # Pillow's own limit, where it speaks of a decompression bomb
MAX_BYTES = 2**30
JPEG_MARGIN = 2

_ORIENTATION = 0x0112
_TURNS: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PLAIN_MODES = ("RGB", "L", "P", "1", "CMYK", "YCbCr", "HSV", "RGBX")
_DEEP_FORMATS = ("PNG", "PPM")  # whose mode "I" (32 bits) Pillow fills from 16 bits


class UnreadableImage(Exception):
    """An image that gives no pixels; the message is the reason, for a person."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a backbone; every value as it is applied.

    Attributes:
        image_size: height and width of the result, in pixels.
        crop_pct: the image is resized so that the crop keeps this share of a side.
        crop_mode: `center` (short side resized, middle cut out), `squash` (both sides resized, shape not kept), or
            `border` (long side resized, padded with the mean).
        mean: subtracted from each channel, on a scale of 0 to 1, on the device.
        std: divides each channel after that.
        interpolation: a key of `RESAMPLING`.
        exif: `transpose`: turned as the EXIF orientation says.
        transparency: `white`: laid over white.
        views: what is shown to the backbone and averaged: the `center`; that and its mirror image (`flip`); or the four
            corners and the centre, each with its mirror image (`ten-crop`). Mirrored on the device.
        jpeg_scaling: JPEG files are decoded at a half, quarter or eighth of their size, where what remains is still
            `JPEG_MARGIN` times as large as what they are then resized to.
        decoder: `pillow`, or `torchvision`, on the GPU.
    """

    image_size: int
    crop_pct: float
    crop_mode: CropMode
    mean: Triple
    std: Triple
    interpolation: str
    exif: Literal["transpose"] = "transpose"
    transparency: Literal["white"] = "white"
    views: Views = "center"
    jpeg_scaling: bool = False
    decoder: Literal["pillow", "torchvision"] = "pillow"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what an image becomes: (S, S, 3), for ten-crop (5, S, S, 3)."""
        one = (self.image_size, self.image_size, 3)
        return (5, *one) if self.views == "ten-crop" else one

    @property
    def resized(self) -> int:
        """The side in pixels that an image is resized to before the crop."""
        return math.floor(self.image_size / self.crop_pct)

    def to_plain(self) -> dict[str, Any]:
        """The values as plain data, for a manifest."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def load_image(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The pixels of an image file, resized and cropped: of the shape `preprocessing.shape`.

    Raises:
        UnreadableImage: with the reason.
    """
    return decode_image(read_file(path), preprocessing)


def decode_image(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The pixels of an image, given the bytes of its file, resized and cropped: of the shape `preprocessing.shape`.

    Raises:
        UnreadableImage: with the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd EXIF and large images: it reads them all the same
        try:
            return fit(_read_rgb(BytesIO(data), preprocessing), preprocessing)
        except UnidentifiedImageError as error:
            plugin = kinds.missing_plugin(kinds.format_of_head(data[: kinds.HEAD]))
            if plugin:
                raise UnreadableImage(
                    f"a {plugin.title} image, which Pillow reads by a plugin: pip install {plugin.package}"
                ) from error
            raise UnreadableImage("not an image of a kind that Pillow reads") from error


def read_file(path: Path, span: Span | None = None) -> bytes:
    """The bytes of a file, or those of a span of it.

    Raises:
        UnreadableImage: with the reason.
    """
    try:
        # A named pipe would be waited for, hence not blocking.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage("no regular file")
            offset, size = span or (0, status.st_size)
            if size > MAX_BYTES:
                raise UnreadableImage(f"too large: a file of {size} bytes")
            file.seek(offset)
            data = file.read(size)
    except IsADirectoryError as error:
        raise UnreadableImage("a folder without images") from error
    except FileNotFoundError as error:
        raise UnreadableImage("no such file (a broken link?)") from error
    except PermissionError as error:
        raise UnreadableImage("no permission to read the file") from error
    except ValueError as error:  # what Python says of it before the system is asked
        raise UnreadableImage("no such file (a NUL in its name)") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnreadableImage("a link that leads back to itself") from error
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    if not data:
        raise UnreadableImage("empty file")
    return data


def _read_rgb(file: BinaryIO, preprocessing: Preprocessing) -> Image.Image:
    """The picture of an open file, upright and in RGB."""
    try:
        image = Image.open(file, formats=_formats())
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(f"too large: {image.width} x {image.height} pixels")
        if preprocessing.jpeg_scaling and image.format == "JPEG":
            side = math.ceil(JPEG_MARGIN * preprocessing.resized)
            image.draft(None, (side, side))
        image.load()
        rgb, turn = to_rgb(image), _turn(image)
        return rgb if turn is None else rgb.transpose(turn)
    except (UnreadableImage, UnidentifiedImageError, PermissionError, FileNotFoundError):
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"too large: more than {MAX_PIXELS} pixels") from error
    except MemoryError as error:
        raise UnreadableImage("too large for the memory of this machine") from error
    except Exception as error:  # Pillow's plugins raise whatever the damage led to
        if "truncated" in str(error).lower():
            raise UnreadableImage("truncated: the file ends before the image does") from error
        raise UnreadableImage(f"damaged: {str(error) or type(error).__name__}") from error


@cache
def _formats() -> list[str]:
    """The formats that are read, none of which runs a program as EPS does, as far as this Pillow has them."""
    Image.init()
    for name, plugin in kinds.PLUGINS.items():
        if kinds.missing_plugin(name) is None:
            with suppress(Exception):  # a plugin for another Pillow raises what it likes: its images are not read then
                import_module(plugin.module)
    return [name for name in dict.fromkeys(kinds.FORMATS.values()) if name in Image.OPEN]


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image as its EXIF orientation says; EXIF data that cannot be read say nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data, of which there is every kind, do not make the picture unreadable
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any type as 8-bit RGB: deep grey values scaled, transparency laid over white.

    Raises:
        UnreadableImage: a type whose values have no defined range, as 32-bit floats.
    """
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in _DEEP_FORMATS):
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535)  # clip: for mode I, whose type is signed
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    if mode in _PLAIN_MODES:
        return image.convert("RGB")
    raise UnreadableImage(f"pixels of type {mode!r} have no defined way to RGB")


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def fit(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """An RGB image resized and cropped as timm's transform for evaluation does: of the shape `preprocessing.shape`.

    Raises:
        UnreadableImage: so narrow that the resized image would be immense.
    """
    size, mode = preprocessing.image_size, preprocessing.crop_mode
    target = resized_shape(image.width, image.height, preprocessing.resized, mode)
    if target[0] * target[1] > MAX_PIXELS or min(target) < 1:
        raise UnreadableImage(f"too narrow to be resized: {image.width} x {image.height} pixels")
    if target != image.size:
        image = image.resize(target, RESAMPLING[preprocessing.interpolation])
    fill = tuple(round(255 * value) for value in preprocessing.mean) if mode == "border" else (0, 0, 0)
    image = _padded(image, size, fill)
    views = [np.array(image.crop(box)) for box in crop_boxes(image.width, image.height, preprocessing)]
    return views[0] if len(views) == 1 else np.stack(views)


def resized_shape(width: int, height: int, scaled: int, mode: CropMode) -> tuple[int, int]:
    """Width and height before the crop, rounded as timm (border) and torchvision (the others) round them."""
    if mode == "squash":
        return scaled, scaled
    if mode == "border":
        ratio = max(height / scaled, width / scaled)
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return scaled, int(scaled * height / width)
    return int(scaled * width / height), scaled


def _padded(image: Image.Image, size: int, fill: tuple[int, ...]) -> Image.Image:
    """An image in the middle of a larger one, where a side of it is smaller than `size`."""
    width, height = image.size
    if width >= size and height >= size:
        return image
    padded = Image.new("RGB", (max(width, size), max(height, size)), fill)
    padded.paste(image, (max(size - width, 0) // 2, max(size - height, 0) // 2))
    return padded


def crop_boxes(width: int, height: int, preprocessing: Preprocessing) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the views of a resized image: its middle, for ten-crop after its four corners."""
    size = preprocessing.image_size
    right, bottom = width - size, height - size
    corners = [(left, top) for top in (0, bottom) for left in (0, right)] if preprocessing.views == "ten-crop" else []
    places = [*corners, (round(right / 2), round(bottom / 2))]
    return [(left, top, left + size, top + size) for left, top in places]
