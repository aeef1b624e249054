"""Encode, sample, decode, adapt, predict (Algorithm 1, lines 6 to 15, and the fine-tuning of Section 4.2.3).

The classifier is a linear softmax without bias, so the inner loops have closed forms (`loops`). Adapting builds no
inner graph, touches no parameter's `.grad`, and a single backward pass gives the meta-gradient with all its
second-order terms.

The numbers are those of DeepMind's code, where it and the paper differ:

* In meta-training a class has one code per shot (`C = K`), each with its own noise; each code decodes to its own
  weights and a class's logit is the mean over them. A step of one code then carries the gradient of the summed
  support loss divided by K. With equal codes (evaluation) this is one code per class (`C = 1`) and the loss
  "sum over classes of the mean over shots": the same factor 1/K, so one formula serves both.
* Fine-tuning moves all copies of a class's weights by the same amount, so it works on their mean.
* Dropout falls on the encoder's input and, afresh, on the input of every prediction.
"""

from dataclasses import dataclass
from functools import cache
from math import prod, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from leokit.leo.loops import MIN_STD, LatentLoop, Support, WeightLoop
from leokit.leo.parameters import Anchor, Parameters

threshold_backward = torch.ops.aten.threshold_backward
_PAIR_BLOCK = 2**25  # elements of the relation network's hidden layer that are held at once


class Draws(NamedTuple):
    """Every random number that adapting and predicting consume, drawn beforehand.

    Noise is standard normal, and None stands for the mean; masks are 0 or 1/(1 - dropout rate), and None stands for no
    dropout.
    """

    codes: Tensor | None = None  # (..., N, C, Z)
    weights: Tensor | None = None  # (..., T+1, N, C, D): one for each decode, the first before the latent loop
    encoder_mask: Tensor | None = None  # (..., N, K, D)
    support_masks: Tensor | None = None  # (..., T+F, N, K, D): one for each gradient
    query_mask: Tensor | None = None  # (..., N, Q, D)


class DroppedOut(Draws):
    """Draws in which each mask has been put on its images, which take its place."""


def drop_out(support: Tensor, query: Tensor, draws: Draws) -> DroppedOut:
    """Put the masks of draws on support (..., N, K, D) and query (..., N, Q, D), in the masks' own memory."""
    if draws.encoder_mask is not None:
        draws.encoder_mask.mul_(support)
    if draws.support_masks is not None:
        draws.support_masks.mul_(support.unsqueeze(-4))
    if draws.query_mask is not None:
        draws.query_mask.mul_(query)
    return DroppedOut(*draws)


def masked(images: Tensor, mask: Tensor | None, draws: Draws | None) -> Tensor:
    """Images with one of the masks of `draws` on them."""
    if mask is None:
        return images
    return mask if isinstance(draws, DroppedOut) else images * mask


class Gaussian(NamedTuple):
    """A diagonal normal distribution: mean and standard deviation, the latter at least 1e-10, of any one shape."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Method:
    """How an episode is adapted to: the numbers of steps, and what a variant changes in Algorithm 1.

    Attributes:
        inner_steps: T, steps in latent space.
        finetuning_steps: F, steps in weight space after it.
        sampled: whether codes and weights are drawn in meta-training, with KL and encoder penalty in the objective.
        encoded: whether codes come from the encoder; else they are standard normal draws that ignore the support set.
    """

    inner_steps: int = 5
    finetuning_steps: int = 5
    sampled: bool = True
    encoded: bool = True


class Adapted(NamedTuple):
    """What adapting gives: the classifier and how it came about."""

    prior: Gaussian | None  # (..., N, Z): q(z|D), the encoder's distribution of codes, where there is an encoder
    codes: Tensor  # (..., N, C, Z): z
    adapted_codes: Tensor  # (..., N, C, Z): z'
    adapted_weights: Tensor  # (..., N, D): decoded from z', mean over the codes of a class
    weights: Tensor  # (..., N, D): after fine-tuning; the classifier


def gaussian(output: Tensor, offset: float) -> Gaussian:
    """The distribution that a network's output (..., 2W) stands for: W means, W unnormalised deviations u.

    σ = max(exp(u) - (1 - offset), 1e-10): `offset` where u = 0, and constant, without gradient, at its floor.
    """
    mean, unnormalised = output.chunk(2, dim=-1)
    std = unnormalised.exp() - (1 - offset)
    return Gaussian(mean, torch.where(std > MIN_STD, std, MIN_STD))


def encode(parameters: Parameters, support: Tensor, shares: Tensor | None = None) -> Gaussian:
    """The distribution of each class's code, q(z_n | D_n^tr) (eq. 3).

    All ordered pairs of support images, each with itself too, pass the relation network and are averaged over the
    second image and over the shots of the first. The first layer is linear in the pair before its ReLU, so it is
    applied to single images and added; the mean commutes with the last layer, which is linear.

    Args:
        parameters: the model.
        support: (..., N, K, D), after dropout where there is any.
        shares: (..., N, K), see `adapt`.

    Returns:
        Distribution over (..., N, Z).
    """
    ways, shots = support.shape[-3:-1]
    images = product(support, parameters.encoder).flatten(-3, -2)  # (..., NK, Z)
    first, second = parameters.relation_1.chunk(2, dim=-2)
    left, right = product(images, first), product(images, second)  # (..., NK, 2Z)
    rows = max(1, _PAIR_BLOCK // max(1, right.numel()))
    second_shares = None if shares is None else (shares / ways).flatten(-2).unsqueeze(-2)  # (..., 1, NK)
    blocks = [
        _pair_means(block, right, parameters.relation_2, second_shares) for block in torch.split(left, rows, dim=-2)
    ]
    hidden = torch.unflatten(torch.cat(blocks, dim=-2), -2, (ways, shots))  # (..., N, K, 2Z)
    means = hidden.mean(-2) if shares is None else (hidden * shares.unsqueeze(-1)).sum(-2)  # (..., N, 2Z)
    return gaussian(product(means, parameters.relation_3), offset=0.0)


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows (..., V) times a matrix (V, W), or those of each parameter set (S, ..., V) times its own (S, V, W)."""
    if matrix.ndim == 2:
        return rows @ matrix
    return torch.bmm(rows.flatten(1, -2), matrix).view(*rows.shape[:-1], matrix.shape[-1])


