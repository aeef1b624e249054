"""Measures of predictions that are mixtures of normal distributions of one standard deviation.

A prediction for a query is given by functions' values there (its components' means), their weights, and the noise on
targets. Samples of a model are components of equal weight.
"""

from math import ceil, sqrt

import numpy as np
from scipy.special import logsumexp, ndtr

from leokit.regression.tasks import BASES, DOMAIN, Floats

_STEP, _REACH = 0.7, 6.5  # of the integral of the CRPS, in standard deviations of the noise
_GRID = 101  # points that a function's family is told from


def mixture_mean(values: Floats, weights: Floats) -> Floats:
    """Mean (...,) of components (..., M) of weights that broadcast to them, of sum 1."""
    mean: Floats = (weights * values).sum(-1)
    return mean


def spread(values: Floats, weights: Floats) -> Floats:
    """Standard deviation (...,) of components (..., M), without noise: how far functions differ."""
    mean = mixture_mean(values, weights)[..., None]
    deviation: Floats = np.sqrt((weights * (values - mean) ** 2).sum(-1))
    return deviation


def negative_log_likelihood(values: Floats, weights: Floats, std: float, targets: Floats) -> Floats:
    """-log p (...,), in nats, of targets (...,) under mixtures of components (..., M) with noise of deviation `std`."""
    exponents = -((targets[..., None] - values) ** 2) / (2 * std**2)
    found: Floats = -logsumexp(exponents, axis=-1, b=np.broadcast_to(weights, values.shape))
    return np.asarray(found + np.log(std * sqrt(2 * np.pi)))


def distribution(values: Floats, weights: Floats, std: float, targets: Floats) -> Floats:
    """The predictive distribution function (...,) at targets (...,), the probability integral transform."""
    found: Floats = (weights * ndtr((targets[..., None] - values) / std)).sum(-1)
    return found


def inside(transform: Floats, level: float) -> Floats:
    """Whether targets lie in the central interval of a probability `level`, given their `distribution`: 0 or 1."""
    return (np.abs(transform - 0.5) <= level / 2).astype(np.float64)


def crps(values: Floats, weights: Floats, std: float, targets: Floats) -> Floats:
    """Continuous ranked probability score (...,), in the targets' units (Matheson & Winkler 1976).

    ∫ (F(t) - 1[t ≥ y])² dt = E|X - y| - ∫ F (1 - F) dt for X from the prediction. The first term is a closed form of
    each component. F (1 - F) is as smooth as the noise makes it and vanishes at both ends, so that the trapezoid rule
    with a step of 0.7 of its deviation is exact to eight digits.

    Args:
        values: (..., M) components' means.
        weights: likewise, or what broadcasts to it; of sum 1 along the last dimension.
        std: of the noise.
        targets: (...,).
    """
    distance = targets[..., None] - values
    scaled = distance / std
    density = np.exp(-(scaled**2) / 2) / sqrt(2 * np.pi)
    first = (weights * (distance * (2 * ndtr(scaled) - 1) + 2 * std * density)).sum(-1)
    low, high = values.min(-1) - _REACH * std, values.max(-1) + _REACH * std
    steps = ceil(float((high - low).max()) / (_STEP * std))
    width = (high - low) / steps
    second = np.zeros_like(first)
    for step in range(1, steps):
        transform = distribution(values, weights, std, low + step * width)
        second += transform * (1 - transform)
    return np.asarray(first - width * second)


def family_distances(values: Floats) -> Floats:
    """Root mean square distance of functions to their nearest sine and line over the whole domain.

    Nearest by least squares, over all coefficients: a function of a family has distance 0 to it.

    Args:
        values: (..., P) of functions at `family_grid()`.

    Returns:
        (..., 2), by family.
    """
    distances = []
    for basis in BASES:
        columns = basis(family_grid())
        rest = values - values @ np.linalg.pinv(columns).T @ columns.T
        distances.append(np.sqrt((rest**2).mean(-1)))
    return np.stack(distances, -1)


def family_grid() -> Floats:
    """Inputs (P,) at which a function's family is told."""
    return np.linspace(*DOMAIN, _GRID)


def nearest_distance(queries: Floats, inputs: Floats) -> Floats:
    """Distance (B, Q) of queries (B, Q) to the nearest of the inputs (B, K) of their task."""
    found: Floats = np.abs(queries[..., None] - inputs[..., None, :]).min(-1)
    return found


def weighted_quantiles(values: Floats, weights: Floats, levels: tuple[float, ...]) -> Floats:
    """Quantiles (L, P) of weighted functions (M, P): the least value that the weights of those up to it reach a level.

    Args:
        values: (M, P).
        weights: (M,) of sum 1.
        levels: L of them, from 0 to 1.
    """
    order = np.argsort(values, axis=0, kind="stable")
    reached = np.cumsum(weights[order], axis=0)
    rows = [(reached < level - 1e-12).sum(0).clip(max=len(values) - 1) for level in levels]
    columns = np.arange(values.shape[1])
    return np.stack([values[order[row, columns], columns] for row in rows])
