"""`leokit eval`: run and features → a table of episodes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import manifest
from leokit.baselines import class_mean, logistic_regression, ridge_regression
from leokit.config import EvalConfig, MetaTrainConfig, identity, read_methods, run_name
from leokit.devices import resolve_device
from leokit.engine.scoring import Classifier, score
from leokit.engine.training import classifier, learner_of
from leokit.episodes import EpisodeSampler, FeatureMatrix, query_count, require_enough
from leokit.features import FeatureStore
from leokit.metrics import Interval, mean_interval, paired_difference
from leokit.provenance import information
from leokit.runs import Run, check_same_backbone, open_run
from leokit.splits import classes_seen
from leokit.tables import write_table

SCHEMA = "leokit/eval@1"
EPISODES = "episodes.parquet"
SUMMARY = "summary.json"
CENTRED = "centred-class-mean"
BASELINES: dict[str, Classifier] = {
    "class-mean": lambda support, _: class_mean(support),
    CENTRED: lambda support, _: class_mean(support),  # on centred features
    "ridge": lambda support, _: ridge_regression(support),
    "logistic": lambda support, _: logistic_regression(support),
}


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    folder: Path
    manifest: manifest.Manifest
    summary: dict[str, Any]

    @property
    def id(self) -> str:
        """The evaluation's id."""
        return self.manifest.id


def default_run(config: EvalConfig) -> Path:
    """Which run is tested: `--run`, else that of variant `leo`, seed 0 and these ways and shots."""
    sizes = MetaTrainConfig(ways=config.ways or 5, shots=config.shots or 1)
    return config.run or config.work / "runs" / run_name(sizes)


