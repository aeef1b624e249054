"""`leokit eval`: run and features → a table of episodes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import manifest
from leokit.baselines import class_mean, fit_logistic, ridge_regression
from leokit.checks import check_eval, query_count
from leokit.config import EvalConfig, default_workers, identity, read_methods
from leokit.devices import check_device, resolve_device
from leokit.engine.scoring import Classifier, Fit, score, score_fits
from leokit.engine.training import classifier
from leokit.episodes import EpisodeSampler, FeatureMatrix, Types, types_of
from leokit.evaluations import EPISODES, SCHEMA, SUMMARY, Evaluation, open_evaluation
from leokit.features import FeatureStore
from leokit.leo.learners import make_learner
from leokit.metrics import Interval, mean_interval, paired_difference
from leokit.provenance import information
from leokit.runs import Run, open_run
from leokit.splits import classes_seen
from leokit.tables import write_table

CENTRED = "centred-class-mean"
BASELINES: dict[str, Classifier] = {
    "class-mean": lambda support, _: class_mean(support),
    CENTRED: lambda support, _: class_mean(support),  # on centred features
    "ridge": lambda support, _: ridge_regression(support),
}
FITS: dict[str, Fit] = {"logistic": fit_logistic}  # baselines that want processes
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Scores:
    """What a method made of the episodes."""

    accuracies: NDArray[np.float64]  # (episodes,)
    episodes_per_second: float


class Shared:
    """What evaluations of one command have in common, loaded and computed once: features, and what baselines score.

    Whether an evaluation shares changes nothing in its result.
    """

    def __init__(self) -> None:
        self._stores: dict[Path, FeatureStore] = {}
        self._matrices: dict[tuple[object, ...], FeatureMatrix] = {}
        self._baselines: dict[tuple[object, ...], _Scores] = {}

    def store(self, folder: Path) -> FeatureStore:
        """The features in a folder, checked the first time."""
        if folder not in self._stores:
            self._stores[folder] = FeatureStore.open(folder)
        return self._stores[folder]

    def matrix(self, store: FeatureStore, split: str, device: torch.device, types: Types) -> FeatureMatrix:
        """The features of a split in the device's memory."""
        key = (store.id, split, device, types)
        if key not in self._matrices:
            self._matrices[key] = FeatureMatrix(store.load(split), device=device, dtype=types[0], held=types[1])
        return self._matrices[key]

    def centred(self, store: FeatureStore, split: str, device: torch.device, types: Types) -> FeatureMatrix:
        """The same, centred on the mean of the train split's unit rows (CL2N; Wang et al. 2019, SimpleShot)."""
        key = (store.id, split, device, types, CENTRED)
        if key not in self._matrices:
            mean = FeatureMatrix(store.load("train"), device=device, dtype=types[0], held=types[1]).mean()
            self._matrices[key] = self.matrix(store, split, device, types).centred(mean)
        return self._matrices[key]

    def baseline(self, test: "_Test", name: str, on_progress: Report | None) -> _Scores:
        """What a baseline makes of the episodes of a test."""
        config = test.config
        size = (config.split, config.ways, config.shots, test.queries, config.episodes, config.seed)
        key = (name, test.store.id, test.device, test.types, *size)
        if key not in self._baselines:
            self._baselines[key] = _timed(test, self._features(test, name), name, on_progress)
        return self._baselines[key]

    def _features(self, test: "_Test", name: str) -> FeatureMatrix:
        load = self.centred if name == CENTRED else self.matrix
        return load(test.store, test.config.split, test.device, test.types)


@dataclass(frozen=True)
class _Test:
    """An evaluation that can begin: all is there and fits together."""

    config: EvalConfig  # with ways and shots resolved
    trained: Run
    store: FeatureStore
    device: torch.device
    queries: int | None
    folder: Path

    @property
    def types(self) -> Types:
        """What features are computed with, and held as."""
        return types_of(self.trained.config)


