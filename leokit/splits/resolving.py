"""From what a user names as splits to the classes and images of each split, checked against the images there are."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

import numpy as np

from leokit.errors import DataError, UsageError
from leokit.splits.lists import SPLIT_NAMES, ListedClass, ListedImage, read_class_list, read_image_lists

SPLITS_FILE = "splits.csv"
RANDOM = "random:"  # how a random division begins
BUILT_IN = ("miniimagenet", "tieredimagenet")

_IMAGES = {"miniimagenet": ("miniImageNet", 60_000), "tieredimagenet": ("tieredImageNet", 779_165)}
_LISTS = "a CSV file class_name,split, or a folder with train.csv, val.csv, test.csv"
_BY_NAME = ", ".join(BUILT_IN)
_RANDOM = "random:TRAIN/VAL/TEST"
_WAYS_TO_SAY = f"a {SPLITS_FILE} (class_name,split) in the image tree, or --splits with {_BY_NAME}, {_RANDOM}, {_LISTS}"
_WHY_VAL = (
    "probabilities are calibrated for at most as many classes as val has, and `leokit predict` calls images unknown "
    "only where val has more classes than the support set."
)


@dataclass(frozen=True)
class Splits:
    """The classes of each split, and the images that a list chose inside them.

    Attributes:
        classes: for each of train, val, test its class names, in bytewise order.
        source: where the division comes from, without any path.
        chosen: for each class whose images were listed, their paths relative to the image root, in bytewise order;
            of any other class all images count.
        note: what a reader of results must know about the division, where there is something.
    """

    classes: Mapping[str, tuple[str, ...]]
    source: str
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str | None = None

    def images(self, available: Mapping[str, Sequence[str]]) -> dict[str, dict[str, tuple[str, ...]]]:
        """The images of each class of each split, out of all that are there."""
        return {
            split: {name: tuple(self.chosen.get(name, available[name])) for name in names}
            for split, names in self.classes.items()
        }

    def canonical(self) -> dict[str, Any]:
        """Classes and chosen images as plain data: equal divisions are equal here, however they were named."""
        return {
            "classes": {split: list(names) for split, names in self.classes.items()},
            "chosen": {name: list(images) for name, images in self.chosen.items()},
        }


@dataclass(frozen=True)
class Listing:
    """What a list says by itself, before any image tree is looked at.

    Attributes:
        classes: for each of train, val, test its class names, in bytewise order.
        source: where it comes from, without any path.
        called: how a message names it.
        images: for each class whose images are listed, these rows; empty for a list of whole classes.
    """

    classes: Mapping[str, tuple[str, ...]]
    source: str
    called: str
    images: Mapping[str, tuple[ListedImage, ...]] = field(default_factory=dict)


Division = Mapping[str, Sequence[str]]  # the classes of each split


def resolve(
    spec: str | None,
    images: Path,
    available: Mapping[str, Sequence[str]],
    seed: int,
    division: Division = MappingProxyType({}),
) -> Splits:
    """The splits that a user named, checked against the classes and images of a tree.

    Args:
        spec: a name in `BUILT_IN`, `random:TRAIN/VAL/TEST`, a CSV file of classes, a folder of image lists, or None
            for what the tree says itself: its `splits.csv`, else `division`.
        images: root of the image tree.
        available: the images of each class there, as paths relative to the root.
        seed: of a random division.
        division: the classes in folders train, val and test of the tree, see `ImageTree`.

    Raises:
        UsageError: no such list or file, or a random division that is none.
        DataError: nothing there to divide by; a class or image that is not in the tree, or is named twice; an empty
            split; too few classes for a random division; a list with another header.
    """
    if spec is not None and spec.startswith(RANDOM):
        return replace(_random(spec, available, seed), note=_mixing_note(spec, division))
    listing = read_listing(spec, images, division)
    _check_present(listing, available)
    splits = Splits(listing.classes, listing.source, _choose(listing.images, available))
    return replace(splits, note=_built_in_note(splits, available))


def read_listing(spec: str | None, images: Path | None = None, division: Division = MappingProxyType({})) -> Listing:
    """The classes of each split as a list gives them, whatever images there are.

    Args:
        spec: a name in `BUILT_IN`, a CSV file of classes, a folder of image lists, or None for what the tree says:
            its `splits.csv`, else `division`. A random division is none: it follows from a tree.
        images: root of the image tree, where there is one.
        division: the classes in its folders train, val and test, see `ImageTree`.

    Raises:
        UsageError: no such list.
        DataError: another header, a class in two splits, or an empty split.
    """
    if spec is None:
        if images is None or not (images / SPLITS_FILE).is_file():
            return _by_folders(division)
        return _whole_classes(read_class_list(images / SPLITS_FILE), "class list")
    if spec in BUILT_IN:
        with as_file(files("leokit.splits") / f"{spec}.csv") as path:
            return _whole_classes(read_class_list(path), spec)
    if os.path.isdir(spec):
        return _image_lists(Path(spec))
    if os.path.isfile(spec):
        return _whole_classes(read_class_list(Path(spec)), "class list")
    ways = f"{_BY_NAME}, {_LISTS}" if images is None else f"{_BY_NAME}, {_RANDOM}, {_LISTS}"
    raise UsageError(f"splits = {spec!r}: no such list, file or folder. Name {ways}.")


def _by_folders(division: Division) -> Listing:
    """The division that folders train, val and test make, each of which has classes of its own.

    Raises:
        DataError: there are no such folders, or not all three.
    """
    missing = [split for split in SPLIT_NAMES if split not in division]
    if not missing:
        classes = {split: tuple(_bytewise(division[split])) for split in SPLIT_NAMES}
        return Listing(classes, "folders train, val, test", "the folders train, val and test")
    told = ""
    if division:
        counts = " and ".join(f"{len(names)} in its {split} folder" for split, names in division.items())
        told = f" The image tree has {counts}, but none for {' or '.join(missing)}: move some folders there."
    raise DataError(
        f"Nothing says which classes are for training, validation and test.{told} {'Or give' if told else 'Give'} "
        f"{_WAYS_TO_SAY}."
    )


def _mixing_note(spec: str, division: Division) -> str | None:
    """That a random division mixes classes which the tree holds apart."""
    if not division:
        return None
    *others, last = division
    whole = " Without --splits they are the division." if len(division) == len(SPLIT_NAMES) else ""
    return f"{spec} mixes the classes of the folders {', '.join(others)} and {last}, which share none.{whole}"


def _built_in_note(splits: Splits, available: Mapping[str, Sequence[str]]) -> str | None:
    """That a built-in list of classes takes all of their images, where there are more or fewer than the data set's."""
    if splits.source not in _IMAGES:
        return None
    title, images = _IMAGES[splits.source]
    counts = [len(available[name]) for names in splits.classes.values() for name in names]
    if sum(counts) == images:
        return None
    return (
        f"All {sum(counts)} images of the {len(counts)} classes of {title} are used, {min(counts)} to {max(counts)} of "
        f"each; {title} itself has {images} in all. A folder of image lists (train.csv, val.csv, test.csv) as --splits "
        "chooses its images."
    )


