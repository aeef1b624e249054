"""Images to be looked at one after the other, from paths, folders and lists, as they become known."""

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from leokit.errors import DataError
from leokit.images.scan import escape, images_under

STDIN = Path("-")
FIRST = 16  # images of the first block: the first answer shall not wait for many
_LONGEST = 2**16  # bytes of a line of a list; no system has longer paths
_PAUSE = 0.05  # seconds without a further image after which those that are there go on


def find_images(
    places: Sequence[Path], listing: BinaryIO | None = None, leave: Callable[[str], None] = lambda path: None
) -> Iterator[str]:
    """The images that places stand for, in order, as `escape` gives their paths.

    A folder stands for all images in it at any depth; one without any, and a file of any name, stand for themselves:
    that they cannot be read is for the reader to say. `-` stands for the list on standard input, a path on each line.

    Args:
        places: paths, or `-`.
        listing: what to read in place of standard input.
        leave: called with what a folder holds beside images, see `images_under`.

    Raises:
        DataError: a list with a line that is longer than any path.
    """
    for place in places:
        if place == STDIN:
            for path in _lines(listing or sys.stdin.buffer):
                yield from _of(Path(os.fsdecode(path)), leave)
        else:
            yield from _of(place, leave)


def _lines(listing: BinaryIO) -> Iterator[bytes]:
    while line := listing.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise DataError(f"Standard input has a line of {_LONGEST} bytes or more: give a list, a path on each line.")
        path = line.rstrip(b"\r\n")
        if path.strip():
            yield path


def _of(path: Path, leave: Callable[[str], None]) -> Iterator[str]:
    itself = escape(os.fsencode(path))
    if not os.path.isdir(path):  # Path.is_dir raises where a name is too long
        yield itself
        return
    empty = True
    for image in images_under(path, leave):
        empty = False
        yield image
    if empty:
        yield itself


def in_blocks(images: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """Images in blocks of at most `size`, the first of `FIRST`; none waits for one that is slow to come.

    Where no further image comes for a moment, the block ends; and as long as none comes, empty blocks do, so that who
    has work in hand can finish it. The images are found in a thread of their own.

    Raises:
        OSError, DataError: what finding them has raised.
    """
    found: queue.Queue[str | BaseException | None] = queue.Queue(4 * size)

    def find() -> None:
        try:
            for image in images:
                found.put(image)
            found.put(None)
        except BaseException as error:  # the reader of the queue shall raise it
            found.put(error)

    threading.Thread(target=find, daemon=True).start()
    block: list[str] = []
    limit = min(FIRST, size)
    while True:
        try:
            item = found.get(timeout=_PAUSE)
        except queue.Empty:
            yield tuple(block)
            block = []
            continue
        if isinstance(item, BaseException):
            raise item
        if item is not None:
            block.append(item)
        if item is None or len(block) == limit:
            if block:
                yield tuple(block)
            block, limit = [], size
        if item is None:
            return
