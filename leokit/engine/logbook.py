"""The lines of metrics of a long run: one JSON object each, cut back to where it goes on, and added to."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leokit import manifest

Line = dict[str, Any]
_DRAW_EVERY = 120.0  # seconds, at least, between pictures of a run that goes on


def cut_back(path: Path, belongs: Callable[[Line], bool]) -> list[Line]:
    """Keep of a file the lines that belong, in place; what a crash cut short, or is no metrics, does not.

    Returns:
        These lines; none where there is no file.
    """
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = [(text, line) for text in texts if (line := _parsed(text)) is not None and _asked(belongs, line)]
    manifest.write_atomically(path, "".join(f"{text}\n" for text, _ in kept).encode())
    return [line for _, line in kept]


@contextmanager
def logged(
    path: Path, lines: list[Line], draw: Callable[[list[Line]], None]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Take the further lines of a run: into its file at once, and into its picture now and then and at the end.

    Args:
        path: of the file.
        lines: that are there, as `cut_back` gives them; the further ones are added.
        draw: makes the picture of lines.
    """
    drawn = time.monotonic()
    with append_lines(path) as append:

        def report(line: Mapping[str, Any]) -> None:
            nonlocal drawn
            append(line)
            lines.append(dict(line))
            if time.monotonic() - drawn > _DRAW_EVERY:
                draw(lines)
                drawn = time.monotonic()

        try:
            yield report
        finally:
            draw(lines)


@contextmanager
def append_lines(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Add lines to a file, each on disk at once."""
    with path.open("a", encoding="utf-8") as file:

        def append(line: Mapping[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        yield append


def _parsed(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _asked(belongs: Callable[[Line], bool], line: Line) -> bool:
    try:
        return belongs(line)
    except (KeyError, TypeError, ValueError):
        return False
