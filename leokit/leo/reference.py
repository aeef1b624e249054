"""The slow, obvious twin of `adaptation` and `objective`: one episode at a time, autograd through every loop.

It follows DeepMind's code literally: a code, a set of weights and a logit for every support image, all pairs
concatenated, `torch.autograd.grad` with `create_graph=True` for each inner step. The fast core is checked and timed
against it; once right it is not touched again.
"""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from leokit.leo.adaptation import Draws
from leokit.leo.objective import Penalties
from leokit.leo.parameters import Parameters


class Episode(NamedTuple):
    """Everything that one episode gave."""

    loss: Tensor  # scalar: the meta-objective of this episode
    accuracy: Tensor  # scalar
    latents: Tensor  # (N, K, Z)
    adapted_weights: Tensor  # (N, K, D)
    finetuned_weights: Tensor  # (N, K, D)
    query_logits: Tensor  # (N, Q, N)


def distribution(output: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation from a network's output (..., 2W)."""
    mean, unnormalised = output.chunk(2, dim=-1)
    return mean, torch.clamp(unnormalised.exp() - (1 - offset), min=1e-10)


def encode(parameters: Parameters, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (N, K, Z) of the codes of images (N, K, D): the same for the K images of a class."""
    ways, shots, _ = images.shape
    codes = images @ parameters.encoder
    pairs = torch.cat(
        [
            codes[:, :, None, None, :].expand(-1, -1, ways, shots, -1),
            codes[None, None, :, :, :].expand(ways, shots, -1, -1, -1),
        ],
        dim=-1,
    )
    hidden = torch.relu(pairs @ parameters.relation_1)
    hidden = torch.relu(hidden @ parameters.relation_2)
    output = (hidden @ parameters.relation_3).mean((2, 3))  # over the second image: (N, K, 2Z)
    output = output.mean(1, keepdim=True).expand(-1, shots, -1)
    return distribution(output, offset=0.0)


def decode(parameters: Parameters, codes: Tensor, noise: Tensor | None) -> Tensor:
    """Classifier weights (N, K, D) of codes (N, K, Z): sampled with noise, else the mean."""
    offset = sqrt(2 / (codes.shape[0] + parameters.encoder.shape[0]))
    mean, std = distribution(codes @ parameters.decoder, offset)
    return mean if noise is None else mean + std * noise


def predict(images: Tensor, weights: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (N, Q, N) of images (N, Q, D), averaged over the K sets of weights (N, K, D)."""
    images = images if mask is None else images * mask
    return torch.einsum("nqd,mkd->nqmk", images, weights).mean(-1)


def example_losses(images: Tensor, weights: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image (N, Q), and the logits (N, Q, N)."""
    logits = predict(images, weights, mask)
    labels = torch.arange(len(images), device=images.device)[:, None].expand(logits.shape[:2])
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape), logits


def episode(
    parameters: Parameters,
    support: Tensor,
    query: Tensor,
    penalties: Penalties,
    *,
    inner_steps: int,
    finetuning_steps: int,
    draws: Draws | None,
) -> Episode:
    """One episode of Algorithm 1: support (N, K, D), query (N, Q, D); draws without leading dimensions."""
    support_masks = draws.support_masks if draws else None

    def support_loss(weights: Tensor, step: int) -> Tensor:
        mask = None if support_masks is None else support_masks[step]
        return example_losses(support, weights, mask)[0].sum()

    def weight_noise(step: int) -> Tensor | None:
        return draws.weights[step] if draws else None

    encoder_mask = draws.encoder_mask if draws else None
    mean, std = encode(parameters, support if encoder_mask is None else support * encoder_mask)
    latents = mean + std * draws.codes if draws else mean

    codes = latents
    weights = decode(parameters, codes, weight_noise(0))
    for step in range(inner_steps):
        (gradient,) = torch.autograd.grad(support_loss(weights, step), codes, create_graph=True)
        codes = codes - parameters.inner_lr * gradient
        weights = decode(parameters, codes, weight_noise(step + 1))
    adapted_weights = weights

    for step in range(finetuning_steps):
        (gradient,) = torch.autograd.grad(support_loss(weights, inner_steps + step), weights, create_graph=True)
        weights = weights - parameters.finetuning_lr * gradient

    losses, logits = example_losses(query, weights, draws.query_mask if draws else None)
    loss = losses.mean()
    if draws:
        kl = -(draws.codes**2) / 2 - torch.log(std) + latents**2 / 2
        loss = loss + penalties.kl * kl.mean()
        loss = loss + penalties.encoder * ((codes.detach() - latents) ** 2).mean()
    for matrix in parameters.matrices():
        loss = loss + penalties.l2 * (matrix**2).sum() / 2
    norms = parameters.decoder.norm(dim=1, keepdim=True)
    correlation = parameters.decoder @ parameters.decoder.T / (norms @ norms.T + 1e-32)
    identity = torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
    loss = loss + penalties.orthogonality * ((correlation - identity) ** 2).mean()

    labels = torch.arange(len(query), device=query.device)[:, None]
    accuracy = (logits.argmax(-1) == labels).to(loss.dtype).mean()
    return Episode(loss, accuracy, latents, adapted_weights, weights, logits)
