"""Decoding many images in worker processes: in order, with a bounded look-ahead, bad ones reported and not replaced.

Imports no torch: what a worker runs lies here and in `preprocess`.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leokit.errors import LeokitError
from leokit.images.preprocess import Preprocessing, Span, UnreadableImage, decode_image, read_file
from leokit.images.scan import Member, image_path

GROUP = 16  # images that a worker decodes at a time


class WorkerDied(LeokitError):
    """A worker process ended without a result."""


@dataclass(frozen=True)
class Decoded:
    """Some images, decoded.

    Attributes:
        pixels: (n, H, W, 3), or (n, 5, H, W, 3), bytes; zeros where an image could not be read. A NumPy array, or a
            tensor on the device that decoded.
        reasons: for each image that could not be read, its position and the reason.
        reading: seconds that a process spent on reading the files.
        decoding: seconds that it spent on decoding them.
        memory: bytes that it has held at most.
    """

    pixels: Any
    reasons: dict[int, str]
    reading: float = 0.0
    decoding: float = 0.0
    memory: int = 0


Decoder = Callable[[Iterable[tuple[str, ...]]], Iterator[Decoded]]
"""Decodes blocks of images, given by their paths under the root, in order."""

Allocate = Callable[[int], NDArray[np.uint8]]
"""Gives room for the pixels of so many images."""

_Job = tuple[Path, Span | None]  # the file of an image, and where it lies inside it


def decode(jobs: Sequence[_Job], preprocessing: Preprocessing, pixels: NDArray[np.uint8]) -> Decoded:
    """Decode some images, one after the other, in this process.

    Args:
        jobs: where they lie.
        preprocessing: what they go through.
        pixels: where they go.
    """
    reasons, reading, decoding = {}, 0.0, 0.0
    for position, (path, span) in enumerate(jobs):
        started = read = time.perf_counter()
        try:
            data = read_file(path, span)
            read = time.perf_counter()
            pixels[position] = decode_image(data, preprocessing)
        except UnreadableImage as error:
            pixels[position] = 0
            reasons[position] = str(error)
        reading += read - started
        decoding += time.perf_counter() - read
    return Decoded(pixels, reasons, reading, decoding, peak_memory())


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def decoder(
    root: Path,
    preprocessing: Preprocessing,
    workers: int,
    *,
    members: Mapping[str, Member] | None = None,
    ahead: int | None = None,
    allocate: Allocate | None = None,
) -> Iterator[Decoder]:
    """A decoder for the images under `root`; its processes end with the context.

    Args:
        root: of the image tree.
        preprocessing: what every image goes through.
        workers: number of processes; 0 decodes in this one.
        members: of each image that lies in an archive, the archive and its span of bytes there.
        ahead: blocks that are decoded ahead of the one that is asked for.
        allocate: gives the room for a block's pixels; by default plain memory.
    """
    locate = partial(_locate, root, members or {})
    room = allocate or (lambda images: np.empty((images, *preprocessing.shape), np.uint8))
    if workers == 0:
        yield lambda blocks: (
            decode([locate(image) for image in block], preprocessing, room(len(block))) for block in blocks
        )
        return
    context = _context()
    with ExitStack() as stack:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(workers):
            worker = _Worker(context, preprocessing)
            stack.callback(worker.close)
            idle.put(worker)
        pool = ThreadPoolExecutor(workers)  # of threads that wait, each for one worker
        stack.callback(pool.shutdown, cancel_futures=True)

        def submit(images: tuple[str, ...], pixels: NDArray[np.uint8]) -> Future[Decoded]:
            def decode_group() -> Decoded:
                worker = idle.get()
                try:
                    return worker.decode([locate(image) for image in images], pixels)
                finally:
                    idle.put(worker)

            return pool.submit(decode_group)

        in_flight = workers * GROUP // 32 + 3 if ahead is None else ahead
        yield lambda blocks: _decode_ahead(blocks, submit, room, in_flight)


def _locate(root: Path, members: Mapping[str, Member], image: str) -> _Job:
    member = members.get(image)
    return (image_path(root, member[0]), member[1]) if member else (image_path(root, image), None)


def _context() -> ForkServerContext | SpawnContext:
    """How processes start: never as a copy of this one, whose threads and locks a copy would inherit in any state."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def _decode_ahead(
    blocks: Iterable[tuple[str, ...]],
    submit: Callable[[tuple[str, ...], NDArray[np.uint8]], Future[Decoded]],
    room: Allocate,
    ahead: int,
) -> Iterator[Decoded]:
    pending: deque[tuple[NDArray[np.uint8], list[Future[Decoded]]]] = deque()
    for block in blocks:
        pixels, starts = room(len(block)), range(0, len(block), GROUP)
        pending.append((pixels, [submit(block[at : at + GROUP], pixels[at : at + GROUP]) for at in starts]))
        if len(pending) > ahead:
            yield _joined(*pending.popleft())
    while pending:
        yield _joined(*pending.popleft())


def _joined(pixels: NDArray[np.uint8], futures: list[Future[Decoded]]) -> Decoded:
    """A block, once all groups of it are there; an empty block has none."""
    if not futures:
        return Decoded(pixels, {})
    groups = [future.result() for future in futures]
    reasons = {at * GROUP + position: why for at, group in enumerate(groups) for position, why in group.reasons.items()}
    reading, decoding = (sum(values) for values in zip(*((g.reading, g.decoding) for g in groups), strict=True))
    return Decoded(pixels, reasons, reading, decoding, max(group.memory for group in groups))


class _Worker:
    """A process that decodes one group of images at a time, over a pipe of its own.

    In a pool of processes one pipe brings back all results, and a process that is killed while it writes leaves half a
    message there, for whose rest the pool waits forever. Here each end of a pipe is held by one process: whichever of
    the two dies, however it dies, the other one reads the end of the file. Pixels come through it as they are, straight
    to their place in the block: the kernel's copy is the only one.
    """

    def __init__(self, context: ForkServerContext | SpawnContext, preprocessing: Preprocessing) -> None:
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, preprocessing), daemon=True)
        self._process.start()
        other_end.close()

    def decode(self, jobs: list[_Job], pixels: NDArray[np.uint8]) -> Decoded:
        """Decode a group of images to `pixels`.

        Raises:
            WorkerDied: before it had answered.
        """
        try:
            self._connection.send(jobs)
            reasons, reading, decoding, memory = self._connection.recv()
            _receive(self._connection.fileno(), pixels.data.cast("B"))
        except (EOFError, OSError) as error:
            raise WorkerDied(
                "A worker process that decodes images ended without a word. In a Python script of yours, put what it "
                'does below `if __name__ == "__main__":`, as each worker reads the script again; else memory may have '
                "run out: take fewer workers. What was finished is kept."
            ) from error
        return Decoded(pixels, reasons, reading, decoding, memory)

    def close(self) -> None:
        """End the process, once it is idle."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, preprocessing: Preprocessing) -> None:
    """What a worker does: answer until the other end is closed; signals to stop are for the parent to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    room = np.empty((GROUP, *preprocessing.shape), np.uint8)
    try:
        while True:
            jobs = connection.recv()
            done = decode(jobs, preprocessing, room[: len(jobs)])
            connection.send((done.reasons, done.reading, done.decoding, done.memory))
            _send(connection.fileno(), room[: len(jobs)].data.cast("B"))
    except (EOFError, OSError):  # the parent has closed its end, or is gone
        return


def _send(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _receive(descriptor: int, room: memoryview) -> None:
    while room:
        count = os.readv(descriptor, [room])
        if not count:
            raise EOFError
        room = room[count:]
