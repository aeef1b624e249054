"""The lines of metrics of a long run: one JSON object each, cut back to where it goes on, and added to."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leokit import manifest

Line = dict[str, Any]


def cut_back(path: Path, belongs: Callable[[Line], bool]) -> list[Line]:
    """Keep of a file the lines that belong, in place; what a crash cut short, or is no metrics, does not.

    Returns:
        These lines; none where there is no file.
    """
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8").splitlines()
    kept = [(text, line) for text in texts if (line := _parsed(text)) is not None and _asked(belongs, line)]
    manifest.write_atomically(path, "".join(f"{text}\n" for text, _ in kept).encode())
    return [line for _, line in kept]


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
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _asked(belongs: Callable[[Line], bool], line: Line) -> bool:
    try:
        return belongs(line)
    except (KeyError, TypeError):
        return False
