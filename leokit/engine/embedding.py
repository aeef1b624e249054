"""Embedding the images of a plan: decoded in worker processes, in fixed blocks through the model, to shards on disk.

A block is 64 consecutive images of a shard, fewer at its end: what goes through the model together follows from the
plan alone, so that neither the number of workers or of ranks, nor resuming, changes a bit of the result. Decoding, the
model and writing go on at the same time. Each finished shard leaves a small record, by which the same command goes on
after the last one.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from leokit.backbones import Backbone
from leokit.engine.models import BLOCK, Fetch, Model
from leokit.engine.shards import Block, ShardRecord, Writer, shard_writer
from leokit.errors import Interrupted
from leokit.features import Shard
from leokit.features.layout import Dtype
from leokit.images.decoding import Decoded, Decoder, WorkerDied, decoder
from leokit.images.scan import Member

_STOPPED = "Stopped: finished files are kept, and the same command goes on from there."


@dataclass
class Seconds:
    """Where the time went; reading and decoding are sums over the workers, and the parts go on at the same time."""

    reading: float = 0.0
    decoding: float = 0.0
    model: float = 0.0
    writing: float = 0.0

    def bottleneck(self, workers: int) -> str:
        """Which part took most, reading and decoding being shared by so many workers."""
        share = {"reading": max(workers, 1), "decoding": max(workers, 1)}
        return max(vars(self), key=lambda part: float(getattr(self, part)) / share.get(part, 1))


@dataclass(frozen=True)
class Embedded:
    """Shards that were embedded.

    Attributes:
        records: of the shards, in the order given.
        images: how many were embedded.
        seconds: that it took, in all.
        seconds_in: the parts of it.
        block: images that went through the model together in the end.
        worker_memory: bytes that a worker has held at most.
    """

    records: dict[str, ShardRecord]
    images: int
    seconds: float
    seconds_in: Seconds
    block: int
    worker_memory: int


def embed_shards(
    shards: Sequence[Shard],
    backbone: Backbone,
    *,
    root: Path,
    folder: Path,
    dtype: Dtype,
    device: torch.device,
    workers: int,
    plans: Mapping[str, str] | None = None,
    members: Mapping[str, Member] | None = None,
    batch_size: int | None = None,
    done: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Embedded:
    """Embed the images of some shards, one after the other.

    Args:
        shards: of the plan.
        backbone: that embeds.
        root: of the image tree.
        folder: where the shards go.
        dtype: stored type.
        device: where the model runs.
        workers: processes that decode; 0 decodes in this one.
        plans: for each shard, by its name, the hash of its plan, for its record.
        members: of the images that lie in archives, see `ImageTree`.
        batch_size: images that are on their way at a time; what goes through the model together does not depend on it.
        done: images of the plan that were embedded before.
        on_progress: called with images done, images wanted, and which part is the slowest.
        stopped: asked after each block whether to stop.

    Raises:
        Interrupted: stopped; finished shards are kept.
        DataError: an embedding that `dtype` cannot hold.
        LeokitError: a worker died.
        OSError: the disk is full.
    """
    started = time.perf_counter()
    model = Model(backbone, device)
    plans = {shard.name: (plans or {}).get(shard.name, "") for shard in shards}
    run = _Run(model, workers, done, done + sum(shard.rows for shard in shards), on_progress, stopped)
    try:
        with (
            shard_writer(shards, folder, dim=backbone.dim, dtype=dtype, plans=plans) as writer,
            make_decoder(model, root, workers, members, batch_size) as decode,
        ):
            run.embed(shards, decode, writer)
    except WorkerDied as error:
        if stopped():  # as where all processes of a job were stopped
            raise Interrupted(_STOPPED) from error
        raise
    run.seconds.writing = writer.seconds
    spent = time.perf_counter() - started
    return Embedded(writer.records, run.done - done, spent, run.seconds, model.block, run.worker_memory)


def make_decoder(
    model: Model, root: Path, workers: int, members: Mapping[str, Member] | None, batch_size: int | None
) -> AbstractContextManager[Decoder]:
    """A decoder for what a model wants; see `embed_shards` for its arguments."""
    preprocessing = model.backbone.preprocessing
    if preprocessing.decoder == "torchvision":
        from leokit.images.gpu import gpu_decoder  # torchvision takes a second to import

        return gpu_decoder(root, preprocessing, model.device, workers, members=members)
    ahead = None if batch_size is None else max(1, -(-batch_size // BLOCK))
    return decoder(root, preprocessing, workers, members=members, ahead=ahead, allocate=model.room)


def embed_images(
    blocks: Iterable[tuple[str, ...]],
    model: Model,
    root: Path,
    *,
    workers: int,
    members: Mapping[str, Member] | None = None,
) -> Iterator[tuple[tuple[str, ...], NDArray[np.float32], dict[int, str]]]:
    """Embed blocks of images as they come, without writing anything.

    Args:
        blocks: paths of images under `root`, as `leokit.images.scan.escape` gives them. What goes through the model
            together follows from the blocks; an empty one costs nothing, and lets the caller have what is done.
        model: a backbone on its device.
        root: of the paths.
        workers: processes that decode; 0 decodes in this one.
        members: of the images that lie in archives, see `ImageTree`.

    Yields:
        For each block its paths, vectors (n, D), and for each image that could not be read its place and the reason.
    """
    asked: deque[tuple[str, ...]] = deque()

    def noted() -> Iterator[tuple[str, ...]]:
        for block in blocks:
            asked.append(block)
            yield block

    started: deque[tuple[tuple[str, ...], Decoded, Fetch]] = deque()
    with make_decoder(model, root, workers, members, None) as decode:
        for decoded in decode(noted()):
            block = asked.popleft()
            if block:
                started.append((block, decoded, model.start(decoded.pixels)))
            while started and (not block or len(started) > model.late):
                yield _embedded(*started.popleft())
        while started:
            yield _embedded(*started.popleft())


def _embedded(
    block: tuple[str, ...], decoded: Decoded, fetch: Fetch
) -> tuple[tuple[str, ...], NDArray[np.float32], dict[int, str]]:
    return block, fetch(), decoded.reasons


def blocks_of(shard: Shard) -> Iterator[tuple[str, ...]]:
    """The images of a shard as they go through the model together."""
    images = [image for of_class in shard.classes.values() for image in of_class]
    return (tuple(images[start : start + BLOCK]) for start in range(0, len(images), BLOCK))


@dataclass
class _Run:
    """One pass over shards: blocks from the decoder through the model to the writer, and what that takes."""

    model: Model
    workers: int
    done: int
    total: int
    report: Callable[[int, int, str], None] | None
    stopped: Callable[[], bool]
    worker_memory: int = 0

    def __post_init__(self) -> None:
        self.seconds = Seconds()

    def embed(self, shards: Sequence[Shard], decode: Decoder, writer: Writer) -> None:
        started: deque[tuple[Decoded, Fetch]] = deque()
        decoded = decode(block for shard in shards for block in blocks_of(shard))
        while not self.stopped():
            block = next(decoded, None)
            if block is not None:
                started.append((block, self._start(block)))
            elif not started:
                return
            if block is None or len(started) > self.model.late:
                self._finish(*started.popleft(), writer)
        raise Interrupted(_STOPPED)

    def _start(self, block: Decoded) -> Fetch:
        self.seconds.reading += block.reading
        self.seconds.decoding += block.decoding
        self.worker_memory = max(self.worker_memory, block.memory)
        begun = time.perf_counter()
        fetch = self.model.start(block.pixels)
        self.seconds.model += time.perf_counter() - begun
        return fetch

    def _finish(self, block: Decoded, fetch: Fetch, writer: Writer) -> None:
        begun = time.perf_counter()
        embeddings = fetch()
        self.seconds.model += time.perf_counter() - begun
        self.seconds.writing = writer.seconds
        self.done += len(embeddings)
        if self.report:
            self.report(self.done, self.total, f"slowest: {self.seconds.bottleneck(self.workers)}")
        writer.put(Block(embeddings, [block.reasons.get(position) for position in range(len(embeddings))]))