def _random(spec: str, available: Mapping[str, Sequence[str]], seed: int) -> Splits:
    sizes = _random_sizes(spec)
    names = _bytewise(available)
    if sum(sizes) > len(names):
        hint = f" Try {suggested_division(len(names))}: {_WHY_VAL}" if len(names) >= 3 else ""
        raise DataError(f"splits = {spec!r} needs {sum(sizes)} classes, but the image tree has {len(names)}.{hint}")
    # Philox's raw output is fixed for good, unlike the order that a Generator's permutation gives.
    order = np.argsort(np.random.Philox(seed).random_raw(len(names)), kind="stable")
    ends = np.cumsum(sizes)
    classes = {
        split: tuple(_bytewise(names[index] for index in order[end - size : end]))
        for split, size, end in zip(SPLIT_NAMES, sizes, ends, strict=True)
    }
    return Splits(classes, f"{spec} (seed {seed})")


def suggested_division(classes: int) -> str:
    """A random division of three classes or more, with as many for val as for test.

    They get 18 % each, and 6 where these are a third at most: 5-way episodes with one class left to be unknown.

    Example:
        >>> suggested_division(100), suggested_division(20)
        ('random:64/18/18', 'random:8/6/6')
    """
    each = max(1, round(0.18 * classes), min(6, classes // 3))
    return f"random:{classes - 2 * each}/{each}/{each}"


def division_remarks(source: str, classes: Mapping[str, Collection[str]]) -> list[str]:
    """A sentence on a random division with fewer val than test classes.

    Args:
        source: of the division, see `Splits`.
        classes: of each split.
    """
    val, test = (len(classes.get(split, ())) for split in ("val", "test"))
    if not source.startswith(RANDOM) or val >= test:
        return []
    suggested = suggested_division(sum(map(len, classes.values())))
    return [f"{source} has {val} val and {test} test classes, {suggested} as many of both: {_WHY_VAL}"]


def _random_sizes(spec: str) -> list[int]:
    parts = spec.removeprefix(RANDOM).split("/")
    if len(parts) != 3 or not all(re.fullmatch("[0-9]{1,9}", part) and int(part) > 0 for part in parts):
        raise UsageError(
            f"splits = {spec!r}: a random division is random:TRAIN/VAL/TEST with three numbers of classes from 1, "
            f"as {suggested_division(100)}."
        )
    return [int(part) for part in parts]


def _whole_classes(listed: Sequence[ListedClass], source: str) -> Listing:
    seen: dict[str, ListedClass] = {}
    for entry in listed:
        if entry.name in seen:
            raise _in_two_places(entry.name, seen[entry.name].split, entry.split, entry.where)
        seen[entry.name] = entry
    return Listing(_by_split({name: entry.split for name, entry in seen.items()}, source), source, source)


def _image_lists(folder: Path) -> Listing:
    split_of: dict[str, str] = {}
    by_class = defaultdict(list)
    for entry in read_image_lists(folder):
        if split_of.setdefault(entry.class_name, entry.split) != entry.split:
            raise _in_two_places(entry.class_name, split_of[entry.class_name], entry.split, entry.where)
        by_class[entry.class_name].append(entry)
    called = f"the image lists in {folder}"
    images = {name: tuple(by_class[name]) for name in _bytewise(by_class)}
    return Listing(_by_split(split_of, called), "image lists", called, images)


def _choose(
    listed: Mapping[str, Sequence[ListedImage]], available: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The listed images of each class as paths of the tree."""
    chosen, missing = {}, []
    for name, entries in listed.items():
        found = find_images(entries, available[name])
        missing += [f"{entry.image!r} ({entry.where})" for entry, image in found.items() if image is None]
        chosen[name] = tuple(_bytewise(image for image in found.values() if image is not None))
        twice = [image for image, count in Counter(chosen[name]).items() if count > 1]
        if twice:
            raise DataError(f"The image {twice[0]!r} of class {name!r} is listed more than once.")
    if missing:
        raise DataError(
            f"{len(missing)} listed image(s) are not in the folder of their class, as {_a_few(missing)}. "
            "Complete the image tree, or take them off the list."
        )
    return chosen


def find_images(entries: Sequence[ListedImage], images: Sequence[str]) -> dict[ListedImage, str | None]:
    """For each row of an image list the image that it names, out of those of its class; None where it is not there."""
    of_name = defaultdict(list)
    for image in images:
        of_name[PurePosixPath(image).name].append(image)
    return {entry: _find(entry, of_name) for entry in entries}


def _find(entry: ListedImage, of_name: Mapping[str, Sequence[str]]) -> str | None:
    """The image of the tree that a list names: by its file name in the class, or by the end of its path."""
    path = PurePosixPath(entry.image)
    if path.is_absolute() or PureWindowsPath(entry.image).is_absolute() or ".." in path.parts:
        raise DataError(
            f"{entry.where}: {entry.image!r} leads out of the image tree; name files inside of it, without '..'."
        )
    found = []
    for image in of_name.get(path.name, ()):
        unpacked = f"/{image}".replace(".tar/", "/")  # as the path would be were the archive a folder
        if f"/{image}".endswith(f"/{path}") or unpacked.endswith(f"/{path}"):
            found.append(image)
    if len(found) > 1:
        raise DataError(
            f"{entry.where}: {entry.image!r} may be {found[0]!r} or {found[1]!r} of class {entry.class_name!r}; write "
            "more of its path."
        )
    return found[0] if found else None


def _by_split(split_of: Mapping[str, str], source: str) -> dict[str, tuple[str, ...]]:
    classes = {
        split: tuple(_bytewise(name for name, where in split_of.items() if where == split)) for split in SPLIT_NAMES
    }
    for split, names in classes.items():
        if not names:
            raise DataError(f"The split {split!r} has no class in {source}: each of train, val, test needs some.")
    return classes


def _check_present(listing: Listing, available: Mapping[str, Sequence[str]]) -> None:
    names = _bytewise(name for of_split in listing.classes.values() for name in of_split)
    missing = [name for name in names if name not in available]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(names)} classes of {listing.called} are not among the {len(available)} "
            f"classes of the image tree, as {_a_few([repr(name) for name in missing])}. "
            "A class is a folder of images of that name."
        )


def _in_two_places(name: str, first: str, second: str, where: str) -> DataError:
    if first == second:
        return DataError(f"{where}: class {name!r} is listed twice in {first!r}; list it once.")
    return DataError(f"{where}: class {name!r} is in two splits, {first!r} and {second!r}; it may be in one only.")


def _bytewise(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: name.encode("utf-8"))


def _a_few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
