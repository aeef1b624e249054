"""`leokit analyze`: runs and features → codes before and after adapting (Fig. 3), curvature and steps (Fig. 4)."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leokit import manifest
from leokit.checks import check_analyze
from leokit.config import AnalyzeConfig, adapts_codes, identity, run_name
from leokit.devices import check_device, resolve_device
from leokit.engine.describing import (
    DEFINITIONS,
    describe_codes,
    describe_geometry,
    describe_singular_values,
    ratio_of_medians,
)
from leokit.engine.geometry import Codes, Floats, Geometry, Subject, codes_of, geometry_of
from leokit.episodes import EpisodeSampler, FeatureMatrix, types_of
from leokit.features import FeatureStore
from leokit.figures.analysis import CodesPicture, draw_codes, draw_geometry
from leokit.leo.curvature import decoder_singular_values
from leokit.leo.learners import make_learner
from leokit.projection import principal_components, tsne
from leokit.provenance import information
from leokit.runs import Run, open_run
from leokit.splits import classes_seen
from leokit.tables import write_table

SCHEMA = "leokit/analysis@1"
SUMMARY = "summary.json"
CODES, EIGENVALUES, SINGULAR, STEPS = "codes.parquet", "eigenvalues.parquet", "singular_values.parquet", "steps.parquet"
POSITIONS = "positions.parquet"
GEOMETRY = "curvature.png"
STAGES = ("before", "after")
Report = Callable[[int, int, str], None]


@dataclass(frozen=True, repr=False)
class Analysis(manifest.Artifact):
    """A finished analysis; the summary is plain data."""

    summary: dict[str, Any]


@dataclass(frozen=True)
class _Entry:
    """A run among those analysed."""

    label: str  # its variant, size and seed, made distinct
    trained: Run
    ways: int
    shots: int

    @property
    def codes_move(self) -> bool:
        """Whether it has codes and a latent loop that adapts them."""
        return adapts_codes(self.trained.config)


@dataclass(frozen=True)
class _Plan:
    """An analysis that can begin: all is there and fits together."""

    config: AnalyzeConfig
    entries: list[_Entry]
    store: FeatureStore
    device: torch.device
    folder: Path

    def subject(self, entry: _Entry, split: str) -> Subject:
        """A run on the features of a split, on the episodes that `leokit eval` tests it on."""
        config = entry.trained.config
        dtype, held = types_of(config)
        features = FeatureMatrix(self.store.load(split), device=self.device, dtype=dtype, held=held)
        if entry.trained.centre is not None:
            features = features.centred(entry.trained.centre)
        return Subject(
            make_learner(config, self.store.dim),
            {name: value.to(self.device) for name, value in entry.trained.parameters.items()},
            features,
            EpisodeSampler(features.offsets, ways=entry.ways, seed=self.config.seed, purpose="evaluation"),
            entry.shots,
            config.inner_steps + config.finetuning_steps,
        )


def run(
    config: AnalyzeConfig,
    *,
    on_progress: Report | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Analysis:
    """Look into how runs adapt: the paper's Figures 3 and 4, with their numbers.

    Args:
        config: of the analysis.
        on_progress: called with parts of the work done and wanted, and what is at work.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no run or features, or they do not fit together.
        DataError: too few classes or images for the episodes asked for.
        UsageError: options that the runs or the features cannot take.
    """
    started = time.perf_counter()
    plan = _open(config)
    folder = plan.folder
    inputs = {entry.label: entry.trained.input for entry in plan.entries}
    inputs["features"] = plan.store.input
    identified = _identified(plan)
    with manifest.locked(folder):
        finished = manifest.begin(folder, SCHEMA, identified, inputs, overwrite=config.overwrite)
        if finished:
            if on_message:
                on_message(manifest.already_done(folder))
            return Analysis(folder, finished, manifest.read_json(folder, finished, SUMMARY))
        total = sum(config.test_episodes + 3 * config.val_episodes * entry.codes_move for entry in plan.entries)
        steps = _Steps(on_progress, total)
        found = [_measure(plan, entry, steps) for entry in plan.entries]
        summary = _summary(plan, found)
        results, extras = _write_tables(folder, found, plan.store)
        manifest.write_atomically(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode())
        figures = _draw(folder, plan, found)
        written = manifest.finish(
            folder,
            SCHEMA,
            identified,
            inputs,
            results=[SUMMARY, *results],
            extras=[*figures, *extras],
            facts={"runs": [entry.label for entry in plan.entries], "figures": figures},
            info=information(started=started, device=plan.device),
        )
        return Analysis(folder, written, summary)


def dry_run(config: AnalyzeConfig) -> dict[str, Any]:
    """What `run` would do, after the same checks."""
    plan = _open(config)
    return {
        "runs": {entry.label: str(entry.trained.folder) for entry in plan.entries},
        "features": str(plan.store.folder),
        "out": str(plan.folder),
        "codes of": [entry.label for entry in plan.entries if entry.codes_move],
        "val_episodes": config.val_episodes,
        "test_episodes": config.test_episodes,
    }


def _identified(plan: _Plan) -> dict[str, Any]:
    sizes = {entry.label: [entry.ways, entry.shots] for entry in plan.entries}
    return {**identity(plan.config), "runs": list(sizes), "sizes": sizes}


def _open(config: AnalyzeConfig) -> _Plan:
    """The inputs, after all checks that need no computation."""
    check_device(config.device)
    config = check_analyze(config)
    device = resolve_device(config.device)
    trained = list(map(open_run, config.runs))
    store = FeatureStore.open(config.features or config.work / "features")
    entries = [
        _Entry(_label(run, trained), run, config.ways or run.config.ways, config.shots or run.config.shots)
        for run in trained
    ]
    return _Plan(config, entries, store, device, config.out or config.work / "analysis")


def _label(found: Run, others: list[Run]) -> str:
    name = run_name(found.config)
    alone = sum(run_name(other.config) == name for other in others) == 1
    return name if alone else f"{name}-{found.id[:8]}"


class _Steps:
    """Progress of several parts as one, in episodes."""

    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def part(self, size: int, text: str) -> Callable[[int, int], None]:
        """Begin a part; the returned function moves it."""
        base, report, total = self._done, self._report, self._total
        self._done += size
        if report is None:
            return lambda done, _: None
        report(base, total, text)
        return lambda done, _: report(base + done, total, text)


@dataclass(frozen=True)
class _Found:
    """What was measured of a run; n = E·N codes, episode after episode."""

    entry: _Entry
    geometry: Geometry
    singular: Floats | None  # (min(Z, D),)
    codes: Codes | None
    positions: dict[str, Floats]  # by method: (2, n, 2), before and after; none without codes
    described: dict[str, Any]  # its part of the summary

    @property
    def label(self) -> str:
        """The run's name among the others."""
        return self.entry.label


