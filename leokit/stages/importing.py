"""`leokit import`: embeddings that others made → features."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leokit import manifest
from leokit.config import ImportConfig
from leokit.errors import DataError, UsageError
from leokit.features import FeatureStore, Source, find_source, write_store
from leokit.features.labelled import repeated
from leokit.splits import BUILT_IN, SPLIT_NAMES, UNKNOWN, division_remarks, read_listing, resolve, small_remarks

Progress = Callable[[int, int, str], None]

DEEPMIND = "deepmind-leo-embeddings"
TRAIN = "train"  # as --trained-on: the classes of the train split

_Classes = dict[str, tuple[list[str], NDArray[np.floating[Any]]]]


@dataclass(frozen=True)
class Imported:
    """Embeddings in memory, checked and divided.

    Attributes:
        splits: for each split and class the images (n,) and their embeddings (n, D).
        source_id: hash of the files.
        split_source: where the division comes from.
        backbone: what identifies the backbone that made them; None where nothing is known.
        trained_on: what it was trained on, as `leokit.splits.classes_seen` takes it.
        known_as: the built-in list whose classes these are.
        notes: what a user should know, a sentence each.
    """

    splits: dict[str, _Classes]
    source_id: str
    split_source: str
    backbone: dict[str, str] | None
    trained_on: str | list[str]
    known_as: str | None
    notes: tuple[str, ...]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images of each class of each split."""
        return {
            split: {name: len(classes[name][0]) for name in _bytewise(classes)}
            for split, classes in self.splits.items()
        }


def default_out(config: ImportConfig) -> Path:
    """Where the features go: `--out`, else their place under the work folder."""
    return config.out or config.work / "features"


def read(config: ImportConfig, *, on_progress: Progress | None = None) -> Imported:
    """Read and check the embeddings, and divide their classes.

    Args:
        config: of the import.
        on_progress: called with files read, files in all and an empty line.

    Raises:
        UsageError: the options do not go with the source.
        DataError: nothing there, unreadable or refused files, arrays that do not fit together, values that are not
            finite, a class or an image in two splits.
    """
    source = find_source(config.source, dataset=config.dataset, crop=config.crop)
    if source.divided == (config.splits is not None):
        raise UsageError(
            f"The files in {config.source} say which split they are: leave --splits out."
            if source.divided
            else f"{config.source} is one file: say by --splits which of its classes are for training, validation and "
            "test (as extract takes it)."
        )
    source_id = manifest.hash_text(
        manifest.canonical_json({name: manifest.hash_file(path) for name, path in source.all_files()})
    )
    read_splits: dict[str, _Classes] = {}
    notes = []
    for done, split in enumerate(source.files):
        if on_progress:
            on_progress(done, len(source.files), "")
        rows, others = source.read(split)
        read_splits[split] = rows.by_class()
        if others:
            notes.append(f"Not used, being no embeddings: {', '.join(others)} in {source.files[split]}.")
    _check(config, source, read_splits)
    if source.divided:
        splits, split_source = read_splits, "DeepMind's pickles" if source.pickles else "files by split"
    else:
        splits, split_source = _by_list(config, read_splits[""])
    known_as = _known(splits)
    if known_as and source.divided:
        split_source = f"{split_source} ({known_as})"
    return Imported(
        splits,
        source_id,
        split_source,
        _backbone(config, source, splits),
        _trained_on(config, source, splits),
        known_as,
        (*notes, *_notes(config, source, splits)),
    )


def _check(config: ImportConfig, source: Source, splits: Mapping[str, _Classes]) -> None:
    """Check that files fit together: one width, and no class or image in two of them."""
    widths = {split: rows.shape[1] for split, classes in splits.items() for _, rows in classes.values()}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{source.files[split]}: {width}" for split, width in widths.items())
        raise DataError(f"The embeddings differ in width ({listed}): one backbone gives one width.")
    for what, names in (
        ("class", (name for classes in splits.values() for name in classes)),
        ("image", (name for classes in splits.values() for images, _ in classes.values() for name in images)),
    ):
        twice = repeated(names)
        if twice:
            raise DataError(
                f"The {what} {twice[0]!r} is in two splits of {config.source} ({len(twice)} such): it may be in one."
            )


