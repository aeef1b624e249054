"""From a run and a user's support images to a classifier: the backbone's vectors, the choice of a method, its fit."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import manifest
from leokit.backbones import Backbone
from leokit.checks import LEO, check_fit
from leokit.classifiers import Classifier, Evidence, Withheld
from leokit.config import FitConfig, default_workers
from leokit.devices import check_device, resolve_device
from leokit.engine import cache, chain
from leokit.engine.embedding import embed_images
from leokit.engine.fitting import METHODS, centre_of, fit, support_matrix
from leokit.engine.models import BLOCK, Model
from leokit.engine.studying import Study, remark, setting, study, withheld
from leokit.errors import DataError
from leokit.evaluations import gain_in_words
from leokit.features import FeatureStore
from leokit.images.preprocess import UnreadableImage, read_file
from leokit.images.scan import ImageTree
from leokit.images.support import empty_folders
from leokit.runs import Run, open_run
from leokit.text import method_name

Progress = Callable[[int, int, str], None]
Tell = Callable[[str], None]
_NAMED = 3  # files that a message names


@dataclass(frozen=True)
class EmbeddingModel:
    """The backbone of features, loaded when it is first needed."""

    recorded: Mapping[str, Any] | None
    source: Mapping[str, Any]
    given: str | None
    device: torch.device

    @cached_property
    def model(self) -> Model:
        """On its device.

        Raises:
            UsageError, ArtifactError: see `chain.load_backbone`.
        """
        backbone: Backbone = chain.load_backbone(self.recorded, self.source, self.given)
        return Model(backbone, self.device)


@dataclass(frozen=True)
class Made:
    """A classifier, and what embeds further images for it."""

    classifier: Classifier
    embedding: EmbeddingModel


@dataclass(frozen=True)
class SupportImages:
    """The support images that can be read: their paths, places of their classes, and hashes of their files."""

    place: Path
    tree: ImageTree
    paths: tuple[str, ...]
    numbers: NDArray[np.int64]
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """What a classifier will be made from, found and checked."""

    run: Run
    images: SupportImages
    features: tuple[Path, manifest.Manifest] | None  # that the run was trained on, where they are found

    @property
    def inputs(self) -> dict[str, manifest.Input]:
        """The run, its features where they are found, and the support images by their contents and classes."""
        classes, images = tuple(self.images.tree.classes), self.images
        listed = [[classes[number], digest] for number, digest in zip(images.numbers, images.hashes, strict=True)]
        found = manifest.Input(manifest.hash_text(manifest.canonical_json(listed)), str(images.place))
        studied = {"features": manifest.Input(self.features[1].id, str(self.features[0]))} if self.features else {}
        return {"run": self.run.input, **studied, "images": found}


def prepare(config: FitConfig, on_message: Tell) -> Prepared:
    """Find the run and the support images.

    Args:
        config: which run, which images, which method.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no run.
        DataError: a support set of one class, or a class without a readable file.
        UsageError: what the run cannot do, or no support set named.
    """
    check_device(config.device)
    recorded, tree = check_fit(config)
    assert config.support
    for sentence in tree.said:
        on_message(sentence)
    run = open_run(recorded.folder)
    empty = empty_folders(config.support, tree)
    if empty:
        more = ", …" if len(empty) > _NAMED else ""
        on_message(f"Without an image, and so no class: {', '.join(map(repr, empty[:_NAMED]))}{more}.")
    if words := gain_in_words(run.facts):
        on_message(f"{run.folder}: {words}")
    features = chain.find_features(run, config.features, config.work)
    return Prepared(run, _readable(config.support, tree, on_message), features)


def make_classifier(
    config: FitConfig, prepared: Prepared, *, on_progress: Progress | None = None, on_message: Tell
) -> Made:
    """Adapt a run, or a baseline that did better on meta-val, to support images.

    Args:
        config: which method, and where things are.
        prepared: the run and the images, by `prepare`.
        on_progress: called with what is done and wanted, and what that is.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: a run that does not fit its features or backbone.
        DataError: a class without a readable image.
        UsageError: what the run cannot do.
    """
    run, images = prepared.run, prepared.images
    device = resolve_device(config.device)
    found = prepared.features
    features = found[1] if found else None
    embedding = EmbeddingModel(run.facts["backbone"], chain.weights_from(run, features), config.weights, device)
    vectors, dropped = _vectors(config, images, embedding, on_progress, on_message)
    numbers = images.numbers[~dropped]
    distinct = {(number, images.hashes[place]) for place, number in enumerate(images.numbers) if not dropped[place]}
    counts = np.bincount([number for number, _ in distinct]).tolist()
    choice = _choose(config, run, found, counts, device, on_progress)
    left = np.bincount(numbers).tolist()
    each = str(max(left)) if len(set(left)) == 1 else f"{min(left)} to {max(left)}"
    on_message(f"Support set: {len(left)} classes, {each} image{'s' * (max(left) > 1)} of each.")
    classes = tuple(images.tree.classes)
    stored = features.facts["dtype"] if features else None
    vectors = vectors[~dropped].astype(stored or np.float32)
    matrix = support_matrix(vectors, numbers, classes, run, device)
    weights = fit(run, matrix, choice.method, samples=config.samples if choice.method == LEO else 0)
    made = Classifier(
        classes=classes,
        counts=tuple(left),
        method=choice.method,
        variant=run.config.variant,
        weights=weights.cpu(),
        centre=centre_of(run, choice.method),
        dtype=run.config.dtype,
        stored_dtype=stored,
        backbone=run.facts["backbone"],
        weights_from=dict(embedding.source),
        run=run.id,
        chosen=choice.sentence,
        evidence=choice.evidence,
        withheld=choice.withheld,
    )
    return Made(made, embedding)


def _readable(place: Path, tree: ImageTree, tell: Tell) -> SupportImages:
    """The images of a support set whose files can be read, with the hashes of these."""
    paths, numbers, hashes, reasons = [], [], [], {}
    labels: dict[str, set[str]] = defaultdict(set)
    for number, (name, of_class) in enumerate(tree.classes.items()):
        for image in of_class:
            member = tree.members.get(image)
            try:
                digest = hashlib.sha256(read_file(tree.path(image), member and member[1])).hexdigest()
            except UnreadableImage as error:
                reasons[image] = str(error)
                continue
            paths.append(image)
            numbers.append(number)
            hashes.append(digest)
            labels[digest].add(name)
    _check_left(tree, np.array(numbers, np.int64), reasons, tell)
    double = next((sorted(names) for names in labels.values() if len(names) > 1), None)
    if double:
        tell(f"One image is in two classes of the support set, {double[0]!r} and {double[1]!r}: is that meant?")
    return SupportImages(place, tree, tuple(paths), np.array(numbers, np.int64), tuple(hashes))


def _check_left(tree: ImageTree, numbers: NDArray[np.int64], reasons: Mapping[str, str], tell: Tell) -> None:
    """Refuse a class without images, and tell of images that could not be read."""
    counts = np.bincount(numbers, minlength=len(tree.classes))
    first = ", ".join(f"{image} ({reason})" for image, reason in list(reasons.items())[:_NAMED])
    if not counts.all():
        name = list(tree.classes)[int(counts.argmin())]
        raise DataError(f"The class {name!r} of the support set has no image that can be read: {first}.")
    if reasons:
        more = ", …" if len(reasons) > _NAMED else ""
        tell(f"Support images that could not be read and are left out: {len(reasons)}, {first}{more}.")


def _vectors(
    config: FitConfig, images: SupportImages, embedding: EmbeddingModel, on_progress: Progress | None, tell: Tell
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The vectors (n, D) of the support images, and which of them (n,) turned out to be no images."""
    folder, recorded = cache_folder(config.work), embedding.recorded
    key = ["support images", recorded, embedding.device.type, list(images.hashes)]
    kept = _kept_vectors(folder, key, len(images.paths))
    if kept is None:
        parts, done = [], 0
        unreadable: dict[int, str] = {}
        blocks = (images.paths[start : start + BLOCK] for start in range(0, len(images.paths), BLOCK))
        workers = min(default_workers() if config.workers is None else config.workers, len(images.paths) // BLOCK)
        model, tree = embedding.model, images.tree
        for block, vectors, failed in embed_images(blocks, model, tree.root, workers=workers, members=tree.members):
            parts.append(vectors)
            unreadable |= {done + place: reason for place, reason in failed.items()}
            done += len(block)
            if on_progress:
                on_progress(done, len(images.paths), "support images")
        kept = np.concatenate(parts), unreadable
        plain = {"reasons": {str(place): reason for place, reason in unreadable.items()}}
        cache.keep(folder, key, {"vectors": kept[0]}, plain)
    vectors, reasons = kept
    dropped = np.array([place in reasons for place in range(len(images.paths))])
    named = {images.paths[place]: reason for place, reason in reasons.items()}
    _check_left(images.tree, images.numbers[~dropped], named, tell)
    return vectors, dropped


def _kept_vectors(folder: Path, key: Any, count: int) -> tuple[NDArray[np.float32], dict[int, str]] | None:
    """Vectors (count, D) in the cache, and why some of the images, by their places, are none; None without them.

    Places and no paths: images of the same bytes may lie elsewhere by now.
    """
    found = cache.look_up(folder, key)
    try:
        vectors = found[0]["vectors"] if found else None
        reasons = {int(place): str(reason) for place, reason in found[1]["reasons"].items()} if found else {}
    except (KeyError, ValueError, AttributeError):
        return None
    fits = vectors is not None and vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors) == count
    return (vectors, reasons) if vectors is not None and fits and np.isfinite(vectors).all() else None


