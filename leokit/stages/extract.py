"""`leokit extract`: image tree → features."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from leokit import backbones, distributed, manifest
from leokit.backbones import Backbone
from leokit.checks import Divided, check_extract
from leokit.config import ExtractConfig, default_workers, parse_share
from leokit.devices import check_device, resolve_device
from leokit.distributed import Job, World
from leokit.engine import shards
from leokit.engine.embedding import Embedded, embed_shards
from leokit.engine.models import BLOCK, Model
from leokit.engine.shards import RECORDS, ShardRecord
from leokit.errors import ArtifactError, DataError, disk_errors
from leokit.features import FAILURES, SCHEMA, FeatureStore, Shard, facts_of, plan_shards
from leokit.images.decoding import decoder
from leokit.images.scan import ImageTree
from leokit.interrupts import stop_requests
from leokit.provenance import information
from leokit.splits import Splits, division_remarks, small_remarks
from leokit.tables import read_table, write_table

Progress = Callable[[int, int, str], None]

LISTING = f"{RECORDS}/images.parquet"  # the images of the plan with their sizes

_FAILURE_TYPES = {"image": "string", "class_name": "string", "split": "string", "reason": "string"}
_LISTING_TYPES = {"image": "string", "bytes": "int64"}
_LISTED = 5  # classes that a message names
_RECORDED = 100  # files left alone that the manifest names


@dataclass(frozen=True)
class Plan:
    """What an extraction will read and write; follows from the image tree and the splits alone.

    Attributes:
        tree: the images there are.
        splits: which of them are used, and for what.
        shards: the files to write, each with its classes and images.
        sizes: of each image used, in bytes.
        images_id: hash of the names and sizes of all images used.
    """

    tree: ImageTree
    splits: Splits
    shards: tuple[Shard, ...]
    sizes: Mapping[str, int]
    images_id: str

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images of each class of each split."""
        counts: dict[str, dict[str, int]] = {}
        for shard in self.shards:
            counts.setdefault(shard.split, {}).update({c: len(images) for c, images in shard.classes.items()})
        return counts

    @property
    def total(self) -> int:
        """Number of images."""
        return sum(shard.rows for shard in self.shards)


def default_out(config: ExtractConfig) -> Path:
    """Where the features go: `--out`, else their place under the work folder."""
    return config.out or config.work / "features"


def plan(
    config: ExtractConfig, divided: Divided | None = None, on_message: Callable[[str], None] = lambda text: None
) -> Plan:
    """Find the images, divide their classes, and fix the files to write.

    Args:
        config: of the extraction.
        divided: the images and their division, where `check_extract` has found them already.
        on_message: called with what a user should know of the images, a sentence each.

    Raises:
        UsageError, DataError, ArtifactError: see `check_extract`.
    """
    tree, splits = divided or check_extract(config)
    for sentence in (*tree.said, *_messages(tree, splits)):
        on_message(sentence)
    images = splits.images(tree.classes)
    sizes = {
        image: tree.size(image) for classes in images.values() for of_class in classes.values() for image in of_class
    }
    listed = [
        [split, name, image, sizes[image]]
        for split, classes in images.items()
        for name, of_class in classes.items()
        for image in of_class
    ]
    images_id = manifest.hash_text(manifest.canonical_json(listed))
    return Plan(tree, splits, plan_shards(images), sizes, images_id)


def load_backbone(config: ExtractConfig) -> Backbone:
    """The backbone that a configuration names, with the user's preprocessing.

    Raises:
        UsageError, ArtifactError, LeokitError: see `backbones.load`.
    """
    load = partial(backbones.load, config.backbone, config.weights)
    if config.backbone_run is not None:
        load = partial(backbones.load_pretrained, config.backbone_run)
    return load(
        image_size=config.image_size,
        crop_pct=config.crop_pct,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        trained_on=config.trained_on,
        layer=config.layer,
        normalize=config.normalize,
        precision=config.precision,
        compile=config.compile,
        views=config.views,
        jpeg_scaling=config.jpeg_scaling,
        decoder=backbones.decoder_on(config.decode, resolve_device(config.device)),
    )