def run(
    config: EvalConfig,
    *,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Evaluation:
    """Test a run as the paper does: mean accuracy over episodes of classes that it was not trained on.

    Other methods are scored on the same episodes, so that the differences are paired.

    Args:
        config: of the evaluation.
        on_progress: called with episodes done, episodes wanted and an empty line.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no run or features, or they do not fit together.
        DataError: too few classes or images for the episodes asked for.
    """
    started = time.perf_counter()
    device = resolve_device(config.device)
    config, trained, store, queries, folder = _open(config)
    inputs = {
        "run": manifest.Input(trained.id, str(trained.folder)),
        "features": manifest.Input(store.id, str(store.folder)),
    }
    identified = identity(config)
    with manifest.locked(folder):
        finished = manifest.begin(folder, SCHEMA, identified, inputs, overwrite=config.overwrite)
        if finished:
            if on_message:
                on_message(manifest.already_done(folder))
            return Evaluation(folder, finished, json.loads((folder / SUMMARY).read_bytes()))
        accuracies, rates = _score(config, trained, store, queries, device, on_progress)
        summary = _summary(config, trained, store, accuracies)
        _write_episodes(folder / EPISODES, accuracies)
        manifest.write_atomically(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode())
        written = manifest.finish(
            folder,
            SCHEMA,
            identified,
            inputs,
            results=[EPISODES, SUMMARY],
            facts={"classes": store.classes(config.split), "episodes": config.episodes},
            info=information(started=started, device=device, episodes_per_second=rates),
        )
        return Evaluation(folder, written, summary)


def dry_run(config: EvalConfig) -> dict[str, Any]:
    """What `run` would do, after the same checks."""
    config, trained, store, _, folder = _open(config)
    return {
        "run": str(trained.folder),
        "features": str(store.folder),
        "out": str(folder),
        "classes": len(store.classes(config.split)),
        "ways": config.ways,
        "shots": config.shots,
        "queries": config.queries,
        "episodes": config.episodes,
    }


def _open(config: EvalConfig) -> tuple[EvalConfig, Run, FeatureStore, int | None, Path]:
    """The configuration with ways and shots resolved, the inputs, Q, and the folder of the result."""
    trained = open_run(default_run(config))
    config = replace(config, ways=config.ways or trained.config.ways, shots=config.shots or trained.config.shots)
    store = FeatureStore.open(config.features or config.work / "features")
    check_same_backbone(trained, store)
    queries = _check(config, store)
    read_methods(config.methods)
    return config, trained, store, queries, config.out or config.work / "eval" / _name(config, trained)


def _name(config: EvalConfig, trained: Run) -> str:
    """The run's name, and how the test differs from the run where it does."""
    parts = [trained.folder.name]
    if (config.ways, config.shots) != (trained.config.ways, trained.config.shots):
        parts.append(f"at-{config.ways}way-{config.shots}shot")
    if config.split != "test":
        parts.append(config.split)
    return "-".join(parts)


def _check(config: EvalConfig, store: FeatureStore) -> int | None:
    assert config.ways and config.shots  # set from the run
    queries = query_count(config.queries, config.shots)
    classes, counts = store.classes(config.split), store.counts(config.split)
    require_enough(classes, counts, split=config.split, ways=config.ways, shots=config.shots, queries=queries)
    return queries


def _score(
    config: EvalConfig,
    trained: Run,
    store: FeatureStore,
    queries: int | None,
    device: torch.device,
    on_progress: Callable[[int, int, str], None] | None,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Accuracies of each method, the run's first, and the episodes a second that each made."""
    assert config.ways and config.shots
    dtype = getattr(torch, trained.config.dtype)
    matrix = FeatureMatrix(store.load(config.split), device=device, dtype=dtype)
    parameters = {name: value.to(device) for name, value in trained.parameters.items()}
    learned = classifier(learner_of(trained.config, store.dim), parameters)
    # Classes have the same rows in both matrices, and so have episodes.
    methods: dict[str, tuple[FeatureMatrix, Classifier]] = {trained.config.variant: (matrix, learned)}
    for name in read_methods(config.methods):
        methods[name] = (_centred(matrix, store) if name == CENTRED else matrix, BASELINES[name])
    sampler = EpisodeSampler(matrix.offsets, ways=config.ways, seed=config.seed, purpose="evaluation")
    accuracies: dict[str, NDArray[np.float64]] = {}
    rates: dict[str, float] = {}
    for name, (features, method) in methods.items():
        started = time.perf_counter()
        accuracies |= score(
            features,
            sampler,
            {name: method},
            shots=config.shots,
            queries=queries,
            episodes=config.episodes,
            on_progress=_reporter(on_progress, name),
        )
        rates[name] = round(config.episodes / (time.perf_counter() - started), 1)
    return accuracies, rates


def _reporter(on_progress: Callable[[int, int, str], None] | None, name: str) -> Callable[[int, int], None] | None:
    return (lambda done, total: on_progress(done, total, name)) if on_progress else None


def _centred(matrix: FeatureMatrix, store: FeatureStore) -> FeatureMatrix:
    """The rows centred on the mean of the unit rows of the train split (CL2N; Wang et al. 2019, SimpleShot)."""
    training = FeatureMatrix(store.load("train"), device=matrix.rows.device, dtype=matrix.rows.dtype)
    return matrix.centred(training.rows.mean(0))


def _write_episodes(path: Path, accuracies: dict[str, NDArray[np.float64]]) -> None:
    """A row for each method and episode, methods one after the other."""
    count = len(next(iter(accuracies.values())))
    write_table(
        path,
        {
            "method": [name for name in accuracies for _ in range(count)],
            "episode": np.tile(np.arange(count, dtype=np.int64), len(accuracies)),
            "accuracy": np.concatenate(list(accuracies.values())),
        },
    )


def _summary(
    config: EvalConfig, trained: Run, store: FeatureStore, accuracies: dict[str, NDArray[np.float64]]
) -> dict[str, Any]:
    variant = trained.config.variant
    classes = store.classes(config.split)
    return {
        "ways": config.ways,
        "shots": config.shots,
        "queries": config.queries,
        "episodes": config.episodes,
        "split": config.split,
        "interval": "95 % over the sampling of episodes on these classes (1.96 s/√n)",
        "accuracy": {name: _plain(mean_interval(values)) for name, values in accuracies.items()},
        "difference": {
            f"{variant} - {name}": _plain(paired_difference(accuracies[variant], values))
            for name, values in accuracies.items()
            if name != variant
        },
        "run": {key: trained.facts[key] for key in ("best_step", "steps", "val_accuracy", "val_half_width")},
        "backbone": (store.facts["backbone"] or {}).get("name"),
        "trained_on": store.facts["trained_on"],
        "classes": len(classes),
        "classes_seen": classes_seen(store.facts["trained_on"], classes),
    }


def _plain(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "half_width": interval.half_width}


def seen_in_words(summary: dict[str, Any]) -> str:
    """Whether the backbone has seen the classes of the test, as a sentence for the user."""
    seen, total, split = summary["classes_seen"], summary["classes"], summary["split"]
    trained_on = summary["trained_on"]
    data = trained_on if isinstance(trained_on, str) else f"{len(trained_on)} classes"
    if seen is None:
        reason = "what it was trained on is not known" if data == "unknown" else "the class names are no ImageNet ids"
        reason = "web images carry no class list" if data == "web" else reason
        return (
            f"Whether the backbone (trained on {data}) has seen these {total} {split} classes cannot be told: {reason}."
        )
    if seen == 0:
        return f"The backbone (trained on {data}) has seen 0 of the {total} {split} classes."
    return (
        f"The backbone (trained on {data}) has seen {seen} of the {total} {split} classes: "
        "these numbers are not few-shot learning of new classes, and not comparable with the paper's."
    )
