"""Reading the lists that say which class, or which image, belongs to which split.

Two kinds: a table `class_name,split` (whole classes), and a folder of `train.csv`, `val.csv`, `test.csv` whose rows
name an image and its class (`filename,label` or `class_name,image_name`), which choose images inside the classes.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from leokit.errors import DataError

SPLIT_NAMES = ("train", "val", "test")

_IMAGE_HEADERS = {("filename", "label"), ("class_name", "image_name")}
_CLASS_COLUMNS = {"label", "class_name"}


@dataclass(frozen=True)
class ListedClass:
    """A row of a class list."""

    name: str
    split: str
    where: str


@dataclass(frozen=True)
class ListedImage:
    """A row of an image list; `image` as it is written there."""

    class_name: str
    image: str
    split: str
    where: str


def read_class_list(path: Path) -> list[ListedClass]:
    """The rows of a table `class_name,split`.

    Raises:
        DataError: unreadable, another header, or a split that is none of train, val, test.
    """
    header, rows = _read_csv(path)
    if set(header) != {"class_name", "split"} or len(header) != 2:
        raise _bad_header(path, header, "class_name,split")
    listed = [ListedClass(row[header.index("class_name")], row[header.index("split")], where) for where, row in rows]
    for entry in listed:
        if entry.split not in SPLIT_NAMES:
            raise DataError(f"{entry.where}: split {entry.split!r} is none of {', '.join(SPLIT_NAMES)}.")
    return listed


def read_image_lists(folder: Path) -> list[ListedImage]:
    """The rows of `train.csv`, `val.csv` and `test.csv` in a folder, in this order.

    Raises:
        DataError: a file is missing, unreadable, or has another header.
    """
    missing = [f"{split}.csv" for split in SPLIT_NAMES if not (folder / f"{split}.csv").is_file()]
    if missing:
        raise DataError(
            f"The folder of image lists {folder} has no {', '.join(missing)}: "
            "it must hold train.csv, val.csv and test.csv."
        )
    return [row for split in SPLIT_NAMES for row in _read_image_list(folder / f"{split}.csv", split)]


def _read_image_list(path: Path, split: str) -> list[ListedImage]:
    header, rows = _read_csv(path)
    if tuple(sorted(header)) not in _IMAGE_HEADERS:
        raise _bad_header(path, header, "filename,label or class_name,image_name")
    label = next(index for index, column in enumerate(header) if column in _CLASS_COLUMNS)
    return [ListedImage(row[label], row[1 - label], split, where) for where, row in rows]


def _read_csv(path: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The header of a CSV file and its other rows, each with the place where it stands; empty lines left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [column.strip() for column in next(reader, [])]
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader if row]
    except OSError as error:
        raise DataError(f"The split list {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The split list {path} is no CSV in UTF-8: {error}.") from error
    for where, row in rows:
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} fields, but the header has {len(header)}.")
    return header, rows


def _bad_header(path: Path, found: list[str], allowed: str) -> DataError:
    return DataError(f"The split list {path} has the header {','.join(found)!r}; it must be {allowed}.")
