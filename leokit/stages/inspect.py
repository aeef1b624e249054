"""`leokit inspect`: what an artifact is and how it was made, from its manifest alone."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leokit import manifest
from leokit.config import InspectConfig
from leokit.errors import DataError
from leokit.features.layout import SCHEMA as FEATURES
from leokit.splits import SPLIT_NAMES, SPLITS_FILE, summarize_counts
from leokit.splits.lists import read_class_list


@dataclass(frozen=True)
class Inspection:
    """An artifact, finished or not.

    Attributes:
        folder: where it lies.
        finished: whether it has a manifest.
        schema: kind and version.
        id: of a finished one.
        config: what decides its results.
        inputs: what it was made from: role → id, path and whether it is still there (see `manifest.look_up`).
        files: number of files, and their bytes in all; of an unfinished one what is there so far.
        counts: images of each class of each split, where it holds such.
        facts: what the next stage checks, without the counts.
        info: when, where, how long.
    """

    folder: Path
    finished: bool
    schema: str
    id: str | None
    config: dict[str, Any]
    inputs: dict[str, dict[str, str | None]]
    files: dict[str, int]
    counts: dict[str, dict[str, int]]
    facts: dict[str, Any]
    info: dict[str, Any]

    def summary(self) -> dict[str, dict[str, float]]:
        """For each split its number of classes and images, and the fewest, median and most images of a class."""
        return summarize_counts(self.counts)


def run(config: InspectConfig) -> Inspection:
    """Tell what an artifact is. No data is loaded, and no file is checked.

    Raises:
        ArtifactError: no artifact there, or its manifest is damaged.
    """
    folder = config.path
    unfinished = manifest.read_unfinished(folder)
    if unfinished is not None:
        inputs: dict[str, dict[str, str | None]] = {
            role: {"id": identifier, "path": None, "state": None}
            for role, identifier in unfinished.get("inputs", {}).items()
        }
        return Inspection(
            folder=folder,
            finished=False,
            schema=str(unfinished.get("schema")),
            id=None,
            config=unfinished.get("config", {}),
            inputs=inputs,
            files=_files_so_far(folder),
            counts={},
            facts={},
            info={},
        )
    found = manifest.read(folder)
    return Inspection(
        folder=folder,
        finished=True,
        schema=found.schema,
        id=found.id,
        config=found.config,
        inputs={
            role: {"id": entry.id, "path": entry.path, "state": manifest.look_up(role, entry)[0]}
            for role, entry in found.inputs.items()
        },
        files={"number": len(found.files), "bytes": sum(entry.bytes for entry in found.files.values())},
        counts=dict(sorted(_counts(folder, found).items(), key=lambda item: SPLIT_NAMES.index(item[0]))),
        facts={key: value for key, value in found.facts.items() if key != "counts"},
        info=found.info,
    )


def _files_so_far(folder: Path) -> dict[str, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != manifest.UNFINISHED]
    return {"number": len(sizes), "bytes": sum(sizes)}


def _counts(folder: Path, found: manifest.Manifest) -> dict[str, dict[str, int]]:
    """Images of each class of each split: by the facts of features, or by the names of the files of an image tree."""
    if found.schema == FEATURES:
        counts: dict[str, dict[str, int]] = found.facts["counts"]
        return counts
    if SPLITS_FILE not in found.files:
        return {}
    try:
        listed = read_class_list(folder / SPLITS_FILE)
    except DataError:
        return {}
    images = Counter(name.rpartition("/")[0] for name in found.files)
    counts = {}
    for entry in listed:
        counts.setdefault(entry.split, {})[entry.name] = images[entry.name]
    return counts
