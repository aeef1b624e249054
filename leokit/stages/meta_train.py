"""`leokit meta-train`: features → run."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from leokit import manifest
from leokit.config import MetaTrainConfig, identity, run_name, to_toml
from leokit.devices import resolve_device
from leokit.engine import training
from leokit.engine.interrupts import stop_requests
from leokit.episodes import FeatureMatrix, require_enough
from leokit.errors import Interrupted
from leokit.features import FeatureStore
from leokit.provenance import information
from leokit.runs import CONFIG, METRICS, SCHEMA, STATE, WEIGHTS, Run, load_state, open_run, save_parameters, save_state

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

    The same call on a finished run returns it; on an unfinished one it goes on from the last kept state; with more
    steps it trains on.

    Args:
        config: of the run.
        on_progress: called with steps done, steps wanted and a line on how it goes.
        on_message: called with what a user should know, a sentence each.

    Raises:
        DataError: too few classes or images for the episodes asked for.
        ArtifactError: no features, or the place holds a run with another configuration.
        Interrupted: stopped by Ctrl-C or SIGTERM; the state is kept.
        Diverged: a loss or gradient is not finite.
    """
    started = time.perf_counter()
    device = resolve_device(config.device)
    store = _open_features(config)
    folder = default_out(config)
    inputs = {"features": manifest.Input(store.id, str(store.folder))}
    identified = identity(config)
    with manifest.locked(folder):
        goes_on = _goes_on(folder, resume=config.resume)
        if manifest.begin(folder, SCHEMA, identified, inputs, overwrite=config.overwrite, reopen=goes_on, keep=True):
            _say(on_message, manifest.already_done(folder))
            return open_run(folder)
        if not config.resume:
            _forget(folder)
        (folder / CONFIG).write_text(to_toml(identified), encoding="utf-8")
        dtype = getattr(torch, config.dtype)
        matrices = [FeatureMatrix(store.load(split), device=device, dtype=dtype) for split in ("train", "val")]
        state = _start(config, folder, store.dim, device)
        first = state.step
        if first:
            _say(on_message, f"Going on from step {first}.")
        if not _train(config, folder, state, matrices, on_progress):
            raise Interrupted(f"Stopped at step {state.step} of {config.steps}: the same command goes on from there.")
        save_parameters(folder / WEIGHTS, state.best)
        manifest.finish(
            folder,
            SCHEMA,
            identified,
            inputs,
            results=[WEIGHTS],
            extras=[CONFIG, METRICS, STATE],
            facts=_facts(config, store, state),
            info=information(started=started, device=device, steps_taken=state.step - first),
        )
        return open_run(folder)


def _say(on_message: Callable[[str], None] | None, text: str) -> None:
    if on_message:
        on_message(text)


def _goes_on(folder: Path, *, resume: bool) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """For `manifest.begin`: a run goes on where only the steps differ, and no fewer are wanted than were done."""
    done = load_state(folder / STATE)[1]["step"] if resume and (folder / STATE).exists() else 0

    def reopen(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
        steps = wanted["config"]["steps"]
        same = {**found, "config": {**found["config"], "steps": steps}} == wanted
        return resume and same and found != wanted and steps >= done

    return reopen


def _forget(folder: Path) -> None:
    shutil.rmtree((folder / STATE).parent, ignore_errors=True)
    (folder / METRICS).unlink(missing_ok=True)


def _start(config: MetaTrainConfig, folder: Path, dim: int, device: torch.device) -> training.State:
    """The state to go on from: the last one kept, else a new one; the metrics are cut back to it."""
    path = folder / STATE
    if not path.exists():
        (folder / METRICS).unlink(missing_ok=True)
        return training.new_state(config, dim, device)
    state = training.unpack(*load_state(path), config, device)
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines() if (folder / METRICS).exists() else []
    kept = [line for line in lines if _belongs(line, state.step, config.val_every)]
    manifest.write_atomically(folder / METRICS, "".join(f"{line}\n" for line in kept).encode())
    return state


def _belongs(line: str, step: int, val_every: int) -> bool:
    """Whether a line of metrics is one that a run without interruption has up to `step`."""
    try:
        entry = json.loads(line)
        extra = "val_accuracy" in entry and entry["step"] % val_every  # the last validation of a shorter run
        return entry["step"] <= step and not extra
    except (ValueError, KeyError, TypeError):
        return False  # cut short by a crash


def _train(
    config: MetaTrainConfig,
    folder: Path,
    state: training.State,
    matrices: list[FeatureMatrix],
    on_progress: Progress | None,
) -> bool:
    with (folder / METRICS).open("a", encoding="utf-8") as metrics, stop_requests() as stop_requested:

        def report(line: Mapping[str, Any]) -> None:
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()

        def on_step(step: int, text: str) -> None:
            if on_progress:
                on_progress(step, config.steps, text)

        return training.train(
            config,
            state,
            *matrices,
            keep=lambda current: save_state(folder / STATE, *training.pack(current)),
            report=report,
            on_step=on_step,
            stop_requested=stop_requested,
        )


def _facts(config: MetaTrainConfig, store: FeatureStore, state: training.State) -> dict[str, Any]:
    return {
        "dim": store.dim,
        "backbone": store.facts["backbone"],
        "trained_on": store.facts["trained_on"],
        "classes": {split: len(store.classes(split)) for split in ("train", "val")},
        "meta_trained_on": ["train"],
        "steps": state.step,
        "best_step": state.best_step,
        "best_is_fallback": state.best_is_fallback,
        "val_accuracy": state.best_accuracy,
        "val_half_width": state.best_half_width,
    }


def dry_run(config: MetaTrainConfig) -> dict[str, Any]:
    """What `run` would do, after the same checks: where, from what, how large."""
    store = _open_features(config)
    pair = 2 * config.num_latents
    matrices = 3 * store.dim * config.num_latents + 3 * pair**2
    return {
        "out": str(default_out(config)),
        "features": store.id,
        "parameters": matrices + config.num_latents + store.dim,
        "steps": config.steps,
        "episodes": config.steps * config.meta_batch,
    }


def _open_features(config: MetaTrainConfig) -> FeatureStore:
    """The features to train on, with enough classes and images for every episode."""
    store = FeatureStore.open(config.features or config.work / "features")
    for split, queries in (("train", config.queries), ("val", config.val_queries)):
        require_enough(
            store.classes(split),
            store.counts(split),
            split=split,
            ways=config.ways,
            shots=config.shots,
            queries=queries,
        )
    return store
