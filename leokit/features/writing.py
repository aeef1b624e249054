"""Writing features: a file class by class in the memory of one class, or a whole store at once."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import signature
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leokit import manifest
from leokit.errors import DataError
from leokit.features.layout import FOOTER_KEY, SCHEMA, Dtype, arrow_schema, footer, plan_shards
from leokit.features.store import FeatureStore
from leokit.provenance import information
from leokit.splits import classes_seen

# The embeddings of a class as one page: its values lie in the file as they lie in memory, where the store's reader
# takes them from without decoding. Up to a size that Parquet's 32-bit lengths can say; beyond, there are several pages.
_ONE_PAGE: dict[str, Any] = {"data_page_size": 1 << 30}
if "max_rows_per_page" in signature(pq.ParquetWriter).parameters:  # newer than pyarrow 21
    _ONE_PAGE["max_rows_per_page"] = 1 << 30


class ShardWriter:
    """Writes one feature file; use it as a context.

    The file appears under its name when the context ends well, complete and on disk; never in part.
    """

    def __init__(self, path: Path, split: str, *, dim: int, dtype: Dtype) -> None:
        self.counts: dict[str, int] = {}
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._split = split
        self._dtype = np.dtype(dtype)
        self._schema = arrow_schema(dim, dtype)
        self._writer: Any = None

    def __enter__(self) -> Self:
        # Embeddings are as good as random: neither a dictionary nor compression nor minima and maxima would help.
        self._file = self._temporary.open("wb")  # not by its path, of which pyarrow takes UTF-8 alone
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="none",
            use_dictionary=["class_name"],
            write_statistics=["image", "class_name"],
            **_ONE_PAGE,
        )
        return self

    def write_class(self, name: str, images: Sequence[str], embeddings: NDArray[np.floating[Any]]) -> None:
        """Add a class as the next row group.

        Args:
            name: of the class.
            images: (n,) paths, n ≥ 1.
            embeddings: (n, D), converted to the store's type.

        Raises:
            DataError: a value that is no number, or that the store's type cannot hold.
        """
        dim = self._schema.field("embedding").type.list_size
        if embeddings.shape != (len(images), dim) or not len(images) or name in self.counts:
            raise ValueError(f"class {name!r}: {embeddings.shape} embeddings for {len(images)} images, D = {dim}")
        stored = _convert(name, images, embeddings, self._dtype)
        columns = [
            pa.array(images, pa.string()),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(images), np.int32)), pa.array([name])),
            pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), type=self._schema.field("embedding").type),
        ]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(images))
        self.counts[name] = len(images)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(OSError):  # as on a full disk, which is what the error is about
                self._writer.close()
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)
            return
        try:
            self._writer.add_key_value_metadata({FOOTER_KEY: footer(self._split, self.counts)})
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._path)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise


def _convert(
    name: str, images: Sequence[str], embeddings: NDArray[np.floating[Any]], dtype: np.dtype[Any]
) -> NDArray[np.floating[Any]]:
    with np.errstate(over="ignore"):  # looked for below
        stored = np.ascontiguousarray(embeddings, dtype)
    bad = ~np.isfinite(stored).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        value = embeddings[row][~np.isfinite(stored[row])][0]
        advice = "Use --dtype float32." if np.isfinite(value) else "The backbone or its weights do not work."
        raise DataError(
            f"The embedding of {images[row]!r} (class {name!r}) has the value {value:g}, which {dtype} cannot hold. "
            f"{advice}"
        )
    return stored


def facts_of(
    counts: Mapping[str, Mapping[str, int]],
    *,
    dim: int,
    dtype: Dtype,
    backbone: Mapping[str, Any] | None = None,
    trained_on: str | Sequence[str] = "unknown",
    failures: int = 0,
    split_source: str | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    """The facts of a feature store, which later stages check.

    Args:
        counts: images of each class of each split.
        dim: length of an embedding (D).
        dtype: stored type.
        backbone: name, weights_sha256, layer, preprocessing, views; None where the features come from elsewhere.
        trained_on: what the backbone's weights were trained on, as `leokit.splits.classes_seen` takes it.
        failures: number of images that could not be read.
        split_source: where the division into splits comes from.
        note: what a reader of results must know about the division.
    """
    seen = {split: classes_seen(trained_on, list(classes)) for split, classes in counts.items()}
    return {
        "dim": dim,
        "dtype": dtype,
        "counts": {split: dict(classes) for split, classes in counts.items()},
        "backbone": None if backbone is None else dict(backbone),
        "trained_on": trained_on if isinstance(trained_on, str) else list(trained_on),
        "classes_seen": seen,
        "failures": failures,
        "split_source": split_source,
        "note": note,
    }


def write_store(
    folder: Path,
    splits: Mapping[str, Mapping[str, tuple[Sequence[str], NDArray[np.floating[Any]]]]],
    *,
    dtype: Dtype = "float16",
    config: Mapping[str, Any] | None = None,
    inputs: Mapping[str, manifest.Input] | None = None,
    overwrite: bool = False,
    **facts: Any,
) -> FeatureStore:
    """Write embeddings that are already in memory as a finished feature store.

    Args:
        folder: where it shall lie.
        splits: for each split and class the images (n,) and their embeddings (n, D); sorted here.
        dtype: stored type.
        config: what made the embeddings; part of the id.
        inputs: what they were made from; part of the id.
        overwrite: replace what another configuration made there.
        facts: as `facts_of` takes them: backbone, trained_on, failures, split_source, note.

    Returns:
        The store; the one that is there where the same config and inputs have finished there before.

    Raises:
        DataError: a value that `dtype` cannot hold.
        ArtifactError: the folder holds something else.
    """
    started = time.perf_counter()
    identified, inputs = {**(config or {}), "dtype": dtype}, dict(inputs or {})
    done = manifest.begin(folder, SCHEMA, identified, inputs, overwrite=overwrite)
    if done:
        return FeatureStore(folder, done)
    dim = next(rows.shape[1] for classes in splits.values() for _, rows in classes.values())
    shards = plan_shards(
        {split: {name: classes[name][0] for name in _bytewise(classes)} for split, classes in splits.items()}
    )
    for shard in shards:
        with ShardWriter(folder / shard.name, shard.split, dim=dim, dtype=dtype) as writer:
            for name in shard.classes:
                writer.write_class(name, *_sorted(*splits[shard.split][name]))
    counts: dict[str, dict[str, int]] = {split: {} for split in splits}
    for shard in shards:
        counts[shard.split] |= {name: len(images) for name, images in shard.classes.items()}
    finished = manifest.finish(
        folder,
        SCHEMA,
        identified,
        inputs,
        results=[shard.name for shard in shards],
        facts=facts_of(counts, dim=dim, dtype=dtype, **facts),
        info=information(started=started),
    )
    return FeatureStore(folder, finished)


def _sorted(
    images: Sequence[str], embeddings: NDArray[np.floating[Any]]
) -> tuple[list[str], NDArray[np.floating[Any]]]:
    order = sorted(range(len(images)), key=lambda index: images[index].encode("utf-8"))
    return [images[index] for index in order], embeddings[order]


def _bytewise(names: Mapping[str, Any]) -> list[str]:
    return sorted(names, key=lambda name: name.encode("utf-8"))
