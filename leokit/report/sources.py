"""What the results were made from: images, features, what the backbone has seen, commands, ids and versions."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from leokit.evaluations import seen_sentence
from leokit.manifest import SETS_OF_FILES
from leokit.report.collecting import Artifact, Collection
from leokit.report.model import Block, Cell, Column, Commands, Facts, Fold, Note, Section, Table, Text
from leokit.report.words import NOTHING, anything, count, get, listed, mapping, number, numbers, plural, texts
from leokit.splits import classes_seen, summarize_counts

_LISTED = 1000  # classes at most that are listed
_SHORT_ID = 12
_FEW_COMMANDS = 12


def seen_notes(found: Collection) -> list[Note]:
    """What the backbones of features have seen of their test classes, a sentence each."""
    notes = []
    for artifact in found.of("features"):
        with found.guarded(artifact):
            classes = list(artifact.manifest.facts["counts"].get("test", ()))
            if classes:
                trained_on = artifact.manifest.facts["trained_on"]
                seen = classes_seen(trained_on, classes)
                notes.append(seen_note(seen, seen_sentence(trained_on, seen, len(classes), "test")))
    return list(dict.fromkeys(notes))


def seen_note(seen: int | None, words: str) -> Note:
    """What a backbone has seen: good news, bad news, or not known."""
    return Note("plain" if seen is None else "warning" if seen else "good", words)


def features(found: Collection) -> list[Section]:
    """The section of features: what embedded which images, and how many classes and images there are."""
    blocks: list[Block] = []
    for artifact in found.of("features"):
        with found.guarded(artifact):
            blocks += _features(artifact, artifact.manifest.facts)
    return [Section("data", "Features", blocks)] if blocks else []


def _features(artifact: Artifact, facts: dict[str, Any]) -> list[Block]:
    backbone = mapping(facts.get("backbone"))
    trained_on = facts.get("trained_on")
    about = [
        ("folder", Cell(artifact.name)),
        ("backbone", anything(backbone.get("name"))),
        ("trained on", Cell(f"{len(trained_on)} classes") if isinstance(trained_on, list) else anything(trained_on)),
        ("layer", anything(backbone.get("layer"))),
        ("image size", anything(get(backbone, "preprocessing", "image_size"))),
        ("views", anything(backbone.get("views"))),
        ("width", Cell(f"{count(facts.get('dim')).text}, {facts.get('dtype')}")),
        ("splits", anything(facts.get("split_source"))),
        ("unreadable images", count(facts.get("failures"))),
    ]
    counts = {split: mapping(classes) for split, classes in facts["counts"].items()}
    rows = [
        [Cell(split), *(number(entry[key], 0) for key in ("classes", "images", "min", "median", "max"))]
        for split, entry in summarize_counts(counts).items()
    ]
    heads = numbers("classes", "images", "fewest of a class", "median of a class", "most of a class")
    blocks: list[Block] = [
        Facts([(name, cell) for name, cell in about if cell.text != NOTHING]),
        Table("Classes and images of each split", [Column("split"), *heads], rows, sortable=False),
    ]
    names = [(name, split, images) for split, classes in counts.items() for name, images in classes.items()]
    if len(names) <= _LISTED:
        listing = [[Cell(name), Cell(split), count(images)] for name, split, images in names]
        table = Table("Classes", [*texts("class", "split"), *numbers("images")], listing)
        blocks.append(Fold(f"All {len(names)} classes", [table]))
    else:
        blocks.append(Text(f"`leokit inspect --classes` lists all {len(names):,} classes."))
    return blocks


def provenance(found: Collection) -> list[Section]:
    """The section on how everything was made."""
    artifacts = found.artifacts
    if not artifacts:
        return []
    blocks: list[Block] = [
        overview(found),
        *_commands(artifacts),
        *versions(artifacts),
        Text(
            "Summaries, episodes and pictures were compared with their recorded hashes; features and weights were not: "
            "leokit verify does that."
        ),
    ]
    blocks += [
        Fold("Ids and configurations in full", [Fold(artifact.name, [_details(artifact)]) for artifact in artifacts])
    ]
    return [Section("provenance", "Provenance", blocks)]


def stale_notes(found: Collection) -> list[Note]:
    """Results whose inputs have been made anew since: their numbers are of what is no longer there."""
    notes = []
    for artifact in found.artifacts:
        for role, entry in artifact.manifest.inputs.items():
            now = _successor(found, role, entry.path)
            if _holder(found, entry.id) is None and now is not None:
                notes.append(
                    Note(
                        "warning",
                        f"{artifact.name} was made from another {now.name} ({entry.id[:_SHORT_ID]}) than is there now "
                        f"({now.manifest.id[:_SHORT_ID]}): its command, run again, says what to do.",
                    )
                )
    return notes


def _holder(found: Collection, identifier: str) -> Artifact | None:
    return next((artifact for artifact in found.artifacts if artifact.manifest.id == identifier), None)


def _successor(found: Collection, role: str, path: str) -> Artifact | None:
    """The artifact that lies where an input lay, by the last parts of its path."""
    parts = PurePath(path).parts
    names = ["/".join(parts[-length:]) for length in (2, 1) if len(parts) >= length]
    kinds = {"run": "run", "features": "features", "backbone": "backbone", "steps_from": "run"}
    there = found.of(kinds.get(role.split(" ")[0], role))
    return next((artifact for name in names for artifact in there if artifact.name == name), None)


def _inputs(found: Collection, artifact: Artifact) -> str:
    """What an artifact was made from: names in this work folder, or ids of what is not in it."""
    names = []
    for role, entry in artifact.manifest.inputs.items():
        holder = _holder(found, entry.id)
        place = "" if role in SETS_OF_FILES else " (elsewhere)"
        names.append(f"{role} {entry.id[:_SHORT_ID]}{place}" if holder is None else holder.name)
    return "; ".join(dict.fromkeys(names)) or NOTHING


def overview(found: Collection) -> Table:
    """A row for each artifact: what it is, its id, and what it was made from, when and where."""
    rows = []
    for artifact in found.artifacts:
        info = artifact.manifest.info
        size = sum(entry.bytes for entry in artifact.manifest.files.values())
        rows.append(
            [
                Cell(artifact.name),
                Cell(artifact.kind),
                Cell(artifact.manifest.id[:_SHORT_ID], code=True),
                Cell(_inputs(found, artifact)),
                Cell(str(info.get("created") or NOTHING).replace("T", " ").replace("+00:00", " UTC")),
                anything(info.get("device")),
                number(info.get("seconds"), 1),
                number(size, 2, scale=2**-20),
            ]
        )
    columns = [*texts("artifact", "kind", "id", "made from", "ended", "device"), *numbers("seconds", "MiB")]
    return Table("Artifacts", columns, rows)


def _commands(artifacts: Iterable[Artifact]) -> list[Block]:
    """Each command once, with what it made; many are folded away."""
    made: dict[str, list[str]] = {}
    for artifact in sorted(artifacts, key=lambda artifact: str(artifact.manifest.info.get("created"))):
        command = artifact.manifest.info.get("command")
        if isinstance(command, list) and command:
            made.setdefault(_command(command), []).append(artifact.name)
    lines = [(command, _some(names)) for command, names in made.items()]
    title = f"{plural(len(lines), 'command')}, in the order in which they ended; paths are as they were given"
    if len(lines) > _FEW_COMMANDS:
        return [Fold(title, [Commands(lines)])]
    return [Text(f"{title}:"), Commands(lines)] if lines else []


def _some(names: Sequence[str]) -> str:
    """Names, where they are few."""
    return listed(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def _command(arguments: Sequence[Any]) -> str:
    """A recorded command line as one would type it."""
    program = PurePath(str(arguments[0]))
    ours = program.name == "leokit" or program.parts[-2:] == ("leokit", "__main__.py")
    return shlex.join(["leokit" if ours else str(program), *map(str, arguments[1:])])


def versions(artifacts: Sequence[Artifact]) -> list[Text]:
    """The versions of libraries and the machines that artifacts were made with, a sentence for each set of them."""
    made: dict[str, list[str]] = {}
    for artifact in artifacts:
        info = artifact.manifest.info
        libraries = [f"{name} {version}" for name, version in mapping(info.get("versions")).items()]
        if libraries:
            words = f"{', '.join(libraries)}; Python {info.get('python')}; {info.get('platform')}."
            made.setdefault(words, []).append(artifact.name)
    if len(made) == 1 and len(next(iter(made.values()))) == len(artifacts):
        return [Text(f"All made with {words}") for words in made]
    return [Text(f"{_some(names)} made with {words}") for words, names in made.items()]


def _details(artifact: Artifact) -> Facts:
    found = artifact.manifest
    pairs = [("schema", Cell(found.schema)), ("id", Cell(found.id, code=True))]
    pairs += [(f"input: {role}", Cell(entry.id, code=True)) for role, entry in found.inputs.items()]
    pairs += [(f"config: {key}", cell) for key, cell in _flat(found.config)]
    return Facts(pairs)


def _flat(values: Any, prefix: str = "") -> Iterable[tuple[str, Cell]]:
    for key, value in mapping(values).items():
        if mapping(value):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", anything(value)
