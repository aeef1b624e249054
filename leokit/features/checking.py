"""Checking a feature store, row by row: what `open` takes on trust once the hashes are right."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leokit.errors import ArtifactError
from leokit.features.layout import FAILURES, FOOTER_KEY, SCHEMA, arrow_schema
from leokit.features.store import LONGEST_NAME, FeatureStore, check_pages
from leokit.images.scan import unescape
from leokit.manifest import MANIFEST, Manifest
from leokit.parquet import RowGroup, read_footer
from leokit.tables import read_table


@dataclass
class _Seen:
    """What was met so far, in the order of splits, files and row groups."""

    counts: dict[str, dict[str, int]]
    images: set[str] = field(default_factory=set)
    file_of: dict[str, str] = field(default_factory=dict)  # of each class
    last: dict[str, str] = field(default_factory=dict)  # class of each split


def store_faults(
    folder: Path,
    checked: Manifest,
    *,
    damaged: Collection[str] = (),
    on_file: Callable[[str], None] | None = None,
) -> list[str]:
    """Everything that is wrong inside a feature store, each as `file: what`.

    Columns, row groups, footers and manifest must tell the same story; classes and images must be in bytewise order,
    no image twice, each name one that leads back to a file; every value finite.

    Args:
        folder: of the store.
        checked: its manifest.
        damaged: files that are known to be missing or altered, which are not read.
        on_file: called with the name of each file that was checked.
    """
    splits = list(checked.facts["counts"])
    shards = [name for name in sorted(checked.files) if name.startswith(tuple(f"{split}-" for split in splits))]
    seen = _Seen({split: {} for split in splits})
    faults = []
    for name in shards:
        if name not in damaged:
            faults += [f"{name}: {fault}" for fault in _shard_faults(folder / name, checked.facts, seen)]
        if on_file:
            on_file(name)
    if FAILURES in checked.files and FAILURES not in damaged:
        faults += [f"{FAILURES}: {fault}" for fault in _failures_faults(folder / FAILURES, checked.facts)]
    if not faults and not any(name in damaged for name in shards):
        faults += [f"{MANIFEST}: {fault}" for fault in _count_faults(checked.facts["counts"], seen.counts)]
    if not faults and not damaged:
        try:
            FeatureStore(folder, checked)
        except ArtifactError as error:  # nothing above found it, but the reader says no
            faults.append(str(error))
    return faults


def _shard_faults(path: Path, facts: dict[str, Any], seen: _Seen) -> Iterator[str]:
    """What is wrong with one file; adds its classes and images to what was seen."""
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            if not file.schema_arrow.equals(arrow_schema(facts["dim"], facts["dtype"])):
                yield f"its columns are not image, class_name and embedding of {facts['dim']} {facts['dtype']} values"
                return
            entry = json.loads(file.metadata.metadata[FOOTER_KEY])
            split, classes = entry["split"], entry["classes"]
            if entry["schema"] != SCHEMA or not path.name.startswith(f"{split}-") or split not in seen.counts:
                yield f"its footer says {entry['schema']!r} and split {split!r}"
                return
            row_groups = read_footer(path)
            if len(classes) != len(row_groups):
                yield f"its footer lists {len(classes)} classes, but it has {len(row_groups)} row groups"
                return
            for index, (name, rows) in enumerate(classes):
                _check_row_group(path, row_groups[index], facts["dim"])
                yield from _class_faults(
                    file.read_row_group(index, use_threads=False), path.name, split, name, rows, seen
                )
    except ArtifactError as error:
        yield str(error)
    except (
        OSError,
        pa.ArrowException,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        IndexError,
    ) as error:
        yield f"cannot be read as a file of features ({error!r})"


def _check_row_group(path: Path, row_group: RowGroup, dim: int) -> None:
    """Check that none of its columns takes more memory than its rows should."""
    rows = row_group.rows
    for column, (values, each) in enumerate(((rows, LONGEST_NAME), (rows, LONGEST_NAME), (rows * dim, 4))):
        check_pages(path, row_group, column, values=values, size=values * each)


def _class_faults(table: pa.Table, file: str, split: str, name: str, rows: int, seen: _Seen) -> Iterator[str]:
    """What is wrong with one row group, which should be one class."""
    table.validate(full=True)
    if table.num_rows != rows:
        yield f"class {name!r} has {table.num_rows} rows, but its footer lists {rows}"
    if name in seen.file_of:
        yield f"class {name!r} is also in {seen.file_of[name]}"
    last = seen.last.get(split)
    if last is not None and last.encode("utf-8") > name.encode("utf-8"):
        yield f"class {name!r} comes after {last!r}: the classes of a split are in bytewise order"
    seen.file_of[name], seen.last[split] = file, name
    seen.counts[split][name] = table.num_rows
    others = set(table.column("class_name").to_pylist()) - {name}
    if others:
        yield f"class {name!r} has rows of {others.pop()!r} in its row group"
    images = table.column("image").to_pylist()
    column = table.column("embedding").combine_chunks()
    if None in images or column.null_count or column.flatten().null_count:
        yield f"class {name!r} has rows without an image or an embedding"
        return
    yield from _image_faults(images, name, seen)
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(images), -1)
    for row in np.flatnonzero(~np.isfinite(values).all(axis=1)):
        yield f"the embedding of {images[row]!r} (class {name!r}) has values that are not finite"


def _image_faults(images: list[str], name: str, seen: _Seen) -> Iterator[str]:
    for first, second in pairwise(images):
        if first.encode("utf-8") > second.encode("utf-8"):
            yield f"image {second!r} comes after {first!r} in class {name!r}: images are in bytewise order"
            break
    for image in images:
        if image in seen.images:
            yield f"image {image!r} (class {name!r}) is there twice"
        seen.images.add(image)
        try:
            unescape(image)
        except ValueError as error:
            yield f"the image name in class {name!r} does not lead back to a file: {error}"


def _count_faults(listed: dict[str, dict[str, int]], found: dict[str, dict[str, int]]) -> Iterator[str]:
    """Where the manifest counts otherwise than the files."""
    for split in listed:
        for name in sorted({*listed[split], *found[split]}):
            said, there = listed[split].get(name, 0), found[split].get(name, 0)
            if said != there:
                yield f"says that the class {name!r} of {split} has {said} images, but its file has {there}"


def _failures_faults(path: Path, facts: dict[str, Any]) -> Iterator[str]:
    try:
        table = read_table(path)
    except ArtifactError as error:
        yield str(error)
        return
    if table.num_rows != facts["failures"] or "image" not in table.column_names:
        yield f"has {table.num_rows} rows, but the manifest says {facts['failures']} images could not be read"
