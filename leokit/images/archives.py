"""Tar archives of images, one for each class as ILSVRC ships them: read in place, never unpacked."""

import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from leokit.errors import DataError

SUFFIX = ".tar"
_BLOCK = 512  # bytes; members and the end of an archive are multiples of it


class Member(NamedTuple):
    """Where a file lies inside an archive."""

    name: bytes
    offset: int
    size: int


def index(path: Path) -> list[Member]:
    """The files of an archive, in its order; no more than its headers is read.

    Raises:
        DataError: no plain tar, or one that ends before it should, of which nobody knows what is missing.
    """
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            found = [
                Member(os.fsencode(entry.name), entry.offset_data, entry.size) for entry in archive if entry.isreg()
            ]
            end = archive.offset - _BLOCK if archive.offset else 0
        with path.open("rb") as file:
            file.seek(max((_padded(member) for member in found), default=max(end, 0)))
            whole = file.read(_BLOCK) == bytes(_BLOCK)
    except OSError as error:
        raise DataError(f"The archive {path} cannot be read: {error.strerror or error}.") from error
    except (tarfile.TarError, EOFError, ValueError, ArithmeticError, KeyError, IndexError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise DataError(f"The archive {path} is no tar that can be read ({what}): fetch it again.") from error
    if not whole:
        raise DataError(
            f"The archive {path} is truncated: it ends after {len(found)} files without the mark that ends a tar, so "
            "that images may be missing. Fetch it again."
        )
    return found


def _padded(member: Member) -> int:
    return member.offset + -(-member.size // _BLOCK) * _BLOCK
