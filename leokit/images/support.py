"""The support set of a user: images by class, from a tree of folders or from a CSV file."""

import csv
import io
import os
from collections import defaultdict
from pathlib import Path

from leokit.errors import DataError
from leokit.images.scan import ImageTree, escape, scan

_LONGEST = 2**26  # bytes of a CSV file


def read_support(path: Path) -> ImageTree:
    """The classes of a support set with their images.

    Args:
        path: a tree of images, a folder for each class (see `scan`); or a CSV file with the columns `image` and
            `label`, whose paths are as seen from its folder.

    Raises:
        DataError: neither, fewer than two classes, or a CSV file that is damaged or names an image twice.
    """
    tree = scan(path) if os.path.isdir(path) else _read_csv(path)
    if len(tree.classes) < 2:
        raise DataError(
            f"The support set {path} has one class, {next(iter(tree.classes))!r}: at least 2 are needed to tell apart."
        )
    return tree


def empty_folders(path: Path, tree: ImageTree) -> list[str]:
    """The folders in a support set, as `escape` gives their names, under which there is no image: no classes."""
    if not os.path.isdir(path):
        return []
    used = {image.partition("/")[0] for images in tree.classes.values() for image in images}
    found = [escape(os.fsencode(entry.name)) for entry in os.scandir(path) if entry.is_dir()]
    return sorted(name for name in found if name not in used and not name.startswith("."))


def _read_csv(path: Path) -> ImageTree:
    if not os.path.exists(path):
        raise DataError(
            f"There is no support set at {path}: give a folder with one folder of images per class, or a CSV file "
            "image,label."
        )
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise DataError(f"The support set {path} has more than {_LONGEST >> 20} MB: it must be a list of images.")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"The support set {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The support set {path} is no text in UTF-8 ({error}).") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"The support set {path}, line {reader.line_num}, is no CSV: {error}.") from error
    if sorted(header) != ["image", "label"]:
        raise DataError(f"The support set {path} has the header {','.join(header)!r}: it must be image,label.")
    return _tree(path, header, rows)


def _tree(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> ImageTree:
    classes: dict[str, list[str]] = defaultdict(list)
    first: dict[str, int] = {}
    for line, row in rows:
        if len(row) != 2:
            raise DataError(f"{path}, line {line}: {len(row)} fields, but the header has 2.")
        named = dict(zip(header, row, strict=True))
        label = named["label"].strip()
        if not label or not named["image"] or "\0" in named["image"]:
            raise DataError(f"{path}, line {line}: an image and a label are needed, found {row!r}.")
        image = escape(os.fsencode(named["image"]))
        if image in first:
            raise DataError(f"{path}, line {line}: the image {named['image']!r} stands in line {first[image]} already.")
        first[image] = line
        classes[label].append(image)
    if not classes:
        raise DataError(f"The support set {path} names no image.")
    by_name = sorted(classes, key=lambda name: name.encode("utf-8"))
    return ImageTree(path.parent, {name: tuple(classes[name]) for name in by_name}, ())
