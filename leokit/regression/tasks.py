"""Tasks of two families, sines and lines in equal proportions, with noisy points.

Ranges are those of Finn et al. (2018), "Probabilistic Model-Agnostic Meta-Learning", whose experiment the paper takes
over: x from [-5, 5], amplitude from [0.1, 5], phase from [0, π], slope and intercept from [-3, 3], all uniform; noise
on the targets is normal with standard deviation 0.3. A sine is amplitude · sin(x + phase).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import pi
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leokit import randomness

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOISE_STD = 0.3
DOMAIN = (-5.0, 5.0)
SINE, LINE = 0, 1
FAMILIES = ("sine", "line")
RANGES = {
    "sine": ((0.1, 5.0), (0.0, pi)),  # amplitude, phase
    "line": ((-3.0, 3.0), (-3.0, 3.0)),  # slope, intercept
}


class Tasks(NamedTuple):
    """A batch of tasks: functions and noisy points on them."""

    family: Ints  # (B,) SINE or LINE
    parameters: Floats  # (B, 2): amplitude and phase, or slope and intercept
    inputs: Floats  # (B, K)
    targets: Floats  # (B, K), with noise
    query_inputs: Floats  # (B, Q)
    query_targets: Floats  # (B, Q), with noise

    def values(self, inputs: Floats) -> Floats:
        """The true functions, without noise, at inputs (B, P) or (P,): (B, P)."""
        return true_values(self.family, self.parameters, inputs)

    def chosen(self, rows: Ints | slice) -> "Tasks":
        """Some of the tasks."""
        return Tasks(
            self.family[rows],
            self.parameters[rows],
            self.inputs[rows],
            self.targets[rows],
            self.query_inputs[rows],
            self.query_targets[rows],
        )


def true_values(family: Ints, parameters: Floats, inputs: Floats) -> Floats:
    """Functions (B,) of the given families and parameters (B, 2) at inputs (B, P) or (P,): (B, P)."""
    first, second = parameters[:, :1], parameters[:, 1:]
    values: Floats = np.where(family[:, None] == SINE, first * np.sin(inputs + second), first * inputs + second)
    return values


def draw_tasks(positions: Iterable[tuple[int, ...]], *, seed: int, purpose: str, shots: int, queries: int) -> Tasks:
    """The tasks at some positions of a stream; each is a function of the seed, the purpose and its position alone.

    Points are drawn before queries, so that their number does not depend on that of the queries.

    Args:
        positions: of B tasks, as (step, task) or (number,).
        seed: of the stream.
        purpose: name of the stream.
        shots: K.
        queries: Q.
    """
    return stack([_draw(position, seed, purpose, shots, queries) for position in positions])


def stack(batches: list[Tasks]) -> Tasks:
    """Batches of tasks as one."""
    return Tasks(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def _draw(position: tuple[int, ...], seed: int, purpose: str, shots: int, queries: int) -> Tasks:
    rng = randomness.generator(seed, purpose, *position)
    family = np.array([SINE if rng.random() < 0.5 else LINE])
    low, high = np.array(RANGES[FAMILIES[family[0]]]).T
    parameters = rng.uniform(low, high)[None]
    points = []
    for count in (shots, queries):
        inputs = rng.uniform(*DOMAIN, (1, count))
        points += [inputs, true_values(family, parameters, inputs) + NOISE_STD * rng.standard_normal((1, count))]
    return Tasks(family, parameters, *points)


@dataclass(frozen=True)
class Basis:
    """A family as combinations of two functions of x: 1 and x, or sin x and cos x."""

    name: str

    def __call__(self, inputs: Floats) -> Floats:
        """The two functions at inputs (..., P): (..., P, 2)."""
        if self.name == "sine":
            return np.stack([np.sin(inputs), np.cos(inputs)], -1)
        return np.stack([inputs, np.ones_like(inputs)], -1)


BASES = tuple(Basis(name) for name in FAMILIES)
