"""The two inner loops of Algorithm 1 with their derivatives written out.

Both descend on the support loss of a linear softmax, whose gradient and Hessian-vector product are closed forms:
with P the probabilities of the support images X, Y their labels and s the share of each image in its class's mean,

    gradient(W) = (s · (P - Y))ᵀ X        Hessian · V = (s · P · (R - Σ P·R))ᵀ X,  R = X Vᵀ

So a step of either loop, and the way back through it, is a handful of matrix products and passes over arrays, without
a graph of small operations: this is what makes meta-training fast. The way back goes through the second-order terms
exactly; `tests/property/test_leo_laws.py` holds it to the obvious twin and to finite differences.

Shapes: B episodes, N classes, C codes of a class, M support images of all classes, D features, Z width of a code.
Several parameter sets at once, S of them, are a first dimension of the parameters; B are then the episodes of the first
set, of the second, and so on, and the rows of codes or classes have that first dimension too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import threshold

MIN_STD = 1e-10


class Support(NamedTuple):
    """Labelled images that a loop descends on."""

    images: Tensor  # (B, steps, M, D): those of each step, which differ by their dropout; or (B, 1, M, D)
    labels: Tensor  # (M, N) one-hot
    shares: float | Tensor  # weight of each image in the loss, one for all or (B, M, 1)

    def at(self, step: int) -> Tensor:
        """The images (B, M, D) of a step."""
        return self.images.select(1, step if self.images.shape[1] > 1 else 0)

    def shared(self, values: Tensor, sign: int = 1) -> Tensor:
        """Values (B, M, N) times sign · shares."""
        if isinstance(self.shares, float) and sign * self.shares == 1:
            return values
        return values * (sign * self.shares)


def loss_gradient(weights: Tensor, support: Support, step: int) -> tuple[Tensor, Tensor]:
    """Gradient (B, N, D) of the support loss (eq. 5) at weights (B, N, D), and the probabilities (B, M, N)."""
    images = support.at(step)
    probabilities = torch.bmm(images, weights.mT).softmax(-1)
    return torch.bmm(support.shared(probabilities - support.labels).mT, images), probabilities


def hessian_product(vector: Tensor, probabilities: Tensor, support: Support, step: int) -> tuple[Tensor, Tensor]:
    """Two factors, (B, N, M) and (B, M, D), whose product is minus the Hessian of the support loss times a vector.

    Args:
        vector: (B, N, D).
        probabilities: (B, M, N) at the weights where the Hessian is.
        support: the images.
        step: which of them.
    """
    images = support.at(step)
    by_logits = torch.bmm(images, vector.mT)
    spread = torch._softmax_backward_data(by_logits, probabilities, -1, by_logits.dtype)  # P · (R - Σ P·R)
    return support.shared(spread, -1).mT, images


class WeightLoop(Function):
    """Gradient descent in weight space, `steps` steps of W - rates · gradient(W).

    Inputs: start (B, N, D), rates (D,) or (N, D), the parts of `Support`, steps. Output: (B, N, D).
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, rates: Tensor, *arguments: Any) -> Tensor:
        """See the class."""
        *parts, steps = arguments
        ctx.support, ctx.rates, ctx.path = Support(*parts), rates, []
        weights = start
        for step in range(steps):
            gradient, probabilities = loss_gradient(weights, ctx.support, step)
            weights = torch.addcmul(weights, rates, gradient, value=-1)
            ctx.path.append((gradient, probabilities))
        return weights if steps else start.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for start and rates."""
        by_rates = torch.zeros_like(upstream)
        for step, (gradient, probabilities) in reversed(list(enumerate(ctx.path))):
            by_rates.addcmul_(upstream, gradient, value=-1)
            moved = ctx.rates * upstream
            upstream = torch.baddbmm(upstream, *hessian_product(moved, probabilities, ctx.support, step))
        return upstream, by_rates.sum_to_size(ctx.rates.shape), None, None, None, None


class _Decoded(NamedTuple):
    """Weights decoded from codes; rows are all codes (R = B·N·C) or, for means over codes, all classes (B·N).

    Of several parameter sets each has its own rows: (S, R/S, Z) and so on.
    """

    codes: Tensor  # (R, Z)
    mean: Tensor  # (B·N, D), mean over the codes of a class
    sensitivity: Tensor | None  # (R, D): derivative of a decoded weight by its unnormalised deviation


class _Step(NamedTuple):
    """What the way back needs of one step of `LatentLoop`."""

    decoded: _Decoded
    gradient: Tensor  # (B·N, D) of the support loss by the classifier
    probabilities: Tensor  # (B, M, N)
    by_deviation: Tensor | None  # (R, D): gradient · sensitivity, by each unnormalised deviation
    by_codes: Tensor  # (R, Z)


class _Sizes(NamedTuple):
    """B, N and C, and going from rows of codes to rows of classes and back."""

    episodes: int
    ways: int
    copies: int

    def over(self, rows: Tensor) -> Tensor:
        """Rows (..., R, W) as (..., B·N, C, W)."""
        return rows.view(*rows.shape[:-2], -1, self.copies, rows.shape[-1])

    def total(self, rows: Tensor) -> Tensor:
        """Sum over the codes of a class: (..., R, W) -> (..., B·N, W)."""
        return rows if self.copies == 1 else self.over(rows).sum(-2)

    def mean(self, rows: Tensor) -> Tensor:
        """Mean over the codes of a class: (..., R, W) -> (..., B·N, W)."""
        return rows if self.copies == 1 else self.over(rows).mean(-2)

    def times(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Rows (..., R, W), each times that of its class (..., B·N, W)."""
        if self.copies == 1:
            return rows * classes
        return (self.over(rows) * classes.unsqueeze(-2)).view(rows.shape)

    def add_product(self, rows: Tensor, classes: Tensor, matrix: Tensor) -> None:
        """To rows (..., R, W) add those of their classes (..., B·N, V) times a matrix (..., V, W), in place."""
        if self.copies == 1:
            _add_product(rows, classes, matrix)
        else:
            self.over(rows).add_(torch.matmul(classes, matrix).unsqueeze(-2))

    def classifier(self, classes: Tensor) -> Tensor:
        """(..., B·N, D) as (B, N, D)."""
        return classes.view(self.episodes, self.ways, -1)


