"""Embeddings in NumPy's files, with labels: `.npz`, and `.npy` with the labels beside it. Nothing is unpickled."""

import csv
import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from leokit.errors import DataError
from leokit.features.labelled import LabelledRows
from leokit.images.scan import escape

_EMBEDDINGS = ("embeddings", "features")
_ROOM, _RATIO = 2**28, 20  # bytes that a file may unpack to: so many, and so many for each byte that it has
_LABEL_SUFFIXES = (".labels.npy", ".labels.csv", ".labels.txt")


def read_npz(path: Path) -> LabelledRows:
    """Read a `.npz` file: `embeddings` or `features`, (n, D), `labels`, (n,), and `images`, (n,), if it has names.

    Raises:
        DataError: missing, no NumPy file, an array of objects, or arrays that do not fit together.
    """
    arrays = _load(path)
    if not isinstance(arrays, dict):
        raise DataError(f"{path} is one array: call it .npy, or put 'embeddings' and 'labels' into one file.")
    named = [name for name in _EMBEDDINGS if name in arrays]
    if len(named) != 1 or "labels" not in arrays:
        raise DataError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or '(none)'}: it needs 'embeddings' (or 'features') and "
            "'labels'."
        )
    images = _names(path, "images", arrays["images"]) if "images" in arrays else None
    return LabelledRows.checked(path, arrays[named[0]], _names(path, "labels", arrays["labels"]), images)


def read_npy(path: Path) -> LabelledRows:
    """Read a `.npy` file, (n, D), with its labels, see `labels_of`.

    Labels are an array (n,) of strings or integers, a text file with a label on each line, or a CSV file with the
    column `class_name` (or `label`) and, where there are names, `image`.

    Raises:
        DataError: missing, no NumPy file, an array of objects, or arrays that do not fit together.
    """
    embeddings, beside = _load(path), labels_of(path)
    if isinstance(embeddings, dict):
        raise DataError(f"{path} has several arrays: call it .npz.")
    if beside.suffix == ".csv":
        return LabelledRows.checked(path, embeddings, *_read_csv(beside))
    if beside.suffix == ".txt":
        lines = _read_text(beside).removesuffix("\n").split("\n")
        return LabelledRows.checked(path, embeddings, _escaped(lines))
    labels = _load(beside)
    if isinstance(labels, dict):
        raise DataError(f"{beside} has several arrays: one of labels is needed.")
    return LabelledRows.checked(path, embeddings, _names(beside, "labels", labels))


def labels_of(path: Path) -> Path:
    """The file of labels that belongs to `NAME.npy`: `NAME.labels.npy`, `NAME.labels.csv` or `NAME.labels.txt`.

    Raises:
        DataError: there is none, or more than one.
    """
    candidates = [path.with_suffix(suffix) for suffix in _LABEL_SUFFIXES]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if len(found) != 1:
        raise DataError(
            f"The labels of {path} must lie beside it in one file {' or '.join(file.name for file in candidates)}; "
            f"there is {' and '.join(file.name for file in found) or 'none'}."
        )
    return found[0]


def _load(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array or arrays of a file, none of them of objects."""
    try:
        with path.open("rb") as file:  # which NumPy leaves open where it is no zip file
            _refuse_bomb(path, file)
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged file fails in zip, in NumPy's header or in its data
        what = " ".join(str(error).split())
        raise DataError(f"{path} is no NumPy file that can be read without unpickling ({what}).") from error


def _refuse_bomb(path: Path, file: BinaryIO) -> None:
    """Refuse a zip file that unpacks to far more than embeddings can; the place in `file` stays.

    Raises:
        DataError: it would.
    """
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    packed = file.seek(0, os.SEEK_END)
    file.seek(0)
    if unpacked > _ROOM + _RATIO * packed:
        raise DataError(
            f"{path} is refused: it has {packed} bytes and would unpack to {unpacked}. Write it anew, without "
            "compression."
        )


def _names(path: Path, what: str, values: NDArray[Any]) -> list[str]:
    """Strings or integers as names."""
    if values.ndim != 1 or values.dtype.kind not in "SUiu":
        raise DataError(
            f"The {what} in {path} have the shape {values.shape} and the type {values.dtype}: a string or an integer "
            "for each row is needed."
        )
    try:
        return _escaped(values.tolist())
    except (ValueError, SystemError) as error:  # four bytes that are no character
        raise DataError(f"The {what} in {path} are no text ({error}): write them anew.") from error


def _escaped(values: Iterable[str | bytes | int]) -> list[str]:
    return [
        escape(value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")) for value in values
    ]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"The labels {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The labels {path} are no text in UTF-8: {error}.") from error


def _read_csv(path: Path) -> tuple[list[str], list[str] | None]:
    """The column of labels and, if there is one, that of images."""
    reader = csv.reader(io.StringIO(_read_text(path)), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"The labels {path} are no CSV: {error}.") from error
    named = [name for name in header if name in ("class_name", "label")]
    if len(named) != 1 or header.count("image") > 1:
        raise DataError(
            f"The labels {path} have the header {','.join(header)!r}: it needs class_name (or label) once, image at "
            "most once."
        )
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}.")
    columns = {name: _escaped(row[index] for _, row in rows) for index, name in enumerate(header)}
    return columns[named[0]], columns.get("image")
