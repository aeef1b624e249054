"""`leokit regress eval`: how far the sampled functions can be trusted, beside the exact posterior."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leokit import manifest, randomness
from leokit.config import RegressEvalConfig, identity
from leokit.engine.regression import draw_functions, find_ambiguous, test_tasks
from leokit.figures.regression import draw_coverage, draw_spread
from leokit.provenance import information
from leokit.regression import measures, scoring
from leokit.regression.models import EVAL_SCHEMA, RegressionModel, open_regression
from leokit.regression.posterior import Posterior, exact_posterior
from leokit.regression.scoring import AMBIGUOUS, CLEAR, LEVELS
from leokit.regression.tasks import FAMILIES, NOISE_STD, Floats, Tasks
from leokit.tables import write_table

SUMMARY, TASKS = "summary.json", "tasks.parquet"
COVERAGE, SPREAD = "coverage.png", "spread.png"
MODEL, EXACT = "leo", "exact posterior"
_FAR = 200  # tasks that are looked at for each ambiguous one that is wanted, at most
Progress = Callable[[int, int, str], None]
Scores = dict[str, Floats]
_ALT = {
    COVERAGE: "Share of noisy queries inside central intervals against the intervals' probability, for LEO's samples "
    "and for the exact posterior; the diagonal is perfect.",
    SPREAD: "Spread of the functions and error of their mean against the distance to the nearest given point, for "
    "LEO's samples and for the exact posterior.",
}


@dataclass(frozen=True, repr=False)
class RegressionEvaluation(manifest.Artifact):
    """A finished evaluation; the summary is plain data."""

    summary: dict[str, Any]


@dataclass(frozen=True)
class _Part:
    """Tasks with what was measured on them, by predictive."""

    numbers: list[int]
    tasks: Tasks
    probability: Floats  # (B,), exact, of a sine
    share: Floats  # (B,), of samples that are nearer to a sine
    distance: Floats  # (B, S), of samples to their nearest family
    scores: dict[str, Scores]


def default_out(config: RegressEvalConfig) -> Path:
    """Where the result goes: `--out`, else its place under the work folder."""
    return config.out or config.work / "regression-eval"


def run(
    config: RegressEvalConfig,
    *,
    on_progress: Progress = lambda done, total, text: None,
    on_message: Callable[[str], None] = lambda text: None,
) -> RegressionEvaluation:
    """Measure a model on fresh tasks, and the exact posterior by the same measures on the same tasks.

    Args:
        config: of the evaluation.
        on_progress: called with tasks done, tasks in all and what is at work.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no model, or the place holds another result.
    """
    started = time.perf_counter()
    model = open_regression(config.regression or config.work / "regression")
    folder, identified, inputs = default_out(config), identity(config), {"regression": model.input}
    with manifest.locked(folder):
        finished = manifest.begin(folder, EVAL_SCHEMA, identified, inputs, overwrite=config.overwrite)
        if finished:
            on_message(manifest.already_done(folder))
            return RegressionEvaluation(folder, finished, manifest.read_json(folder, finished, SUMMARY))
        drawn = _measure(config, model, list(range(config.tasks)), "tasks", on_progress)
        unclear = find_ambiguous(
            config.ambiguous,
            seed=config.seed,
            shots=model.config.shots,
            least=AMBIGUOUS,
            most=_FAR * config.ambiguous,
            on_progress=lambda done, total: on_progress(done, total, "looking for ambiguous tasks"),
        )
        ambiguous = _measure(config, model, unclear, "ambiguous tasks", on_progress) if len(unclear) > 1 else None
        summary = _summary(config, model, drawn, ambiguous)
        manifest.write_atomically(folder / SUMMARY, json.dumps(summary, indent=1).encode())
        _write_tasks(folder / TASKS, [("drawn", drawn), *([("ambiguous", ambiguous)] if ambiguous else [])])
        draw_coverage(folder / COVERAGE, summary["predictives"])
        draw_spread(folder / SPREAD, summary["predictives"])
        written = manifest.finish(
            folder,
            EVAL_SCHEMA,
            identified,
            inputs,
            results=[SUMMARY, TASKS],
            extras=[COVERAGE, SPREAD],
            facts={"tasks": config.tasks, "model_config": model.manifest.config, "figures": _ALT},
            info=information(started=started, device="cpu"),
        )
        return RegressionEvaluation(folder, written, summary)


def dry_run(config: RegressEvalConfig) -> dict[str, Any]:
    """What `run` would do, after the same checks."""
    model = open_regression(config.regression or config.work / "regression")
    return {
        "regression": str(model.folder),
        "out": str(default_out(config)),
        "tasks": config.tasks,
        "ambiguous": config.ambiguous,
        "samples": config.samples,
        "queries": config.queries,
    }


def _measure(
    config: RegressEvalConfig, model: RegressionModel, numbers: list[int], what: str, on_progress: Progress
) -> _Part:
    tasks = test_tasks(numbers, seed=config.seed, shots=model.config.shots, queries=config.queries)
    truth = tasks.values(tasks.query_inputs)
    shares, distances, ours = [], [], []
    even = np.full(config.samples, 1 / config.samples)
    for drawn in draw_functions(model.config, model.tensors, tasks, numbers, samples=config.samples, seed=config.seed):
        values = drawn.values(tasks.query_inputs[drawn.rows])
        block = scoring.score_task(values, even, truth[drawn.rows], tasks.query_targets[drawn.rows])
        block["mean_squared_error_of_best_sample"] = scoring.best_sample_error(values, truth[drawn.rows])
        ours.append(block)
        found = measures.family_distances(drawn.values(measures.family_grid()).swapaxes(-1, -2))
        shares.append(scoring.sine_share(found))
        distances.append(found.min(-1))
        on_progress(drawn.rows.stop, 2 * len(numbers), what)
    exact, probability = [], np.empty(len(numbers))
    for row in range(len(numbers)):
        posterior = exact_posterior(tasks, row)
        probability[row] = posterior.sine
        exact.append(_score_exact(config, posterior, tasks, row, truth[row], numbers[row]))
        if row % 20 == 19 or row == len(numbers) - 1:
            on_progress(len(numbers) + row + 1, 2 * len(numbers), f"{what}, exactly")
    scores = {MODEL: scoring.stacked(ours), EXACT: scoring.stacked(exact)}
    return _Part(numbers, tasks, probability, np.concatenate(shares), np.concatenate(distances), scores)


def _score_exact(
    config: RegressEvalConfig, posterior: Posterior, tasks: Tasks, row: int, truth: Floats, number: int
) -> Scores:
    """Scores (1, Q) of the exact posterior; its best sample is of as many draws as the model's."""
    queries = tasks.query_inputs[row]
    values = posterior.values(queries).T
    scores = scoring.score_task(values, posterior.weights, truth, tasks.query_targets[row])
    drawn = posterior.draw(config.samples, randomness.generator(config.seed, "regression posterior", number), queries)
    scores["mean_squared_error_of_best_sample"] = scoring.best_sample_error(drawn.T, truth)
    return {name: np.asarray(value)[None] for name, value in scores.items()}


