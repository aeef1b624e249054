"""What runs are made from: the features, and an earlier run where that one says how long to train."""

from dataclasses import dataclass
from typing import Any

from leokit import manifest
from leokit.checks import check_meta_train, require_training
from leokit.config import MetaTrainConfig, training_splits
from leokit.features import FeatureStore
from leokit.runs import open_run


@dataclass(frozen=True)
class Sources:
    """What runs are made from, as their manifests say it.

    Attributes:
        inputs: by name.
        facts: of the features, which later stages check.
        classes: of train and val that are used, where small ones are left out; else nothing.
    """

    inputs: dict[str, manifest.Input]
    facts: dict[str, Any]
    classes: dict[str, list[str]]


def open_features(config: MetaTrainConfig) -> FeatureStore:
    """The features to train on, without small classes where these are skipped.

    Raises:
        ArtifactError: no features, or damaged ones.
    """
    store = FeatureStore.open(config.features or config.work / "features")
    return store.without(require_training(config, store.facts["counts"]))


def resolve(config: MetaTrainConfig) -> tuple[MetaTrainConfig, FeatureStore, Sources]:
    """The configuration with its number of steps, the features to train on, and what the run is made from.

    Raises:
        ArtifactError: no features, or `steps_from` is no run, or one on other features.
        DataError: too few classes or images for the episodes asked for.
        UsageError: options that do not go together.
    """
    resolved = check_meta_train(config)
    store = open_features(config)
    inputs = {"features": store.input}
    if config.steps_from is not None:
        inputs["steps_from"] = open_run(config.steps_from).input
    return resolved, store, _sources(config, store, inputs)


def skipped(store: FeatureStore) -> dict[str, dict[str, int]]:
    """The classes of train and val that are left out as too small, with their images."""
    found = {}
    for split in ("train", "val"):
        used = set(store.classes(split)) if split in store.splits else set()
        found[split] = {name: count for name, count in store.facts["counts"].get(split, {}).items() if name not in used}
    return {split: classes for split, classes in found.items() if classes}


def _sources(config: MetaTrainConfig, store: FeatureStore, inputs: dict[str, manifest.Input]) -> Sources:
    """What a run says of its features."""
    facts = {
        "dim": store.dim,
        "backbone": store.facts["backbone"],
        "trained_on": store.facts["trained_on"],
        "classes": {split: len(store.classes(split)) for split in ("train", "val")},
        "meta_trained_on": list(training_splits(config)),
    }
    return Sources(inputs, facts, {split: store.classes(split) for split in ("train", "val")} if skipped(store) else {})
