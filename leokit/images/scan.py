"""Finding the classes and images of a tree, with names that can be stored as text and turned back into bytes."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from leokit.errors import DataError
from leokit.images import archives
from leokit.manifest import MANIFEST
from leokit.splits import SPLITS_FILE

Member = tuple[str, tuple[int, int]]  # archive, and offset and length in bytes

SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2 .avif".split())

_ESCAPE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))?")
_HELD_OUT = ("val", "test")  # beside `train` in the layout of ILSVRC


@dataclass(frozen=True)
class ImageTree:
    """The classes of an image tree.

    Attributes:
        root: the folder that was scanned.
        classes: for each class, in bytewise order of the names, the paths of its images relative to the root, in
            bytewise order too; names and paths as `escape` gives them.
        ignored: every other file, and every folder that was not entered (with a `/` at its end).
        members: of each image in an archive, the archive (as a path like those of images) and its span of bytes there.
    """

    root: Path
    classes: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    members: Mapping[str, Member] = field(default_factory=dict)

    def path(self, image: str) -> Path:
        """The file that holds an image."""
        member = self.members.get(image)
        return image_path(self.root, member[0] if member else image)

    def size(self, image: str) -> int:
        """Bytes of an image; -1 where its file cannot be asked, which decoding will report."""
        member = self.members.get(image)
        if member:
            return member[1][1]
        try:
            return os.stat(self.path(image)).st_size
        except OSError:
            return -1


def image_path(root: Path, image: str) -> Path:
    """The file of an image whose path relative to `root` was made by `escape`."""
    return root / os.fsdecode(unescape(image))


def escape(name: bytes) -> str:
    r"""A file name as text: UTF-8 where it is that, any other byte as `\xNN`, a backslash as two.

    Example:
        >>> print(escape("Käse".encode() + b" \xff"))
        Käse \xff
        >>> unescape(escape(b"\xff")) == b"\xff"
        True
    """
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def unescape(text: str) -> bytes:
    """The bytes that `escape` made this text from.

    Raises:
        ValueError: `escape` cannot have made this text.
    """

    def byte(match: re.Match[bytes]) -> bytes:
        if match[0] == b"\\":
            raise ValueError(f"{text!r} has a backslash that stands for nothing")
        return b"\\" if match[1] is None else bytes.fromhex(match[1].decode("ascii"))

    return _ESCAPE.sub(byte, text.encode("utf-8"))


def scan(root: Path) -> ImageTree:
    """Find the classes of an image tree.

    A class is a folder that directly holds images, at any depth, and is called as the folder is; or a tar archive of
    images, called as the archive without its suffix, whose images have paths as `n01440764.tar/n01440764_1.JPEG`. In
    the layout of ILSVRC, where all of them lie under `train`, `val` and `test`, those under `train` are taken, and the
    others with them unless a class of theirs is in `train` as well (held-out images of the same classes). Hidden files
    and folders, and files that are no images by their suffix, are left alone and listed.

    Raises:
        DataError: no such folder, a folder or archive that cannot be read, no images, or two of one class name.
    """
    if not root.is_dir():
        raise DataError(f"There is no image folder at {root}: give a folder with one folder of images per class.")
    found = _Found()
    _walk(os.fsencode(root), b"", (), found)
    folders = _taken(found.folders)
    if not folders:
        loose = " There are images, but in no folder that names their class." if found.loose else ""
        raise DataError(
            f"{root} has no images in folders: a class is a folder, or a .tar, of images "
            f"({' '.join(sorted(SUFFIXES))}).{loose}"
        )
    left_out = [image for folder, images in found.folders.items() if folder not in folders for image in images]
    ignored = _bytewise([*found.ignored, *found.loose, *left_out])
    return ImageTree(root, _by_class(folders), tuple(ignored), found.members)


@dataclass
class _Found:
    """What a walk has met: images by their folder, images in no folder, and what is no image."""

    folders: dict[str, list[str]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)

    def add_archive(self, top: bytes, path: bytes) -> None:
        """Add what an archive holds, which counts as a folder."""
        archive, images = escape(path), []
        for name, offset, size in archives.index(Path(os.fsdecode(os.path.join(top, path)))):
            image = f"{archive}/{escape(name)}"
            if _is_image_name(os.path.basename(name)) and not {b"", b".."} & {*name.split(b"/")}:
                images.append(image)
                self.members[image] = (archive, (offset, size))
            else:
                self.ignored.append(image)
        if len(set(images)) < len(images):
            raise DataError(f"The archive {archive} of {os.fsdecode(top)} has two images of one name: make it again.")
        if images:
            self.folders[archive] = images


def _walk(top: bytes, relative: bytes, above: tuple[tuple[int, int], ...], found: _Found) -> None:
    """Add what lies in a folder; `above` identifies the folders that it lies in, against loops of links."""
    folder = os.path.join(top, relative) if relative else top
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"The folder {os.fsdecode(folder)} cannot be read: {error.strerror}.") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        found.ignored.append(escape(relative) + "/")
        return
    images = []
    for entry in listed:
        path = os.path.join(relative, entry.name)
        if _is_folder(entry):
            if entry.name.startswith(b"."):
                found.ignored.append(escape(path) + "/")
            else:
                _walk(top, path, (*above, here), found)
        elif _is_image(entry):
            images.append(escape(path))
        elif _is_archive(entry):
            found.add_archive(top, path)
        elif os.fsdecode(path) not in (SPLITS_FILE, MANIFEST):
            found.ignored.append(escape(path))
    if images and relative:
        found.folders[escape(relative)] = images
    else:
        found.loose += images


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _is_image(entry: os.DirEntry[bytes]) -> bool:
    """Whether a file is an image by its name; a broken link is one (that cannot be read), a named pipe is none."""
    return _is_image_name(entry.name) and (entry.is_symlink() or entry.is_file())


def images_under(folder: Path) -> Iterator[str]:
    """The images of a folder at any depth, as `escape` gives their paths; bytewise by name, a folder's own ones first.

    Hidden files and folders are left alone. Links to folders are followed, but for those that lead back to where they
    are.
    """
    top = os.fsencode(folder)
    above: dict[bytes, tuple[tuple[int, int] | None, ...]] = {
        top: (_identity(top),)
    }  # of each folder to come, itself and those that it lies in
    for place, folders, files in os.walk(top, followlinks=True):
        chain = above.pop(place)
        inside = {name: _identity(os.path.join(place, name)) for name in sorted(folders) if not name.startswith(b".")}
        folders[:] = [name for name, identity in inside.items() if identity not in chain]
        above |= {os.path.join(place, name): (*chain, inside[name]) for name in folders}
        yield from (escape(os.path.join(place, name)) for name in sorted(files) if _is_image_name(name))


def _identity(folder: bytes) -> tuple[int, int] | None:
    """What identifies a folder, by whichever path it is come to; None where it cannot be asked."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_image_name(name: bytes) -> bool:
    return not name.startswith(b".") and _suffix(name) in SUFFIXES