def _pair_means(left: Tensor, right: Tensor, layer: Tensor, shares: Tensor | None) -> Tensor:
    """Mean over the second image of the hidden layer of every pair: (..., R, H), (..., P, H) -> (..., R, H)."""
    means: Tensor = _PairMeans.apply(left, right, layer, shares)
    return means


class _PairMeans(Function):
    """`_pair_means`, with the way back written out: its arrays are the largest of a step, and few of them are made."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, layer: Tensor, shares: Tensor | None) -> Tensor:
        """See the function."""
        pairs = (left.unsqueeze(-2) + right.unsqueeze(-3)).relu_()  # (..., R, P, H)
        hidden = product(pairs, layer).relu_()
        ctx.save_for_backward(pairs, hidden, layer, shares)
        return hidden.mean(-2) if shares is None else (shares.unsqueeze(-2) @ hidden).squeeze(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for left, right and layer."""
        pairs, hidden, layer, shares = ctx.saved_tensors
        if shares is None:
            spread = (upstream / pairs.shape[-2]).unsqueeze(-2).expand_as(hidden)
        else:
            spread = upstream.unsqueeze(-2) * shares.unsqueeze(-1)
        by_hidden = threshold_backward(spread, hidden, 0)
        sets = layer.ndim - 2  # leading dimensions that stay
        by_layer = pairs.flatten(sets, -2).mT @ by_hidden.flatten(sets, -2)
        by_pairs = product(by_hidden, layer.mT)
        threshold_backward.grad_input(by_pairs, pairs, 0, grad_input=by_pairs)
        return by_pairs.sum(-2), by_pairs.sum(-3), by_layer, None


def decode(parameters: Parameters, codes: Tensor, ways: int) -> Gaussian:
    """The distribution of the classifier weights that codes stand for (eq. 4).

    Args:
        parameters: the model.
        codes: (..., Z).
        ways: N; see `decoder_offset`.

    Returns:
        Distribution over (..., D).
    """
    return gaussian(codes @ parameters.decoder, offset=decoder_offset(ways, parameters.dim))


def decoder_offset(ways: int, dim: int) -> float:
    """Deviation of a decoded weight where the decoder gives 0: that of a Glorot start of the N-way classifier."""
    return sqrt(2 / (ways + dim))


def predict(weights: Tensor, images: Tensor) -> Tensor:
    """Logits (..., N, Q, N) of images (..., N, Q, D) under a linear classifier (..., N, D); no bias."""
    return torch.unflatten(images.flatten(-3, -2) @ weights.mT, -2, images.shape[-3:-1])