def run(
    config: ExtractConfig,
    *,
    divided: Divided | None = None,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> FeatureStore:
    """Embed the images of a tree by a backbone and write the feature store.

    The same call on finished features returns them; on unfinished ones it goes on after the last finished file. Under
    torchrun or srun the files are divided among the ranks; rank 0 says how it goes.

    Args:
        config: of the extraction.
        divided: as for `plan`.
        on_progress: called with images done, images wanted, and a line on how it goes.
        on_message: called with what a user should know about the images, a sentence each.

    Raises:
        UsageError: unknown backbone or device, or a value out of range.
        DataError: no images, splits that do not go with them, or too many unreadable images.
        ArtifactError: weights that do not fit, or the place holds something else or is another process's at the time.
        Interrupted: stopped by Ctrl-C or SIGTERM; finished files are kept.
        LeokitError: the disk is full, or a process that takes part has died.
    """
    place = distributed.world()
    extraction = _Extraction(
        config,
        place,
        divided,
        started=time.perf_counter(),
        on_progress=None if place.rank else on_progress,
        on_message=_silent if place.rank else on_message or _silent,
    )
    with distributed.joined(place, on_message=on_message or _silent) as job, disk_errors(extraction.folder):
        return extraction.run(job)


class _Extraction:
    """One call of `run`, on one rank."""

    def __init__(
        self,
        config: ExtractConfig,
        place: World,
        divided: Divided | None,
        *,
        started: float,
        on_progress: Progress | None,
        on_message: Callable[[str], None],
    ) -> None:
        self.folder = default_out(config)
        self._config, self._place, self._started = config, place, started
        self._on_progress, self._on_message = on_progress, on_message
        self._allowed = parse_share(config.max_failures)
        check_device(config.device)
        self._workers = place.workers() if config.workers is None else config.workers
        self._plan = plan(config, divided, on_message)
        self._device = resolve_device(config.device, place)
        self._backbone = load_backbone(config)
        self._identity = _identity(config, self._plan, self._backbone)
        self._inputs = {"images": manifest.Input(self._plan.images_id, str(config.images))}
        if config.backbone_run is not None:
            trained = manifest.read(config.backbone_run)
            self._inputs["backbone"] = manifest.Input(trained.id, str(config.backbone_run))
        self._plans = {shard.name: shards.plan_hash(shard, self._plan.sizes) for shard in self._plan.shards}

    def run(self, job: Job) -> FeatureStore:
        """Embed this rank's share, and on rank 0 put all shares together."""
        first = self._place.rank == 0
        with ExitStack() as held:
            done: dict[str, ShardRecord] | None = None
            if first:
                held.enter_context(manifest.locked(self.folder))
                done = self._begin()
            done = job.from_first(done)
            if done is None:
                return FeatureStore(self.folder, manifest.read(self.folder, SCHEMA))
            embedded = self._embed(done)
            parts = job.gather(embedded)
            if first:
                self._finish(done | {name: record for part in parts for name, record in part.records.items()}, parts)
            job.wait()
            return FeatureStore(self.folder, manifest.read(self.folder, SCHEMA))

    def _begin(self) -> dict[str, ShardRecord] | None:
        """The shards that are done already; None where all is."""
        finished = manifest.begin(
            self.folder,
            SCHEMA,
            self._identity,
            self._inputs,
            overwrite=self._config.overwrite,
            reopen=self._reopens if self._config.retry_failed else None,
            explain={"inputs.images": lambda: _changed_images(self.folder, self._plan)},
        )
        if finished:
            self._on_message(manifest.already_done(self.folder))
            return None
        (self.folder / RECORDS).mkdir(exist_ok=True)
        columns = {"image": list(self._plan.sizes), "bytes": list(self._plan.sizes.values())}
        write_table(self.folder / LISTING, columns, _LISTING_TYPES)
        records = shards.finished_shards(self.folder, self._plans)
        if self._config.retry_failed:
            return {name: record for name, record in records.items() if not record.failures}
        return records

    def _reopens(self, found: dict[str, Any], wanted: dict[str, Any]) -> bool:
        """Whether a retry goes on from what is there: the same extraction, maybe of images mended since."""
        same = {**found, "inputs": wanted["inputs"]} == wanted
        return same and (found != wanted or _has_failures(self.folder, self._plans))

    def _embed(self, done: Mapping[str, ShardRecord]) -> Embedded:
        to_do = self._place.share([shard for shard in self._plan.shards if shard.name not in done])
        alone = self._place.size == 1
        with stop_requests() as stopped:
            return embed_shards(
                to_do,
                self._backbone,
                root=self._plan.tree.root,
                folder=self.folder,
                dtype=self._config.dtype,
                device=self._device,
                workers=self._workers,
                plans=self._plans,
                members=self._plan.tree.members,
                batch_size=self._config.batch_size,
                done=self._plan.total - sum(shard.rows for shard in to_do) if alone else 0,
                on_progress=self._on_progress,
                stopped=stopped,
            )

    def _finish(self, found: Mapping[str, ShardRecord], parts: Sequence[Embedded]) -> None:
        """Write what is about all shards, the manifest last; `parts` tell how each rank has fared."""
        config, folder, planned = self._config, self.folder, self._plan
        images, seconds_in = sum(part.images for part in parts), parts[0].seconds_in
        records = {shard.name: found[shard.name] for shard in planned.shards}
        write_table(folder / FAILURES, shards.failure_columns(records.values()), _FAILURE_TYPES)
        _check_failures(planned, records, self._allowed(planned.total), config.max_failures, folder)
        _sweep(folder, records)
        manifest.finish(
            folder,
            SCHEMA,
            self._identity,
            self._inputs,
            results=[*records, FAILURES],
            extras=[LISTING, *map(shards.record_name, records)],
            facts=_facts(config, planned, self._backbone, records),
            info=information(
                started=self._started,
                device=self._device,
                workers=self._workers,
                ranks=self._place.size,
                block=min(part.block for part in parts),
                weights=config.weights,
                splits=config.splits,
                ignored={"files": len(planned.tree.ignored), "as": list(planned.tree.ignored[:_RECORDED])},
                images_embedded=images,
                images_per_second=round(images / max(part.seconds for part in parts), 1),
                slowest=seconds_in.bottleneck(self._workers),
                seconds_in={part: round(value, 3) for part, value in vars(seconds_in).items()},
            ),
        )


def _has_failures(folder: Path, plans: Mapping[str, str]) -> bool:
    return any(record.failures for record in shards.finished_shards(folder, plans).values())


def _changed_images(folder: Path, planned: Plan) -> str:
    """Which images of a plan are others than those that an extraction was begun with."""
    try:
        before = {row["image"]: row["bytes"] for row in read_table(folder / LISTING).to_pylist()}
    except ArtifactError:
        return "other images, or images of other sizes, than it was begun with"
    kinds = {
        "gone": before.keys() - planned.sizes.keys(),
        "new": planned.sizes.keys() - before.keys(),
        "of another size": {
            name for name in before.keys() & planned.sizes.keys() if before[name] != planned.sizes[name]
        },
    }
    said = [f"{len(names)} {kind}, as {min(names)}" for kind, names in kinds.items() if names]
    retry = " (--retry-failed takes what has changed and keeps the rest)"
    return ", ".join(said or ["the same images in other classes or splits"]) + retry


def _sweep(folder: Path, records: Mapping[str, ShardRecord]) -> None:
    """Delete the files of an earlier plan of the same extraction, which had other images."""
    keep = {*records, *map(shards.record_name, records), FAILURES, LISTING}
    for pattern in ("*.parquet", f"{RECORDS}/*.json"):
        for path in folder.glob(pattern):
            if str(path.relative_to(folder)) not in keep:
                path.unlink()


@dataclass(frozen=True)
class Estimate:
    """What an extraction would take, by a sample of its images.

    Attributes:
        bytes: on disk.
        seconds: in all.
        decoding: images/s of one process, reading included.
        model: images/s of the model.
        to_fetch: whether timm would fetch the weights, unless it has them in its cache.
    """

    bytes: int
    seconds: float
    decoding: float
    model: float
    to_fetch: bool


def estimate(config: ExtractConfig, planned: Plan) -> Estimate:
    """Estimate size and time of an extraction, by decoding and embedding two blocks of its images.

    Nothing is fetched: in place of timm's weights random ones take as long.
    """
    device = resolve_device(config.device)
    to_fetch = config.backbone_run is None and backbones.is_fetched(config.backbone, config.weights)
    backbone = load_backbone(replace(config, weights=backbones.RANDOM, trained_on=None) if to_fetch else config)
    workers = default_workers() if config.workers is None else config.workers
    images = list(planned.sizes)
    sample = images[:: max(1, len(images) // (2 * BLOCK))][: 2 * BLOCK]
    model = Model(backbone, device)
    started = time.perf_counter()
    with decoder(planned.tree.root, backbone.preprocessing, 0, members=planned.tree.members) as decode:
        (pixels,) = (block.pixels for block in decode([tuple(sample)]))
    decoding = len(sample) / (time.perf_counter() - started)
    model.start(pixels[:BLOCK])()  # the first block also prepares
    started = time.perf_counter()
    model.start(pixels[-BLOCK:])()
    rate = len(pixels[-BLOCK:]) / (time.perf_counter() - started)
    cores = max(1, min(workers, default_workers()))
    decoded, embedded = planned.total / (decoding * cores), planned.total / rate
    names = sum(len(image.encode()) for image in images)
    row = backbone.dim * (2 if config.dtype == "float16" else 4) + 13  # levels of the list, length of the name
    return Estimate(
        bytes=planned.total * row + names,
        seconds=decoded + embedded if device.type == "cpu" else max(decoded, embedded),
        decoding=decoding,
        model=rate,
        to_fetch=to_fetch,
    )


def _silent(message: str) -> None:
    """Take a message and say nothing."""


def _a_few(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")


def _messages(tree: ImageTree, splits: Splits) -> list[str]:
    messages = []
    used = {name for names in splits.classes.values() for name in names}
    unused = [name for name in tree.classes if name not in used]
    if unused:
        messages.append(f"Classes in no split, left out: {len(unused)} ({_a_few(unused)}).")
    if splits.note:
        messages.append(splits.note)
    counts = {
        split: {name: len(images) for name, images in classes.items()}
        for split, classes in splits.images(tree.classes).items()
    }
    return [*messages, *division_remarks(splits.source, splits.classes), *small_remarks(counts)]


def _identity(config: ExtractConfig, planned: Plan, backbone: Backbone) -> dict[str, Any]:
    """The configuration as resolved: what, beside the images, decides every byte of the result."""
    return {
        "backbone": backbone.to_plain(),
        "trained_on": backbone.trained_on,
        "dtype": config.dtype,
        "splits": {
            "source": planned.splits.source,
            "sha256": manifest.hash_text(manifest.canonical_json(planned.splits.canonical())),
        },
    }


def _facts(
    config: ExtractConfig, planned: Plan, backbone: Backbone, records: Mapping[str, ShardRecord]
) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = {}
    for shard in planned.shards:
        counts.setdefault(shard.split, {}).update(records[shard.name].counts)
    return facts_of(
        counts,
        dim=backbone.dim,
        dtype=config.dtype,
        backbone=backbone.to_plain(),
        trained_on=backbone.trained_on,
        failures=sum(len(record.failures) for record in records.values()),
        split_source=planned.splits.source,
        note=planned.splits.note,
    )


def _check_failures(planned: Plan, records: Mapping[str, ShardRecord], allowed: int, said: str, folder: Path) -> None:
    """Refuse too many unreadable images, and a class that has no other."""
    failures = [failure for record in records.values() for failure in record.failures]
    if len(failures) > allowed:
        raise DataError(
            f"{len(failures)} of {planned.total} images could not be read, as {failures[0].image} "
            f"({failures[0].reason}); --max-failures {said} allows {allowed}. {folder / FAILURES} lists them. "
            "The rest is kept: mend the images and add --retry-failed, or allow more by --max-failures."
        )
    empty = _without_rows(planned.shards, records)
    if empty:
        raise DataError(
            f"The class {empty[0]!r} has no image that could be read ({len(empty)} such). {folder / FAILURES} has the "
            "reasons: mend its images and add --retry-failed, or leave it out of the splits and add --overwrite."
        )


def _without_rows(shards: Sequence[Shard], records: Mapping[str, ShardRecord]) -> list[str]:
    return [name for shard in shards for name in shard.classes if name not in records[shard.name].counts]
