"""Reading features: a class without touching the others, or a whole split as one class-sorted matrix."""

import copy
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leokit import manifest
from leokit.errors import ArtifactError, DataError
from leokit.features.layout import FOOTER_KEY, SCHEMA, arrow_schema
from leokit.parquet import BYTE_ARRAY, PLAIN_ENCODINGS, UNCOMPRESSED, RowGroup, measure, read_footer
from leokit.splits import SPLIT_NAMES, TRAINED_ON

_COLUMNS = 3
_HEADER = 64  # bytes that the header of a page is shorter than
_ROOM, _RATIO = 2**26, 20  # values that a store may have: so many, and so many for each byte of its files
_SPREAD, _SLACK = 4, 2**20  # how much more than its values, and how many bytes in any case, a column may take
LONGEST_NAME = 2**14  # bytes; a path of 4096, each byte escaped as four


@dataclass(frozen=True)
class FeatureTable:
    """The features of a split, or of several, in memory.

    Attributes:
        embeddings: (n, D) in the stored type, sorted by class.
        classes: names of the C classes, in order.
        offsets: (C + 1,) int64: the rows of class c are offsets[c] to offsets[c + 1].
    """

    embeddings: NDArray[np.floating[Any]]
    classes: list[str]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class _Group:
    """Where a class lies."""

    name: str
    rows: int
    path: Path
    index: int  # of the row group in its file
    row_group: RowGroup
    metadata: Any  # of the file


def read_recorded(folder: Path) -> manifest.Artifact:
    """A feature store as its manifest describes it: no other file of it is opened.

    Raises:
        ArtifactError: missing, unfinished, of another kind, or its manifest is not that of a store.
    """
    found = manifest.read(folder, SCHEMA)
    try:
        _check_facts(found.facts)
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{folder} is no feature store that can be read ({error}): make it again with --overwrite."
        ) from error
    return manifest.Artifact(folder, found)


