"""The exact posterior over the two families given noisy points, by quadrature.

Both families are linear in two functions of x: a sine is a cos φ · sin x + a sin φ · cos x, a line is s · x + i · 1.
With the coefficients θ of a node and the basis b the log-likelihood of points (x, y) is

    -1/(2σ²) (Σ y² - 2 θᵀ Σ b(x) y + θᵀ (Σ b(x) b(x)ᵀ) θ) - K log(σ √(2π)),

a product of six sums over the points and six products of coefficients. Nodes are the midpoints of a grid over the box
that the parameters are uniform on; the density is smooth and wide against the grid's cells, so that few hundred nodes
a side suffice (`tests/unit/test_regression.py` holds it to simple Monte Carlo and to a finer grid).
"""

from dataclasses import dataclass
from functools import cache
from math import log, pi, sqrt

import numpy as np
from scipy.special import logsumexp

from leokit.regression.tasks import BASES, FAMILIES, NOISE_STD, RANGES, SINE, Floats, Ints, Tasks

NODES = 200  # along each parameter
_NEGLIGIBLE = 1e-6  # share of the posterior that the nodes left out have together


@dataclass(frozen=True)
class Nodes:
    """The quadrature of a prior: both families one after the other, all nodes of a family of one weight."""

    family: Ints  # (M,)
    coefficients: Floats  # (M, 2), of the family's basis
    products: Floats  # (6, M): those of coefficients that the log-likelihood is linear in


@dataclass(frozen=True)
class Posterior:
    """The posterior of one task as weighted functions; those of negligible weight are left out.

    Attributes:
        family: (M,) of each function.
        coefficients: (M, 2) of its basis.
        weights: (M,), of sum 1, in falling order.
        sine: probability of the sine family, by all nodes.
        log_evidence: log p(targets | inputs), by all nodes.
    """

    family: Ints
    coefficients: Floats
    weights: Floats
    sine: float
    log_evidence: float

    def values(self, inputs: Floats) -> Floats:
        """The functions at inputs (P,): (M, P)."""
        return _values(self.family, self.coefficients, inputs)

    def draw(self, count: int, generator: np.random.Generator, inputs: Floats) -> Floats:
        """Independent draws of functions at inputs (P,): (S, P)."""
        chosen = generator.choice(len(self.weights), size=count, p=self.weights)
        return _values(self.family[chosen], self.coefficients[chosen], inputs)


def _values(family: Ints, coefficients: Floats, inputs: Floats) -> Floats:
    values = np.empty((len(family), len(inputs)))
    for number, basis in enumerate(BASES):
        rows = family == number
        values[rows] = coefficients[rows] @ basis(inputs).T
    return values


@cache
def prior_nodes(side: int = NODES) -> Nodes:
    """The quadrature of the prior with `side` × `side` nodes for each family."""
    grids = []
    for name in FAMILIES:
        axes = [low + (high - low) * (np.arange(side) + 0.5) / side for low, high in RANGES[name]]
        first, second = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
        if name == "sine":
            grids.append(np.stack([first * np.cos(second), first * np.sin(second)], -1))
        else:
            grids.append(np.stack([first, second], -1))
    theta = np.concatenate(grids)
    one, two = theta.T
    products = np.stack([one * one, 2 * one * two, two * two, one, two, np.ones(len(theta))])
    return Nodes(np.repeat(np.arange(len(FAMILIES)), side * side), theta, products)


def log_likelihoods(tasks: Tasks, nodes: Nodes) -> Floats:
    """log p(targets | inputs, node) of each task and node: (B, M)."""
    found = np.empty((len(tasks.inputs), len(nodes.family)))
    for number, basis in enumerate(BASES):
        columns = nodes.family == number
        found[:, columns] = _sums(basis(tasks.inputs), tasks.targets) @ nodes.products[:, columns]
    found -= tasks.inputs.shape[1] * log(NOISE_STD * sqrt(2 * pi))
    return found


def _sums(basis: Floats, targets: Floats) -> Floats:
    """What of points, with basis (B, K, 2) and targets (B, K), the log-likelihood is linear in: (B, 6)."""
    one, two = basis[..., 0], basis[..., 1]
    squares = [-one * one / 2, -one * two / 2, -two * two / 2]
    return (
        np.stack([part.sum(1) for part in (*squares, one * targets, two * targets, -targets * targets / 2)], -1)
        / NOISE_STD**2
    )


def sine_probabilities(tasks: Tasks, nodes: Nodes | None = None, block: int = 64) -> Floats:
    """The posterior probability (B,) of the sine family, of which the prior is ½."""
    nodes = nodes or prior_nodes()
    sines = nodes.family == SINE
    parts = []
    for start in range(0, len(tasks.inputs), block):
        likelihoods = log_likelihoods(tasks.chosen(slice(start, start + block)), nodes)
        likelihoods -= likelihoods.max(1, keepdims=True)
        np.exp(likelihoods, out=likelihoods)
        parts.append(likelihoods[:, sines].sum(1) / likelihoods.sum(1))
    return np.concatenate(parts)


def exact_posterior(tasks: Tasks, row: int, nodes: Nodes | None = None) -> Posterior:
    """The posterior of one task of a batch given its noisy points."""
    nodes = nodes or prior_nodes()
    likelihoods = log_likelihoods(tasks.chosen(slice(row, row + 1)), nodes)[0]
    total = float(logsumexp(likelihoods))
    weights = np.exp(likelihoods - total)
    sine = float(weights[nodes.family == SINE].sum())
    order = np.argsort(-weights, kind="stable")
    kept = order[: 1 + int(np.searchsorted(np.cumsum(weights[order]), 1 - _NEGLIGIBLE))]
    share = weights[kept] / weights[kept].sum()
    return Posterior(nodes.family[kept], nodes.coefficients[kept], share, sine, total - log(len(weights)))
