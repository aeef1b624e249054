"""Embedding the images of a plan: decoded in worker processes, in fixed blocks through the model, to shards on disk.

A block is 64 consecutive images of a shard, filled up with black ones at the shard's end: what goes through the model
together follows from the plan alone, so that neither the number of workers nor resuming changes a bit of the result.
Each finished shard leaves a small record, by which the same command goes on after the last one.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import backbones
from leokit.errors import Interrupted
from leokit.features import Shard, ShardWriter
from leokit.features.layout import Dtype
from leokit.images.decoding import Decoded, WorkerDied, decoder
from leokit.manifest import hash_file, write_atomically

BLOCK = 64  # images that go through the model together
GROUP = 16  # images that a worker decodes at a time

RECORDS = "finished"  # folder of the records of finished shards

_STOPPED = "Stopped: finished files are kept, and the same command goes on from there."


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
        sha256: of its file.
        counts: rows of each class.
        failures: images that could not be read.
    """

    name: str
    sha256: str
    counts: dict[str, int]
    failures: tuple[Failure, ...]


@dataclass
class Seconds:
    """Where the time went: waiting for decoded images, in the model, writing."""

    decoding: float = 0.0
    model: float = 0.0
    writing: float = 0.0

    def bottleneck(self) -> str:
        """Which part took most."""
        return max(asdict(self), key=lambda part: float(getattr(self, part)))


@dataclass(frozen=True)
class Embedded:
    """The shards of a plan, all of them done.

    Attributes:
        records: of every shard, in the order of the plan.
        images: how many were embedded this time, the others having been done before.
        seconds: that it took, in all.
        seconds_in: the parts of it.
    """

    records: dict[str, ShardRecord]
    images: int
    seconds: float
    seconds_in: Seconds


@dataclass
class _Progress:
    """What was done so far, in images."""

    total: int
    done: int
    report: Callable[[int, int, str], None] | None
    now: int = 0
    seconds: Seconds = field(default_factory=Seconds)

    def add(self, images: int) -> None:
        self.done += images
        self.now += images
        if self.report:
            self.report(self.done, self.total, f"slowest: {self.seconds.bottleneck()}")


def finished_shards(folder: Path, shards: Iterable[Shard]) -> dict[str, ShardRecord]:
    """The records of the shards of a plan that are done, their files checked by hash."""
    found = {shard.name: _read_record(folder, shard.name) for shard in shards}
    return {name: record for name, record in found.items() if record is not None}


def _read_record(folder: Path, name: str) -> ShardRecord | None:
    try:
        data = json.loads((folder / RECORDS / f"{name}.json").read_bytes())
        failures = tuple(Failure(**failure) for failure in data.pop("failures"))
        record = ShardRecord(**data, failures=failures)
        whole = hash_file(folder / name) == record.sha256
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not done, or not to be trusted: done again
    return record if whole else None