def _measure(plan: _Plan, entry: _Entry, steps: _Steps) -> _Found:
    """Codes, curvature, steps and positions of a run."""
    config, label = plan.config, entry.label
    subject = plan.subject(entry, "test")
    geometry = geometry_of(
        subject, episodes=config.test_episodes, on_progress=steps.part(config.test_episodes, f"curvature of {label}")
    )
    code_map = subject.learner.code_map(subject.tensors)
    singular = None if code_map is None else decoder_singular_values(code_map.double()).cpu().numpy()
    del subject
    described = {
        **{key: getattr(entry.trained.config, key) for key in ("variant", "seed")},
        "ways": entry.ways,
        "shots": entry.shots,
        "meta_trained_on": entry.trained.facts["meta_trained_on"],
        "has_codes": code_map is not None,
        **describe_geometry(geometry),
        "singular_values": None if singular is None else describe_singular_values(singular),
        "codes": None,
    }
    if not entry.codes_move:
        return _Found(entry, geometry, singular, None, {}, described)
    count = config.val_episodes
    codes = codes_of(plan.subject(entry, "val"), episodes=count, on_progress=steps.part(count, f"codes of {label}"))
    steps.part(count, f"silhouettes of {label}")
    described["codes"] = describe_codes(codes, plan.store.classes("val"), config.highlight)
    both = np.concatenate([part.reshape(-1, part.shape[-1]) for part in (codes.before, codes.after)])
    steps.part(count, f"t-SNE of {label}")
    positions = {
        "t-SNE": tsne(both, perplexity=config.perplexity, seed=config.seed),
        "PCA": principal_components(both),
    }
    return _Found(
        entry,
        geometry,
        singular,
        codes,
        {name: value.reshape(2, -1, 2) for name, value in positions.items()},
        described,
    )


