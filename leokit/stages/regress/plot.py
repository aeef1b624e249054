"""`leokit regress plot`: the paper's Figure 2, with the exact posterior behind it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leokit import manifest
from leokit.config import RegressPlotConfig, identity
from leokit.engine.regression import draw_functions, test_tasks
from leokit.figures.regression import Panel, draw_functions_figure
from leokit.provenance import information
from leokit.regression import measures, scoring
from leokit.regression.models import PLOT_SCHEMA, RegressionModel, open_regression
from leokit.regression.posterior import exact_posterior, sine_probabilities
from leokit.regression.tasks import FAMILIES, Floats, Ints, Tasks
from leokit.tables import write_table

FIGURE, SAMPLES, PANELS = "functions.png", "functions.parquet", "panels.json"
BAND = 0.9  # probability of the exact posterior's band
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, repr=False)
class RegressionPlot(manifest.Artifact):
    """A finished figure, with what its panels show (plain data)."""

    panels: list[dict[str, Any]]


def default_out(config: RegressPlotConfig) -> Path:
    """Where the figure goes: `--out`, else its place under the work folder."""
    return config.out or config.work / "regression-plot"


def run(
    config: RegressPlotConfig,
    *,
    on_progress: Progress = lambda done, total, text: None,
    on_message: Callable[[str], None] = lambda text: None,
) -> RegressionPlot:
    """Draw four test tasks with samples of the model's functions.

    Chosen by the points alone: of the first `tasks` test tasks the sine and the line that are certain (the exact
    posterior gives the other family less than 1 %) and whose points are farthest from some place of the domain, and the
    two whose exact probabilities are nearest to one half.

    Args:
        config: of the figure.
        on_progress: called with parts done, parts in all and what is at work.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no model, or the place holds another figure.
    """
    started = time.perf_counter()
    model = open_regression(config.regression or config.work / "regression")
    folder, identified, inputs = default_out(config), identity(config), {"regression": model.input}
    with manifest.locked(folder):
        finished = manifest.begin(folder, PLOT_SCHEMA, identified, inputs, overwrite=config.overwrite)
        if finished:
            on_message(manifest.already_done(folder))
            return RegressionPlot(folder, finished, manifest.read_json(folder, finished, PANELS))
        on_progress(0, 2, "choosing tasks")
        numbers = list(range(config.tasks))
        tasks = test_tasks(numbers, seed=config.seed, shots=model.config.shots, queries=0)
        chosen = choose(tasks, sine_probabilities(tasks))
        on_progress(1, 2, "drawing functions")
        panels = _panels(config, model, tasks.chosen(chosen), chosen.tolist())
        described = [_described(panel) for panel in panels]
        manifest.write_atomically(folder / PANELS, json.dumps(described, indent=1).encode())
        _write_samples(folder / SAMPLES, panels)
        draw_functions_figure(folder / FIGURE, panels, title="Sampled functions after adaptation to five points")
        written = manifest.finish(
            folder,
            PLOT_SCHEMA,
            identified,
            inputs,
            results=[PANELS, SAMPLES],
            extras=[FIGURE],
            facts={"model_config": model.manifest.config, "figures": {FIGURE: _alt(panels)}},
            info=information(started=started, device="cpu"),
        )
        on_progress(2, 2, "done")
        return RegressionPlot(folder, written, described)


def dry_run(config: RegressPlotConfig) -> dict[str, Any]:
    """What `run` would do, after the same checks."""
    model = open_regression(config.regression or config.work / "regression")
    return {
        "regression": str(model.folder),
        "out": str(default_out(config)),
        "tasks": config.tasks,
        "samples": config.samples,
    }


def choose(tasks: Tasks, probability: Floats) -> Ints:
    """Rows (4,) of the tasks that are shown, see `run`; probability (B,) is the exact one of a sine."""
    places = np.broadcast_to(measures.family_grid(), (len(probability), len(measures.family_grid())))
    farthest = measures.nearest_distance(places, tasks.inputs).max(1)
    certain = [probability > 1 - scoring.CLEAR, probability < scoring.CLEAR]
    clear = [int(np.argmax(np.where(sure, farthest, -1.0))) for sure in certain]
    unclear = np.argsort(np.abs(probability - 0.5), kind="stable")
    return np.array([*clear, *[row for row in unclear.tolist() if row not in clear][:2]])


def _panels(config: RegressPlotConfig, model: RegressionModel, tasks: Tasks, numbers: list[int]) -> list[Panel]:
    grid = measures.family_grid()
    values = np.concatenate(
        [
            drawn.values(grid)
            for drawn in draw_functions(
                model.config, model.tensors, tasks, numbers, samples=config.samples, seed=config.seed
            )
        ]
    )  # (4, X, S)
    truth = tasks.values(grid)
    panels = []
    for row, number in enumerate(numbers):
        posterior = exact_posterior(tasks, row)
        functions = values[row].T
        distances = measures.family_distances(functions)
        panels.append(
            Panel(
                number=number,
                family=FAMILIES[tasks.family[row]],
                probability=posterior.sine,
                grid=grid,
                truth=truth[row],
                inputs=tasks.inputs[row],
                targets=tasks.targets[row],
                samples=functions,
                sines=distances[:, 0] < distances[:, 1],
                band=measures.weighted_quantiles(
                    posterior.values(grid), posterior.weights, ((1 - BAND) / 2, (1 + BAND) / 2)
                ),
            )
        )
    return panels


def _described(panel: Panel) -> dict[str, Any]:
    return {
        "task": panel.number,
        "family": panel.family,
        "exact_probability_of_sine": panel.probability,
        "share_of_sines": float(panel.sines.mean()),
        "samples": len(panel.samples),
        "inputs": panel.inputs.tolist(),
        "targets": panel.targets.tolist(),
    }


def _write_samples(path: Path, panels: list[Panel]) -> None:
    """A row for each panel, sample and x."""
    count = [panel.samples.size for panel in panels]
    samples, points = panels[0].samples.shape
    write_table(
        path,
        {
            "task": np.repeat([panel.number for panel in panels], count),
            "sample": np.tile(np.repeat(np.arange(samples), points), len(panels)),
            "x": np.tile(panels[0].grid, samples * len(panels)),
            "y": np.concatenate([panel.samples.ravel() for panel in panels]),
        },
    )


def _alt(panels: list[Panel]) -> str:
    shares = ", ".join(f"{panel.sines.mean():.0%}" for panel in panels)
    return (
        "Four panels with five noisy points each, the true function, sampled functions and the exact posterior's 90 % "
        f"band: a certain sine, a certain line and two ambiguous tasks. Share of sampled sines: {shares}."
    )
