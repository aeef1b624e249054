"""Which files are images: by the suffix, else by the first bytes; and which of them Pillow reads by a plugin alone."""

import os
import stat
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HEAD = 32  # bytes that tell the format of a file


class Plugin(NamedTuple):
    """A package that adds a format to Pillow.

    Attributes:
        title: what people call the format.
        package: to install.
        module: whose import adds the format.
    """

    title: str
    package: str
    module: str


PLUGINS: Mapping[str, Plugin] = {  # by Pillow's name of the format
    "HEIF": Plugin("HEIC", "pillow-heif", "pillow_heif.HeifImagePlugin"),
    "JXL": Plugin("JPEG-XL", "pillow-jxl-plugin", "pillow_jxl"),
}
_SUFFIXES = {
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "PNG": ".png",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
    "PPM": ".ppm .pgm .pbm .pnm",
    "JPEG2000": ".jp2",
    "AVIF": ".avif",
    "HEIF": ".heic .heif .hif",
    "JXL": ".jxl",
}
FORMATS: Mapping[str, str] = {suffix: name for name, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
# Of an image that is unfinished or was replaced; it is no image of its own, whatever is in it.
_COPIES = frozenset(".bak .old .orig .tmp .part .partial .crdownload .download".split())
# Formats that begin with bytes of their own. TIFF does not: the raw files of cameras begin as it does.
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": "JXL",
    b"\xff\x0a": "JXL",
}
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))


def suffix_of(name: bytes) -> str:
    """The suffix of a file name, in small letters."""
    return os.path.splitext(name)[1].decode("ascii", "replace").lower()


def format_of(name: bytes, head: Callable[[], bytes]) -> str | None:
    """The format of a file, as Pillow calls it; None where the file is no image.

    Args:
        name: of the file, without its folder.
        head: gives its first `HEAD` bytes; called where the suffix says nothing.
    """
    if name.startswith(b"."):
        return None
    suffix = suffix_of(name)
    known = FORMATS.get(suffix)
    return known or (None if suffix in _COPIES or name.endswith(b"~") else format_of_head(head()))


def format_of_head(head: bytes) -> str | None:
    """The format of a file by its first bytes, where they are those of one format alone."""
    if head[4:8] == b"ftyp":
        if b"avif" in head or b"avis" in head:
            return "AVIF"
        return "HEIF" if head[8:12] in _HEIF_BRANDS else None
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


def read_head(path: str | bytes | Path, offset: int = 0) -> bytes:
    """The first bytes of a regular file, or those at an offset; none where they cannot be read."""
    try:
        # A named pipe would be waited for, hence not blocking.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return b""
            file.seek(offset)
            return file.read(HEAD)
    except (OSError, ValueError):
        return b""


@cache
def missing_plugin(name: str | None) -> Plugin | None:
    """The plugin that a format needs and that is not installed."""
    plugin = PLUGINS.get(name or "")
    return plugin if plugin and find_spec(plugin.module.partition(".")[0]) is None else None