def adapt(
    parameters: Parameters,
    support: Tensor,
    method: Method,
    draws: Draws | None = None,
    anchor: Anchor | None = None,
    shares: Tensor | None = None,
) -> Adapted:
    """The inner loops of Algorithm 1: from the support images of an episode to its classifier.

    Args:
        parameters: the model; or several, along a first dimension S of each parameter, which is then the first one of
            `...` everywhere: each adapts to its own episodes.
        support: (..., N, K, D) L2-normalised features, which gradients do not flow to.
        method: numbers of steps and variant.
        draws: noise and dropout masks of meta-training, or of posterior sampling (`C` = 1, no masks), or the codes of a
            method without encoder. What is not given is not random: codes and weights are then the means of their
            distributions.
        anchor: where there is one, decoded weights are a correction to the scaled class means.
        shares: (..., N, K) non-negative, of sum 1 for each class: the share of each image in the means over its class.
            None for 1/K. Classes with fewer images than others (ragged) fill up with images of share 0.

    Returns:
        The classifier with its codes and weights before and after.
    """
    given = draws or Draws()
    lead, (ways, _, dim) = support.shape[:-3], support.shape[-3:]
    prior, codes = _start(parameters, support, method, given, shares)
    whole = codes.shape[:-3]  # episodes, or samples of them
    count = prod(whole)
    base = gate = None
    if anchor is not None:
        means = normalize(class_means(support, shares), dim=-1)
        base = _beside(anchor.log_scale.exp(), means.ndim) * means
        base = base.expand(*whole, -1, -1).reshape(count, ways, dim)
        gate = _beside(anchor.gate, 3)
    inner_lr, finetuning_lr = parameters.inner_lr, parameters.finetuning_lr
    if parameters.decoder.ndim == 3:
        inner_lr, finetuning_lr = inner_lr.unsqueeze(-2), for_episodes(finetuning_lr.unsqueeze(-2), whole)
    noise = None if given.weights is None else given.weights.reshape(count, *given.weights.shape[-4:])
    in_codes, in_weights = support_steps(support, shares, given, method.inner_steps, whole)
    adapted_codes, adapted_weights = LatentLoop.apply(
        codes.reshape(count, *codes.shape[-3:]),
        inner_lr,
        parameters.decoder,
        base,
        gate,
        noise,
        *in_codes,
        decoder_offset(ways, dim),
        method.inner_steps,
    )
    weights = WeightLoop.apply(adapted_weights, finetuning_lr, *in_weights, method.finetuning_steps)
    shape = (*whole, ways, dim)
    assert len(whole) >= len(lead)
    return Adapted(prior, codes, adapted_codes.view(codes.shape), adapted_weights.view(shape), weights.view(shape))


def _beside(scalar: Tensor, dims: int) -> Tensor:
    """A scalar parameter () as it is; those of several sets (S,) with `dims` dimensions, to go with (S, ...)."""
    return scalar.view(-1, *[1] * (dims - 1)) if scalar.ndim else scalar


def for_episodes(rates: Tensor, whole: torch.Size) -> Tensor:
    """Rates (S, ..., D) of several parameter sets for each of the episodes `whole` = (S, B): (S·B, ..., D)."""
    return rates.unsqueeze(1).expand(*whole, *rates.shape[1:]).flatten(0, 1)


def class_means(support: Tensor, shares: Tensor | None) -> Tensor:
    """Means (..., N, D) of the images (..., N, K, D) of each class, by their shares (..., N, K) or equal ones."""
    return support.mean(-2) if shares is None else (support * shares.unsqueeze(-1)).sum(-2)


def support_steps(
    support: Tensor, shares: Tensor | None, draws: Draws, first: int, lead: torch.Size
) -> tuple[Support, Support]:
    """What the two loops descend on, episodes along one dimension: for the first `first` steps, and for those after.

    Args:
        support: (..., N, K, D).
        shares: (..., N, K) or None.
        draws: with the masks of the support set for all steps, or none.
        first: steps of the first loop.
        lead: of the episodes, or of samples of them: what `...` broadcasts to.
    """
    ways, shots, dim = support.shape[-3:]
    labels = _labels(ways, shots, support.dtype, support.device)
    spread: float | Tensor = 1 / shots
    if shares is not None:
        spread = shares.expand(*lead, ways, shots).reshape(prod(lead), ways * shots, 1)
    masks = draws.support_masks
    images = masked(support.unsqueeze(-4), masks, draws)
    images = images.expand(*lead, *images.shape[-4:]).reshape(prod(lead), images.shape[-4], ways * shots, dim)
    if masks is None:
        return Support(images, labels, spread), Support(images, labels, spread)
    return Support(images[:, :first], labels, spread), Support(images[:, first:], labels, spread)


@cache
def _labels(ways: int, shots: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One-hot labels (NK, N) of a support set's images."""
    with torch.inference_mode(False):  # made while testing, they serve training too
        return torch.eye(ways, dtype=dtype, device=device).repeat_interleave(shots, 0)


def _start(
    parameters: Parameters, support: Tensor, method: Method, draws: Draws, shares: Tensor | None
) -> tuple[Gaussian | None, Tensor]:
    """The distribution of the codes and the codes (..., N, C, Z) that adapting starts from."""
    if not method.encoded:
        if draws.codes is None:
            raise ValueError("a method without encoder needs draws of its codes")
        return None, draws.codes
    prior = encode(parameters, masked(support, draws.encoder_mask, draws), shares)
    codes = prior.mean.unsqueeze(-2)
    return prior, codes if draws.codes is None else codes + prior.std.unsqueeze(-2) * draws.codes
