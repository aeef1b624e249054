"""The errors that leokit raises on purpose, each with the exit code that the command line gives it.

A message is one sentence or two: what is wrong, the value found, what is allowed, what to do.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises, here or in Arrow, into a sentence.

    Raises:
        LeokitError: in place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise LeokitError(
            f"{folder} cannot be written: {os.strerror(error.errno).lower()}. What was finished is kept: make space "
            "and run the same command again."
        ) from error
