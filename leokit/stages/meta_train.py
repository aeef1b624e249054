"""`leokit meta-train`: features → run."""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leokit import manifest
from leokit.config import (
    MetaTrainConfig,
    check_together,
    fixed_steps,
    identity,
    run_name,
    to_toml,
    training_splits,
)
from leokit.devices import resolve_device
from leokit.engine import training
from leokit.engine.events import clear_events, event_files, event_writer, require_tensorboard
from leokit.engine.interrupts import stop_requests
from leokit.engine.logbook import cut_back, logged
from leokit.engine.state import State, new_state, pack, unpack
from leokit.episodes import FeatureMatrix, require_enough, types_of
from leokit.errors import ArtifactError, Interrupted
from leokit.features import FeatureStore
from leokit.figures.curves import curves_in_words, draw_curves
from leokit.provenance import information
from leokit.runs import (
    CENTRE,
    CONFIG,
    CURVES,
    EVENTS,
    METRICS,
    SCHEMA,
    STATE,
    WEIGHTS,
    Run,
    check_same_backbone,
    fitting_state,
    load_state,
    open_run,
    save_parameters,
    save_state,
    steps_of_best,
)
from leokit.splits import classes_seen

Progress = Callable[[int, int, str], None]


def default_out(config: MetaTrainConfig) -> Path:
    """Where the run goes: `--out`, else its place under the work folder."""
    return config.out or config.work / "runs" / run_name(config)


