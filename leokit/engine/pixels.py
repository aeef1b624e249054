"""The images of a training, decoded: all in memory where they fit, else decoded anew for each step."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokit.errors import DataError, Interrupted, LeokitError
from leokit.images.decoding import Decoded, Decoder, WorkerDied

_BLOCK = 64  # images that are decoded at a time
_STOPPED = "Stopped while decoding: the same command begins again."


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
            yield self.pixels[torch.from_numpy(chosen).to(self.pixels.device, non_blocking=True)]


class FromDisk:
    """Images that are decoded by worker processes each time they are asked for, some batches ahead."""

    def __init__(self, images: Sequence[str], decode: Decoder, device: torch.device) -> None:
        self.images, self.decode, self.device = images, decode, device

    def batches(self, numbers: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        """See `Pixels`."""
        asked: deque[tuple[str, ...]] = deque()  # blocks that are on their way

        def blocks() -> Iterator[tuple[str, ...]]:
            for chosen in numbers:
                asked.append(tuple(self.images[number] for number in chosen))
                yield asked[-1]

        for decoded in self.decode(blocks()):
            block = asked.popleft()
            for position, reason in decoded.reasons.items():
                raise DataError(
                    f"The image {block[position]} cannot be read any more ({reason}), and with --cache none each is "
                    "decoded anew in each epoch. The last state that was kept is whole: mend the image, and the same "
                    "command goes on from there."
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
        LeokitError: there is no memory for them.
        Interrupted: stopped.
    """
    try:
        pixels = np.empty((len(images), *shape), np.uint8)
    except MemoryError as error:
        size = len(images) * math.prod(shape) / 1e9
        raise LeokitError(
            f"Out of memory: {len(images)} decoded images take {size:.3g} GB. Give --cache none, which decodes them in "
            "each epoch, or a smaller --image-size."
        ) from error
    reasons: dict[int, str] = {}
    for start, decoded in _decoded(images, decode, on_progress, stopped):
        pixels[start : start + len(decoded.pixels)] = decoded.pixels
        reasons |= {start + position: reason for position, reason in decoded.reasons.items()}
    return pixels, reasons


def check_all(
    images: Sequence[str],
    decode: Decoder,
    *,
    on_progress: Callable[[int, int], None],
    stopped: Callable[[], bool],
) -> dict[int, str]:
    """The numbers of the images that cannot be read, with the reasons; nothing is kept of the others.

    Raises:
        Interrupted: stopped.
    """
    return {
        start + position: reason
        for start, decoded in _decoded(images, decode, on_progress, stopped)
        for position, reason in decoded.reasons.items()
    }


def _decoded(
    images: Sequence[str],
    decode: Decoder,
    on_progress: Callable[[int, int], None],
    stopped: Callable[[], bool],
) -> Iterator[tuple[int, Decoded]]:
    """Blocks of images, decoded, each with the number of its first."""
    starts = range(0, len(images), _BLOCK)
    try:
        for start, decoded in zip(starts, decode(tuple(images[s : s + _BLOCK]) for s in starts), strict=True):
            yield start, decoded
            on_progress(start + len(decoded.pixels), len(images))
            if stopped():
                raise Interrupted(_STOPPED)
    except WorkerDied as error:
        if stopped():  # as where all processes of a job were stopped
            raise Interrupted(_STOPPED) from error
        raise


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that are free for a process to take, as far as the machine and its control groups tell.

    Args:
        root: under which the kernel shows proc and sys.
    """
    free = 2**33
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:  # counts what the page cache would give back, too
        free = _fields(root / "proc/meminfo")["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError):
        pass
    return min([free, *_left_to_groups(root)])


def _left_to_groups(root: Path) -> Iterator[int]:
    """Bytes that are left to each control group (version 2) around this process that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        return
    top = root / "sys/fs/cgroup"
    group = top / own.lstrip("/")
    while group.is_relative_to(top):
        try:
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            used = int((group / "memory.current").read_text(encoding="ascii"))
            yield max(0, limit - used + _fields(group / "memory.stat").get("inactive_file", 0))
        except (OSError, ValueError):  # no limit ("max"), or the root, which has none
            pass
        group = group.parent


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of names and numbers."""
    lines = (line.replace(":", " ").split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
