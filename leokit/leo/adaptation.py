"""Encode, sample, decode, adapt, predict (Algorithm 1, lines 6 to 15, and the fine-tuning of Section 4.2.3).

The classifier is a linear softmax without bias, so the gradient of the support loss is a closed form,
(softmax - one-hot)ᵀ X, chained through the sampled decoder. Adapting therefore builds no inner graph, touches no
parameter's `.grad`, and a single backward pass gives the meta-gradient with all its second-order terms.

The numbers are those of DeepMind's code, where it and the paper differ:

* In meta-training a class has one code per shot (`C = K`), each with its own noise; each code decodes to its own
  weights and a class's logit is the mean over them. A step of one code then carries the gradient of the summed
  support loss divided by K. With equal codes (evaluation) this is one code per class (`C = 1`) and the loss
  "sum over classes of the mean over shots": the same factor 1/K, so one formula serves both.
* Fine-tuning moves all copies of a class's weights by the same amount, so it works on their mean.
* Dropout falls on the encoder's input and, afresh, on the input of every prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from leokit.leo.parameters import Anchor, Parameters

MIN_STD = 1e-10
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


class Gaussian(NamedTuple):
    """A diagonal normal distribution.

    Attributes:
        mean: any shape.
        std: same shape, at least 1e-10.
        slope: derivative of `std` with respect to the network's output that it was made from.
    """

    mean: Tensor
    std: Tensor
    slope: Tensor


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
    exponential = unnormalised.exp()
    std = exponential - (1 - offset)
    above = std > MIN_STD
    return Gaussian(mean, torch.where(above, std, MIN_STD), exponential * above)


def encode(parameters: Parameters, support: Tensor) -> Gaussian:
    """The distribution of each class's code, q(z_n | D_n^tr) (eq. 3).

    All ordered pairs of support images, each with itself too, pass the relation network and are averaged over the
    second image and over the shots of the first. The first layer is linear in the pair before its ReLU, so it is
    applied to single images and added; the mean commutes with the last layer, which is linear.

    Args:
        parameters: the model.
        support: (..., N, K, D), after dropout where there is any.

    Returns:
        Distribution over (..., N, Z).
    """
    images = (support @ parameters.encoder).flatten(-3, -2)  # (..., NK, Z)
    first, second = parameters.relation_1.chunk(2)
    left, right = images @ first, images @ second  # (..., NK, 2Z)
    rows = max(1, _PAIR_BLOCK // max(1, right.numel()))
    blocks = [_pair_means(block, right, parameters.relation_2) for block in torch.split(left, rows, dim=-2)]
    means = torch.unflatten(torch.cat(blocks, dim=-2), -2, support.shape[-3:-1]).mean(-2)  # (..., N, 2Z)
    return gaussian(means @ parameters.relation_3, offset=0.0)


def _pair_means(left: Tensor, right: Tensor, layer: Tensor) -> Tensor:
    """Mean over the second image of the hidden layer of every pair: (..., R, H), (..., P, H) -> (..., R, H)."""
    pairs = (left.unsqueeze(-2) + right.unsqueeze(-3)).relu()  # (..., R, P, H)
    return (pairs @ layer).relu().mean(-2)


def decode(parameters: Parameters, codes: Tensor, ways: int) -> Gaussian:
    """The distribution of the classifier weights that codes stand for (eq. 4).

    Args:
        parameters: the model.
        codes: (..., Z).
        ways: N; the offset of the deviation is that of a Glorot initialisation of the N-way classifier.

    Returns:
        Distribution over (..., D).
    """
    return gaussian(codes @ parameters.decoder, offset=sqrt(2 / (ways + parameters.dim)))


def predict(weights: Tensor, images: Tensor) -> Tensor:
    """Logits (..., N, Q, N) of images (..., N, Q, D) under a linear classifier (..., N, D); no bias."""
    return images @ weights.unsqueeze(-3).transpose(-1, -2)


def support_gradient(weights: Tensor, support: Tensor) -> Tensor:
    """Gradient of the support loss, sum over classes of the mean over shots (eq. 5), for weights (..., N, D).

    Args:
        weights: (..., N, D), one row per class.
        support: (..., N, K, D).

    Returns:
        (softmax - one-hot)ᵀ X / K, of shape (..., N, D).
    """
    ways, shots = support.shape[-3:-1]
    images = support.flatten(-3, -2)  # (..., NK, D)
    residual = (images @ weights.transpose(-1, -2)).softmax(-1)  # (..., NK, N)
    labels = torch.eye(ways, dtype=support.dtype, device=support.device).repeat_interleave(shots, 0)  # (NK, N)
    return (residual - labels).transpose(-1, -2) @ images / shots


def descend(start: Tensor, rates: Tensor, steps: int, gradient: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`steps` steps of gradient descent, x - rates · gradient(x, step), unrolled so that it can be differentiated."""
    point = start
    for step in range(steps):
        point = point - rates * gradient(point, step)
    return point