def _by_list(config: ImportConfig, classes: _Classes) -> tuple[dict[str, _Classes], str]:
    """The classes of one file, divided as a user asks, and what the division is called."""
    available = {name: images for name, (images, _) in classes.items()}
    divided = resolve(config.splits, config.source, available, config.seed)
    splits: dict[str, _Classes] = {}
    for split, chosen in divided.images(available).items():
        splits[split] = {}
        for name, images in chosen.items():
            row_of = {image: row for row, image in enumerate(available[name])}
            splits[split][name] = (list(images), classes[name][1][[row_of[image] for image in images]])
    return splits, divided.source


def _known(splits: Mapping[str, _Classes]) -> str | None:
    """The built-in list that has exactly these classes in each split."""
    classes = {split: set(of_split) for split, of_split in splits.items()}
    for name in BUILT_IN:
        if {split: set(names) for split, names in read_listing(name).classes.items()} == classes:
            return name
    return None


def _trained_on(config: ImportConfig, source: Source, splits: Mapping[str, _Classes]) -> str | list[str]:
    said = config.trained_on or (TRAIN if source.pickles else UNKNOWN)
    if said != TRAIN:
        return said
    if TRAIN not in splits:
        raise UsageError(f"trained_on = {TRAIN!r}: {config.source} has no train split.")
    return _bytewise(splits[TRAIN])


def _backbone(config: ImportConfig, source: Source, splits: Mapping[str, _Classes]) -> dict[str, str] | None:
    """What tells one backbone from another: the name that a user gives, or the train embeddings of DeepMind's.

    DeepMind published no weights to hash. Its data sets and crops have 640 features each, from different networks or
    views; the train embeddings tell them apart, wherever the pickles lie and whatever Python wrote them.
    """
    if config.backbone_name is not None:
        return {"name": config.backbone_name}
    if not source.pickles:
        return None
    sha256 = hashlib.sha256()
    for name in _bytewise(splits[TRAIN]):
        images, rows = splits[TRAIN][name]
        sha256.update(manifest.canonical_json([name, images]).encode("utf-8"))
        sha256.update(np.ascontiguousarray(rows, "<f4").data)
    return {"name": DEEPMIND, "train_embeddings_sha256": sha256.hexdigest()}


def _notes(config: ImportConfig, source: Source, splits: Mapping[str, _Classes]) -> list[str]:
    notes = []
    missing = [split for split in SPLIT_NAMES if split not in splits]
    if missing:
        notes.append(f"There is no file for {', '.join(missing)}: the features will have no such split.")
    types = {rows.dtype.newbyteorder("=").name for classes in splits.values() for _, rows in classes.values()}
    if types != {config.dtype}:
        notes.append(f"The embeddings are {' and '.join(sorted(types))}; they are stored as {config.dtype}.")
    if not source.pickles and config.backbone_name is None:
        notes.append(
            "Nothing says which backbone made these embeddings: name it by --backbone-name, so that others of the same "
            "width are not taken for its."
        )
    return notes


def run(
    config: ImportConfig,
    *,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> FeatureStore:
    """Bring embeddings that others made into a feature store.

    Args:
        config: of the import.
        on_progress: called with files read, files in all and an empty line.
        on_message: called with what a user should know, a sentence each.

    Raises:
        UsageError, DataError: as `read`; a value that the store's type cannot hold.
        ArtifactError: the place holds something else.
    """
    say = on_message or (lambda message: None)
    imported = read(config, on_progress=on_progress)
    divided_by = division_remarks(imported.split_source, imported.counts)
    for note in (*imported.notes, *divided_by, *small_remarks(imported.counts)):
        say(note)
    folder = default_out(config)
    done = (folder / manifest.MANIFEST).exists() and not config.overwrite
    images = {split: {name: of for name, (of, _) in classes.items()} for split, classes in imported.splits.items()}
    divided = {"source": imported.split_source, "sha256": manifest.hash_text(manifest.canonical_json(images))}
    with manifest.locked(folder):
        store = write_store(
            folder,
            imported.splits,
            dtype=config.dtype,
            config={"backbone": imported.backbone, "trained_on": imported.trained_on, "splits": divided},
            inputs={"source": manifest.Input(imported.source_id, str(config.source))},
            overwrite=config.overwrite,
            backbone=imported.backbone,
            trained_on=imported.trained_on,
            split_source=imported.split_source,
        )
    if done:
        say(manifest.already_done(folder))
    return store


def _bytewise(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: name.encode("utf-8"))
