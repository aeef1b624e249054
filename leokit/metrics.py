"""Pure measures over arrays of results."""

from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval, 1.96 · s / √n over n independent episodes.

    It covers the sampling of episodes on these very classes: neither other classes nor other training seeds.
    """

    mean: float
    half_width: float


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Mean of values (n,), n ≥ 2, with its 95 % interval."""
    return Interval(float(values.mean()), float(1.96 * values.std(ddof=1) / sqrt(len(values))))


def paired_difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> Interval:
    """Mean of `first - second` (n,), the values of two methods on the same episodes, with its 95 % interval."""
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
