"""Pictures of artifacts: whether they are pictures, and the same in fewer bytes."""

import io
import warnings
from pathlib import Path

import numpy as np

from leokit.errors import ArtifactError

_LARGEST = 16_000_000  # pixels of a picture that is shown
_COLOURS = 256  # of a palette
_NEAR = 16  # of 255: how far a palette may move a colour of a pixel, which nobody sees


def size(data: bytes, path: Path) -> tuple[int, int]:
    """Width and height of a PNG picture in pixels.

    Raises:
        ArtifactError: the bytes are no PNG picture, or it is larger than any page can show.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                width, height = picture.size
                if width * height <= _LARGEST:
                    picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ArtifactError(f"{path} is no whole PNG picture: make the artifact again with --overwrite.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        width = height = _LARGEST
    if width * height > _LARGEST:
        raise ArtifactError(f"{path} has more than {_LARGEST:,} pixels: it is not shown.")
    return width, height


def compact(data: bytes) -> bytes:
    """A PNG picture that `size` has accepted, on white with a palette of 256 colours where that looks the same.

    Where it does not, or is no smaller, the picture is left as it is.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
        layered = opened.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    reduced = flat.quantize(_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    moved = np.abs(np.asarray(flat, dtype=np.int16) - np.asarray(reduced.convert("RGB")))
    if moved.max(initial=0) > _NEAR:
        return data
    written = io.BytesIO()
    reduced.save(written, "PNG", optimize=True)
    return min(written.getvalue(), data, key=len)
