"""What happens to a gradient between the meta-objective and Adam (DeepMind's code, runner.py and model.py)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_gradients(gradients: Sequence[Tensor], *, value: float, norm: float, sets: int = 0) -> list[Tensor]:
    """Each gradient with its entries clipped to ± `value`, then scaled down to `norm` by its own norm.

    With `sets` = 1 the first dimension of each gradient is of parameter sets, which have norms of their own.
    """
    clipped = torch._foreach_clamp_min(torch._foreach_clamp_max(list(gradients), value), -value)
    norms = sums_of_squares(clipped, sets).sqrt().clamp_min(norm)
    factors = [
        factor.view(*factor.shape, *[1] * (gradient.ndim - sets)) if sets else factor
        for factor, gradient in zip((norm / norms).unbind(), clipped, strict=True)
    ]
    torch._foreach_mul_(clipped, factors)
    return list(clipped)


def sums_of_squares(tensors: Sequence[Tensor], sets: int = 0) -> Tensor:
    """The sum of squares of each tensor, (n,): not finite where an entry is not, or where it overflows.

    With `sets` = 1 the sums are those of each entry of the first dimension, (n, S).
    """
    if sets:
        return torch.stack([tensor.reshape(len(tensor), -1).square().sum(1) for tensor in tensors])
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.stack([torch.dot(values, values) for values in flat])


def decay_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """What DeepMind's code takes for the gradient where loss or gradient is no number: the variables' own values."""
    return [parameter.detach().clone() for parameter in parameters]
