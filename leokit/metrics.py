"""Pure measures over arrays of results."""

from itertools import pairwise
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval, 1.96 · s / √n over n independent episodes.

    It covers the sampling of episodes on these very classes: neither other classes nor other training seeds.
    """

    mean: float
    half_width: float


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Mean of values (n,), n ≥ 2, with its 95 % interval.

    Example:
        >>> mean, half_width = mean_interval(np.array([0.4, 0.6, 0.5, 0.7]))
        >>> print(f"{mean:.2f} ± {half_width:.2f}")
        0.55 ± 0.13
    """
    return Interval(float(values.mean()), float(1.96 * values.std(ddof=1) / sqrt(len(values))))


def paired_difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> Interval:
    """Mean of `first - second` (n,), the values of two methods on the same episodes, with its 95 % interval.

    Example:
        >>> paired_difference(np.array([0.5, 0.7]), np.array([0.4, 0.6])).half_width < 1e-9
        True
    """
    return mean_interval(first - second)


class SeedInterval(NamedTuple):
    """A mean over seeds and two spreads that answer different questions.

    Attributes:
        mean: over seeds and episodes.
        half_width: of the 95 % interval over episodes, as in `Interval`, of each episode's mean over the seeds.
        sd: sample standard deviation (n - 1) of the seeds' means; None for one seed.
    """

    mean: float
    half_width: float
    sd: float | None


def interval_over_seeds(values: NDArray[np.float64]) -> SeedInterval:
    """The mean of values (S, n), of S seeds on the same n ≥ 2 episodes, with both spreads."""
    sd = float(values.mean(1).std(ddof=1)) if len(values) > 1 else None
    return SeedInterval(*mean_interval(values.mean(0)), sd)


PERCENTILES = {"percentile_5": 5, "percentile_25": 25, "median": 50, "percentile_75": 75, "percentile_95": 95}


def percentiles(values: NDArray[np.floating[Any]]) -> dict[str, float]:
    """What a box with whiskers from 5 to 95 % shows of values of any shape, by the names in `PERCENTILES`."""
    found = np.percentile(np.asarray(values, np.float64), list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, found.tolist(), strict=True))


class Silhouettes(NamedTuple):
    """Mean silhouettes of points in classes, for each of R choices of the points that count."""

    by_class: NDArray[np.float64]  # (R, C), no number where no point of the class counts
    overall: NDArray[np.float64]  # (R,), mean over points


_SILHOUETTE_ROWS = 256  # points whose distances to all others are held at once


def silhouettes(points: NDArray[np.floating[Any]], labels: NDArray[np.int64], chosen: NDArray[np.bool_]) -> Silhouettes:
    """How much nearer points are to their own class than to the nearest other one, from -1 to 1 (Rousseeuw 1987).

    By Euclidean distances, which are computed once for all R and a block of points at a time. A point that is alone in
    its class, or whose distances are all 0, has 0.

    Args:
        points: (n, W).
        labels: (n,), from 0 to C - 1.
        chosen: (R, n), which points count: the others might as well not be there.
    """
    order = np.argsort(labels, kind="stable")
    points, labels = np.asarray(points, np.float64)[order], labels[order]
    weights = chosen[:, order].astype(np.float64)
    edges = np.searchsorted(labels, np.arange(labels[-1] + 2))
    spans = [slice(*pair) for pair in pairwise(edges.tolist())]
    counts = np.stack([weights[:, span].sum(1) for span in spans])  # (C, R)
    squares = (points**2).sum(1)
    totals = np.zeros_like(counts)
    for start in range(0, len(points), _SILHOUETTE_ROWS):
        block = slice(start, start + _SILHOUETTE_ROWS)
        distances = np.sqrt(np.maximum(squares[block, None] + squares - 2 * points[block] @ points.T, 0))
        rows = np.arange(len(distances))
        distances[rows, start + rows] = 0
        sums = np.stack([distances[:, span] @ weights[:, span].T for span in spans], 1)  # (b, C, R)
        own = labels[block]
        within, others = sums[rows, own], counts[own] - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.where(counts > 0, sums / counts, np.inf)
            means[rows, own] = np.inf
            apart, near = means.min(1), within / others
            values = np.where(others > 0, (apart - near) / np.maximum(apart, near), 0)
        np.add.at(totals, own, np.nan_to_num(values) * weights[:, block].T)
    with np.errstate(invalid="ignore"):
        return Silhouettes((totals / counts).T, totals.sum(0) / counts.sum(0))


def jackknife_half_width(values: NDArray[np.float64]) -> float | None:
    """Half-width of the 95 % interval, 1.96 standard errors, of a statistic by the delete-a-group jackknife.

    Args:
        values: (G,), the statistic without each of G groups of equal size; what is no number is left out.

    Returns:
        None where there are fewer than two values.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None
    return float(1.96 * sqrt((len(known) - 1) * known.var()))