def _summary(plan: _Plan, found: list[_Found]) -> dict[str, Any]:
    store = plan.store
    trained_on = store.facts["trained_on"]
    classes = {split: store.classes(split) for split in ("val", "test") if split in store.splits}
    return {
        "val_episodes": plan.config.val_episodes,
        "test_episodes": plan.config.test_episodes,
        "runs": {each.label: each.described for each in found},
        "compared_with_meta_sgd": list(_against_meta_sgd(found)),
        "trained_on": trained_on,
        "classes": {split: len(names) for split, names in classes.items()},
        "classes_seen": {split: classes_seen(trained_on, names) for split, names in classes.items()},
        "definitions": DEFINITIONS,
    }


def _against_meta_sgd(found: list[_Found]) -> Iterator[dict[str, Any]]:
    """How much further a run moves weights than each meta-sgd run on the same episodes."""
    for other in found:
        theirs = other.described
        if theirs["variant"] != "meta-sgd" or theirs["steps"]["weights"] is None:
            continue
        for each in found:
            ours = each.described
            if ours["steps"]["latent"] and (ours["ways"], ours["shots"]) == (theirs["ways"], theirs["shots"]):
                yield {
                    "run": each.label,
                    "meta_sgd_run": other.label,
                    "ratio_of_median_steps_in_weights": ratio_of_medians(
                        ours["steps"]["latent"]["weights"], theirs["steps"]["weights"]["weights"]
                    ),
                    "ratio_of_median_distances_in_weights": ratio_of_medians(
                        ours["distance"]["weights"], theirs["distance"]["weights"]
                    ),
                }


def _write_tables(folder: Path, found: list[_Found], store: FeatureStore) -> tuple[list[str], list[str]]:
    """Write the numbers; which files are results, and which are outside the id."""
    names = store.classes("val") if "val" in store.splits else []
    tables = {EIGENVALUES: _eigenvalues, SINGULAR: _singular_values, STEPS: _step_lengths}
    results = [name for name, rows in tables.items() if _write(folder / name, [rows(each) for each in found])]
    if _write(folder / CODES, [_code_rows(each, names) for each in found]):
        results.append(CODES)
    placed = _write(folder / POSITIONS, [_position_rows(each, names) for each in found])
    return results, [POSITIONS] if placed else []


def _write(path: Path, parts: list[dict[str, Any]]) -> bool:
    """Write the rows of all runs, whether there are any; a row of a matrix is a list."""
    parts = [part for part in parts if part]
    if parts:
        rows = {key: [part[key] for part in parts] for key in parts[0]}
        columns = {
            key: np.concatenate(values) if values[0].ndim == 1 else [row for value in values for row in value]
            for key, values in rows.items()
        }
        write_table(path, columns)
    return bool(parts)


def _eigenvalues(found: _Found) -> dict[str, Any]:
    """A row for each eigenvalue of each Hessian, in descending order."""
    curvature = found.geometry.curvature
    parts = []
    for (point, space), values in curvature.items():
        episodes, count = values.shape
        parts.append(
            {
                "run": np.full(values.size, found.label),
                "point": np.full(values.size, point),
                "space": np.full(values.size, space),
                "episode": np.arange(episodes).repeat(count),
                "number": np.tile(np.arange(count), episodes),
                "eigenvalue": values.reshape(-1),
            }
        )
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _singular_values(found: _Found) -> dict[str, Any]:
    values = found.singular
    if values is None:
        return {}
    return {"run": np.full(len(values), found.label), "number": np.arange(len(values)), "singular_value": values}