def adapt(
    parameters: Parameters,
    support: Tensor,
    method: Method,
    draws: Draws | None = None,
    anchor: Anchor | None = None,
) -> Adapted:
    """The inner loops of Algorithm 1: from the support images of an episode to its classifier.

    Args:
        parameters: the model.
        support: (..., N, K, D) L2-normalised features.
        method: numbers of steps and variant.
        draws: noise and dropout masks of meta-training, or of posterior sampling (`C` = 1, no masks), or the codes of a
            method without encoder. What is not given is not random: codes and weights are then the means of their
            distributions.
        anchor: where there is one, decoded weights are a correction to the scaled class means.

    Returns:
        The classifier with its codes and weights before and after.
    """
    given = draws or Draws()
    ways = support.shape[-3]
    prior, codes = _start(parameters, support, method, given)
    mean_part, std_part = (half.T for half in parameters.decoder.chunk(2, dim=1))  # (D, Z)
    base = None if anchor is None else anchor.log_scale.exp() * normalize(support.mean(-2), dim=-1)  # (..., N, D)

    def sample_weights(point: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Weights (..., N, C, D) decoded from codes, and their derivative by the unnormalised deviation."""
        if given.weights is None:
            return point @ mean_part.T, None
        decoded, noise = decode(parameters, point, ways), given.weights.select(-4, step)
        return decoded.mean + decoded.std * noise, decoded.slope * noise

    def classifier(decoded: Tensor) -> Tensor:
        """The classifier (..., N, D) that decoded weights (..., N, C, D) stand for."""
        mean = decoded.mean(-2)
        return mean if anchor is None or base is None else base + anchor.gate * mean

    def images(step: int) -> Tensor:
        masks = given.support_masks
        return _masked(support, None if masks is None else masks.select(-4, step))

    def code_gradient(point: Tensor, step: int) -> Tensor:
        decoded, sensitivity = sample_weights(point, step)
        by_weights = support_gradient(classifier(decoded), images(step)).unsqueeze(-2)  # (..., N, 1, D)
        if anchor is not None:
            by_weights = anchor.gate * by_weights
        by_mean = by_weights @ mean_part
        return by_mean if sensitivity is None else by_mean + (by_weights * sensitivity) @ std_part

    def weight_gradient(weights: Tensor, step: int) -> Tensor:
        return support_gradient(weights, images(method.inner_steps + step))

    adapted_codes = descend(codes, parameters.inner_lr, method.inner_steps, code_gradient)
    adapted_weights = classifier(sample_weights(adapted_codes, method.inner_steps)[0])
    weights = descend(adapted_weights, parameters.finetuning_lr, method.finetuning_steps, weight_gradient)
    return Adapted(prior, codes, adapted_codes, adapted_weights, weights)


def _start(parameters: Parameters, support: Tensor, method: Method, draws: Draws) -> tuple[Gaussian | None, Tensor]:
    """The distribution of the codes and the codes (..., N, C, Z) that adapting starts from."""
    if not method.encoded:
        if draws.codes is None:
            raise ValueError("a method without encoder needs draws of its codes")
        return None, draws.codes
    prior = encode(parameters, _masked(support, draws.encoder_mask))
    codes = prior.mean.unsqueeze(-2)
    return prior, codes if draws.codes is None else codes + prior.std.unsqueeze(-2) * draws.codes


def _masked(images: Tensor, mask: Tensor | None) -> Tensor:
    return images if mask is None else images * mask
