"""The errors that leokit raises on purpose, each with the exit code that the command line gives it.

A message is one sentence or two: what is wrong, the value found, what is allowed, what to do.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class LeokitError(Exception):
    """Something failed while running (exit code 1)."""

    exit_code = 1


class UsageError(LeokitError):
    """An option, value, backbone, preset or config key that does not exist or is out of range (exit code 2)."""

    exit_code = 2


class DataError(LeokitError):
    """The user's data do not allow what was asked: folders, images, classes, splits (exit code 3)."""

    exit_code = 3


class ArtifactError(LeokitError):
    """An artifact is missing, unfinished, damaged, or does not fit another one (exit code 4)."""

    exit_code = 4


class Interrupted(LeokitError):
    """Stopped by Ctrl-C or SIGTERM; what was done is kept and the same command goes on from there (exit code 130)."""

    exit_code = 130


@contextmanager
def disk_errors(folder: Path, option: str = "--out") -> Iterator[None]:
    """Turn what a full disk or a folder that cannot be written raises, here or in Arrow, into a sentence.

    Args:
        folder: that is written.
        option: by which another one is named.

    Raises:
        LeokitError: in place of such an OSError.
    """
    place = os.path.abspath(folder)
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_FORBIDDEN) or not _is_about(error.filename, place):
            raise
        cause = os.strerror(error.errno).lower()
        while not os.path.isdir(place):  # it could not be made
            place = os.path.dirname(place)
        if error.errno in _FULL:
            raise LeokitError(
                f"{place} cannot be written ({cause}): make space and run the same command again."
            ) from error
        raise LeokitError(
            f"{place} cannot be written ({cause}): make it writable, or choose another {option}."
        ) from error


def _is_about(path: str | bytes | int | None, folder: str) -> bool:
    """Whether an error is about a folder, something in it or what it lies in, as far as it says so."""
    if not isinstance(path, str | bytes):
        return True
    named = os.path.join(os.path.abspath(os.fsdecode(path)), "")
    return named.startswith(os.path.join(folder, "")) or os.path.join(folder, "").startswith(named)