def _step_lengths(found: _Found) -> dict[str, Any]:
    """A row for each step of each episode in each space; the first latent steps are in both spaces."""
    geometry = found.geometry
    latent = geometry.code_steps.shape[1]
    parts = []
    for space, lengths, distances in (
        ("codes", geometry.code_steps, geometry.code_distances),
        ("weights", geometry.weight_steps, geometry.weight_distances),
    ):
        episodes, count = lengths.shape
        if count:
            parts.append(
                {
                    "run": np.full(lengths.size, found.label),
                    "episode": np.arange(episodes).repeat(count),
                    "loop": np.tile(np.where(np.arange(count) < latent, "latent", "weights"), episodes),
                    "step": np.tile(np.arange(1, count + 1), episodes),
                    "space": np.full(lengths.size, space),
                    "length": lengths.reshape(-1).astype(np.float64),
                    "distance_from_start": distances.reshape(-1).astype(np.float64),
                }
            )
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}


def _points(found: _Found, names: list[str]) -> dict[str, Any]:
    """What the rows of codes begin with: those before adapting, then those after."""
    assert found.codes is not None
    episodes, ways = found.codes.classes.shape
    count = episodes * ways
    return {
        "run": np.full(2 * count, found.label),
        "episode": np.tile(np.arange(episodes).repeat(ways), 2),
        "class_name": np.tile(np.array(names)[found.codes.classes.reshape(-1)], 2),
        "stage": np.array(STAGES).repeat(count),
    }


def _code_rows(found: _Found, names: list[str]) -> dict[str, Any]:
    if found.codes is None:
        return {}
    both = np.concatenate([part.reshape(-1, part.shape[-1]) for part in (found.codes.before, found.codes.after)])
    return {**_points(found, names), "code": both}


def _position_rows(found: _Found, names: list[str]) -> dict[str, Any]:
    if found.codes is None:
        return {}
    points = _points(found, names)
    count, methods = len(points["run"]), len(found.positions)
    both = np.concatenate([value.reshape(-1, 2) for value in found.positions.values()])
    return {
        "method": np.array(list(found.positions)).repeat(count),
        **{key: np.tile(values, methods) for key, values in points.items()},
        "x": both[:, 0],
        "y": both[:, 1],
    }


def _draw(folder: Path, plan: _Plan, found: list[_Found]) -> dict[str, str]:
    """Draw the figures: names of the files, with what each shows in words."""
    draw_geometry(folder / GEOMETRY, {each.label: each.described for each in found})
    figures = {GEOMETRY: f"Box plots of {', '.join(each.label for each in found)}: {_geometry_in_words(found)}"}
    for each in found:
        if each.codes is not None:
            name = f"codes-{each.label}.png"
            draw_codes(folder / name, _picture(plan, each, each.codes))
            figures[name] = _codes_in_words(each)
    return figures


def _picture(plan: _Plan, found: _Found, codes: Codes) -> CodesPicture:
    described = found.described["codes"]
    return CodesPicture(
        title=f"{found.label}: codes of {plan.config.val_episodes:,} meta-val episodes",
        positions=found.positions,
        labels=codes.classes.reshape(-1),
        classes=plan.store.classes("val"),
        silhouettes=described["silhouette_by_class"],
        highlighted=described["highlighted"],
    )


def _geometry_in_words(found: list[_Found]) -> str:
    parts = ["curvature of the support loss, singular values of the decoder, and lengths of steps"]
    for each in found:
        ratio = each.described["curvature"]["start"]["ratio_of_medians"]
        if ratio is not None:
            parts.append(f"the median curvature of {each.label} by codes is {ratio:.3g} times that by weights")
    return "; ".join(parts) + "."


def _codes_in_words(found: _Found) -> str:
    described = found.described["codes"]
    before, after = (described["silhouette"][stage]["mean"] for stage in STAGES)
    return (
        f"Codes of {found.label} in the plane by t-SNE and PCA, before and after adaptation and by class, and the "
        f"silhouette of each class: over all codes it goes from {before:.3f} to {after:.3f}."
    )
