"""`leokit uncertainty`: runs and features → how far their predictions can be trusted."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import calibration, manifest, randomness
from leokit.assessment import Assessment, Truth, assess, open_set, prediction_sets
from leokit.calibration import Floats
from leokit.checks import check_uncertainty
from leokit.config import UncertaintyConfig, default_workers, has_posterior, identity, read_numbers
from leokit.devices import check_device, resolve_device
from leokit.engine.members import CLASS_MEAN, LOGISTIC, baseline_member, run_member
from leokit.engine.predictives import Episodes, Member, Predicted, can_mislabel, predict_episodes, scores
from leokit.episodes import EpisodeSampler, FeatureMatrix, types_of
from leokit.evaluations import spare_in_words
from leokit.features import FeatureStore
from leokit.figures.uncertainty import draw_open_set, draw_reliability, draw_risk_coverage, draw_shots
from leokit.provenance import information
from leokit.runs import Run, open_run
from leokit.splits import classes_seen
from leokit.tables import Categories, write_table
from leokit.text import method_name

SCHEMA = "leokit/uncertainty@1"
PREDICTIONS = "predictions.parquet"
SUMMARY = "summary.json"
RELIABILITY, RISK, OPEN_SET, SHOTS = "reliability.png", "risk_coverage.png", "open_set.png", "shots.png"
DETERMINISTIC, SAMPLED, ENSEMBLE = "deterministic", "sampled", "ensemble"
_PARTED = (SAMPLED, ENSEMBLE)  # predictives that average several classifiers

Report = Callable[[int, int, str], None]


@dataclass(frozen=True, repr=False)
class Uncertainty(manifest.Artifact):
    """A finished study of uncertainty; the summary is plain data."""

    summary: dict[str, Any]


@dataclass(frozen=True)
class _Study:
    """A study that can begin: all is there and fits together."""

    config: UncertaintyConfig  # with ways and shots resolved
    runs: tuple[Run, ...]
    store: FeatureStore
    device: torch.device
    folder: Path
    curve: list[int]
    noise: list[float]

    @property
    def ways(self) -> int:
        assert self.config.ways  # set from the run
        return self.config.ways

    @property
    def shots(self) -> int:
        assert self.config.shots  # set from the run
        return self.config.shots

    @property
    def has_outside(self) -> bool:
        return len(self.store.classes("test")) > self.ways


@dataclass(frozen=True)
class _Fitted:
    """What meta-val gives a predictive."""

    temperature: float
    scores: Floats  # (calibration episodes,), conformal, of one query of each


def open_uncertainty(folder: Path) -> Uncertainty:
    """Open a finished study, after checking its files.

    Raises:
        ArtifactError: none there, unfinished, or altered.
    """
    found = manifest.read(folder, SCHEMA)
    manifest.check_files(folder, found)
    return Uncertainty(folder, found, manifest.read_json(folder, found, SUMMARY))


def run(
    config: UncertaintyConfig,
    *,
    on_progress: Report | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Uncertainty:
    """Measure calibration, selective prediction, open sets, parts of uncertainty and prediction sets on meta-test.

    Temperatures and quantiles are fitted on meta-val episodes that are not those which selected the run.

    Args:
        config: of the study.
        on_progress: called with episodes done and wanted, of all passes, and what is being done.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no run or features, they do not fit together, or val was trained on.
        DataError: too few classes or images.
        UsageError: an option that the run cannot follow.
    """
    started = time.perf_counter()
    study = _open(config)
    tell = on_message or (lambda text: None)
    inputs = {f"run{index or ''}": each.input for index, each in enumerate(study.runs)}
    inputs["features"] = study.store.input
    identified, folder = identity(study.config), study.folder
    with manifest.locked(folder):
        if manifest.begin(folder, SCHEMA, identified, inputs, overwrite=config.overwrite):
            tell(manifest.already_done(folder))
            return open_uncertainty(folder)
        for text in _remarks(study):
            tell(text)
        summary, pictures = _measure(study, on_progress)
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
        manifest.write_atomically(folder / SUMMARY, text.encode())
        written = manifest.finish(
            folder,
            SCHEMA,
            identified,
            inputs,
            results=[PREDICTIONS, SUMMARY],
            extras=list(pictures),
            facts={
                "classes": study.store.classes("test"),
                "run_config": study.runs[0].manifest.config,
                "figures": pictures,
            },
            info=information(started=started, device=study.device),
        )
        return Uncertainty(folder, written, summary)


def dry_run(config: UncertaintyConfig) -> dict[str, Any]:
    """What `run` would do, after the same checks."""
    study = _open(config)
    return {
        "runs": [str(each.folder) for each in study.runs],
        "features": str(study.store.folder),
        "out": str(study.folder),
        "predictives": _names(study),
        "ways": study.ways,
        "shots": study.shots,
        "episodes": study.config.episodes,
        "samples": study.config.samples,
        "calibration_episodes": study.config.calibration_episodes,
    }


# What is there, and whether it fits together


def _open(config: UncertaintyConfig) -> _Study:
    check_device(config.device)
    config = check_uncertainty(config)
    device = resolve_device(config.device)
    runs = tuple(map(open_run, config.runs))
    first = runs[0].config
    store = FeatureStore.open(config.features or config.work / "features")
    curve = read_numbers("--curve-shots", config.curve_shots, int, 1, 1000)
    noise = read_numbers("--label-noise", config.label_noise, float, 0.0, 1.0)
    name = runs[0].folder.name + ("-ensemble" if len(runs) > 1 else "")
    if (config.ways, config.shots) != (first.ways, first.shots):
        name += f"-at-{config.ways}way-{config.shots}shot"
    return _Study(config, runs, store, device, config.out or config.work / "uncertainty" / name, curve, noise)


def _seen(store: FeatureStore, split: str) -> int | None:
    return classes_seen(store.facts["trained_on"], store.classes(split))


def _has_seen_all(store: FeatureStore) -> bool:
    return all(_seen(store, split) == len(store.classes(split)) for split in ("val", "test"))


def _remarks(study: _Study) -> Iterator[str]:
    if _has_seen_all(study.store):
        yield (
            "The backbone has seen all val and test classes: temperatures and prediction sets are fitted and tested on "
            "classes that are new to the run only."
        )
    if study.config.calibration_episodes and _seen(study.store, "val") is None:
        yield (
            "Whether the backbone was trained on val classes cannot be told: if it was, temperatures and prediction "
            "sets are not those for new classes."
        )
    if SAMPLED not in _names(study):
        name = method_name(study.runs[0].config.variant)
        yield f"{name} was trained without samples: the sampled predictive is left out."
    if not study.has_outside:
        yield f"All {study.ways} test classes are in every episode: there are no outside queries."
    spare = len(study.store.classes("test")) - study.ways
    if spare and (words := spare_in_words("Telling outside queries rests", spare, "test")):
        yield words


# Predictives


def _features(study: _Study, split: str) -> FeatureMatrix:
    dtype, held = types_of(study.runs[0].config)
    return FeatureMatrix(study.store.load(split), device=study.device, dtype=dtype, held=held)


def _names(study: _Study) -> list[str]:
    """The predictives that there are."""
    found = {
        DETERMINISTIC: True,
        SAMPLED: has_posterior(study.runs[0].config),
        ENSEMBLE: len(study.runs) > 1,
        CLASS_MEAN: True,
        LOGISTIC: True,
    }
    return [name for name, there in found.items() if there]


def _members(study: _Study, features: FeatureMatrix) -> dict[str, list[Member]]:
    """The classifiers of each predictive, on the features of a split."""
    single = [run_member(each, features) for each in study.runs]
    found = {DETERMINISTIC: single[:1], ENSEMBLE: single}
    found |= {name: [baseline_member(name, features)] for name in (CLASS_MEAN, LOGISTIC)}
    if SAMPLED in _names(study):
        found[SAMPLED] = [run_member(study.runs[0], features, samples=study.config.samples)]
    return found


# Measuring


class _Predictor:
    """Predicts episodes, one predictive after the other, and tells how far it is."""

    def __init__(self, study: _Study, on_progress: Report | None) -> None:
        config = study.config
        self.study = study
        self.on_progress = on_progress
        self.done = 0
        names = len(_names(study))
        points = len(study.curve) * (1 + len(study.noise)) * len([name for name in _names(study) if name in _PARTED])
        self.wanted = names * (config.episodes + config.calibration_episodes) + points * config.curve_episodes

    def predict(
        self,
        name: str,
        members: dict[str, list[Member]],
        sampler: EpisodeSampler,
        *,
        episodes: int,
        shots: int,
        outside: bool = False,
        noise: float = 0.0,
        what: str = "",
    ) -> tuple[Episodes, Predicted]:
        """Episodes from 0 on by one predictive."""
        config = self.study.config

        def move(done: int, total: int) -> None:
            if self.on_progress:
                self.on_progress(self.done + done, self.wanted, f"{name} {what}")

        chosen, found = predict_episodes(
            {name: members[name]},
            sampler,
            shots=shots,
            queries=config.queries,
            episodes=episodes,
            outside=outside,
            noise=noise,
            workers=default_workers() if config.workers is None else config.workers,
            on_progress=move,
        )
        self.done += episodes
        return chosen, found[name]


def _sampler(study: _Study, features: FeatureMatrix, purpose: str) -> EpisodeSampler:
    return EpisodeSampler(features.offsets, ways=study.ways, seed=study.config.seed, purpose=purpose)


def _measure(study: _Study, on_progress: Report | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The summary, after writing predictions and pictures; and the alternative texts of these by name."""
    config, names = study.config, _names(study)
    predictor = _Predictor(study, on_progress)
    fitted = _fit(study, predictor) if config.calibration_episodes else {}
    features = _features(study, "test")
    sampler = _sampler(study, features, "evaluation")  # the episodes of `leokit eval`
    members = _members(study, features)
    predicted = {}
    for name in names:
        episodes, predicted[name] = predictor.predict(
            name,
            members,
            sampler,
            episodes=config.episodes,
            shots=study.shots,
            outside=study.has_outside,
            what="on meta-test",
        )
    generator = randomness.generator(config.seed, "bootstrap")
    truth = Truth(
        labels=episodes.labels,
        classes=episodes.classes,
        total=len(study.store.classes("test")),
        bins=config.bins,
        weights=calibration.episode_weights(config.episodes, config.resamples, generator),
    )
    raw = {name: assess(found.inside.probabilities, truth) for name, found in predicted.items()}
    at_temperature = {
        name: calibration.tempered(predicted[name].inside.probabilities, fit.temperature)
        for name, fit in fitted.items()
    }
    tempered = {name: assess(values, truth) for name, values in at_temperature.items()}
    by_score = {name: _scores(name, found) for name, found in predicted.items()} if study.has_outside else {}
    curve = list(_curve(study, predictor, members, sampler))
    _write_predictions(study.folder / PREDICTIONS, study, episodes, predicted)
    summary = _setting(study) | {
        "predictives": {
            name: {
                "temperature": fitted[name].temperature if name in fitted else None,
                "raw": _plain(raw[name]),
                "tempered": _plain(tempered[name]) if name in tempered else None,
                "difference": _difference(raw[name], raw[DETERMINISTIC]),
                "tempered_difference": (
                    _difference(tempered[name], tempered[DETERMINISTIC]) if name in tempered else None
                ),
            }
            for name in names
        },
        "open_set": {
            name: {score: asdict(open_set(*sides)) for score, sides in found.items()}
            for name, found in by_score.items()
        },
        "sets": {
            name: [
                asdict(entry) | {"quantile": entry.quantile if isfinite(entry.quantile) else None}
                for entry in prediction_sets(predicted[name].inside.probabilities, truth, fit.scores)
            ]
            for name, fit in fitted.items()
        }
        or None,
        "decomposition": curve,
        "class_errors": {name: _by_class(study, found) for name, found in (tempered or raw).items()},
    }
    return summary, _draw(study, raw, tempered, by_score, curve)