def cache_folder(work: Path) -> Path:
    """Where studies and support vectors are kept between commands."""
    return work / "cache"


@dataclass(frozen=True)
class _Choice:
    """The method, why it, and what meta-val says about it."""

    method: str
    sentence: str
    evidence: Evidence | None
    withheld: Withheld


def _choose(
    config: FitConfig,
    run: Run,
    found: tuple[Path, manifest.Manifest] | None,
    counts: list[int],
    device: torch.device,
    on_progress: Progress | None,
) -> _Choice:
    """Look at meta-val, and for `auto` take what was best there."""
    named = config.method if config.method != "auto" else LEO
    own = f"{_name(named, run)}, {'as asked' if config.method != 'auto' else 'the method of the run'}"
    if found is None:
        reason = "the features that the run was trained on are not here"
        compared = f"; no methods were compared: {reason} (name them by --features)" if config.method == "auto" else ""
        return _Choice(named, f"Method: {own}{compared}.", None, Withheld(*repeat(reason, 3)))
    folder, features = found
    classes = {split: list(features.facts["counts"].get(split, {})) for split in ("val", "test")}
    said = withheld(run, features.facts, classes, len(counts)) if classes["val"] else _no_val()
    if said.temperature:
        compared = f"; no methods were compared: {said.temperature}" if config.method == "auto" else ""
        return _Choice(named, f"Method: {own}{compared}.", None, said)
    episodes = setting(counts, list(features.facts["counts"]["val"].values()))
    methods: tuple[str, ...] = METHODS if config.method == "auto" and not config.samples else (named,)
    if run.config.variant == "meta-sgd" and run.config.ways != episodes.ways:
        methods = tuple(name for name in methods if name != LEO) or (named,)
    looked = study(
        run,
        lambda: FeatureStore.open(folder),
        methods,
        episodes,
        samples=config.samples,
        episodes=config.episodes,
        seed=config.seed,
        device=device,
        workers=default_workers() if config.workers is None else config.workers,
        folder=cache_folder(config.work),
        on_progress=on_progress,
    )
    best = looked.best()
    sentence = _chosen_in_words(run, looked, best, episodes.in_words()) if len(methods) > 1 else f"Method: {own}."
    sentence += remark(features.facts["trained_on"], classes["val"])
    evidence = replace(looked.evidence[best], spare=len(classes["val"]) - episodes.ways)
    return _Choice(best, sentence, evidence, said)


def _no_val() -> Withheld:
    return Withheld(*repeat("the features that the run was trained on have no meta-val classes", 3))


def _name(method: str, run: Run) -> str:
    """What a method is called: the run's own by its variant."""
    return method_name(run.config.variant) if method == LEO else method


def _chosen_in_words(run: Run, looked: Study, best: str, setting: str) -> str:
    """Which method was chosen, and by how much it was better than each other one."""
    parts = []
    for other in sorted(looked.evidence, key=lambda name: -looked.evidence[name].accuracy):
        if other != best:
            gap = looked.difference(best, other)
            parts.append(f"{_name(other, run)} by {100 * gap.mean:.2f} ± {100 * gap.half_width:.2f}")
    evidence = looked.evidence[best]
    return (
        f"Method: {_name(best, run)}, the best on meta-val at {setting} with {100 * evidence.accuracy:.2f} ± "
        f"{100 * evidence.half_width:.2f} % over {evidence.episodes} episodes; ahead of {' and of '.join(parts)}."
    )
