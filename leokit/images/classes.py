"""Which folders of an image tree are its classes, and how they are called: told from the places of the folders."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from leokit.errors import DataError, UsageError
from leokit.images import archives
from leokit.splits import SPLIT_NAMES

PATH = "path"  # the level of the innermost folders, called by their whole path

_Key = tuple[str, ...]  # the names on the way to a folder
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Reading:
    """How the folders of an image tree are read.

    Attributes:
        classes: for each class the folders that hold its images.
        division: for each of train, val, test the classes in the folder of that name, where each folder has classes of
            its own.
        note: what another reading would give, where there is a likely one.
    """

    classes: Mapping[str, tuple[str, ...]]
    division: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class _Folder:
    """A folder of images.

    Attributes:
        path: below the root of the tree.
        split: of whose folder it lies in, or "".
        key: the names below that, without those that all folders share.
    """

    path: str
    split: str
    key: _Key


@dataclass(frozen=True)
class _Classes:
    """The classes of each split at one level, with their folders.

    Attributes:
        of_split: by split, then by name, the folders.
        deepest: a folder as deep as any of them.
        clash: a name that two of them have, and a folder of each.
    """

    of_split: Mapping[str, Mapping[str, tuple[str, ...]]]
    deepest: _Folder
    clash: tuple[str, str, str] | None

    @property
    def count(self) -> int:
        return sum(len(classes) for classes in self.of_split.values())


def check_level(level: str | None) -> None:
    """Check a value of `--class-level`.

    Raises:
        UsageError: it is no number from 1 and not `path`.
    """
    if level not in (None, PATH) and not (level.isascii() and level.isdigit() and int(level[:9]) > 0):
        raise UsageError(f"--class-level {level}: it is a number from 1, as 1 for the outermost folders, or {PATH}.")


def read_classes(folders: Iterable[str], level: str | None = None) -> Reading:
    """Tell the classes of a tree from the paths of the folders that hold its images.

    Args:
        folders: below the root of the tree; an archive of images is one of them.
        level: how far below the root the folders are that are classes, from 1, leaving out folders that are the only
            one of their level; or `path`, for the innermost folders, called by their path. By default the innermost
            folders, called by their own name.

    Raises:
        DataError: two classes of one name; a folder that seems to be a class and lies in another one; no such level.
        UsageError: a level that is none.
    """
    check_level(level)
    found = _found(folders)
    deepest = max((len(folder.key) for folder in found), default=1)
    if level not in (None, PATH) and int(level[:9]) > deepest:
        raise DataError(f"--class-level {level}: the levels of the image tree are 1{f' to {deepest}' * (deepest > 1)}.")
    if not found:
        return Reading({})
    classes = _classes_at(found, level or str(deepest))
    problem = _nested(found, classes) if level is None else None
    if classes.clash and not problem:
        name, first, second = classes.clash
        problem = f"Two folders are called {name!r}: {first!r} and {second!r}."
    if problem:
        raise DataError(f"{problem} {_ways(found, deepest) or 'Rename one, or move its images into the other.'}")
    divided = {split: tuple(classes.of_split[split]) for split in SPLIT_NAMES if split in classes.of_split}
    return Reading(
        {name: paths for names in classes.of_split.values() for name, paths in names.items()},
        divided if len(divided) > 1 else {},
        _other_reading(found, classes) if level is None else None,
    )


def _found(folders: Iterable[str]) -> list[_Folder]:
    """The folders that may be classes; of folders train, val and test, those inside of them."""
    keys = _below_shared({folder: tuple(folder.split("/")) for folder in folders})
    by_split: dict[str, dict[str, _Key]] = defaultdict(dict)
    for path, key in keys.items():
        by_split[_SPLITS.get(key[0].lower(), "")][path] = key[1:]
    # A class may be called train: its folder then holds images, or has other classes beside it.
    if "" in by_split or () in by_split.get("train", {"": ()}).values():
        seen_through = _without_images(keys)
        return [_Folder(path, "", key) for path, key in (seen_through if all(seen_through.values()) else keys).items()]
    split_of = {path: split for split, of in by_split.items() for path in of}
    inside = {path: key for of in by_split.values() for path, key in _without_images(of).items() if key}
    return [_Folder(path, split_of[path], key) for path, key in _below_shared(inside).items()]


def _without_images(keys: Mapping[str, _Key]) -> dict[str, _Key]:
    """Without a last folder `images`, where each of them has one."""
    each = all(key and key[-1].lower() == "images" for key in keys.values())
    return {path: key[: len(key) - each] for path, key in keys.items()}


def _below_shared(keys: Mapping[str, _Key]) -> dict[str, _Key]:
    """Without the first folders that all of them lie in, so that one name at least is left of each."""
    shared = 0
    while keys and min(map(len, keys.values())) > shared + 1 and len({key[shared] for key in keys.values()}) == 1:
        shared += 1
    return {path: key[shared:] for path, key in keys.items()}


def _class_of(folder: _Folder, level: str) -> tuple[str, _Key]:
    """The name of a folder's class by a level, and what identifies it."""
    key = folder.key if level == PATH else folder.key[: int(level)]
    name = "/".join(key) if level == PATH else key[-1]
    return name[: -len(archives.SUFFIX)] if name.lower().endswith(archives.SUFFIX) else name, key