def _fit(study: _Study, predictor: _Predictor) -> dict[str, _Fitted]:
    """Temperature and conformal scores of each predictive, from meta-val episodes that selected nothing."""
    count = study.config.calibration_episodes
    features = _features(study, "val")
    sampler, members = _sampler(study, features, "calibration"), _members(study, features)
    found = {}
    for name in _names(study):
        episodes, predicted = predictor.predict(
            name, members, sampler, episodes=count, shots=study.shots, what="on meta-val"
        )
        probabilities = predicted.inside.probabilities
        queries = len(episodes.labels)
        temperature = calibration.fit_temperature(
            probabilities.reshape(count * queries, -1), np.tile(episodes.labels, count)
        )
        # Queries of an episode share its support set: one of each is exchangeable with one of a further episode.
        chosen = randomness.generator(study.config.seed, "conformal").integers(queries, size=count)
        # Their scores are of the probabilities as they are: a temperature would have seen the labels.
        picked = probabilities[np.arange(count), chosen]
        found[name] = _Fitted(temperature, calibration.conformal_scores(picked, episodes.labels[chosen]))
    return found


def _scores(name: str, predicted: Predicted) -> dict[str, tuple[Floats, Floats]]:
    """Scores that are higher for inside queries: by name, of the inside (E, M) and of the outside ones (E, O)."""
    inside, outside = (scores(side, parted=name in _PARTED) for side in predicted)
    names = {"highest": "cosine_distance" if name == CLASS_MEAN else "maximum_logit"}
    return {names.get(score, score): (inside[score], outside[score]) for score in inside}