def run(
    config: MetaTrainConfig,
    *,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Run:
    """Meta-train on the train split of a feature store, selecting the best weights on its val split.

    With `train_on_val` the classes of both are trained on, and the weights of the last step are kept. The same call on
    a finished run returns it; on an unfinished one it goes on from the last kept state; with more steps it trains on,
    and so it does with more patience where that was what ended it.

    Args:
        config: of the run.
        on_progress: called with steps done, steps wanted and a line on how it goes.
        on_message: called with what a user should know, a sentence each.

    Raises:
        UsageError: the options leave open how many steps to take.
        DataError: too few classes or images for the episodes asked for.
        ArtifactError: no features, the place holds a run with another configuration, or `steps_from` does not fit.
        Interrupted: stopped by Ctrl-C or SIGTERM; the state is kept.
        Diverged: a loss or gradient is not finite.
    """
    started = time.perf_counter()
    if config.tensorboard:
        require_tensorboard()
    device = resolve_device(config.device)
    check_together(config)
    store = _open_features(config)
    seen = classes_seen(store.facts["trained_on"], store.classes("val"))
    if seen and not isinstance(store.facts["trained_on"], str) and not config.train_on_val:
        _say(
            on_message,
            f"The backbone has seen {seen} of the {len(store.classes('val'))} val classes: accuracy on them, by which "
            "the best weights are selected, is too high.",
        )
    config, inputs = _resolved(config, store)
    folder = default_out(config)
    identified = identity(config)
    with manifest.locked(folder):
        goes_on = _goes_on(folder, resume=config.resume)
        if manifest.begin(folder, SCHEMA, identified, inputs, overwrite=config.overwrite, reopen=goes_on, keep=True):
            _say(on_message, manifest.already_done(folder))
            return open_run(folder)
        if not config.resume:
            _forget(folder)
        (folder / CONFIG).write_text(to_toml(identified), encoding="utf-8")
        dtype, held = types_of(config)
        make = partial(FeatureMatrix, device=device, dtype=dtype, held=held)
        matrix = make(store.load(*training_splits(config)))
        validation = None if config.train_on_val else make(store.load("val"))
        centre = matrix.mean() if config.centring else None
        uncentred = validation
        if centre is not None:
            matrix, validation = matrix.centred(centre), validation and validation.centred(centre)
        state = _start(config, folder, store.dim, device)
        first = state.step
        if first:
            _say(on_message, f"Going on from step {first}.")
        plain = None if centre is None else uncentred
        if not _train(config, folder, state, matrix, validation, plain, on_progress):
            raise Interrupted(f"Stopped at step {state.step} of {config.steps}: the same command goes on from there.")
        centred = centre is not None and state.best_is_centred
        save_parameters(folder / WEIGHTS, state.best | ({CENTRE: centre} if centre is not None and centred else {}))
        manifest.finish(
            folder,
            SCHEMA,
            identified,
            inputs,
            results=[WEIGHTS],
            extras=[CONFIG, METRICS, STATE, CURVES, *_events(folder)],
            facts=_facts(config, store, state),
            info=information(started=started, device=device, steps_taken=state.step - first),
        )
        return open_run(folder)


def _say(on_message: Callable[[str], None] | None, text: str) -> None:
    if on_message:
        on_message(text)


def _goes_on(folder: Path, *, resume: bool) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """For `manifest.begin`: a run goes on where only the steps and the patience differ.

    No fewer steps than were done can be wanted, and no less patience than it had: it might have ended earlier.
    """
    done = 0
    if resume and (folder / STATE).exists():
        with fitting_state(folder / STATE):
            done = int(load_state(folder / STATE)[1]["step"])

    def reopen(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
        longer = {key: wanted["config"][key] for key in ("steps", "patience")}
        same = {**found, "config": {**found["config"], **longer}} == wanted
        longer_or_equal = longer["steps"] >= done and _patience(found) <= _patience(wanted)
        return resume and same and found != wanted and longer_or_equal

    return reopen


def _patience(intent: dict[str, Any]) -> float:
    patience: int | None = intent["config"].get("patience")
    return math.inf if patience is None else patience


def _forget(folder: Path) -> None:
    shutil.rmtree((folder / STATE).parent, ignore_errors=True)
    (folder / METRICS).unlink(missing_ok=True)


def _start(config: MetaTrainConfig, folder: Path, dim: int, device: torch.device) -> State:
    """The state to go on from: the last one kept, else a new one; the metrics are cut back to it."""
    path, fresh = folder / STATE, new_state(config, dim, device)
    if not path.exists():
        for name in (METRICS, CURVES):
            (folder / name).unlink(missing_ok=True)
        clear_events(folder / EVENTS)
        return fresh
    with fitting_state(path):
        state = unpack(*load_state(path, like=pack(fresh)), config, device)
    cut_back(folder / METRICS, lambda line: _belongs(line, state.step, config.val_every))
    return state


def _belongs(line: Mapping[str, Any], step: int, val_every: int) -> bool:
    """Whether a line of metrics is one that a run without interruption has up to `step`."""
    extra = "val_accuracy" in line and line["step"] % val_every  # the last validation of a shorter run
    return line["step"] <= step and not extra


def _train(
    config: MetaTrainConfig,
    folder: Path,
    state: State,
    matrix: FeatureMatrix,
    validation: FeatureMatrix | None,
    uncentred: FeatureMatrix | None,
    on_progress: Progress | None,
) -> bool:
    with _log(config, folder) as report, stop_requests() as stop_requested:

        def on_step(step: int, text: str) -> None:
            if on_progress:
                on_progress(step, fixed_steps(config), text)

        return training.train(
            config,
            state,
            matrix,
            validation,
            uncentred=uncentred,
            keep=lambda current: save_state(folder / STATE, *pack(current)),
            report=report,
            on_step=on_step,
            stop_requested=stop_requested,
        )


@contextmanager
def _log(config: MetaTrainConfig, folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Take lines of metrics: into metrics.jsonl, TensorBoard where asked, and the picture, now and then and at the end.

    What is there goes on: `_start` has cut it back to the state that training goes on from.
    """
    path = folder / METRICS
    lines = cut_back(path, lambda line: True)
    title = f"{config.variant}, {config.ways}-way {config.shots}-shot, seed {config.seed}"
    draw = partial(draw_curves, folder / CURVES, title=title, ways=config.ways)
    events = event_writer(folder / EVENTS, lines) if config.tensorboard else nullcontext(lambda line: None)
    with logged(path, lines, draw) as report, events as add_events:

        def take(line: Mapping[str, Any]) -> None:
            report(line)
            add_events(line)

        yield take


def _events(folder: Path) -> list[str]:
    """The run's event files, by their names in its folder."""
    return [path.relative_to(folder).as_posix() for path in event_files(folder / EVENTS)]


def _facts(config: MetaTrainConfig, store: FeatureStore, state: State) -> dict[str, Any]:
    """What later stages check; a run that was trained on val has no accuracy on it, its best step is its last."""
    measured = not config.train_on_val
    facts = {
        "dim": store.dim,
        "backbone": store.facts["backbone"],
        "trained_on": store.facts["trained_on"],
        "classes": {split: len(store.classes(split)) for split in ("train", "val")},
        "meta_trained_on": list(training_splits(config)),
        "steps": state.step,
        "stopped_early": state.step < fixed_steps(config),
        "best_step": state.best_step,
        "best_is_fallback": state.best_is_fallback,
        "centred": config.centring and state.best_is_centred,
        "val_accuracy": state.best_accuracy if measured else None,
        "val_half_width": state.best_half_width if measured else None,
    }
    return facts | {"figures": {CURVES: curves_in_words(identity(config), facts)}}


def dry_run(config: MetaTrainConfig) -> dict[str, Any]:
    """What `run` would do, after the same checks: where, from what, how large."""
    if config.tensorboard:
        require_tensorboard()
    check_together(config)
    store = _open_features(config)
    config, inputs = _resolved(config, store)
    steps = fixed_steps(config)
    pair = 2 * config.num_latents
    matrices = 3 * store.dim * config.num_latents + 3 * pair**2
    return {
        "out": str(default_out(config)),
        **{name: entry.id for name, entry in inputs.items()},
        "meta_trained_on": ", ".join(training_splits(config)),
        "parameters": matrices + config.num_latents + store.dim,
        "steps": steps,
        "episodes": steps * config.meta_batch,
    }


def _open_features(config: MetaTrainConfig) -> FeatureStore:
    """The features to train on, with enough classes and images for every episode."""
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


def _resolved(config: MetaTrainConfig, store: FeatureStore) -> tuple[MetaTrainConfig, dict[str, manifest.Input]]:
    """The configuration with its number of steps, and what the run is made from."""
    inputs = {"features": manifest.Input(store.id, str(store.folder))}
    if config.steps_from is None:
        return replace(config, steps=fixed_steps(config)), inputs
    earlier = open_run(config.steps_from)
    check_same_backbone(earlier, store)
    if earlier.manifest.inputs["features"].id != store.id:
        raise ArtifactError(
            f"--steps-from {earlier.folder} ({earlier.id[:12]}): that run was trained on other features "
            f"({earlier.manifest.inputs['features'].id[:12]}) than {store.folder} ({store.id[:12]}), so its best step "
            "says nothing here. Name a run on these, or give --steps."
        )
    inputs["steps_from"] = manifest.Input(earlier.id, str(earlier.folder))
    return replace(config, steps=steps_of_best(earlier, config)), inputs
