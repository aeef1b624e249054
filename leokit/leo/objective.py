"""The meta-objective (eqs. 6 and 7, in the form of DeepMind's code)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, mse_loss

from leokit.leo.adaptation import Draws, Gaussian, Method, adapt, masked, predict
from leokit.leo.optimisation import sums_of_squares
from leokit.leo.parameters import Anchor, Parameters


@dataclass(frozen=True)
class Penalties:
    """Weights of the terms beside the query loss; of several parameter sets (S,) each."""

    kl: float | Tensor  # β
    encoder: float | Tensor  # γ
    l2: float | Tensor  # λ₁
    orthogonality: float | Tensor  # λ₂


class MetaLoss(NamedTuple):
    """The meta-objective of a batch of episodes and its terms, unweighted. Scalars, except as said.

    Of several parameter sets each scalar is one for each set, (S,).
    """

    total: Tensor
    query_loss: Tensor  # (...,) mean cross-entropy of each episode's queries
    accuracy: Tensor  # (...,) share of each episode's queries that are labelled right
    kl: Tensor
    encoder_penalty: Tensor
    l2: Tensor
    orthogonality: Tensor


def meta_loss(
    parameters: Parameters,
    support: Tensor,
    query: Tensor,
    penalties: Penalties,
    method: Method,
    draws: Draws | None = None,
    anchor: Anchor | None = None,
) -> MetaLoss:
    """Mean over episodes of the query loss after adaptation, plus the weighted penalties.

    Args:
        parameters: the model; or several, see `adapt`: then support and query are (S, B, ...).
        support: (..., N, K, D) L2-normalised features.
        query: (..., N, Q, D) likewise.
        penalties: weights of the terms.
        method: numbers of steps and variant.
        draws: noise and masks of meta-training; without noise for the codes, as in evaluation, KL and encoder penalty
            are 0.
        anchor: of the anchored variant.
    """
    adapted = adapt(parameters, support, method, draws, anchor)
    logits = predict(adapted.weights, masked(query, draws.query_mask if draws else None, draws))  # (..., N, Q, N)
    query_loss, accuracy = score(logits)
    sets = parameters.decoder.shape[:-2]  # () or (S,)
    kl = encoder_penalty = query_loss.new_zeros(sets)
    if adapted.prior is not None and draws is not None and draws.codes is not None:
        kl = mean_of_each(sampled_kl(adapted.prior, adapted.codes, draws.codes), sets)
        encoder_penalty = mean_square(adapted.codes, adapted.adapted_codes.detach(), sets)
    l2 = SumOfSquares.apply(len(sets), *parameters.matrices()) / 2
    orthogonality = orthogonality_penalty(parameters.decoder)
    total = (
        mean_of_each(query_loss, sets)
        + penalties.kl * kl
        + penalties.encoder * encoder_penalty
        + penalties.l2 * l2
        + penalties.orthogonality * orthogonality
    )
    return MetaLoss(total, query_loss, accuracy, kl, encoder_penalty, l2, orthogonality)


def mean_of_each(values: Tensor, sets: torch.Size) -> Tensor:
    """Mean of values (*sets, ...) over all but the dimensions of parameter sets: (*sets,)."""
    return values.mean(tuple(range(len(sets), values.ndim)))


def mean_square(left: Tensor, right: Tensor, sets: torch.Size) -> Tensor:
    """Mean square of a difference over all but the dimensions of parameter sets: (*sets,)."""
    return mean_of_each(mse_loss(left, right, reduction="none"), sets) if sets else mse_loss(left, right)


def score(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy (...,) of logits (..., N, Q, N); the label is the position along the first N."""
    ways, queries = logits.shape[-3:-1]
    labels = torch.arange(ways, device=logits.device)[:, None].expand(logits.shape[:-1])
    loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    return loss.mean((-2, -1)), (logits.argmax(-1) == labels).sum((-2, -1)) / (ways * queries)


def sampled_kl(prior: Gaussian, codes: Tensor, noise: Tensor) -> Tensor:
    """One-sample estimate of KL(q(z|D) ‖ N(0, I)) for every entry of the codes (..., N, C, Z).

    log q(z) is taken from the draw itself, -½ε² - log σ (the constants cancel), which stays exact where σ is at its
    floor and z - μ has no digits left.
    """
    return (codes.square() - noise.square()) / 2 - prior.std.log().unsqueeze(-2)


def orthogonality_penalty(decoder: Tensor) -> Tensor:
    """Mean square of C - I, where C holds the cosines between the rows (latent dimensions) of the decoder (Z, 2D)."""
    products: Tensor = RowProducts.apply(decoder)
    norms = products.diagonal(dim1=-2, dim2=-1).clamp_min(1e-32).sqrt()
    cosines = products / (norms.unsqueeze(-2) * norms.unsqueeze(-1))
    identity = torch.eye(norms.shape[-1], dtype=norms.dtype, device=norms.device).expand(cosines.shape)
    return mean_square(cosines, identity, decoder.shape[:-2])


class RowProducts(Function):
    """All products (Z, Z) of the rows of a matrix (Z, W), with one product of matrices on the way back."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """See the class."""
        ctx.save_for_backward(matrix)
        return matrix @ matrix.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        """By the matrix."""
        gradient: Tensor = (upstream + upstream.mT) @ ctx.saved_tensors[0]
        return gradient


class SumOfSquares(Function):
    """Sum of all squares of some tensors, with few operations each way; the first `sets` dimensions stay."""

    @staticmethod
    def forward(ctx: Any, sets: int, *tensors: Tensor) -> Tensor:
        """See the class."""
        ctx.save_for_backward(*tensors)
        return sums_of_squares(tensors, sets).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Twice each tensor."""
        tensors, factor = ctx.saved_tensors, 2 * upstream
        factors = [factor.view(-1, 1, 1)] * len(tensors) if factor.ndim else factor
        doubled: tuple[Tensor, ...] = torch._foreach_mul(tensors, factors)
        return None, *doubled
