"""Algorithm 1 where one code stands for a whole network: the few-shot regression of Sections 2.3.4 and 4.1.

The encoder takes each point (x, y) of a task, the relation network all ordered pairs of encoded points; their mean is
the distribution of the task's one code. The decoder turns a code into a distribution of all 1,761 weights of a
1-40-40-1 network with ReLU, which is the adapted function. The inner loss is that network's mean squared error on the
points; its gradient by the code is autograd's, through network and decoder.

Shapes: S samples, B tasks, K points, Q queries, Z = 16 width of a code, P = 1,761 weights. Every sample of every task
has its own code and its own draw of weights at each decode, in meta-training and after it.

What neither the paper nor its code fix, and how it is here: layers have biases; a deviation is exp(u) of the network's
output u, which has no floor where its gradient would vanish; rates are learned by their logarithms and the norm of an
inner gradient is limited, without which the five steps explode early in training.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log, pi, sqrt
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import mse_loss, relu

from leokit import randomness
from leokit.leo.adaptation import Gaussian

Tensors = dict[str, Tensor]
Objective = Literal["predictive", "expected"]

LATENTS = 16
HIDDEN = 40
PARTS = (HIDDEN, HIDDEN, HIDDEN * HIDDEN, HIDDEN, HIDDEN, 1)  # weights and biases of the three layers, in turn
WEIGHTS = sum(PARTS)
WIDTHS = {
    "encoder": (2, 16, 16, 16),
    "relation": (32, 32, 32, 2 * LATENTS),
    "decoder": (LATENTS, 32, 32, 2 * WEIGHTS),
}
_DEVIATIONS = {"relation": 0.5, "decoder": 0.01}  # before training
_LAST_SCALE = (
    0.3  # of the decoder's last matrix before training, against Glorot's: the first functions are near another
)


class Draws(NamedTuple):
    """Standard normal noise of S samples of B tasks."""

    codes: Tensor  # (S, B, Z)
    weights: Tensor  # (T+1, S, B, P): one for each decode, the first before any step


class Settings(NamedTuple):
    """How a task is adapted to."""

    inner_steps: int  # T
    inner_clip: float  # the largest norm of an inner gradient


class Adapted(NamedTuple):
    """Samples of adapted functions, and how they came about."""

    prior: Gaussian  # (B, Z): q(z | points)
    codes: Tensor  # (S, B, Z): z
    adapted_codes: Tensor  # (S, B, Z): z'
    weights: Tensor  # (S, B, P), decoded from z'


class RegressionLoss(NamedTuple):
    """The meta-objective of a batch of tasks and its terms, unweighted; scalars."""

    total: Tensor
    query_loss: Tensor  # nats a query
    kl: Tensor  # nats a task
    encoder_penalty: Tensor


def initial_tensors(seed: int, *, inner_lr: float) -> Tensors:
    """What is learned, by name, before training: Glorot-uniform layers with biases of 0, and rates of one value.

    The decoder's last biases are a start of the generated network itself, whose first kinks are spread over the inputs.

    Args:
        seed: same seed, same tensors.
        inner_lr: every entry of the step size α in latent space.
    """
    rng = randomness.generator(seed, "regression parameters")
    values = {}
    for name, widths in WIDTHS.items():
        for number, (rows, columns) in enumerate(pairwise(widths)):
            values[f"{name}.{number}.weight"] = rng.uniform(-1, 1, (rows, columns)) * sqrt(6 / (rows + columns))
            values[f"{name}.{number}.bias"] = np.zeros(columns)
    for name, deviation in _DEVIATIONS.items():
        half = WIDTHS[name][-1] // 2
        values[f"{name}.2.bias"][half:] = log(deviation)
    values["decoder.2.weight"] *= _LAST_SCALE
    values["decoder.2.bias"][:WEIGHTS] = _network_start(rng)
    values["log_inner_lr"] = np.full(LATENTS, log(inner_lr))
    return {name: torch.from_numpy(value).float() for name, value in sorted(values.items())}


def _network_start(rng: np.random.Generator) -> NDArray[np.float64]:
    """Weights (P,) of a Glorot-uniform 1-40-40-1 network; biases uniform to ±1 in the first layer, then 0."""
    edge, middle = sqrt(6 / (1 + HIDDEN)), sqrt(6 / (2 * HIDDEN))
    limits = np.repeat([edge, 1.0, middle, 0.0, edge, 0.0], PARTS)
    start: NDArray[np.float64] = rng.uniform(-1, 1, WEIGHTS) * limits
    return start


def draw(positions: Sequence[tuple[int, ...]], *, seed: int, purpose: str, samples: int, inner_steps: int) -> Draws:
    """The noise of samples of the tasks at some positions; each sample of each has a stream of its own.

    Args:
        positions: of B tasks, as (step, task) or (number,).
        seed: of the run, or of the samples.
        purpose: name of the streams.
        samples: S.
        inner_steps: T.
    """
    count = LATENTS + (inner_steps + 1) * WEIGHTS
    words = -(-count // 4) * 2  # of 64 bits, for two draws each, and an even number
    normals = np.empty((samples, len(positions), 2 * words), np.float32)
    for place, position in enumerate(positions):
        for sample in range(samples):
            bits = randomness.words(words, seed, purpose, *position, sample)
            randomness.normals(bits.view(np.int32), normals[sample, place])
    noise = torch.from_numpy(normals)
    by_decode = torch.unflatten(noise[..., LATENTS:count], -1, (inner_steps + 1, WEIGHTS))
    return Draws(noise[..., :LATENTS], by_decode.permute(2, 0, 1, 3))


def layers(tensors: Tensors, name: str, values: Tensor) -> Tensor:
    """One of the three meta-learned networks, `encoder`, `relation` or `decoder`: ReLU between its layers."""
    last = len(WIDTHS[name]) - 2
    for number in range(last + 1):
        values = values @ tensors[f"{name}.{number}.weight"] + tensors[f"{name}.{number}.bias"]
        values = relu(values) if number < last else values
    return values


def encode(tensors: Tensors, inputs: Tensor, targets: Tensor) -> Gaussian:
    """q(z | points) (B, Z) of points (B, K): the mean over all ordered pairs, each point with itself too (eq. 3)."""
    points = layers(tensors, "encoder", torch.stack([inputs, targets], -1))  # (B, K, 16)
    count = points.shape[-2]
    left, right = points.unsqueeze(-2), points.unsqueeze(-3)
    pairs = torch.cat([left.expand(-1, -1, count, -1), right.expand(-1, count, -1, -1)], -1)
    return _gaussian(layers(tensors, "relation", pairs).mean((-3, -2)))


def decode(tensors: Tensors, codes: Tensor) -> Gaussian:
    """The distribution of network weights (..., P) that codes (..., Z) stand for (eq. 4)."""
    return _gaussian(layers(tensors, "decoder", codes))


def _gaussian(output: Tensor) -> Gaussian:
    mean, logarithm = output.chunk(2, dim=-1)
    return Gaussian(mean, logarithm.exp())


def network(weights: Tensor, inputs: Tensor) -> Tensor:
    """The functions of weights (..., P) at inputs that broadcast to (..., X): (..., X)."""
    first, first_bias, middle, middle_bias, last, last_bias = torch.split(weights, list(PARTS), -1)
    hidden = relu(inputs.unsqueeze(-1) * first.unsqueeze(-2) + first_bias.unsqueeze(-2))  # (..., X, 40)
    hidden = relu(hidden @ torch.unflatten(middle, -1, (HIDDEN, HIDDEN)) + middle_bias.unsqueeze(-2))
    values: Tensor = (hidden @ last.unsqueeze(-1)).squeeze(-1) + last_bias
    return values


def descend(
    codes: Tensor,
    generate: Callable[[Tensor, int], Tensor],
    gradient: Callable[[Tensor, Tensor], Tensor],
    rate: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """The inner loop (Algorithm 1, lines 8 to 15) for any model that codes stand for.

    Args:
        codes: (..., Z), z.
        generate: weights (..., P) from codes and the number of the decode.
        gradient: of the inner loss by the codes, from weights and codes.
        rate: (Z,), α.
        steps: T.

    Returns:
        z' and the weights decoded from it.
    """
    weights = generate(codes, 0)
    for step in range(steps):
        codes = codes - rate * gradient(weights, codes)
        weights = generate(codes, step + 1)
    return codes, weights


def adapt(
    tensors: Tensors, inputs: Tensor, targets: Tensor, draws: Draws, settings: Settings, *, training: bool = False
) -> Adapted:
    """Samples of functions that fit the points of tasks: the inner loop of Algorithm 1 on every sample.

    Args:
        tensors: what is learned.
        inputs: (B, K).
        targets: (B, K), with noise.
        draws: for S samples.
        settings: steps and their limit.
        training: whether gradients flow back through the steps (with all second-order terms); else none are kept.
    """

    def generate(codes: Tensor, step: int) -> Tensor:
        found = decode(tensors, codes)
        return found.mean + found.std * draws.weights[step]

    def gradient(weights: Tensor, codes: Tensor) -> Tensor:
        loss = (network(weights, inputs) - targets).square().mean(-1).sum()
        (found,) = torch.autograd.grad(loss, codes, create_graph=training)
        limit: float = settings.inner_clip
        clipped: Tensor = found * (limit / found.norm(dim=-1, keepdim=True).clamp_min(limit))
        return clipped

    with torch.enable_grad():
        prior = encode(tensors, inputs, targets)
        codes = prior.mean + prior.std * draws.codes
        codes = codes if codes.requires_grad else codes.requires_grad_()
        rate = tensors["log_inner_lr"].exp()
        adapted_codes, weights = descend(codes, generate, gradient, rate, settings.inner_steps)
    found = Adapted(prior, codes, adapted_codes, weights)
    return found if training else Adapted(Gaussian(*map(Tensor.detach, prior)), *map(Tensor.detach, found[1:]))


def query_loss(values: Tensor, targets: Tensor, std: float, objective: Objective) -> Tensor:
    """Negative log-likelihood of the queries of tasks, in nats a query: (B,).

    `expected` is eq. 6 by sampling: the mean over samples of each one's Gaussian negative log-likelihood, which is
    their squared error but for constants. `predictive` is minus the logarithm of the mean likelihood of all queries
    of a task together, the likelihood of the samples as a mixture; with one sample the two are the same.

    Args:
        values: (S, B, Q), of the samples.
        targets: (B, Q), with noise.
        std: of the noise.
        objective: which.
    """
    likelihoods = -((values - targets) / std).square() / 2 - log(std * sqrt(2 * pi))  # (S, B, Q)
    if objective == "expected":
        return -likelihoods.mean((0, -1))
    together = likelihoods.sum(-1).logsumexp(0) - log(len(values))
    return -together / targets.shape[-1]


def meta_loss(
    tensors: Tensors,
    points: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    draws: Draws,
    settings: Settings,
    *,
    noise_std: float,
    objective: Objective,
    kl_weight: float,
    encoder_penalty_weight: float,
) -> RegressionLoss:
    """The meta-objective (eq. 6) of tasks: query loss after adaptation, KL divergence of the codes, encoder penalty.

    Args:
        tensors: what is learned.
        points: inputs and targets (B, K) to adapt to.
        queries: inputs and targets (B, Q).
        draws: for S samples.
        settings: steps and their limit.
        noise_std: of the targets.
        objective: see `query_loss`.
        kl_weight: β, of KL(q(z | points) ‖ N(0, I)), in closed form, in nats a task.
        encoder_penalty_weight: γ, of the mean square of z' - z with z' held fixed.
    """
    adapted = adapt(tensors, *points, draws, settings, training=True)
    inputs, targets = queries
    loss = query_loss(network(adapted.weights, inputs), targets, noise_std, objective).mean()
    mean, std = adapted.prior
    kl = ((mean.square() + std.square() - 1) / 2 - std.log()).sum(-1).mean()
    penalty = mse_loss(adapted.codes, adapted.adapted_codes.detach())
    return RegressionLoss(loss + kl_weight * kl + encoder_penalty_weight * penalty, loss, kl, penalty)
