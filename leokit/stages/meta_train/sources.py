"""What runs are made from: the features, and an earlier run where that one says how long to train."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leokit import manifest
from leokit.config import MetaTrainConfig, fixed_steps, training_splits
from leokit.episodes import require_enough
from leokit.errors import ArtifactError
from leokit.features import FeatureStore
from leokit.runs import check_same_backbone, open_run, steps_of_best
from leokit.splits import small_classes


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
    """The features to train on, with enough classes and images for every episode.

    Raises:
        ArtifactError: no features.
        DataError: too few classes or images for the episodes asked for.
    """
    return with_enough(config, FeatureStore.open(config.features or config.work / "features"))


def with_enough(config: MetaTrainConfig, store: FeatureStore) -> FeatureStore:
    """Features with enough classes and images for every episode, without small classes where these are skipped.

    Raises:
        DataError: too few classes or images for the episodes asked for.
    """
    wanted = [(training_splits(config), config.queries, "--shots or --queries")]
    if not config.train_on_val:
        wanted.append((("val",), config.val_queries, "--shots or --val-queries"))
    for splits, queries, options in wanted:
        if config.skip_small_classes:
            counts = {split: store.facts["counts"].get(split, {}) for split in splits}
            store = store.without(small_classes(counts, config.shots + queries))
        require_enough(
            [name for split in splits for name in store.classes(split)],
            np.concatenate([store.counts(split) for split in splits]),
            split=" + ".join(splits),
            ways=config.ways,
            shots=config.shots,
            queries=queries,
            options=options,
            leave_out="leave such classes out by --skip-small-classes",
        )
    return store


def skipped(store: FeatureStore) -> dict[str, dict[str, int]]:
    """The classes of train and val that `with_enough` has left out, with their images."""
    found = {}
    for split in ("train", "val"):
        used = set(store.classes(split)) if split in store.splits else set()
        found[split] = {name: count for name, count in store.facts["counts"].get(split, {}).items() if name not in used}
    return {split: classes for split, classes in found.items() if classes}


def resolve(config: MetaTrainConfig, store: FeatureStore) -> tuple[MetaTrainConfig, Sources]:
    """The configuration with its number of steps, and what the run is made from.

    Raises:
        ArtifactError: `steps_from` is no run, or one on other features.
    """
    inputs = {"features": manifest.Input(store.id, str(store.folder))}
    if config.steps_from is None:
        return replace(config, steps=fixed_steps(config)), _sources(config, store, inputs)
    earlier = open_run(config.steps_from)
    check_same_backbone(earlier, store)
    if earlier.manifest.inputs["features"].id != store.id:
        raise ArtifactError(
            f"--steps-from {earlier.folder} ({earlier.id[:12]}): that run was trained on other features "
            f"({earlier.manifest.inputs['features'].id[:12]}) than {store.folder} ({store.id[:12]}), so its best step "
            "says nothing here. Name a run on these, or give --steps."
        )
    inputs["steps_from"] = manifest.Input(earlier.id, str(earlier.folder))
    return replace(config, steps=steps_of_best(earlier, config)), _sources(config, store, inputs)


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