def _curve(
    study: _Study, predictor: _Predictor, members: dict[str, list[Member]], sampler: EpisodeSampler
) -> Iterator[dict[str, Any]]:
    """Parts of uncertainty at each number of shots and share of label noise, means over queries."""
    for name in (name for name in _names(study) if name in _PARTED):
        for shots in study.curve:
            for noise in [0.0, *study.noise]:
                if noise and not can_mislabel(study.ways, shots, noise):
                    predictor.done += study.config.curve_episodes
                    continue
                episodes, predicted = predictor.predict(
                    name,
                    members,
                    sampler,
                    episodes=study.config.curve_episodes,
                    shots=shots,
                    noise=noise,
                    what=f"at {shots} shots",
                )
                answers = predicted.inside
                total = calibration.entropy(answers.probabilities)
                yield {
                    "predictive": name,
                    "shots": shots,
                    "noise": noise,
                    "total": float(total.mean()),
                    "aleatoric": float(answers.aleatoric.mean()),
                    "epistemic": float((total - answers.aleatoric).mean()),
                    "accuracy": float((answers.probabilities.argmax(-1) == episodes.labels).mean()),
                }


# Writing it down


def _setting(study: _Study) -> dict[str, Any]:
    config, store, first = study.config, study.store, study.runs[0]
    classes = store.classes("test")
    return {
        "ways": study.ways,
        "shots": study.shots,
        "queries": config.queries,
        "episodes": config.episodes,
        "split": "test",
        "samples": config.samples,
        "calibration_episodes": config.calibration_episodes,
        "bins": config.bins,
        "interval": f"95 % over the sampling of episodes on these classes, {config.resamples} resamples of episodes",
        "run": {
            **{key: getattr(first.config, key) for key in ("variant", "ways", "shots", "seed")},
            "meta_trained_on": first.facts["meta_trained_on"],
        },
        "ensemble": [each.id for each in study.runs],
        "backbone": (store.facts["backbone"] or {}).get("name"),
        "trained_on": store.facts["trained_on"],
        "classes": len(classes),
        "classes_seen": _seen(store, "test"),
        "val_classes": len(store.classes("val")),
        "val_classes_seen": _seen(store, "val"),
    }


