"""What is measured of predictions for tasks: each task's numbers, and their means as a summary.

A predictive is a set of weighted functions for each task; the model's samples, all of one weight, and the nodes of the
exact posterior are scored by the same formulas.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from leokit.metrics import mean_interval
from leokit.regression import measures
from leokit.regression.tasks import NOISE_STD, SINE, Floats, Ints, Tasks

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of central intervals
DISTANCES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 10.0)  # edges of bins, to the nearest point given
AMBIGUOUS = 0.1  # the least probability that the less probable family of an ambiguous task has
CLEAR = 0.01  # the most that it has where the family is clear
METRICS = {
    "mean_squared_error_of_mean": "of the mean function, against the function without noise",
    "mean_squared_error_of_best_sample": "of each task's best sample, against the function without noise",
    "negative_log_likelihood": "of noisy queries, nats a query",
    "continuous_ranked_probability_score": "of noisy queries, in units of y",
    "spread": "standard deviation of functions at a query, in units of y",
}


def score_task(values: Floats, weights: Floats, truth: Floats, targets: Floats) -> dict[str, Floats]:
    """Measures of one predictive at each query.

    Args:
        values: (..., Q, M), functions at the queries.
        weights: (M,) of sum 1.
        truth: (..., Q), the function without noise.
        targets: (..., Q), with noise.

    Returns:
        By name, (..., Q): squared error of the mean, negative log-likelihood, CRPS, spread, and `transform`, the
        predictive distribution function at the target.
    """
    return {
        "mean_squared_error_of_mean": (measures.mixture_mean(values, weights) - truth) ** 2,
        "negative_log_likelihood": measures.negative_log_likelihood(values, weights, NOISE_STD, targets),
        "continuous_ranked_probability_score": measures.crps(values, weights, NOISE_STD, targets),
        "spread": measures.spread(values, weights),
        "transform": measures.distribution(values, weights, NOISE_STD, targets),
    }


def best_sample_error(values: Floats, truth: Floats) -> Floats:
    """Mean square error (...,) over queries of the best of samples (..., Q, S) of each task, against truth (..., Q)."""
    errors: Floats = ((values - truth[..., None]) ** 2).mean(-2).min(-1)
    return errors


def sine_share(distances: Floats) -> Floats:
    """Share (...,) of functions (..., S, 2), by their distances to the families, that are nearer to a sine."""
    share: Floats = (distances[..., 0] < distances[..., 1]).mean(-1)
    return share


def summarise(scores: dict[str, Floats]) -> dict[str, Any]:
    """Means over tasks of scores (B, Q) or (B,), with their 95 % intervals over tasks, and coverage of intervals."""
    means = {name: _plain(scores[name]) for name in METRICS}
    coverage = {f"{level:g}": _plain(measures.inside(scores["transform"], level)) for level in LEVELS}
    return {**means, "coverage": coverage}


def by_distance(tasks: Tasks, scores: dict[str, Floats]) -> list[dict[str, float]]:
    """Spread and error by the distance of queries to the nearest given point; bins without queries are left out."""
    distance = measures.nearest_distance(tasks.query_inputs, tasks.inputs)
    rows = []
    for low, high in pairwise(DISTANCES):
        chosen = (distance >= low) & (distance < high)
        if chosen.any():
            error = np.sqrt(scores["mean_squared_error_of_mean"][chosen].mean())
            rows.append(
                {
                    "from": low,
                    "to": high,
                    "queries": int(chosen.sum()),
                    "mean_distance": float(distance[chosen].mean()),
                    "spread": float(np.sqrt((scores["spread"][chosen] ** 2).mean())),
                    "root_mean_squared_error_of_mean": float(error),
                }
            )
    return rows


def family_summary(probability: Floats, share: Floats, family: Ints) -> dict[str, Any]:
    """How samples divide between the families, beside the exact probability of a sine.

    Args:
        probability: (B,), exact.
        share: (B,), of samples that are nearer to a sine than to a line.
        family: (B,), the true ones.
    """
    wrong = np.where(family == SINE, 1 - share, share)
    return {
        "tasks": len(share),
        "mean_exact_probability_of_sine": float(probability.mean()),
        "mean_share_of_sines": float(share.mean()),
        "mean_absolute_difference": float(np.abs(share - probability).mean()),
        "correlation": _correlation(share, probability),
        "tasks_with_both_families": float(((share >= 0.05) & (share <= 0.95)).mean()),
        "mean_share_of_the_wrong_family": float(wrong.mean()),
    }


def _correlation(first: Floats, second: Floats) -> float | None:
    if min(first.std(), second.std()) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _plain(values: Floats) -> dict[str, float]:
    by_task = values.mean(-1) if values.ndim > 1 else values
    return mean_interval(by_task)._asdict()


def stacked(scores: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
    """Scores of blocks of tasks as those of all."""
    return {name: np.concatenate([block[name] for block in scores]) for name in scores[0]}
