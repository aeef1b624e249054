"""What runs are made from: the features, and an earlier run where that one says how long to train."""

from dataclasses import dataclass
from typing import Any

from leokit import manifest
from leokit.checks import check_meta_train
from leokit.config import MetaTrainConfig, training_splits
from leokit.features import FeatureStore
from leokit.runs import open_run


@dataclass(frozen=True)
class Sources:
    """What runs are made from, as their manifests say it.

    Attributes:
        inputs: by name.
        facts: of the features, which later stages check.
    """

    inputs: dict[str, manifest.Input]
    facts: dict[str, Any]


def open_features(config: MetaTrainConfig) -> FeatureStore:
    """The features to train on.

    Raises:
        ArtifactError: no features, or damaged ones.
    """
    return FeatureStore.open(config.features or config.work / "features")


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
    return resolved, store, Sources(inputs, _facts(config, store))


def _facts(config: MetaTrainConfig, store: FeatureStore) -> dict[str, Any]:
    """What a run says of its features."""
    return {
        "dim": store.dim,
        "backbone": store.facts["backbone"],
        "trained_on": store.facts["trained_on"],
        "classes": {split: len(store.classes(split)) for split in ("train", "val")},
        "meta_trained_on": list(training_splits(config)),
    }