class FeatureStore(manifest.Artifact):
    """A finished feature artifact, opened for reading; its files' footers are read, and no more.

    Its facts are those of `leokit.features.facts_of`.

    Example:
        >>> features = FeatureStore.open(work / "features")
        >>> features.splits, features.dim
        (['train', 'val', 'test'], 24)
        >>> name = features.classes("test")[0]
        >>> features.read_class("test", name).shape == (features.counts("test")[0], features.dim)
        True
    """

    def __init__(self, folder: Path, checked: manifest.Manifest) -> None:
        """Index a store whose files were already checked against the manifest; `open` is the way from outside."""
        super().__init__(folder, checked)
        try:
            self._groups = _index(folder, checked)
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            what = " ".join(repr(error).split())
            raise ArtifactError(
                f"{folder} is no feature store that can be read ({what}): make it again with --overwrite."
            ) from error

    @classmethod
    def open(cls, folder: Path | str, splits: Sequence[str] | None = None) -> Self:
        """Open the feature store in a folder, every file checked against its recorded hash.

        Args:
            folder: of the store.
            splits: the ones to open, as if it held no others: files of the others need not even be there; None: all.

        Raises:
            ArtifactError: missing, unfinished, of another kind, altered, or damaged.
        """
        folder = Path(folder)
        checked = manifest.read(folder, SCHEMA)
        if splits is not None:
            checked = _of_splits(checked, splits)
        manifest.check_files(folder, checked)
        return cls(folder, checked)

    @property
    def splits(self) -> list[str]:
        """The splits that it holds."""
        return list(self._groups)

    @property
    def dim(self) -> int:
        """Length of an embedding (D)."""
        return int(self.facts["dim"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type of the embeddings."""
        dtype: np.dtype[Any] = np.dtype(self.facts["dtype"])
        return dtype

    def without(self, left_out: Mapping[str, Collection[str]]) -> Self:
        """The same store, read as if it had no such classes, which are named for each split; its facts stay."""
        smaller = copy.copy(self)
        smaller._groups = {
            split: [group for group in groups if group.name not in left_out.get(split, ())]
            for split, groups in self._groups.items()
        }
        return smaller

    def classes(self, split: str) -> list[str]:
        """Names of the classes of a split, in order."""
        return [group.name for group in self._of(split)]

    def counts(self, split: str) -> NDArray[np.int64]:
        """Number of images of each class of a split, (C,)."""
        return np.array([group.rows for group in self._of(split)], np.int64)

    def read_class(self, split: str, name: str) -> NDArray[np.floating[Any]]:
        """The embeddings of one class, (n, D), read without touching the other classes.

        Raises:
            DataError: no such split or class.
        """
        for group in self._of(split):
            if group.name == name:
                with _reading(group.path):
                    return _embeddings(group, self.dim)
        raise DataError(f"The split {split!r} of {self.folder} has no class {name!r}.")

    def each_class(self, split: str) -> Iterator[NDArray[np.floating[Any]]]:
        """The embeddings of one class after the other, (n, D) each, in the memory of one class.

        Raises:
            DataError: no such split.
        """
        for group in self._of(split):
            rows = np.empty((group.rows, self.dim), self.dtype)
            yield rows if _read_plain(group, rows) else _embeddings(group, self.dim)

    def images(self, split: str) -> list[str]:
        """The images of a split, (n,), in the order of the rows."""
        images: list[str] = []
        for group in self._of(split):
            with _reading(group.path):
                images += _read(group, "image").column("image").to_pylist()
        return images

    def load(self, *splits: str) -> FeatureTable:
        """All features of one or more splits as one class-sorted matrix, read by several threads.

        The classes of several splits stand one split after the other.

        Raises:
            DataError: no such split.
        """
        groups = [group for split in splits for group in self._of(split)]
        offsets = np.concatenate([[0], np.cumsum([group.rows for group in groups])]).astype(np.int64)
        rows = np.empty((int(offsets[-1]), self.dim), self.dtype)

        def fill(item: tuple[_Group, tuple[np.int64, np.int64]]) -> None:
            group, (start, end) = item
            with _reading(group.path):
                if not _read_plain(group, rows[start:end]):
                    rows[start:end] = _embeddings(group, self.dim)

        with ThreadPoolExecutor() as pool:  # files are read outside of the interpreter lock
            list(pool.map(fill, zip(groups, pairwise(offsets), strict=True)))
        return FeatureTable(rows, [group.name for group in groups], offsets)

    def _of(self, split: str) -> Sequence[_Group]:
        if split not in self._groups:
            raise DataError(f"{self.folder} has no split {split!r}; it has {', '.join(self._groups)}.")
        return self._groups[split]


def _of_splits(found: manifest.Manifest, splits: Sequence[str]) -> manifest.Manifest:
    """A store's manifest with some of its splits alone."""
    names = tuple(f"{split}-" for split in splits)
    counts = {split: classes for split, classes in found.facts["counts"].items() if split in splits}
    files = {name: entry for name, entry in found.files.items() if name.startswith(names)}
    return replace(found, files=files, facts={**found.facts, "counts": counts})


def _index(folder: Path, checked: manifest.Manifest) -> dict[str, list[_Group]]:
    """The classes of every split, from the footers of its files."""
    facts = checked.facts
    _check_facts(facts)
    expected = arrow_schema(facts["dim"], facts["dtype"])
    groups: dict[str, list[_Group]] = {split: [] for split in sorted(facts["counts"], key=SPLIT_NAMES.index)}
    size = 0
    for path in sorted(folder / name for name in checked.files if name.startswith(tuple(f"{s}-" for s in groups))):
        size += path.stat().st_size
        with path.open("rb") as file:  # not by its path, of which pyarrow takes UTF-8 alone
            metadata = pq.read_metadata(file)
        row_groups = read_footer(path)
        entry = json.loads(metadata.metadata[FOOTER_KEY])
        if not metadata.schema.to_arrow_schema().equals(expected) or len(entry["classes"]) != len(row_groups):
            raise ValueError(f"{path.name}: its columns or row groups are not as its manifest says")
        for index, (name, rows) in enumerate(entry["classes"]):
            if row_groups[index].rows != rows or len(row_groups[index].columns) != _COLUMNS:
                raise ValueError(f"{path.name}: row group {index} is not the class {name!r} of {rows} images")
            groups[entry["split"]].append(_Group(name, rows, path, index, row_groups[index], metadata))
    if {split: {group.name: group.rows for group in listed} for split, listed in groups.items()} != facts["counts"]:
        raise ValueError("its files do not hold the classes that its manifest lists")
    taken = sum(group.rows for listed in groups.values() for group in listed) * facts["dim"]
    if taken > _ROOM + _RATIO * size:
        raise ValueError(f"{taken} values in {size} bytes")
    return groups


def _check_facts(facts: dict[str, Any]) -> None:
    """Whether the facts that reading goes by are of their kinds.

    Raises:
        ValueError: one is not.
    """
    backbone, trained_on = facts["backbone"], facts["trained_on"]
    right = {
        "dim": isinstance(facts["dim"], int) and 0 < facts["dim"] < 2**31,
        "dtype": facts["dtype"] in ("float16", "float32"),
        "counts": isinstance(facts["counts"], dict)
        and all(isinstance(of, dict) and all(type(n) is int for n in of.values()) for of in facts["counts"].values()),
        "backbone": backbone is None or isinstance(backbone, dict),
        "trained_on": trained_on in TRAINED_ON
        if isinstance(trained_on, str)
        else isinstance(trained_on, list) and all(isinstance(name, str) for name in trained_on),
    }
    for key, fits in right.items():
        if not fits:
            raise ValueError(f"its {key} is {facts[key]!r:.60}")


def check_pages(path: Path, row_group: RowGroup, column: int, *, values: int, size: int) -> None:
    """Check that a column of a row group takes no more memory than it should, before it is read.

    Args:
        path: of the file.
        row_group: of the file.
        column: number of the column.
        values: that it should have.
        size: bytes that they should take.

    Raises:
        ArtifactError: its pages say otherwise.
        ValueError: they are none.
    """
    found = row_group.columns[column]
    pages = measure(path, found)
    listed = found.dictionary_page is not None and found.kind == BYTE_ARRAY
    written_out = pages.largest * values if listed else 0
    most = min(values, _ROOM + _RATIO * path.stat().st_size)
    if pages.values > most or pages.total > _SPREAD * size + _SLACK or written_out > 4 * _ROOM + _SPREAD * size:
        raise ArtifactError(
            f"{path} is refused: a column ({found.path}) of {values} values would unpack to {pages.values} "
            f"values and {max(pages.total, written_out)} bytes. Make the artifact again with --overwrite."
        )


def _read(group: _Group, column: str) -> pa.Table:
    if column == "image":
        check_pages(group.path, group.row_group, 0, values=group.rows, size=group.rows * LONGEST_NAME)
    else:
        values = group.rows * group.metadata.schema.to_arrow_schema().field(column).type.list_size
        check_pages(group.path, group.row_group, -1, values=values, size=4 * values)
    with group.path.open("rb") as opened, pq.ParquetFile(opened, metadata=group.metadata) as file:
        table = file.read_row_group(group.index, columns=[column], use_threads=False)
    table.validate(full=True)
    return table


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell what damage a file does to its readers.

    Raises:
        ArtifactError: in place of whatever they raise.
    """
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, IndexError, OverflowError) as error:
        raise ArtifactError(
            f"{path} is damaged ({' '.join(str(error).split())}): make it again with --overwrite."
        ) from error


def _read_plain(group: _Group, rows: NDArray[np.floating[Any]]) -> bool:
    """Read the embeddings of a class straight into `rows` (n, D), where the file allows: whether it did.

    It does where they are one page of plain values, as `ShardWriter` makes them: then the values are the end of the
    page, as they lie in memory. Nothing is decoded and nothing copied twice, which is several times as fast.
    """
    column = group.row_group.columns[-1]
    plain = column.codec == UNCOMPRESSED and column.encodings <= PLAIN_ENCODINGS
    if not plain or column.dictionary_page is not None or sys.byteorder != "little":
        return False
    length = column.size
    with group.path.open("rb", buffering=0) as file:
        page = _page_size(os.pread(file.fileno(), _HEADER, column.data_page))
        if page is None or not 0 < length - page < _HEADER or page < rows.nbytes:
            return False  # several pages
        file.seek(column.data_page + length - rows.nbytes)
        view = rows.data.cast("B")
        while view:
            count = file.readinto(view)
            if not count:
                raise ArtifactError(f"{group.path} ends too early: make it again with --overwrite.")
            view = view[count:]
    return True


def _page_size(header: bytes) -> int | None:
    """Bytes of a data page, by its header: in Thrift's compact form, type, size unpacked and size as stored first."""
    numbers, position = [], 0
    for _ in range(3):
        if header[position : position + 1] != b"\x15":  # the next field, a 32-bit number
            return None
        position, number, shift = position + 1, 0, 0
        while True:
            byte = header[position]
            number |= (byte & 127) << shift
            position, shift = position + 1, shift + 7
            if byte < 128:
                break
        numbers.append((number >> 1) ^ -(number & 1))
    return numbers[2] if numbers[0] == 0 and numbers[1] == numbers[2] else None


def _embeddings(group: _Group, dim: int) -> NDArray[np.floating[Any]]:
    column = _read(group, "embedding").column("embedding").combine_chunks()
    values: NDArray[np.floating[Any]] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(group.rows, dim)
