"""Which artifacts a work folder holds, and reading what they hold without trusting it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leokit import manifest
from leokit.errors import ArtifactError, LeokitError
from leokit.report.model import Figure
from leokit.report.pictures import size
from leokit.report.words import mapping

SUMMARY = "summary.json"
CARD = "card.json"  # in the folder of a model card: which files are of it
UNFINISHED_CARD = ".card-unfinished"
_ROOMS = ("runs", "eval", "uncertainty", "tables", "analysis", "search", "regression", "regression-eval")
_ORDER = ("demo", "backbone", "features", "run", "eval", "uncertainty", "table")  # of kinds, as they are made
_WITHOUT_FIGURES = ("demo", "features")  # their pictures are data
_BROKEN = (LeokitError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact.

    Attributes:
        name: its place in the work folder, as `runs/leo-5way-1shot`.
        folder: where it lies.
        manifest: what it says of itself.
    """

    name: str
    folder: Path
    manifest: manifest.Manifest

    @property
    def kind(self) -> str:
        """The kind of its schema, as `run` for `leokit/run@1`."""
        return self.manifest.schema.removeprefix("leokit/").split("@")[0]

    def summary(self) -> dict[str, Any]:
        """Its summary.json.

        Raises:
            ArtifactError: missing, altered, or no JSON object.
        """
        return self.json(SUMMARY)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of it.

        Raises:
            ArtifactError: missing, altered, or no JSON object.
        """
        found = manifest.read_json(self.folder, self.manifest, name)
        if not isinstance(found, dict):
            raise ArtifactError(
                f"{self.folder / name} is damaged (no JSON object): make the artifact again with --overwrite."
            )
        return found


@dataclass(frozen=True)
class Trouble:
    """An artifact of which something cannot be shown, and why."""

    name: str
    text: str


@dataclass
class Collection:
    """The artifacts of a work folder, and what was wrong with others, which grows while they are read."""

    work: Path
    artifacts: list[Artifact] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Artifact]:
        """The artifacts of some kinds, in order."""
        return [artifact for artifact in self.artifacts if artifact.kind in kinds]

    def trouble(self, name: str, text: object) -> None:
        """Record what is wrong with an artifact, in words that do not depend on where the work folder is."""
        found = Trouble(name, str(text).replace(f"{self.work}{os.sep}", ""))
        if found not in self.troubles:
            self.troubles.append(found)

    @contextmanager
    def guarded(self, artifact: Artifact) -> Iterator[None]:
        """Read from an artifact; whatever is not as its kind should be becomes a trouble and is not shown."""
        try:
            yield
        except LeokitError as error:
            self.trouble(artifact.name, error)
        except _BROKEN as error:
            what = f"{type(error).__name__}: {error}"
            self.trouble(artifact.name, f"Its contents are not those of a {artifact.manifest.schema} ({what}).")


def collect(work: Path) -> Collection:
    """Find the artifacts in a work folder: in it, and in folders of it that are none themselves, as `runs`.

    Raises:
        ArtifactError: the folder is an artifact itself.
    """
    if _is_artifact(work):
        raise ArtifactError(
            f"{work} is an artifact, not a work folder: name the work folder that it belongs to by --work."
        )
    found = Collection(work)
    for folder in _folders(work):
        if is_card(folder):
            continue  # a copy of what is here
        if _is_artifact(folder):
            _take(found, folder)
        elif _is_work(folder):
            found.trouble(folder.name, "A work folder of its own: it has its own report, by --work.")
        else:
            for inner in _folders(folder):
                if _is_artifact(inner):
                    _take(found, inner)
    found.artifacts.sort(key=lambda artifact: _ORDER.index(artifact.kind) if artifact.kind in _ORDER else len(_ORDER))
    return found


def figures(found: Collection, artifact: Artifact) -> list[Figure]:
    """The pictures of an artifact that are as they were recorded, each with its text."""
    if artifact.kind in _WITHOUT_FIGURES:
        return []
    texts = mapping(artifact.manifest.facts.get("figures"))
    there = [name for name in artifact.manifest.files if name.endswith(".png") and "/" not in name]
    shown = []
    for name in [*(name for name in texts if name in there), *(name for name in there if name not in texts)]:
        with found.guarded(artifact):
            data = manifest.read_file(artifact.folder, artifact.manifest, name)
            width, height = size(data, artifact.folder / name)
            words = str(texts.get(name) or _words(artifact, name))
            shown.append(Figure(f"{artifact.name}, {name}", words, artifact.folder / name, data, width, height))
    return shown


def _words(artifact: Artifact, name: str) -> str:
    """What a picture of an artifact shows that says nothing of it itself, as those of earlier versions."""
    from leokit.figures.curves import curves_in_words
    from leokit.figures.pretraining import pretraining_in_words

    known = {("run", "curves.png"): curves_in_words, ("backbone", "curves.png"): pretraining_in_words}
    try:
        return known[artifact.kind, name](artifact.manifest.config, artifact.manifest.facts)
    except _BROKEN:
        return f"{name} of {artifact.name}, of which no description was recorded."


def _take(found: Collection, folder: Path) -> None:
    name = folder.relative_to(found.work).as_posix()
    try:
        unfinished = manifest.read_unfinished(folder)
        if unfinished is None:
            found.artifacts.append(Artifact(name, folder, manifest.read(folder)))
        else:
            schema = unfinished.get("schema")
            found.trouble(name, f"Unfinished ({schema}): the command that makes it, run again, goes on from there.")
    except _BROKEN as error:
        found.trouble(name, error)


def _is_artifact(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (manifest.MANIFEST, manifest.UNFINISHED))


def is_card(folder: Path) -> bool:
    """Whether `leokit report --card` wrote a folder, or is about to."""
    return any((folder / name).is_file() for name in (CARD, UNFINISHED_CARD))


def _is_work(folder: Path) -> bool:
    """Whether a folder looks like a work folder rather than like a part of one."""
    parts = [folder / name for name in ("runs", "eval")]
    stores = [folder / name for name in ("features", "backbone")]
    return folder.name not in _ROOMS and (any(map(Path.is_dir, parts)) or any(map(_is_artifact, stores)))


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names with numbers as numbers."""
    if not folder.is_dir():
        return []
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(inside, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(part) if index % 2 else 0, "" if index % 2 else part) for index, part in enumerate(parts)]