def _add_product(values: Tensor, left: Tensor, right: Tensor, sign: int = 1) -> None:
    """To a matrix (M, W), or several (S, M, W), add sign · left · right, in place."""
    if values.ndim == 2:
        values.addmm_(left, right, alpha=sign)
    else:
        values.baddbmm_(left, right, alpha=sign)


class LatentLoop(Function):
    """Gradient descent in the space of codes, through the decoder, with a fresh draw of the weights at every decode.

    Weights of a class: base + gate · mean over its codes of (μ + σ · noise), where μ and u = log of the deviation come
    from the decoder, linear in the code, and σ = max(exp(u) - (1 - offset), 1e-10).

    Inputs: codes (B, N, C, Z), rates (Z,), decoder (Z, 2D), base (B, N, D) or None for 0, gate () or None for 1, noise
    (B, steps + 1, N, C, D) or None for the means, the parts of `Support`, offset, steps. Of several parameter sets:
    rates (S, 1, Z), decoder (S, Z, 2D), gate (S, 1, 1). Outputs: codes (B, N, C, Z) and classifier (B, N, D) after the
    last step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        codes: Tensor,
        rates: Tensor,
        decoder: Tensor,
        base: Tensor | None,
        gate: Tensor | None,
        noise: Tensor | None,
        *arguments: Any,
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        *parts, offset, steps = arguments
        ctx.set_materialize_grads(False)
        ctx.support, ctx.rates, ctx.decoder, ctx.base, ctx.gate = Support(*parts), rates, decoder, base, gate
        ctx.sizes = sizes = _Sizes(*codes.shape[:3])
        ctx.path = []
        means, deviations = (half.mT for half in decoder.chunk(2, dim=-1))  # (D, Z)
        point = codes.reshape(*decoder.shape[:-2], -1, codes.shape[-1])
        for step in range(steps):
            decoded = _decode(point, means.mT, deviations.mT, _at(noise, step), sizes, offset)
            gradient, probabilities = loss_gradient(_classifier(decoded.mean, base, gate, sizes), ctx.support, step)
            gradient = gradient.view(decoded.mean.shape)
            by_mean = gradient if gate is None else gate * gradient
            if decoded.sensitivity is None:
                by_deviation = None
                by_codes = torch.matmul(by_mean, means).repeat_interleave(sizes.copies, -2)
            else:
                by_deviation = sizes.times(decoded.sensitivity, by_mean)
                by_codes = torch.matmul(by_deviation, deviations)
                sizes.add_product(by_codes, by_mean, means)
            ctx.path.append(_Step(decoded, gradient, probabilities, by_deviation, by_codes))
            point = torch.addcmul(point, rates, by_codes, value=-1)
        ctx.last = _decode(point, means.mT, deviations.mT, _at(noise, steps), sizes, offset)
        # Outputs are not inputs or what is kept, lest the graph keeps itself alive.
        return point.view(codes.shape).clone(), _classifier(ctx.last.mean, base, gate, sizes).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, codes: Tensor | None, classifier: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients for codes, rates, decoder, base and gate."""
        back = _Back(ctx)
        if codes is not None:
            back.codes += codes.reshape(back.codes.shape)
        if classifier is not None:
            back.through_decoding(classifier, ctx.last, None)
        for step, taken in reversed(list(enumerate(ctx.path))):
            back.through_step(taken, step)
        return (*back.results(), *[None] * 6)


