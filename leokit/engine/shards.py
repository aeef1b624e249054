"""Shards on disk: what tells that one is done, and a thread that writes them while the model goes on."""

import json
import queue
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leokit.features import Shard, ShardWriter
from leokit.features.layout import Dtype
from leokit.manifest import canonical_json, hash_file, hash_text, write_atomically

RECORDS = "finished"  # folder of the records of finished shards

_QUEUED = 8  # blocks that wait to be written, at most
_POLL = 0.5  # seconds between looks at whether the writer still lives


@dataclass(frozen=True)
class Failure:
    """An image that could not be read."""

    image: str
    class_name: str
    split: str
    reason: str


@dataclass(frozen=True)
class ShardRecord:
    """A shard that is done.

    Attributes:
        name: of its file.
        plan: hash of the images that went into it, see `plan_hash`.
        sha256: of its file.
        counts: rows of each class.
        failures: images that could not be read.
    """

    name: str
    plan: str
    sha256: str
    counts: dict[str, int]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Block:
    """Some consecutive images of a shard, embedded.

    Attributes:
        embeddings: (n, D).
        reasons: for each image why it could not be read, or None.
    """

    embeddings: NDArray[np.float32]
    reasons: list[str | None]


def plan_hash(shard: Shard, sizes: Mapping[str, int]) -> str:
    """Hash of what goes into a shard: its classes and images with their sizes in bytes."""
    listed = [[name, image, sizes.get(image, -1)] for name, images in shard.classes.items() for image in images]
    return hash_text(canonical_json([shard.split, listed]))


def record_name(shard: str) -> str:
    """Where the record of a shard lies in the folder of the features."""
    return f"{RECORDS}/{shard}.json"


def finished_shards(folder: Path, plans: Mapping[str, str]) -> dict[str, ShardRecord]:
    """The records of the shards that are done as planned, their files checked by hash.

    Args:
        folder: of the features.
        plans: for each shard, by its name, the hash of its plan.
    """
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        found = pool.map(lambda item: _read_record(folder, *item), plans.items())
        return {record.name: record for record in found if record is not None}


def _read_record(folder: Path, name: str, plan: str) -> ShardRecord | None:
    try:
        data = json.loads((folder / record_name(name)).read_bytes())
        failures = tuple(Failure(**failure) for failure in data.pop("failures"))
        record = ShardRecord(**data, failures=failures)
        whole = record.plan == plan and hash_file(folder / name) == record.sha256
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # not done, or not to be trusted: done again
    return record if whole else None


@contextmanager
def shard_writer(
    shards: Sequence[Shard], folder: Path, *, dim: int, dtype: Dtype, plans: Mapping[str, str]
) -> Iterator["Writer"]:
    """A writer of shards, whose `put` takes the blocks of all of them in order; they are on disk when the context ends.

    Where the context ends by an error, the shards whose last block was put are still finished.

    Raises:
        DataError: an embedding that `dtype` cannot hold.
        OSError: the disk is full, or another failure to write.
    """
    (folder / RECORDS).mkdir(exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        writer = Writer(pool, shards, folder, dim, dtype, plans)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.wait()


class Writer:
    """Writes shards in a thread of its own, behind a queue that is never long.

    Attributes:
        records: of the shards that are done.
        seconds: that writing took.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        shards: Sequence[Shard],
        folder: Path,
        dim: int,
        dtype: Dtype,
        plans: Mapping[str, str],
    ) -> None:
        self.records: dict[str, ShardRecord] = {}
        self.seconds = 0.0
        self._queue: queue.Queue[Block | None] = queue.Queue(_QUEUED)
        self._folder, self._dim, self._dtype, self._plans = folder, dim, dtype, plans
        self._done: Future[None] = pool.submit(self._write, shards)

    def put(self, block: Block | None) -> None:
        """Hand over the next block; waits while the queue is full, and raises what the thread has raised."""
        while True:
            if self._done.done():
                self._done.result()
                return
            try:
                self._queue.put(block, timeout=_POLL)
                return
            except queue.Full:
                continue

    def wait(self) -> None:
        """Return when everything is written."""
        self._done.result()

    def abandon(self) -> None:
        """End the thread after what was put already, which leaves no shard in part; its own error is not raised."""
        try:
            self.put(None)
            self._done.exception()
        except Exception:  # the thread's, where it has ended by one; the caller has an error to raise already
            return

    def _write(self, shards: Sequence[Shard]) -> None:
        try:
            for shard in shards:
                self.records[shard.name] = self._write_shard(shard)
        except _Abandoned:
            return

    def _write_shard(self, shard: Shard) -> ShardRecord:
        """Write the embeddings of a shard's readable images, class by class, and its record."""
        failures: list[Failure] = []
        path = self._folder / shard.name
        blocks = self._blocks(shard)
        with ShardWriter(path, shard.split, dim=self._dim, dtype=self._dtype) as writer:
            for name, images, embeddings, reasons in _by_class(shard, blocks):
                started = time.perf_counter()
                read = [reason is None for reason in reasons]
                if any(read):
                    kept = [image for image, whole in zip(images, read, strict=True) if whole]
                    writer.write_class(name, kept, embeddings[read])
                failures += [
                    Failure(image, name, shard.split, reason)
                    for image, reason in zip(images, reasons, strict=True)
                    if reason is not None
                ]
                self.seconds += time.perf_counter() - started
            started = time.perf_counter()
        record = ShardRecord(shard.name, self._plans[shard.name], hash_file(path), writer.counts, tuple(failures))
        write_atomically(self._folder / record_name(shard.name), json.dumps(asdict(record)).encode())
        self.seconds += time.perf_counter() - started
        return record

    def _blocks(self, shard: Shard) -> Iterator[Block]:
        remaining = shard.rows
        while remaining:
            block = self._queue.get()
            if block is None:
                raise _Abandoned
            remaining -= len(block.reasons)
            yield block


class _Abandoned(Exception):
    """The blocks that a shard still needs will not come."""


def _by_class(
    shard: Shard, blocks: Iterator[Block]
) -> Iterator[tuple[str, tuple[str, ...], NDArray[np.float32], list[str | None]]]:
    """The rows of a shard's blocks, class by class, with no more in memory than a class and a block."""
    rows: list[NDArray[np.float32]] = []
    reasons: list[str | None] = []
    for name, images in shard.classes.items():
        while len(reasons) < len(images):
            block = next(blocks)
            rows.append(block.embeddings)
            reasons += block.reasons
        embeddings = np.concatenate(rows)
        yield name, images, embeddings[: len(images)], reasons[: len(images)]
        rows, reasons = [embeddings[len(images) :]], reasons[len(images) :]


def failure_columns(records: Iterable[ShardRecord]) -> dict[str, list[Any]]:
    """The columns of the table of failures, in the order of the plan."""
    failures = [asdict(failure) for record in records for failure in record.failures]
    return {key: [failure[key] for failure in failures] for key in Failure.__dataclass_fields__}
