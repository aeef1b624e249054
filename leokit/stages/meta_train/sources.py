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
    """The features to train on, with enough classes and images for every episode.

    Raises:
        ArtifactError: no features.
        DataError: too few classes or images for the episodes asked for.
    """
    store = FeatureStore.open(config.features or config.work / "features")
    wanted = [(training_splits(config), config.queries, "--shots or --queries")]
    if not config.train_on_val:
        wanted.append((("val",), config.val_queries, "--shots or --val-queries"))
    for splits, queries, options in wanted:
        require_enough(
            [name for split in splits for name in store.classes(split)],
            np.concatenate([store.counts(split) for split in splits]),
            split=" + ".join(splits),
            ways=config.ways,
            shots=config.shots,
            queries=queries,
            options=options,
        )
    return store


def resolve(config: MetaTrainConfig, store: FeatureStore) -> tuple[MetaTrainConfig, Sources]:
    """The configuration with its number of steps, and what the run is made from.

    Raises:
        ArtifactError: `steps_from` is no run, or one on other features.
    """
    inputs = {"features": manifest.Input(store.id, str(store.folder))}
    if config.steps_from is None:
        return replace(config, steps=fixed_steps(config)), Sources(inputs, _facts(config, store))
    earlier = open_run(config.steps_from)
    check_same_backbone(earlier, store)
    if earlier.manifest.inputs["features"].id != store.id:
        raise ArtifactError(
            f"--steps-from {earlier.folder} ({earlier.id[:12]}): that run was trained on other features "
            f"({earlier.manifest.inputs['features'].id[:12]}) than {store.folder} ({store.id[:12]}), so its best step "
            "says nothing here. Name a run on these, or give --steps."
        )
    inputs["steps_from"] = manifest.Input(earlier.id, str(earlier.folder))
    return replace(config, steps=steps_of_best(earlier, config)), Sources(inputs, _facts(config, store))


def _facts(config: MetaTrainConfig, store: FeatureStore) -> dict[str, Any]:
    """What a run says of its features."""
    return {
        "dim": store.dim,
        "backbone": store.facts["backbone"],
        "trained_on": store.facts["trained_on"],
        "classes": {split: len(store.classes(split)) for split in ("train", "val")},
        "meta_trained_on": list(training_splits(config)),
    }
