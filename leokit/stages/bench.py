"""`leokit bench`: how fast extraction and reading are, and how near to what the machine allows."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import backbones
from leokit.backbones import Backbone
from leokit.config import BenchExtractConfig, BenchReadConfig, default_workers
from leokit.devices import resolve_device
from leokit.engine.embedding import blocks_of, embed_shards, make_decoder
from leokit.engine.models import BLOCK, Model
from leokit.engine.shards import Block, shard_writer
from leokit.errors import LeokitError
from leokit.features import FeatureStore, Shard, plan_shards, write_store
from leokit.images.decoding import peak_memory
from leokit.images.scan import ImageTree, scan

_COUNT_OF_ROWS = 1300  # of a class, as in ImageNet


@dataclass(frozen=True)
class ExtractSpeed:
    """How fast an extraction is, in images/s.

    Attributes:
        images: that went through all parts together.
        decoding: reading and decoding alone.
        model: the model alone, on blocks that lie on its device.
        writing: writing alone.
        together: all of it.
        allowed: what the parts allow: where they share the processor 1/Σ(1/rate), beside an accelerator the lowest.
        slowest: the part that took most when together.
        device: where the model ran.
        workers: processes that decoded.
        memory: bytes that this process has held at most.
        worker_memory: bytes that a worker has held at most.
        seconds_in: seconds in each part when together; reading and decoding summed over workers.
    """

    images: int
    decoding: float
    model: float
    writing: float
    together: float
    allowed: float
    slowest: str
    device: str
    workers: int
    memory: int
    worker_memory: int
    seconds_in: dict[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """What was reached of what the parts allow."""
        return self.together / self.allowed


def run_extract(config: BenchExtractConfig) -> ExtractSpeed:
    """Measure decoding, model and writing, each alone, and then an extraction, in one run.

    Raises:
        UsageError, DataError, ArtifactError, LeokitError: as `leokit.stages.extract.run`.
    """
    device = resolve_device(config.device)
    workers = default_workers() if config.workers is None else config.workers
    backbone = backbones.load(
        config.backbone,
        config.weights,
        image_size=config.image_size,
        views=config.views,
        precision=config.precision,
        compile=config.compile,
        jpeg_scaling=config.jpeg_scaling,
        decoder=backbones.decoder_on(config.decode, device),
    )
    tree = scan(config.images, config.class_level)
    shards = _shards(tree, config.repeat)
    total = sum(shard.rows for shard in shards)
    with _folder(None) as folder:
        decoding = _decoding(tree, shards, backbone, device, workers, config)
        model = _model(tree, shards, backbone, device, config.seconds)
        writing = _writing(shards, backbone.dim, folder, config.seconds)
        embedded = embed_shards(
            shards,
            backbone,
            root=tree.root,
            folder=folder,
            dtype="float16",
            device=device,
            workers=workers,
            members=tree.members,
            batch_size=config.batch_size,
        )
    if any(record.failures for record in embedded.records.values()):
        raise LeokitError(f"Images of {config.images} cannot be read: a measurement needs images that can.")
    rates = (decoding, model, writing)
    return ExtractSpeed(
        images=total,
        decoding=decoding,
        model=model,
        writing=writing,
        together=embedded.images / embedded.seconds,
        allowed=1 / sum(1 / rate for rate in rates) if device.type == "cpu" else min(rates),
        slowest=embedded.seconds_in.bottleneck(workers),
        device=str(device),
        workers=workers,
        memory=peak_memory(),
        worker_memory=embedded.worker_memory,
        seconds_in=vars(embedded.seconds_in),
    )


def _shards(tree: ImageTree, repeat: int) -> tuple[Shard, ...]:
    """All images of a tree, in their order, so many times over."""
    classes = {f"{name}-{turn}": images for turn in range(repeat) for name, images in tree.classes.items()}
    return plan_shards({"train": classes})


def _decoding(
    tree: ImageTree,
    shards: tuple[Shard, ...],
    backbone: Backbone,
    device: torch.device,
    workers: int,
    config: BenchExtractConfig,
) -> float:
    """Images/s of reading and decoding alone, once the workers are there."""
    model, blocks = Model(backbone, device), cycle([block for shard in shards for block in blocks_of(shard)])
    with make_decoder(model, tree.root, workers, tree.members, config.batch_size) as decode:
        decoded = decode(blocks)
        for _ in range(8):  # among them those that were decoded ahead
            next(decoded)
        return _rate(config.seconds, (len(block.pixels) for block in decoded))


def _model(
    tree: ImageTree, shards: tuple[Shard, ...], backbone: Backbone, device: torch.device, seconds: float
) -> float:
    """Images/s of the model alone, on blocks of real images that lie on its device."""
    model = Model(backbone, device)
    with make_decoder(model, tree.root, 0, tree.members, None) as decode:
        blocks = [
            torch.as_tensor(block.pixels).to(device)
            for block in islice(decode(block for shard in shards for block in blocks_of(shard)), 2)
        ]

    def embed() -> Iterator[int]:
        started = []
        for block in cycle(blocks):
            started.append((len(block), model.start(block)))
            if len(started) > model.late:
                count, fetch = started.pop(0)
                fetch()
                yield count

    embedded = embed()
    for _ in range(2):
        next(embedded)
    return _rate(seconds, embedded)


def _writing(shards: tuple[Shard, ...], dim: int, folder: Path, seconds: float) -> float:
    """Rows/s of writing alone."""
    rows = np.random.default_rng(0).normal(size=(BLOCK, dim)).astype(np.float32)
    started, written = time.perf_counter(), 0
    for shard in cycle(shards):
        with shard_writer([shard], folder, dim=dim, dtype="float16", plans={shard.name: ""}) as writer:
            for block in blocks_of(shard):
                writer.put(Block(rows[: len(block)], [None] * len(block)))
        written += shard.rows
        if time.perf_counter() - started > seconds / 4:  # so fast that less time will do
            break
    return written / (time.perf_counter() - started)


def _rate(seconds: float, counts: Iterator[int]) -> float:
    started, done = time.perf_counter(), 0
    for count in counts:
        done += count
        spent = time.perf_counter() - started
        if spent > seconds:
            return done / spent
    raise AssertionError("the blocks to measure have no end")


@dataclass(frozen=True)
class ReadSpeed:
    """How fast a store is read, in bytes of embeddings a second.

    Attributes:
        bytes: of embeddings.
        plain: reading the same files without looking at them.
        load: loading them as one class-sorted matrix.
        open: seconds to open the store, which checks every file by hash.
    """

    bytes: int
    plain: float
    load: float
    open: float

    @property
    def share(self) -> float:
        """Speed of loading to that of plain reading."""
        return self.load / self.plain


def run_read(config: BenchReadConfig) -> ReadSpeed:
    """Make a store, read its files plainly and load it, by turns; the best of three of each. Deleted afterwards."""
    with _folder(config.folder) as folder:
        rows = np.random.default_rng(0).normal(size=(min(config.rows, _COUNT_OF_ROWS), config.dim))
        block, classes = rows.astype(config.dtype), {}
        for number, start in enumerate(range(0, config.rows, _COUNT_OF_ROWS)):
            count = min(_COUNT_OF_ROWS, config.rows - start)
            classes[f"class{number:05}"] = (
                [f"class{number:05}/{image:05}.jpg" for image in range(count)],
                block[:count],
            )
        write_store(folder / "features", {"train": classes}, dtype=config.dtype)
        started = time.perf_counter()
        store = FeatureStore.open(folder / "features")
        opened = time.perf_counter() - started
        files = sorted((folder / "features").glob("train-*.parquet"))
        size = config.rows * config.dim * np.dtype(config.dtype).itemsize
        plain, load = [], []
        for _ in range(3):
            plain.append(_seconds(lambda: _read(files)))
            load.append(_seconds(lambda: store.load("train")))
    on_disk = size  # the names of images, which loading leaves alone, are not counted to either
    return ReadSpeed(size, on_disk / min(plain), size / min(load), opened)


def _read(files: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """The bytes of some files, read by as many threads as loading uses."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: np.fromfile(path, np.uint8), files))


def _seconds(work: object) -> float:
    assert callable(work)
    started = time.perf_counter()
    kept = work()
    spent = time.perf_counter() - started
    del kept
    return spent


@contextmanager
def _folder(parent: Path | None) -> Iterator[Path]:
    """A folder for the time being."""
    folder = Path(tempfile.mkdtemp(prefix="leokit-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