def embed_shards(
    shards: Sequence[Shard],
    backbone: backbones.Backbone,
    *,
    root: Path,
    folder: Path,
    dtype: Dtype,
    device: torch.device,
    workers: int,
    on_progress: Callable[[int, int, str], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Embedded:
    """Embed the images of a plan, one shard after the other; shards that are done already are left alone.

    Args:
        shards: of the plan.
        backbone: that embeds.
        root: of the image tree.
        folder: where the shards go.
        dtype: stored type.
        device: where the model runs.
        workers: processes that decode; 0 decodes in this one.
        on_progress: called with images done, images wanted, and which part is the slowest.
        stopped: asked after each block whether to stop.

    Raises:
        Interrupted: stopped; finished shards are kept.
        DataError: an embedding that `dtype` cannot hold.
        LeokitError: a worker died.
    """
    started = time.perf_counter()
    records = finished_shards(folder, shards)
    to_do = [shard for shard in shards if shard.name not in records]
    done = sum(shard.rows for shard in shards if shard.name in records)
    progress = _Progress(sum(shard.rows for shard in shards), done, on_progress)
    (folder / RECORDS).mkdir(exist_ok=True)
    module = backbone.module.to(device)
    groups = (group for shard in to_do for group in _groups(shard))
    try:
        with decoder(root, backbone.preprocessing, workers) as decode:
            decoded = decode(groups)
            for shard in to_do:
                blocks = _embed_blocks(shard, decoded, backbone, module, device, progress, stopped)
                records[shard.name] = _write_shard(shard, blocks, folder, backbone.dim, dtype, progress)
    except WorkerDied as error:
        if stopped():  # as where all processes of a job were stopped
            raise Interrupted(_STOPPED) from error
        raise
    in_order = {shard.name: records[shard.name] for shard in shards}
    return Embedded(in_order, progress.now, time.perf_counter() - started, progress.seconds)


def _images(shard: Shard) -> list[str]:
    return [image for images in shard.classes.values() for image in images]


def _groups(shard: Shard) -> list[tuple[str, ...]]:
    """The images of a shard as workers get them; each group lies in one block."""
    images = _images(shard)
    return [tuple(images[start : start + GROUP]) for start in range(0, len(images), GROUP)]


def _embed_blocks(
    shard: Shard,
    decoded: Iterator[Decoded],
    backbone: backbones.Backbone,
    module: torch.nn.Module,
    device: torch.device,
    progress: _Progress,
    stopped: Callable[[], bool],
) -> Iterator[tuple[NDArray[np.float32], list[str | None]]]:
    """For each block of a shard its embeddings (n, D) and, for each image, why it could not be read (or None)."""
    remaining = len(_groups(shard))
    size = backbone.preprocessing.image_size
    while remaining:
        if stopped():
            raise Interrupted(_STOPPED)
        started = time.perf_counter()
        groups = list(islice(decoded, min(remaining, BLOCK // GROUP)))
        remaining -= len(groups)
        pixels = np.zeros((BLOCK, size, size, 3), np.uint8)
        read = np.concatenate([group.pixels for group in groups])
        pixels[: len(read)] = read
        reasons = [group.reasons.get(position) for group in groups for position in range(len(group.pixels))]
        progress.seconds.decoding += time.perf_counter() - started
        started = time.perf_counter()
        vectors = backbones.embed(module, torch.from_numpy(pixels).to(device), backbone.preprocessing)
        embeddings = vectors[: len(read)].cpu().numpy()
        progress.seconds.model += time.perf_counter() - started
        progress.add(len(read))
        yield embeddings, reasons


def _write_shard(
    shard: Shard,
    blocks: Iterator[tuple[NDArray[np.float32], list[str | None]]],
    folder: Path,
    dim: int,
    dtype: Dtype,
    progress: _Progress,
) -> ShardRecord:
    """Write the embeddings of a shard's readable images, class by class, and its record."""
    failures: list[Failure] = []
    path = folder / shard.name
    with ShardWriter(path, shard.split, dim=dim, dtype=dtype) as writer:
        for name, images, embeddings, reasons in _by_class(shard, blocks):
            read = [reason is None for reason in reasons]
            started = time.perf_counter()
            if any(read):
                kept = [image for image, whole in zip(images, read, strict=True) if whole]
                writer.write_class(name, kept, embeddings[read])
            progress.seconds.writing += time.perf_counter() - started
            failures += [
                Failure(image, name, shard.split, reason)
                for image, reason in zip(images, reasons, strict=True)
                if reason is not None
            ]
    record = ShardRecord(shard.name, hash_file(path), writer.counts, tuple(failures))
    write_atomically(folder / RECORDS / f"{shard.name}.json", json.dumps(asdict(record)).encode())
    return record


def _by_class(
    shard: Shard, blocks: Iterator[tuple[NDArray[np.float32], list[str | None]]]
) -> Iterator[tuple[str, tuple[str, ...], NDArray[np.float32], list[str | None]]]:
    """The rows of a shard's blocks, class by class, with no more in memory than a class and a block."""
    rows: list[NDArray[np.float32]] = []
    reasons: list[str | None] = []
    for name, images in shard.classes.items():
        while len(reasons) < len(images):
            embeddings, of_block = next(blocks)
            rows.append(embeddings)
            reasons += of_block
        embeddings = np.concatenate(rows)
        yield name, images, embeddings[: len(images)], reasons[: len(images)]
        rows, reasons = [embeddings[len(images) :]], reasons[len(images) :]


def failure_columns(records: Iterable[ShardRecord]) -> dict[str, list[Any]]:
    """The columns of the table of failures, in the order of the plan."""
    failures = [asdict(failure) for record in records for failure in record.failures]
    return {key: [failure[key] for failure in failures] for key in Failure.__dataclass_fields__}
