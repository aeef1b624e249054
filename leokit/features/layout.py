"""What a feature file looks like, and which classes lie in which file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

SCHEMA = "leokit/features@1"
FOOTER_KEY = b"leokit"
SHARDS = 64
SHARD_ROWS = (512, 8192)
FAILURES = "failures.parquet"  # the images that could not be read

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class Shard:
    """A file to be: some consecutive classes of a split.

    Attributes:
        name: of the file.
        split: train, val or test.
        classes: for each class its images, in the order of their rows.
    """

    name: str
    split: str
    classes: Mapping[str, tuple[str, ...]]

    @property
    def rows(self) -> int:
        """Number of images."""
        return sum(len(images) for images in self.classes.values())


def plan_shards(splits: Mapping[str, Mapping[str, Sequence[str]]], *, rows: int | None = None) -> tuple[Shard, ...]:
    """Divide the classes of each split among files of about `rows` rows, in order, no class in two files.

    By default there are about `SHARDS` of them, within `SHARD_ROWS`: enough to divide among many ranks and to lose
    little when one dies, and none so small that there are needlessly many.
    """
    if rows is None:
        total = sum(len(images) for classes in splits.values() for images in classes.values())
        rows = min(max(total // SHARDS, SHARD_ROWS[0]), SHARD_ROWS[1])
    return tuple(shard for split, classes in splits.items() for shard in _shards_of(split, classes, rows))


def _shards_of(split: str, classes: Mapping[str, Sequence[str]], rows: int) -> list[Shard]:
    parts: list[dict[str, tuple[str, ...]]] = []
    filled = rows
    for name, images in classes.items():
        if filled >= rows or (filled and filled + len(images) > rows):
            parts.append({})
            filled = 0
        parts[-1][name] = tuple(images)
        filled += len(images)
    return [Shard(f"{split}-{index:05d}-of-{len(parts):05d}.parquet", split, part) for index, part in enumerate(parts)]


def arrow_schema(dim: int, dtype: Dtype) -> pa.Schema:
    """The columns of a feature file."""
    item = pa.field("item", pa.float16() if dtype == "float16" else pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("image", pa.string(), nullable=False),
            pa.field("class_name", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("embedding", pa.list_(item, dim), nullable=False),
        ]
    )


def footer(split: str, counts: Mapping[str, int]) -> bytes:
    """The entry of a file's footer that lists its classes, one for each row group."""
    value: dict[str, Any] = {"schema": SCHEMA, "split": split, "classes": list(counts.items())}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
