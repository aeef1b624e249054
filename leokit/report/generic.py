"""Artifacts of which the page knows nothing but figures and a summary: their pictures, and their numbers in tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from leokit.report.collecting import SUMMARY, Artifact, Collection, figures
from leokit.report.model import Block, Cell, Column, Figures, Fold, Part, Section, Table, Text
from leokit.report.words import anything, between, interval, is_number, plural

_KNOWN = ("features", "backbone", "run", "eval", "uncertainty", "table", "demo", "classifier")
_TITLES = {
    "search": "Search of hyper-parameters",
    "analysis": "Analysis: codes and curvature",
    "regression": "Regression: sines and lines",
    "regression-eval": "Regression: how good the samples are",
}
_SHORT = 12  # rows of a table that is not folded away
_LONG = 500  # rows that are shown at most


def generic(found: Collection) -> list[Section]:
    """A section for each kind of artifact that has no own one."""
    kinds = dict.fromkeys(artifact.kind for artifact in found.artifacts if artifact.kind not in _KNOWN)
    ordered = [kind for kind in _TITLES if kind in kinds] + [kind for kind in kinds if kind not in _TITLES]
    sections = []
    for number, kind in enumerate(ordered):
        members = found.of(kind)
        parts: list[Block] = []
        for artifact in members:
            blocks = _blocks(found, artifact)
            parts += blocks if len(members) == 1 else [Part(artifact.name, blocks)]
        if parts:
            sections.append(Section(f"other-{number}", _TITLES.get(kind, kind.capitalize()), parts))
    return sections


def _blocks(found: Collection, artifact: Artifact) -> list[Block]:
    pictures = figures(found, artifact)
    blocks: list[Block] = [Figures(pictures)] if pictures else []
    if SUMMARY in artifact.manifest.files:
        with found.guarded(artifact):
            for table in _tables(artifact.summary()):
                long = len(table.rows) > _SHORT
                blocks.append(Fold(f"{table.caption}: {plural(len(table.rows), 'row')}", [table]) if long else table)
    return blocks or [Text(f"{artifact.name} holds neither pictures nor a {SUMMARY}.")]


def _tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """The numbers of a summary: what stands alone in one table, lists of alike objects in a table each."""
    alone: list[tuple[str, Cell]] = []
    alike: list[Table] = []
    for key, value in summary.items():
        if rows := _alike(value):
            names = list(rows[0][1])
            cells = [[Cell(name), *(_cell(row[each]) for each in names)] for name, row in rows]
            columns = [Column(""), *(Column(_words(name), _numeric(rows, name)) for name in names)]
            alike.append(Table(_words(key), columns, cells[:_LONG]))
        else:
            alone += _flat(key, value)
    if alone:
        numbers = [[Cell(key), cell] for key, cell in alone[:_LONG]]
        yield Table("Numbers", [Column("what"), Column("value", numeric=True)], numbers, sortable=False)
    yield from alike


def _alike(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The objects in a list or an object, by number or name, where all have the same keys with plain values."""
    if isinstance(value, list):
        entries = [(str(number), entry) for number, entry in enumerate(value, 1)]
    elif isinstance(value, Mapping) and not _is_interval(value):
        entries = list(value.items())
    else:
        return []
    if not all(isinstance(entry, Mapping) and not _is_interval(entry) for _, entry in entries):
        return []
    keys = {tuple(entry) for _, entry in entries}
    plain = all(_is_plain(item) for _, entry in entries for item in entry.values())
    return entries if len(keys) == 1 and plain and keys != {()} else []


def _is_plain(value: Any) -> bool:
    return not isinstance(value, Mapping | list) or _is_interval(value)


def _is_interval(value: Any) -> bool:
    """Whether an object is a number with its interval."""
    if not isinstance(value, Mapping):
        return False
    return set(value) in ({"value", "low", "high"}, {"mean", "low", "high"}, {"mean", "half_width"})


def _cell(value: Any) -> Cell:
    if not _is_interval(value):
        return anything(value)
    middle = value.get("value", value.get("mean"))
    if "half_width" in value:
        return interval(middle, value["half_width"], 4)
    return between(middle, value["low"], value["high"], 4)


def _numeric(rows: list[tuple[str, dict[str, Any]]], name: str) -> bool:
    return all(row[name] is None or is_number(row[name]) or _is_interval(row[name]) for _, row in rows)


def _flat(key: str, value: Any) -> Iterator[tuple[str, Cell]]:
    if isinstance(value, Mapping) and value and not _is_interval(value):
        for inner, entry in value.items():
            yield from _flat(f"{key}.{inner}", entry)
    elif isinstance(value, list) and any(isinstance(entry, Mapping | list) for entry in value):
        for number, entry in enumerate(value, 1):
            yield from _flat(f"{key}.{number}", entry)
    else:
        yield key, _cell(value)


def _words(key: str) -> str:
    return key.replace("_", " ")
