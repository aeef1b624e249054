"""Decoding many images in worker processes: in order, with a bounded look-ahead, bad ones reported and not replaced.

Imports no torch: what a worker runs lies here and in `preprocess`.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leokit.errors import LeokitError
from leokit.images.preprocess import Preprocessing, UnreadableImage, load_image
from leokit.images.scan import image_path


class WorkerDied(LeokitError):
    """A worker process ended without a result."""


@dataclass(frozen=True)
class Decoded:
    """Some images, decoded.

    Attributes:
        pixels: (n, H, W, 3), bytes; zeros where an image could not be read.
        reasons: for each image that could not be read, its position and the reason.
    """

    pixels: NDArray[np.uint8]
    reasons: dict[int, str]


Decoder = Callable[[Iterable[tuple[str, ...]]], Iterator[Decoded]]
"""Decodes groups of images, given by their paths under the root, in order."""


def decode(root: Path, images: tuple[str, ...], preprocessing: Preprocessing) -> Decoded:
    """Decode some images, one after the other, in this process."""
    size = preprocessing.image_size
    pixels = np.zeros((len(images), size, size, 3), np.uint8)
    reasons = {}
    for position, image in enumerate(images):
        try:
            pixels[position] = load_image(image_path(root, image), preprocessing)
        except UnreadableImage as error:
            reasons[position] = str(error)
    return Decoded(pixels, reasons)


@contextmanager
def decoder(root: Path, preprocessing: Preprocessing, workers: int) -> Iterator[Decoder]:
    """A decoder for the images under `root`; its processes end with the context.

    Args:
        root: of the image tree.
        preprocessing: what every image goes through.
        workers: number of processes; 0 decodes in this one.
    """
    if workers == 0:
        yield lambda groups: (decode(root, group, preprocessing) for group in groups)
        return
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(kind), initializer=_become_worker)
    try:
        yield lambda groups: _decode_ahead(pool, root, groups, preprocessing, ahead=2 * workers + 4)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_ahead(
    pool: ProcessPoolExecutor,
    root: Path,
    groups: Iterable[tuple[str, ...]],
    preprocessing: Preprocessing,
    ahead: int,
) -> Iterator[Decoded]:
    pending: deque[Future[Decoded]] = deque()
    try:
        for group in groups:
            pending.append(pool.submit(decode, root, group, preprocessing))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise WorkerDied(
            "A worker process that decodes images ended without a word, as when memory runs out (or when a script "
            'calls this outside of `if __name__ == "__main__":`). What was finished is kept; run it again, with '
            "fewer workers."
        ) from error


def _become_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
