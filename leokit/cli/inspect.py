"""`leokit inspect`."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from leokit.cli.render import Output, TableData
from leokit.config import InspectConfig

if TYPE_CHECKING:
    from leokit.stages.inspect import Inspection

_STATES = {
    "there": "still there",
    "changed": "no longer there: the folder holds something else now",
    "missing": "nothing is there now",
    "files": "there; not an artifact, so it is not compared",
    None: "",
}


def command(config: InspectConfig, output: Output) -> None:
    """Tell what an artifact is, how it was made and what it holds, finished or not.

    Only its manifest is read: nothing is loaded, and no file is checked (see verify).

    Example: leokit inspect leokit-work/features
    """
    from leokit.evaluations import gain_in_words
    from leokit.stages import inspect

    found = inspect.run(config)
    data = asdict(found) | {"folder": str(found.folder), "summary": found.summary()}
    if not config.classes:
        del data["counts"]
    state = "" if found.finished else "Unfinished: the command that makes it, run again, finishes it."
    sentences = [words for words in (gain_in_words(found.facts), state) if words]
    output.result(data, list(_tables(found, classes=config.classes)), sentences)


def _tables(found: "Inspection", *, classes: bool) -> Iterator[TableData]:
    size = f"{found.files['number']} ({_size(found.files['bytes'])})"
    about = [["folder", str(found.folder)], ["state", "finished" if found.finished else "unfinished"]]
    about += [["id", found.id or "none yet"], ["files", size]]
    about += _flat({key: value for key, value in found.info.items() if key != "command"})
    if "command" in found.info:
        about.append(["command", " ".join(map(str, found.info["command"]))])
    yield TableData(found.schema, ["", ""], about, numeric=False)
    if found.inputs:
        rows = [
            [role, (entry["id"] or "")[:12], entry["path"] or "", _STATES[entry["state"]]]
            for role, entry in found.inputs.items()
        ]
        yield TableData("Made from", ["", "id", "path", "now"], rows, numeric=False)
    if found.config:
        yield TableData("Configuration", ["", ""], _flat(found.config), numeric=False)
    if found.facts:
        yield TableData("Facts", ["", ""], _flat(found.facts), numeric=False)
    summary = found.summary()
    if summary:
        columns = list(next(iter(summary.values())))
        rows = [[split, *(f"{value:g}" for value in entry.values())] for split, entry in summary.items()]
        yield TableData("Classes and images of each split; min, median and max of a class", ["split", *columns], rows)
    if summary and classes:
        rows = [[name, split, str(count)] for split, of in found.counts.items() for name, count in of.items()]
        yield TableData("Classes", ["class", "split", "images"], rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested values as rows of dotted keys."""
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append([f"{prefix}{key}", _short(value)])
    return rows


def _short(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:5]))
        return shown if len(value) <= 5 else f"{len(value)}: {shown}, …"
    return "" if value is None else str(value)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        size /= 1024
    return f"{size:.3g} GiB"