def _at(noise: Tensor | None, step: int) -> Tensor | None:
    return None if noise is None else noise.select(1, step).flatten(1, 2)  # (B, N·C, D)


def _decode(
    codes: Tensor, means: Tensor, deviations: Tensor, noise: Tensor | None, sizes: _Sizes, offset: float
) -> _Decoded:
    mean = torch.matmul(sizes.mean(codes), means)  # the mean over codes commutes with what is linear
    if noise is None:
        return _Decoded(codes, mean, None)
    exponential = torch.matmul(codes, deviations).exp_()
    sensitivity = threshold(exponential, 1 - offset + MIN_STD, 0.0)
    sensitivity.view(noise.shape).mul_(noise)
    std = exponential.sub_(1 - offset).clamp_(min=MIN_STD)
    std.view(noise.shape).mul_(noise)
    return _Decoded(codes, mean.add_(sizes.mean(std)), sensitivity)


def _classifier(mean: Tensor, base: Tensor | None, gate: Tensor | None, sizes: _Sizes) -> Tensor:
    scaled = sizes.classifier(mean if gate is None else gate * mean)
    return scaled if base is None else base + scaled


class _Back:
    """The way back through `LatentLoop`: derivatives of the meta-objective, summed up while going."""

    def __init__(self, ctx: Any) -> None:
        last: _Decoded = ctx.last
        self.ctx = ctx
        self.sizes: _Sizes = ctx.sizes
        self.means, self.deviations = ctx.decoder.chunk(2, dim=-1)  # (Z, D)
        self.codes = torch.zeros_like(last.codes)  # by the codes of the step that the way back has reached
        self.rates = torch.zeros_like(last.codes)
        self.by_means, self.by_deviations = torch.zeros_like(self.means), torch.zeros_like(self.deviations)
        self.base = None if ctx.base is None else torch.zeros_like(ctx.base)
        self.gate = None if ctx.gate is None else torch.zeros_like(ctx.gate)

    def through_decoding(self, classifier: Tensor, decoded: _Decoded, by_deviation: Tensor | None) -> None:
        """From the classifier (B, N, D), and deviations (R, D), of a decoding to decoder and codes."""
        sizes, mean = self.sizes, classifier.reshape(decoded.mean.shape)
        if self.base is not None:
            self.base += classifier
        if self.gate is not None:
            self.gate += (mean * decoded.mean).sum_to_size(self.gate.shape)
            mean = self.ctx.gate * mean
        _add_product(self.by_means, sizes.mean(decoded.codes).mT, mean)
        if sizes.copies > 1:
            mean = mean / sizes.copies
        sizes.add_product(self.codes, mean, self.means.mT)
        if decoded.sensitivity is not None:
            if by_deviation is None:
                by_deviation = sizes.times(decoded.sensitivity, mean)
            else:
                sizes.over(by_deviation).addcmul_(mean.unsqueeze(-2), sizes.over(decoded.sensitivity))
            _add_product(self.by_deviations, decoded.codes.mT, by_deviation)
            _add_product(self.codes, by_deviation, self.deviations.mT)

    def through_step(self, taken: _Step, step: int) -> None:
        """From the codes after a step to those before it."""
        gate, sizes = self.ctx.gate, self.sizes
        self.rates.addcmul_(self.codes, taken.by_codes, value=-1)
        moved = self.codes * self.ctx.rates  # what follows is its negative
        summed = sizes.total(moved)
        by_gradient = taken.gradient if gate is None else gate * taken.gradient
        _add_product(self.by_means, summed.mT, by_gradient, sign=-1)
        by_mean = torch.matmul(summed, self.means)
        pushed = None
        if taken.by_deviation is not None:
            assert taken.decoded.sensitivity is not None
            _add_product(self.by_deviations, moved.mT, taken.by_deviation, sign=-1)
            pushed = torch.matmul(moved, self.deviations)
            by_mean.add_(sizes.total(pushed * taken.decoded.sensitivity))
            pushed.mul_(taken.by_deviation).neg_()  # the derivative of a sensitivity by its deviation is itself
        if self.gate is not None:
            self.gate -= (by_mean * taken.gradient).sum_to_size(self.gate.shape)
            by_mean = gate * by_mean
        vector = sizes.classifier(by_mean)
        classifier = torch.bmm(*hessian_product(vector, taken.probabilities, self.ctx.support, step))
        self.through_decoding(classifier, taken.decoded, pushed)

    def results(self) -> tuple[Tensor | None, ...]:
        """By codes, rates, decoder, base and gate."""
        sizes, latents = self.sizes, self.codes.shape[-1]
        codes = self.codes.view(sizes.episodes, sizes.ways, sizes.copies, latents)
        decoder = torch.cat([self.by_means, self.by_deviations], dim=-1)
        return codes, self.rates.sum_to_size(self.ctx.rates.shape), decoder, self.base, self.gate
