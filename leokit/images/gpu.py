"""Decoding JPEGs on a CUDA device by torchvision (nvJPEG); whatever is out of the ordinary is left to Pillow."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from leokit.images.decoding import Decoded, Decoder
from leokit.images.preprocess import (
    Preprocessing,
    Span,
    UnreadableImage,
    crop_boxes,
    decode_image,
    read_file,
    resized_shape,
)
from leokit.images.scan import Member, image_path

_AHEAD = 4  # blocks whose files are read ahead
_ORIENTATION = 0x0112
_END = b"\xff\xd9"  # of a JPEG that is whole


@contextmanager
def gpu_decoder(
    root: Path,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int,
    *,
    members: Mapping[str, Member] | None = None,
) -> Iterator[Decoder]:
    """A decoder whose pixels are on the device; threads read the files, and decode what is no plain JPEG.

    Args:
        root: of the image tree.
        preprocessing: what every image goes through.
        device: that decodes.
        workers: number of threads.
        members: of each image that lies in an archive, the archive and its span of bytes there.
    """

    def load(image: str) -> bytes | Tensor | UnreadableImage:
        member = (members or {}).get(image)
        path, span = (image_path(root, member[0]), member[1]) if member else (image_path(root, image), None)
        return _load(path, span, preprocessing)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        yield lambda blocks: _decode_ahead(blocks, lambda image: pool.submit(load, image), preprocessing, device)


_Loaded = bytes | Tensor | UnreadableImage


def _load(path: Path, span: Span | None, preprocessing: Preprocessing) -> _Loaded:
    """The bytes of a file that the device can decode, else the pixels as Pillow gives them, or why there are none."""
    try:
        data = read_file(path, span)
        if is_plain_jpeg(data, preprocessing):
            return data
        return torch.from_numpy(decode_image(data, preprocessing))
    except UnreadableImage as error:
        return error


def is_plain_jpeg(data: bytes, preprocessing: Preprocessing) -> bool:
    """Whether a file is a JPEG in grey or RGB, upright, whole, and of a shape that the device may resize."""
    if not data.startswith(b"\xff\xd8") or not data.rstrip(b"\0").endswith(_END) or preprocessing.crop_mode != "center":
        return False
    try:
        with Image.open(BytesIO(data), formats=["JPEG"]) as image:
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            return upright and image.mode in ("L", "RGB") and max(image.size) < 16_384 and min(image.size) > 16
    except Exception:  # damaged headers, of which there is every kind, are for Pillow to explain
        return False


def _decode_ahead(
    blocks: Iterable[tuple[str, ...]],
    submit: Callable[[str], Future[_Loaded]],
    preprocessing: Preprocessing,
    device: torch.device,
) -> Iterator[Decoded]:
    pending: deque[list[Future[_Loaded]]] = deque()
    for block in blocks:
        pending.append([submit(image) for image in block])
        if len(pending) > _AHEAD:
            yield _decode(pending.popleft(), preprocessing, device)
    while pending:
        yield _decode(pending.popleft(), preprocessing, device)


def _decode(futures: list[Future[_Loaded]], preprocessing: Preprocessing, device: torch.device) -> Decoded:
    started = time.perf_counter()
    loaded = [future.result() for future in futures]
    read = time.perf_counter()
    pixels = torch.zeros((len(loaded), *preprocessing.shape), dtype=torch.uint8, device=device)
    reasons = {position: str(item) for position, item in enumerate(loaded) if isinstance(item, UnreadableImage)}
    for position, item in enumerate(loaded):
        if isinstance(item, Tensor):
            pixels[position] = item.to(device)
    encoded = [position for position, item in enumerate(loaded) if isinstance(item, bytes)]
    for position, picture in zip(encoded, _decode_jpegs([loaded[at] for at in encoded], device), strict=True):
        try:
            data = loaded[position]
            assert isinstance(data, bytes)
            if picture is None:
                pixels[position] = torch.from_numpy(decode_image(data, preprocessing))
            else:
                pixels[position] = fit_tensor(picture, preprocessing)
        except UnreadableImage as error:
            reasons[position] = str(error)
    return Decoded(pixels, reasons, read - started, time.perf_counter() - read)


def _decode_jpegs(files: list[_Loaded], device: torch.device) -> list[Tensor | None]:
    """The pictures, each (3, H, W); None where the device could not decode one."""
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files if isinstance(data, bytes)]
    if not encoded:
        return []
    try:
        pictures: list[Tensor | None] = decode_by_torchvision(encoded, device)
        return pictures
    except RuntimeError:  # one of them, which it does not name
        return [_decode_jpeg(data, device) for data in encoded]


def _decode_jpeg(data: Tensor, device: torch.device) -> Tensor | None:
    try:
        picture: Tensor = decode_by_torchvision(data, device)
        return picture
    except RuntimeError:
        return None


def decode_by_torchvision(data: Tensor | list[Tensor], device: torch.device) -> Any:
    """The picture of a JPEG's bytes, or those of several: (3, H, W) each."""
    with warnings.catch_warnings():
        # torchvision 0.29 announces that TorchCodec will take this over; there is no need to move before it does.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*TorchCodec")
        return decode_jpeg(data, mode=ImageReadMode.RGB, device=device)


def fit_tensor(picture: Tensor, preprocessing: Preprocessing) -> Tensor:
    """A picture, (3, H, W) bytes, resized and cropped as `preprocess.fit` does, up to rounding."""
    height, width = picture.shape[1:]
    target_width, target_height = resized_shape(width, height, preprocessing.resized, preprocessing.crop_mode)
    mode = InterpolationMode(preprocessing.interpolation)
    picture = resize(picture, [target_height, target_width], interpolation=mode, antialias=True)
    boxes = crop_boxes(target_width, target_height, preprocessing)
    views = [picture[:, top:bottom, left:right].permute(1, 2, 0) for left, top, right, bottom in boxes]
    return torch.stack(views) if len(views) > 1 else views[0]