def _plain(assessment: Assessment) -> dict[str, Any]:
    return {name: asdict(measured.estimate) for name, measured in assessment.measures.items()}


def _difference(assessment: Assessment, other: Assessment) -> dict[str, Any]:
    """Paired differences of all measures."""
    return {name: asdict(measured.difference(other.measures[name])) for name, measured in assessment.measures.items()}


def _by_class(study: _Study, assessment: Assessment) -> dict[str, float]:
    pairs = zip(study.store.classes("test"), assessment.class_errors.tolist(), strict=True)
    return {name: error for name, error in pairs if isfinite(error)}


def _write_predictions(path: Path, study: _Study, episodes: Episodes, predicted: dict[str, Predicted]) -> None:
    """A row for each predictive, episode and query: the inside ones of all episodes, then the outside ones."""
    parts: list[dict[str, NDArray[Any]]] = []
    for number, found in enumerate(predicted.values()):
        for is_inside, answers, rows in (
            (True, found.inside, episodes.query_rows),
            (False, found.outside, episodes.outside_rows),
        ):
            count, queries = rows.shape
            labels = np.tile(episodes.labels, count) if is_inside else np.full(rows.size, -1)
            parts.append(
                {
                    "predictive": np.full(rows.size, number),
                    "episode": np.repeat(np.arange(count), queries),
                    "inside": np.full(rows.size, is_inside),
                    "label": labels,
                    "image": rows.ravel(),
                    "probabilities": answers.probabilities.reshape(rows.size, study.ways).astype(np.float32),
                    "entropy": calibration.entropy(answers.probabilities).ravel().astype(np.float32),
                    "aleatoric_entropy": answers.aleatoric.ravel().astype(np.float32),
                }
            )
    columns: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    classes = np.repeat(np.arange(len(study.store.classes("test"))), study.store.counts("test"))
    named = {
        "predictive": Categories(columns["predictive"], list(predicted)),
        "class_name": Categories(classes[columns["image"]], study.store.classes("test")),
        "image": Categories(columns["image"], study.store.images("test")),
    }
    write_table(path, columns | named)


def _draw(
    study: _Study,
    raw: dict[str, Assessment],
    tempered: dict[str, Assessment],
    by_score: dict[str, dict[str, tuple[Floats, Floats]]],
    curve: list[dict[str, Any]],
) -> dict[str, str]:
    """Draw the pictures; their alternative texts by name."""
    folder, title = study.folder, f"{study.runs[0].folder.name}, {study.ways}-way {study.shots}-shot, meta-test"
    drawn = {RELIABILITY: draw_reliability(folder / RELIABILITY, raw, tempered, title=title)}
    drawn[RISK] = draw_risk_coverage(folder / RISK, raw, title=title)
    if by_score:
        drawn[OPEN_SET] = draw_open_set(folder / OPEN_SET, by_score, title=title)
    if curve:
        drawn[SHOTS] = draw_shots(folder / SHOTS, curve, title=title)
    return drawn