def _classes_at(found: Sequence[_Folder], level: str) -> _Classes:
    """The classes by a level; of train, val and test, those of train alone where the others have some of the same."""
    of_split: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder in found:
        of_split[folder.split][_class_of(folder, level)[0]].append(folder.path)
    train = of_split.get("train", {})
    if any(name in train for split, names in of_split.items() if split != "train" for name in names):
        of_split = {"train": train}
    taken = [folder for folder in found if folder.split in of_split]
    first: dict[str, tuple[_Folder, _Key]] = {}
    clash = None
    for folder in taken:
        name, key = _class_of(folder, level)
        known = first.setdefault(name, (folder, key))
        if (known[0].split, known[1]) != (folder.split, key):
            clash = clash or (name, known[0].path, folder.path)
    return _Classes(
        {split: {name: tuple(of[name]) for name in of} for split, of in of_split.items()},
        max(taken, key=lambda folder: len(folder.key)),
        clash,
    )


def _nested(found: Sequence[_Folder], classes: _Classes) -> str | None:
    """That images lie at two depths of one branch, as may be one class or two."""
    keys = {(folder.split, folder.key): folder.path for folder in found if folder.split in classes.of_split}
    for (split, key), path in keys.items():
        for length in range(1, len(key)):
            outer = keys.get((split, key[:length]))
            if outer is not None:
                return f"Both {outer!r} and {path!r} inside of it hold images: that may be one class or two."
    return None


def _ways(found: Sequence[_Folder], deepest: int) -> str:
    """Every level by which the classes have names of their own, with what it gives."""
    ways = []
    for level in (*map(str, range(1, deepest + 1)), PATH):
        classes = _classes_at(found, level)
        if not classes.clash:
            ways.append(f"--class-level {level} gives {_counted(classes, level)}")
    return "; ".join(ways) + "." if ways else ""


def _other_reading(found: Sequence[_Folder], innermost: _Classes) -> str | None:
    """What the level above the innermost folders would give, where it has several folders."""
    key = innermost.deepest.key
    for level in map(str, range(len(key) - 1, 0, -1)):
        classes = _classes_at(found, level)
        if not classes.clash and classes.count > 1:
            return (
                f"{innermost.count} classes, the innermost folders, as {'/'.join(key)}; --class-level {level} would "
                f"give {_counted(classes, level)}."
            )
    return None


def _counted(classes: _Classes, level: str) -> str:
    name, _ = _class_of(classes.deepest, level)
    return f"{classes.count} class{'es' if classes.count > 1 else ''}, as {name}"
