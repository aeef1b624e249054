"""The support set of a user: images by class, from a tree of folders or from a CSV file."""

import csv
import io
import os
from collections import defaultdict
from pathlib import Path

from leokit.errors import DataError, UsageError
from leokit.images.scan import ImageTree, escape, scan

_LONGEST = 2**26  # bytes of a CSV file
_COLUMNS = (  # the names of the two columns of a list, those of leokit first
    ("image", "filename", "file_name", "file", "path", "image_name", "image_path"),
    ("label", "class", "class_name"),
)


def read_support(path: Path, class_level: str | None = None) -> ImageTree:
    """The classes of a support set with their images.

    Args:
        path: a tree of images, a folder for each class (see `scan`); or a CSV file with the columns `image` and
            `label` (see `_COLUMNS` for other names), whose paths are as seen from its folder or the working directory.
        class_level: which folders of a tree are classes, see `scan`.

    Raises:
        DataError: neither, fewer than two classes, or a CSV file that is damaged, names an image twice, or has a class
            none of whose images is there.
        UsageError: a class level that is none, or one of a CSV file.
    """
    is_tree = os.path.isdir(path)
    if class_level is not None and not is_tree:
        raise UsageError(f"--class-level {class_level} with the support set {path}: only a folder has levels.")
    tree = scan(path, class_level) if is_tree else _read_csv(path)
    if len(tree.classes) < 2:
        raise DataError(
            f"The support set {path} has one class, {next(iter(tree.classes))!r}: at least 2 are needed to tell apart."
            f"{''.join(f' {text}' for text in tree.said)}"
        )
    return tree


def empty_folders(path: Path, tree: ImageTree) -> list[str]:
    """The folders in a support set, as `escape` gives their names, under which there is no image: no classes."""
    if not os.path.isdir(path):
        return []
    used = {image.partition("/")[0] for images in tree.classes.values() for image in images}
    found = [escape(os.fsencode(entry.name)) for entry in os.scandir(path) if entry.is_dir()]
    return sorted(name for name in found if name not in used and f"{name}/" not in tree.ignored)


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
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")  # some spreadsheets write the others
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"The support set {path}, line {reader.line_num}, is no CSV: {error}.") from error
    image, label = (_column(header, names) for names in _COLUMNS)
    if image is None or label is None:
        raise DataError(
            f"The support set {path} has the header {first.strip()[:200]!r}: it must be image,label or filename,label, "
            "maybe with other columns."
        )
    listed = []
    for line, row in rows:
        if len(row) < len(header) or any(cell.strip() for cell in row[len(header) :]):
            raise DataError(f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}.")
        if not row[label].strip() or not row[image].strip() or "\0" in row[image]:
            raise DataError(f"{path}, line {line}: an image and a label are needed, found {row!r}.")
        listed.append((line, row[image], row[label].strip()))
    return _tree(path, listed)


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    """The place of a column: of the first name if it is there, else of the only one with another name."""
    found = [place for place, name in enumerate(header) if name == names[0]]
    found = found or [place for place, name in enumerate(header) if name in names]
    return found[0] if len(found) == 1 else None


def _tree(path: Path, listed: list[tuple[int, str, str]]) -> ImageTree:
    """The classes of a list whose rows have a line, an image and a label."""
    places = list(dict.fromkeys((os.path.abspath(path.parent), os.getcwd())))
    classes: dict[str, list[str]] = defaultdict(list)
    first: dict[str, int] = {}
    lost: dict[str, list[str]] = defaultdict(list)
    for line, name, label in listed:
        found = _find(name, places)
        image = escape(os.fsencode(found or name))
        if image in first:
            raise DataError(f"{path}, line {line}: the image {name!r} stands in line {first[image]} already.")
        first[image] = line
        classes[label].append(image)
        if found is None:
            lost[label].append(name)
    if not classes:
        raise DataError(f"The support set {path} names no image.")
    looked = f"paths were looked for below {' and '.join(places)}"
    for label, names in lost.items():
        if len(names) == len(classes[label]):
            raise DataError(
                f"The class {label!r} of the support set has no image that is there, as {names[0]!r}: {looked}."
            )
    missing = [name for names in lost.values() for name in names]
    said = (f"Images of {path} that are not there: {len(missing)}, as {missing[0]!r}; {looked}.",) if missing else ()
    by_name = sorted(classes, key=lambda name: name.encode("utf-8"))
    return ImageTree(path.parent, {name: tuple(classes[name]) for name in by_name}, (), said=said)


def _find(name: str, places: list[str]) -> str | None:
    """The path of an image that a list names, as it is written where that is in the folder of the list.

    Args:
        name: as it is written, maybe with spaces around it or as Windows separates folders.
        places: that it may be in, the folder of the list first.
    """
    for text in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
        for place in places:
            path = os.path.join(place, text)
            if os.path.lexists(path) and not os.path.isdir(path):
                return text if place == places[0] else path
    return None
