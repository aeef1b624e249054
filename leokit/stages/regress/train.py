"""`leokit regress train`: a model of sines and lines."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from leokit import manifest
from leokit.config import RegressTrainConfig, identity, to_toml
from leokit.engine import regression
from leokit.engine.logbook import cut_back, logged
from leokit.errors import Interrupted
from leokit.figures.regression import draw_regression_curves
from leokit.interrupts import stop_requests
from leokit.leo.regression import WEIGHTS as NETWORK_WEIGHTS
from leokit.provenance import information
from leokit.regression.models import SCHEMA, RegressionModel, open_regression
from leokit.runs import CONFIG, CURVES, METRICS, STATE, WEIGHTS, fitting_state, load_state, save_parameters, save_state

Progress = Callable[[int, int, str], None]
_ALT = (
    "Two curves over the steps of meta-training: the loss of queries in nats, and the KL divergence of the codes in "
    "nats a task."
)


def default_out(config: RegressTrainConfig) -> Path:
    """Where the model goes: `--out`, else its place under the work folder."""
    return config.out or config.work / "regression"


def run(
    config: RegressTrainConfig,
    *,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] = lambda text: None,
) -> RegressionModel:
    """Meta-train on fresh tasks at each step; the last weights are the result, and no tasks select any.

    The same call on a finished model returns it; on an unfinished one it goes on from the last kept state.

    Args:
        config: of the model.
        on_progress: called with steps done, steps wanted and a line on how it goes.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: the place holds a model with another configuration.
        Interrupted: stopped by Ctrl-C or SIGTERM; the state is kept.
        Diverged: a loss or gradient is not finite; the last good state is kept.
    """
    started = time.perf_counter()
    folder, identified = default_out(config), identity(config)
    with manifest.locked(folder):
        if manifest.begin(folder, SCHEMA, identified, {}, overwrite=config.overwrite):
            on_message(manifest.already_done(folder))
            return open_regression(folder)
        if not config.resume:
            shutil.rmtree((folder / STATE).parent, ignore_errors=True)
        state = _start(config, folder)
        first = state.step
        if first:
            on_message(f"Going on from step {first}.")
        (folder / CONFIG).write_text(to_toml(identified), encoding="utf-8")
        with _log(config, folder) as report, stop_requests() as stopped:
            ended = regression.train(
                config,
                state,
                keep=lambda current: save_state(folder / STATE, *regression.pack(current)),
                report=report,
                on_step=lambda step, text: on_progress(step, config.steps, text) if on_progress else None,
                stop_requested=stopped,
            )
        if not ended:
            raise Interrupted(f"Stopped at step {state.step} of {config.steps}: the same command goes on from there.")
        save_parameters(folder / WEIGHTS, state.parameters)
        manifest.finish(
            folder,
            SCHEMA,
            identified,
            {},
            results=[WEIGHTS],
            extras=[CONFIG, METRICS, STATE, CURVES],
            facts=_facts(folder, state),
            info=information(started=started, device="cpu", steps_taken=state.step - first),
        )
        return open_regression(folder)


def dry_run(config: RegressTrainConfig) -> dict[str, Any]:
    """What `run` would do: where, how long, how large."""
    return {
        "out": str(default_out(config)),
        "steps": config.steps,
        "tasks": config.steps * config.meta_batch,
        "parameters": _count(regression.new_state(config)),
        "generated_weights": NETWORK_WEIGHTS,
    }


def _facts(folder: Path, state: regression.RegressionState) -> dict[str, Any]:
    lines = _lines(folder / METRICS)
    last = lines[-1] if lines else {}
    return {
        "steps": state.step,
        "parameters": _count(state),
        "generated_weights": NETWORK_WEIGHTS,
        "query_loss": last.get("query_loss"),
        "kl": last.get("kl"),
        "figures": {CURVES: _ALT},
    }


def _count(state: regression.RegressionState) -> int:
    return sum(value.numel() for value in state.parameters.values())


def _start(config: RegressTrainConfig, folder: Path) -> regression.RegressionState:
    """The state to go on from: the last one kept, else a new one; the metrics are cut back to it."""
    path, state = folder / STATE, regression.new_state(config)
    if path.exists():
        with fitting_state(path):
            state = regression.unpack(*load_state(path, like=regression.pack(state)), config)
    cut_back(folder / METRICS, lambda line: 0 < line["step"] <= state.step)
    return state


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _log(config: RegressTrainConfig, folder: Path) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
    """Take lines of metrics, into metrics.jsonl and the picture."""
    title = f"regression, {config.shots} points, {config.objective} objective, seed {config.seed}"
    draw = partial(draw_regression_curves, folder / CURVES, title=title)
    return logged(folder / METRICS, cut_back(folder / METRICS, lambda line: True), draw)
