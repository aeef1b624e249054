"""Decoding many images in worker processes: in order, with a bounded look-ahead, bad ones reported and not replaced.

Imports no torch: what a worker runs lies here and in `preprocess`.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from queue import SimpleQueue

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
    context = _context()
    with ExitStack() as stack:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(workers):
            worker = _Worker(context, root, preprocessing)
            stack.callback(worker.close)
            idle.put(worker)
        pool = ThreadPoolExecutor(workers)  # of threads that wait, each for one worker
        stack.callback(pool.shutdown, cancel_futures=True)
        yield lambda groups: _decode_ahead(pool, idle, groups, ahead=2 * workers + 4)


def _context() -> ForkServerContext | SpawnContext:
    """How processes start: never as a copy of this one, whose threads and locks a copy would inherit in any state."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def _decode_ahead(
    pool: ThreadPoolExecutor, idle: "SimpleQueue[_Worker]", groups: Iterable[tuple[str, ...]], ahead: int
) -> Iterator[Decoded]:
    def decode_group(group: tuple[str, ...]) -> Decoded:
        worker = idle.get()
        try:
            return worker.decode(group)
        finally:
            idle.put(worker)

    pending: deque[Future[Decoded]] = deque()
    for group in groups:
        pending.append(pool.submit(decode_group, group))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


class _Worker:
    """A process that decodes one group of images at a time, over a pipe of its own.

    In a pool of processes one pipe brings back all results, and a process that is killed while it writes leaves half a
    message there, for whose rest the pool waits forever. Here each end of a pipe is held by one process: whichever of
    the two dies, however it dies, the other one reads the end of the file.
    """

    def __init__(self, context: ForkServerContext | SpawnContext, root: Path, preprocessing: Preprocessing) -> None:
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, root, preprocessing), daemon=True)
        self._process.start()
        other_end.close()

    def decode(self, images: tuple[str, ...]) -> Decoded:
        """Decode a group of images.

        Raises:
            WorkerDied: before it had answered.
        """
        try:
            self._connection.send(images)
            decoded: Decoded = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied(
                "A worker process that decodes images ended without a word, as when memory runs out (or when a script "
                'calls this outside of `if __name__ == "__main__":`). What was finished is kept; run it again, with '
                "fewer workers."
            ) from error
        return decoded

    def close(self) -> None:
        """End the process, once it is idle."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, root: Path, preprocessing: Preprocessing) -> None:
    """What a worker does: answer until the other end is closed; signals to stop are for the parent to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        while True:
            connection.send(decode(root, connection.recv(), preprocessing))
    except (EOFError, OSError):  # the parent has closed its end, or is gone
        return
