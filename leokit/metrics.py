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