def run(
    config: EvalConfig,
    *,
    shared: Shared | None = None,
    on_progress: Report | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Evaluation:
    """Test a run as the paper does: mean accuracy over episodes of classes that it was not trained on.

    Other methods are scored on the same episodes, so that the differences are paired.

    Args:
        config: of the evaluation.
        shared: given to several evaluations, it spares the later ones what they have in common with the earlier.
        on_progress: called with episodes done and wanted, of all methods, and the name of the method at work.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no run or features, or they do not fit together.
        DataError: too few classes or images for the episodes asked for.
    """
    started = time.perf_counter()
    shared = shared or Shared()
    test = _open(config, shared)
    inputs = {
        "run": test.trained.input,
        "features": test.store.input,
    }
    identified, folder = identity(test.config), test.folder
    with manifest.locked(folder):
        finished = manifest.begin(folder, SCHEMA, identified, inputs, overwrite=config.overwrite)
        if finished:
            if on_message:
                on_message(manifest.already_done(folder))
            return open_evaluation(folder)
        scores = _score(test, shared, on_progress)
        accuracies = {name: entry.accuracies for name, entry in scores.items()}
        summary = _summary(test, accuracies)
        _write_episodes(folder / EPISODES, accuracies)
        manifest.write_atomically(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode())
        rates = {name: entry.episodes_per_second for name, entry in scores.items()}
        written = manifest.finish(
            folder,
            SCHEMA,
            identified,
            inputs,
            results=[EPISODES, SUMMARY],
            facts=_facts(test),
            info=information(started=started, device=test.device, episodes_per_second=rates),
        )
        return Evaluation(folder, written, summary)


def _facts(test: _Test) -> dict[str, Any]:
    return {
        "classes": test.store.classes(test.config.split),
        "episodes": test.config.episodes,
        "run_config": test.trained.manifest.config,
        "run_features": test.trained.manifest.inputs["features"].id,
    }


def dry_run(config: EvalConfig, shared: Shared | None = None) -> dict[str, Any]:
    """What `run` would do, after the same checks."""
    test = _open(config, shared or Shared())
    return {
        "run": str(test.trained.folder),
        "features": str(test.store.folder),
        "out": str(test.folder),
        "classes": len(test.store.classes(test.config.split)),
        "ways": test.config.ways,
        "shots": test.config.shots,
        "queries": test.config.queries,
        "episodes": test.config.episodes,
    }


def _open(config: EvalConfig, shared: Shared) -> _Test:
    """The inputs of a test, after all checks that need no computation."""
    check_device(config.device)
    config = check_eval(config)
    assert config.run and config.shots
    device = resolve_device(config.device)
    trained = open_run(config.run)
    store = shared.store(config.features or config.work / "features")
    queries = query_count(config.queries, config.shots)
    folder = config.out or config.work / "eval" / _name(config, trained)
    return _Test(config, trained, store, device, queries, folder)


def _name(config: EvalConfig, trained: Run) -> str:
    """The run's name, and how the test differs from the run where it does."""
    parts = [trained.folder.name]
    if (config.ways, config.shots) != (trained.config.ways, trained.config.shots):
        parts.append(f"at-{config.ways}way-{config.shots}shot")
    if config.split != "test":
        parts.append(config.split)
    return "-".join(parts)


def _score(test: _Test, shared: Shared, on_progress: Report | None) -> dict[str, _Scores]:
    """What each method makes of the episodes, the run's first."""
    names = [test.trained.config.variant, *read_methods(test.config.methods)]
    scores = {}
    for number, name in enumerate(names):
        report = _part(on_progress, number, len(names))
        if number:
            scores[name] = shared.baseline(test, name, report)
        else:
            matrix = shared.matrix(test.store, test.config.split, test.device, test.types)
            centre = test.trained.centre
            scores[name] = _timed(test, matrix if centre is None else matrix.centred(centre), None, report)
    return scores


def _timed(test: _Test, features: FeatureMatrix, baseline: str | None, on_progress: Report | None) -> _Scores:
    """Score a baseline, or the run itself."""
    config = test.config
    assert config.ways and config.shots  # set from the run
    name = baseline or test.trained.config.variant
    sampler = EpisodeSampler(features.offsets, ways=config.ways, seed=config.seed, purpose="evaluation")
    options: dict[str, Any] = {
        "shots": config.shots,
        "queries": test.queries,
        "episodes": config.episodes,
        "workers": default_workers() if config.workers is None else config.workers,
        "batch_size": config.batch_size,
        "on_progress": (lambda done, total: on_progress(done, total, name)) if on_progress else None,
    }
    started = time.perf_counter()
    if baseline in FITS:
        accuracies = score_fits(features, sampler, name, FITS[baseline], **options)
    else:
        method = BASELINES[baseline] if baseline else _learned(test)
        accuracies = score(features, sampler, {name: method}, **options)
    return _Scores(accuracies[name], round(config.episodes / (time.perf_counter() - started), 1))


def _learned(test: _Test) -> Classifier:
    parameters = {name: value.to(test.device) for name, value in test.trained.parameters.items()}
    return classifier(make_learner(test.trained.config, test.store.dim), parameters)


def _part(on_progress: Report | None, number: int, parts: int) -> Report | None:
    """Progress of the method of this number as a part of the whole."""
    if on_progress is None:
        return None
    return lambda done, total, text: on_progress(number * total + done, parts * total, text)


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


def _summary(test: _Test, accuracies: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    config, trained, store = test.config, test.trained, test.store
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
        "run": {
            "on_its_own_features": trained.manifest.inputs["features"].id == store.id,
            **{key: getattr(trained.config, key) for key in ("variant", "ways", "shots", "seed")},
            **{
                key: trained.facts[key]
                for key in ("meta_trained_on", "best_step", "steps", "val_accuracy", "val_half_width")
            },
        },
        "backbone": (store.facts["backbone"] or {}).get("name"),
        "trained_on": store.facts["trained_on"],
        "classes": len(classes),
        "classes_seen": classes_seen(store.facts["trained_on"], classes),
    }


def _plain(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "half_width": interval.half_width}