def _is_archive(entry: os.DirEntry[bytes]) -> bool:
    return not entry.name.startswith(b".") and _suffix(entry.name) == archives.SUFFIX and entry.is_file()


def _suffix(name: bytes) -> str:
    return os.path.splitext(name)[1].decode("ascii", "replace").lower()


def _taken(folders: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The folders that are classes: all, but in the layout of ILSVRC those of `train` before those of the others."""
    tops = {folder: folder.partition("/")[0] for folder in folders}
    train = {folder for folder, top in tops.items() if top == "train" and folder != "train"}
    if not train or "train" in folders or not set(tops.values()) <= {"train", *_HELD_OUT}:
        return dict(folders)
    nested = {folder for folder in folders if folder not in _HELD_OUT}
    clash = {_name(folder) for folder in train} & {_name(folder) for folder in nested - train}
    return {folder: images for folder, images in folders.items() if folder in (train if clash else nested)}


def _by_class(folders: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    by_name = defaultdict(list)
    for folder in folders:
        by_name[_name(folder)].append(folder)
    for name, same in by_name.items():
        if len(same) > 1:
            raise DataError(
                f"Two folders are called {name!r}: {same[0]!r} and {same[1]!r}. A class is one folder "
                "(or .tar) of images; rename one, or move its images into the other."
            )
    return {name: tuple(_bytewise(folders[by_name[name][0]])) for name in _bytewise(list(by_name))}


def _name(folder: str) -> str:
    name = folder.rpartition("/")[2]
    return name[: -len(archives.SUFFIX)] if name.lower().endswith(archives.SUFFIX) else name


def _bytewise(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: name.encode("utf-8"))
