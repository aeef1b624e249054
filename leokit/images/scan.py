"""Finding the classes and images of a tree, with names that can be stored as text and turned back into bytes."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from leokit.errors import DataError
from leokit.images import archives, kinds
from leokit.images.classes import read_classes
from leokit.manifest import MANIFEST
from leokit.splits import SPLITS_FILE

Member = tuple[str, tuple[int, int]]  # archive, and offset and length in bytes

# What systems put beside a user's files: thumbnails, deleted files, earlier states.
SYSTEM_FOLDERS = frozenset(
    (b"@eaDir", b"@__thumb", b"@Recycle", b"#recycle", b"#snapshot", b"$RECYCLE.BIN", b"System Volume Information")
) | {b"__MACOSX", b"lost+found"}

_DEEPEST, _WAYS = 100, 100  # folders inside of each other, and links to one folder
_ESCAPE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))?")
_NAMED = 5  # files that a message names


@dataclass(frozen=True)
class ImageTree:
    """The classes of an image tree.

    Attributes:
        root: the folder that was scanned.
        classes: for each class, in bytewise order of the names, the paths of its images relative to the root, in
            bytewise order too; names and paths as `escape` gives them.
        ignored: every other file, and every folder that was not entered (with a `/` at its end).
        members: of each image in an archive, the archive (as a path like those of images) and its span of bytes there.
        division: for each of train, val, test the classes in the folder of that name, where each such folder has
            classes of its own; else empty.
        said: what a user should know of how the tree was read, a sentence each.
    """

    root: Path
    classes: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    members: Mapping[str, Member] = field(default_factory=dict)
    division: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    said: tuple[str, ...] = ()

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


def scan(root: Path, class_level: str | None = None) -> ImageTree:
    """Find the classes of an image tree.

    A class is a folder that directly holds images, at any depth, and is called as the folder is; or a tar archive of
    images, called as the archive without its suffix, whose images have paths as `n01440764.tar/n01440764_1.JPEG`. A
    folder `images` that each class has is no class of its own. Where all of them lie under `train`, `val` and `test`
    (or `training`, `validation`, `valid`, `testing`), those under `train` are taken, and the others with them unless a
    class of theirs is in `train` as well (held-out images of the same classes). Hidden files and folders, folders of
    systems as `@eaDir`, and files that are no images by their suffix and first bytes are left alone and listed.

    Args:
        root: the folder to look through.
        class_level: which folders are classes: the number of their level below the root, or `path` (see
            `read_classes`).

    Raises:
        DataError: no such folder, a folder or archive that cannot be read, no images, two of one class name, or images
            at two depths of one branch.
        UsageError: a class level that is none.
    """
    if not root.is_dir():
        raise DataError(f"There is no image folder at {root}: give a folder with one folder of images per class.")
    found = _Found()
    _walk(os.fsencode(root), b"", (), found)
    reading = read_classes(found.folders, class_level)
    if not reading.classes:
        loose = " There are images, but in no folder that names their class." if found.loose or found.folders else ""
        raise DataError(
            f"{root} has no images in folders: a class is a folder, or a .tar, of images "
            f"({' '.join(sorted(kinds.FORMATS))}).{loose}{''.join(f' {text}' for text in _unread(found))}"
        )
    taken = {folder for folders in reading.classes.values() for folder in folders}
    left_out = [image for folder, images in found.folders.items() if folder not in taken for image in images]
    ignored = _bytewise([*found.ignored, *found.loose, *left_out])
    classes = {
        name: tuple(_bytewise([image for folder in reading.classes[name] for image in found.folders[folder]]))
        for name in _bytewise(list(reading.classes))
    }
    division = {split: tuple(_bytewise(reading.division[split])) for split in reading.division}
    said = [text for text in (left_alone(ignored), *_unread(found), _by_content(found), reading.note) if text]
    return ImageTree(root, classes, tuple(ignored), found.members, division, tuple(said))


def left_alone(ignored: Sequence[str], wanted: str = "images of a class") -> str | None:
    """A sentence on files and folders that are none of the wanted, where there are any."""
    return f"Left alone, being no {wanted}: {_listed(ignored)}." if ignored else None


def _unread(found: "_Found") -> list[str]:
    """A sentence on the images of each format that needs a plugin."""
    return [
        f"{plugin.title} images left alone: {_listed(images)}. Pillow reads them by a plugin: "
        f"pip install {plugin.package}."
        for plugin, images in found.unread.items()
    ]


def _by_content(found: "_Found") -> str | None:
    said = "Images by their content, though not by their suffix"
    return f"{said}: {_listed(found.by_content)}." if found.by_content else None


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''})"


@dataclass
class _Found:
    """What a walk has met: images by their folder, images in no folder, and what is no image."""

    folders: dict[str, list[str]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    by_content: list[str] = field(default_factory=list)
    unread: dict[kinds.Plugin, list[str]] = field(default_factory=lambda: defaultdict(list))
    met: Counter[tuple[int, int]] = field(default_factory=Counter)  # how often each folder, by links maybe

    def add_archive(self, top: bytes, path: bytes) -> None:
        """Add what an archive holds, which counts as a folder."""
        archive, images, file = escape(path), [], os.path.join(top, path)
        for name, offset, size in archives.index(Path(os.fsdecode(file))):
            image, parts = f"{archive}/{escape(name)}", {*name.split(b"/")}
            sound = not parts & (SYSTEM_FOLDERS | {b"", b".."})
            if sound and self.is_image(image, os.path.basename(name), file, offset):
                images.append(image)
                self.members[image] = (archive, (offset, size))
            else:
                self.ignored.append(image)
        if len(set(images)) < len(images):
            raise DataError(f"The archive {archive} of {os.fsdecode(top)} has two images of one name: make it again.")
        if images:
            self.folders[archive] = images

    def is_image(self, image: str, name: bytes, file: bytes, offset: int = 0) -> bool:
        """Whether what begins at an offset of a file is an image that can be read, by its name or its first bytes."""
        looked = []

        def head() -> bytes:
            looked.append(image)
            return kinds.read_head(file, offset)

        kind = kinds.format_of(name, head)
        plugin = kinds.missing_plugin(kind)
        if plugin:
            self.unread[plugin].append(image)
        elif kind:
            self.by_content += looked
        return kind is not None and plugin is None


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
    found.met[here] += 1
    if len(above) > _DEEPEST or found.met[here] > _WAYS:
        raise DataError(
            f"The folder {os.fsdecode(folder)} is {len(above)} folders deep and is reached in {found.met[here]} ways: "
            f"at most {_DEEPEST} and {_WAYS} are followed. Delete the links that lead there."
        )
    images = []
    for entry in listed:
        path = os.path.join(relative, entry.name)
        if _is_folder(entry):
            if entry.name.startswith(b".") or entry.name in SYSTEM_FOLDERS:
                found.ignored.append(escape(path) + "/")
            else:
                _walk(top, path, (*above, here), found)
        elif _is_archive(entry):
            found.add_archive(top, path)
        elif not relative and os.fsdecode(path) in (SPLITS_FILE, MANIFEST):
            continue
        # A broken link is an image that cannot be read; a named pipe is none.
        elif (entry.is_symlink() or entry.is_file()) and found.is_image(image := escape(path), entry.name, entry.path):
            images.append(image)
        else:
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


def images_under(folder: Path, leave: Callable[[str], None]) -> Iterator[str]:
    """The images of a folder at any depth, as `escape` gives their paths; bytewise by name, a folder's own ones first.

    Links to folders are followed, but for those that lead back to where they are.

    Args:
        folder: to look through.
        leave: called with each other file, and each folder that is not entered (with a `/` at its end): hidden ones
            and those of systems.
    """
    top = os.fsencode(folder)
    above: dict[bytes, tuple[tuple[int, int] | None, ...]] = {
        top: (_identity(top),)
    }  # of each folder to come, itself and those that it lies in
    for place, folders, files in os.walk(top, followlinks=True):
        chain = above.pop(place)
        inside = {name: _identity(os.path.join(place, name)) for name in sorted(folders)}
        folders[:] = [
            name
            for name, identity in inside.items()
            if identity not in chain and not name.startswith(b".") and name not in SYSTEM_FOLDERS
        ]
        above |= {os.path.join(place, name): (*chain, inside[name]) for name in folders}
        for name in inside.keys() - set(folders):
            leave(escape(os.path.join(place, name)) + "/")
        for name in sorted(files):
            path = os.path.join(place, name)
            if kinds.format_of(name, partial(kinds.read_head, path)):
                yield escape(path)
            else:
                leave(escape(path))


def _identity(folder: bytes) -> tuple[int, int] | None:
    """What identifies a folder, by whichever path it is come to; None where it cannot be asked."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_archive(entry: os.DirEntry[bytes]) -> bool:
    return entry.name.lower().endswith(archives.SUFFIX.encode()) and not entry.name.startswith(b".") and entry.is_file()


def _bytewise(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: name.encode("utf-8"))
