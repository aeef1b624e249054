"""`leokit inspect`."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from leokit.cli.render import Output, TableData
from leokit.config import InspectConfig
from leokit.text import method_name

if TYPE_CHECKING:
    from leokit.stages.inspect import Inspection

_HASH, _SHORT_ID = re.compile("[0-9a-f]{64}"), 12
_STATES = {
    "there": "still there",
    "changed": "replaced by another",
    "missing": "gone",
    "files": "there, not compared",
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
    if "command" in found.info:
        about.append(["command", shlex.join(map(str, found.info["command"]))])
    yield TableData(found.schema, ["", ""], about, numeric=False)
    if found.inputs:
        rows = [
            [role, (entry["id"] or "")[:_SHORT_ID], _STATES[entry["state"]], entry["path"] or ""]
            for role, entry in found.inputs.items()
        ]
        yield TableData("Made from", ["", "id", "now", "path"], rows, numeric=False)
    made = _flat({key: value for key, value in found.info.items() if key != "command"})
    configured, facts = _flat(found.config), _flat(found.facts)
    told = [*configured, ("split_source", dict(configured).get("splits.source"))]
    facts = [row for row in facts if row not in told and row[1] not in _told(found)]
    for title, pairs in (("Configuration", configured), ("Facts", facts), ("When and where", made)):
        if pairs:
            yield TableData(title, ["", ""], [[key, _short(value)] for key, value in pairs], numeric=False)
    summary = found.summary()
    if summary:
        columns = list(next(iter(summary.values())))
        rows = [[split, *(f"{value:g}" for value in entry.values())] for split, entry in summary.items()]
        yield TableData("Classes and images of each split; min, median and max of a class", ["split", *columns], rows)
    for split, of in found.counts.items() if classes else ():
        rows = [[name, str(count)] for name, count in of.items()]
        yield TableData(f"Classes of {split}", ["class", "images"], rows)


def _told(found: "Inspection") -> list[Any]:
    """What is shown elsewhere: ids of what it was made from, and what the pictures show."""
    return [*(entry["id"] for entry in found.inputs.values()), *found.facts.get("figures", {}).values()]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as pairs of a dotted key and a value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if key == "variant" and method_name(value) != value:
            value = f"{value} ({method_name(value)})"
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs


def _short(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:5]))
        return shown if len(value) <= 5 else f"{len(value)}: {shown}, …"
    if isinstance(value, str) and _HASH.fullmatch(value):
        return value[:_SHORT_ID]
    return "" if value is None else str(value)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        size /= 1024
    return f"{size:.3g} GiB"
