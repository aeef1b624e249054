"""TensorBoard's event files of a run: a copy of its metrics under the same names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leokit.errors import UsageError

_FLUSH_SECONDS = 10  # for whoever watches while it trains


def require_tensorboard() -> None:
    """Check that the package is there, before anything costs time.

    Raises:
        UsageError: it is not.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--tensorboard needs the package tensorboard ({error}): pip install 'leokit[tensorboard]', or leave the "
            "option out; metrics.jsonl holds the same numbers."
        ) from error


def event_files(folder: Path) -> list[Path]:
    """The event files in a folder, in order of their names; others are not touched."""
    return sorted(folder.glob("events.out.tfevents.*"))


def clear_events(folder: Path) -> None:
    """Delete the event files in a folder, and the folder where nothing else is in it."""
    for path in event_files(folder):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def event_writer(folder: Path, lines: Iterable[Mapping[str, Any]]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write lines of metrics as events; gives a function that takes one line more.

    The files are made anew from the lines so far, so that after an interruption each step is there once, and a run that
    was started without events has them all.

    Args:
        folder: for the event files; those in it are replaced.
        lines: of metrics so far.
    """
    from torch.utils.tensorboard import SummaryWriter

    clear_events(folder)
    # Purging from 0 tells a TensorBoard that is already looking to forget what it read in the deleted files.
    writer = SummaryWriter(str(folder), purge_step=0, flush_secs=_FLUSH_SECONDS)

    def add(line: Mapping[str, Any]) -> None:
        for tag, value in flattened(line):
            if tag != "step":
                writer.add_scalar(tag, value, line["step"])

    try:
        for line in lines:
            add(line)
        writer.flush()
        yield add
    finally:
        writer.close()


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested mappings, each with the names that lead to it, joined by slashes."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
