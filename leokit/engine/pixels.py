"""The images of a training, decoded: all in memory where they fit, else decoded anew for each step."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokit.errors import DataError, Interrupted
from leokit.images.decoding import Decoder

_BLOCK = 64  # images that are decoded at a time


class Pixels(Protocol):
    """Gives the bytes of images by their numbers."""

    def batches(self, numbers: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        """For each array of numbers (B,) the pixels (B, S, S, 3), bytes, on the device."""
        ...


class InMemory:
    """Decoded images, held as one array on the device."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels  # (n, S, S, 3) bytes

    def batches(self, numbers: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        """See `Pixels`."""
        for chosen in numbers:
            yield self.pixels[torch.from_numpy(chosen).to(self.pixels.device)]


class FromDisk:
    """Images that are decoded by worker processes each time they are asked for, some batches ahead."""

    def __init__(self, images: Sequence[str], decode: Decoder, device: torch.device) -> None:
        self.images, self.decode, self.device = images, decode, device

    def batches(self, numbers: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        """See `Pixels`."""
        blocks = (tuple(self.images[number] for number in chosen) for chosen in numbers)
        for decoded in self.decode(blocks):
            if decoded.reasons:
                raise DataError(
                    f"An image cannot be read ({next(iter(decoded.reasons.values()))}). Where images are decoded anew "
                    "in each epoch, none may be missing: leave it out (leokit extract lists such images), or give "
                    "--cache memory."
                )
            yield torch.from_numpy(decoded.pixels).to(self.device, non_blocking=True)


def decode_all(
    images: Sequence[str],
    decode: Decoder,
    shape: tuple[int, ...],
    *,
    on_progress: Callable[[int, int], None],
    stopped: Callable[[], bool],
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """The pixels (n, S, S, 3) of all images, and for those that cannot be read their number and the reason.

    Raises:
        Interrupted: stopped.
    """
    pixels = np.empty((len(images), *shape), np.uint8)
    reasons: dict[int, str] = {}
    starts = range(0, len(images), _BLOCK)
    for start, decoded in zip(starts, decode(tuple(images[s : s + _BLOCK]) for s in starts), strict=True):
        pixels[start : start + len(decoded.pixels)] = decoded.pixels
        reasons |= {start + position: reason for position, reason in decoded.reasons.items()}
        on_progress(start + len(decoded.pixels), len(images))
        if stopped():
            raise Interrupted("Stopped while decoding: the same command begins again.")
    return pixels, reasons


def available_memory() -> int:
    """Bytes of memory that are free for a process to take, as far as the machine tells."""
    names = os.sysconf_names
    if "SC_AVPHYS_PAGES" not in names:
        return 2**33
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # counts what the page cache would give back, too
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return free