def _summary(
    config: RegressEvalConfig, model: RegressionModel, drawn: _Part, ambiguous: _Part | None
) -> dict[str, Any]:
    clear = {
        family: np.flatnonzero(drawn.probability > 1 - CLEAR if family == "sine" else drawn.probability < CLEAR)
        for family in FAMILIES
    }
    families = {f"clearly_{name}": _families(drawn, rows) for name, rows in clear.items()}
    if ambiguous:
        families["ambiguous"] = _families(ambiguous, np.arange(len(ambiguous.numbers)))
    return {
        "tasks": config.tasks,
        "shots": model.config.shots,
        "queries": config.queries,
        "samples": config.samples,
        "noise_standard_deviation": NOISE_STD,
        "interval": "95 % over the sampling of tasks (1.96 s/√n)",
        "metrics": scoring.METRICS,
        "predictives": {
            name: {**scoring.summarise(scores), "by_distance": scoring.by_distance(drawn.tasks, scores)}
            for name, scores in drawn.scores.items()
        },
        "predictives_where_ambiguous": {
            name: scoring.summarise(scores) for name, scores in (ambiguous.scores.items() if ambiguous else ())
        },
        "families": families,
        "ambiguous_tasks_among_those_drawn": int(
            ((drawn.probability >= AMBIGUOUS) & (drawn.probability <= 1 - AMBIGUOUS)).sum()
        ),
        "samples_distance_to_nearest_family": {
            "median": float(np.median(drawn.distance)),
            "share_within_noise": float((drawn.distance <= NOISE_STD).mean()),
        },
    }


def _families(part: _Part, rows: Any) -> dict[str, Any] | None:
    if len(rows) == 0:
        return None
    return scoring.family_summary(part.probability[rows], part.share[rows], part.tasks.family[rows])


def _write_tasks(path: Path, parts: list[tuple[str, _Part]]) -> None:
    """A row for each task and predictive; measures are means over the task's queries."""
    columns: dict[str, list[Any]] = {}

    def add(name: str, values: Any) -> None:
        columns.setdefault(name, []).extend(values)

    for chosen, part in parts:
        for predictive, scores in part.scores.items():
            count = len(part.numbers)
            add("chosen", [chosen] * count)
            add("predictive", [predictive] * count)
            add("task", part.numbers)
            add("family", [FAMILIES[number] for number in part.tasks.family])
            add("exact_probability_of_sine", part.probability.tolist())
            add("share_of_sines", (part.share if predictive == MODEL else part.probability).tolist())
            for name in scoring.METRICS:
                values = scores[name]
                add(name, (values.mean(-1) if values.ndim > 1 else values).tolist())
            for level in LEVELS:
                add(f"inside_{level:g}", measures.inside(scores["transform"], level).mean(-1).tolist())
    write_table(path, columns)
