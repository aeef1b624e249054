"""`leokit extract`: image tree → features."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from leokit import backbones, manifest
from leokit.backbones import Backbone
from leokit.config import ExtractConfig, default_workers
from leokit.devices import resolve_device
from leokit.engine import embedding
from leokit.engine.embedding import ShardRecord
from leokit.engine.interrupts import stop_requests
from leokit.errors import DataError, UsageError
from leokit.features import FAILURES, SCHEMA, FeatureStore, Shard, facts_of, plan_shards
from leokit.images.scan import ImageTree, scan
from leokit.provenance import information
from leokit.splits import Splits, resolve
from leokit.tables import write_table

Progress = Callable[[int, int, str], None]

VIEWS = "center"

_FAILURE_TYPES = {"image": "string", "class_name": "string", "split": "string", "reason": "string"}
_LISTED = 5  # ignored files that a message names
_RECORDED = 100  # and that the manifest does


@dataclass(frozen=True)
class Plan:
    """What an extraction will read and write; follows from the image tree and the splits alone.

    Attributes:
        tree: the images there are.
        splits: which of them are used, and for what.
        shards: the files to write, each with its classes and images.
        images_id: hash of the names and sizes of all images used.
    """

    tree: ImageTree
    splits: Splits
    shards: tuple[Shard, ...]
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


def plan(config: ExtractConfig) -> Plan:
    """Find the images, divide their classes, and fix the files to write.

    Raises:
        DataError: no images, or splits that do not go with them.
    """
    tree = scan(config.images)
    splits = resolve(config.splits, config.images, tree.classes, config.seed)
    images = splits.images(tree.classes)
    listed = [
        [split, name, image, _size(tree.path(image))]
        for split, classes in images.items()
        for name, of_class in classes.items()
        for image in of_class
    ]
    return Plan(tree, splits, plan_shards(images), manifest.hash_text(manifest.canonical_json(listed)))


def _size(path: Path) -> int:
    """Bytes of a file; -1 where it cannot be asked, which decoding will report."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def run(
    config: ExtractConfig,
    *,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> FeatureStore:
    """Embed the images of a tree by a backbone and write the feature store.

    The same call on finished features returns them; on unfinished ones it goes on after the last finished file.

    Args:
        config: of the extraction.
        on_progress: called with images done, images wanted, and a line on how it goes.
        on_message: called with what a user should know about the images, a sentence each.

    Raises:
        UsageError: unknown backbone or device, or a value out of range.
        DataError: no images, splits that do not go with them, or too many unreadable images.
        ArtifactError: weights that do not fit, or the place holds something else.
        Interrupted: stopped by Ctrl-C or SIGTERM; finished files are kept.
    """
    started = time.perf_counter()
    allowed = parse_share(config.max_failures)
    device = resolve_device(config.device)
    planned = plan(config)
    for message in _messages(planned):
        (on_message or _silent)(message)
    backbone = backbones.load(
        config.backbone,
        config.weights,
        image_size=config.image_size,
        crop_pct=config.crop_pct,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        trained_on=config.trained_on,
    )
    folder, identified = default_out(config), _identity(config, planned, backbone)
    inputs = {"images": manifest.Input(planned.images_id, str(config.images))}
    finished = manifest.begin(folder, SCHEMA, identified, inputs, overwrite=config.overwrite)
    if finished:
        (on_message or _silent)(manifest.already_done(folder))
        return FeatureStore(folder, finished)
    workers = default_workers() if config.workers is None else config.workers
    with stop_requests() as stopped:
        embedded = embedding.embed_shards(
            planned.shards,
            backbone,
            root=planned.tree.root,
            folder=folder,
            dtype=config.dtype,
            device=device,
            workers=workers,
            on_progress=on_progress,
            stopped=stopped,
        )
    records = embedded.records
    write_table(folder / FAILURES, embedding.failure_columns(records.values()), _FAILURE_TYPES)
    _check_failures(planned, records, allowed(planned.total), config.max_failures, folder)
    written = manifest.finish(
        folder,
        SCHEMA,
        identified,
        inputs,
        results=[*records, FAILURES],
        facts=_facts(config, planned, backbone, records),
        info=information(
            started=started,
            device=device,
            workers=workers,
            weights=config.weights,
            splits=config.splits,
            ignored={"files": len(planned.tree.ignored), "as": list(planned.tree.ignored[:_RECORDED])},
            images_embedded=embedded.images,
            images_per_second=round(embedded.images / embedded.seconds, 1),
            seconds_in={part: round(value, 3) for part, value in vars(embedded.seconds_in).items()},
        ),
    )
    shutil.rmtree(folder / embedding.RECORDS)
    return FeatureStore(folder, written)


def _silent(message: str) -> None:
    """Take a message and say nothing."""


def parse_share(text: str) -> Callable[[int], int]:
    """How many of a number of images `--max-failures` allows to fail.

    Args:
        text: a number as `10`, or a share as `1%`.

    Raises:
        UsageError: neither, or out of range.
    """
    try:
        value = Decimal(text.removesuffix("%"))
    except InvalidOperation:
        value = Decimal(-1)
    share = text.endswith("%")
    if not value.is_finite() or value < 0 or (value > 100 if share else value != int(value)):
        raise UsageError(f"max_failures = {text!r}: a number of images from 0, or a share from 0% to 100%.")
    return lambda total: int(value * total / 100) if share else int(value)


def _messages(planned: Plan) -> list[str]:
    messages = []
    ignored = planned.tree.ignored
    if ignored:
        names = ", ".join(ignored[:_LISTED]) + (", …" if len(ignored) > _LISTED else "")
        messages.append(f"Left alone, being no images of a class: {len(ignored)} ({names}).")
    if planned.splits.note:
        messages.append(planned.splits.note)
    return messages


def _identity(config: ExtractConfig, planned: Plan, backbone: Backbone) -> dict[str, Any]:
    """The configuration as resolved: what, beside the images, decides every byte of the result."""
    return {
        "backbone": backbone.to_plain(),
        "trained_on": backbone.trained_on,
        "views": VIEWS,
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
        backbone={**backbone.to_plain(), "views": VIEWS},
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
            "The rest is kept: mend the images, or allow more and run the same command again."
        )
    empty = _without_rows(planned.shards, records)
    if empty:
        raise DataError(
            f"The class {empty[0]!r} has no image that could be read ({len(empty)} such). {folder / FAILURES} has the "
            "reasons: mend its images, or leave it out of the splits."
        )


def _without_rows(shards: Sequence[Shard], records: Mapping[str, ShardRecord]) -> list[str]:
    return [name for shard in shards for name in shard.classes if name not in records[shard.name].counts]
