"""What happens to a gradient between the meta-objective and Adam (DeepMind's code, runner.py and model.py)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_gradients(gradients: Sequence[Tensor], *, value: float, norm: float) -> list[Tensor]:
    """Each gradient with its entries clipped to ± `value`, then scaled down to `norm` by its own norm."""
    clipped = torch._foreach_clamp_min(torch._foreach_clamp_max(list(gradients), value), -value)
    norms = sums_of_squares(clipped).sqrt().clamp_min(norm)
    torch._foreach_mul_(clipped, list((norm / norms).unbind()))
    return list(clipped)


def sums_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of squares of each tensor, (n,): not finite where an entry is not, or where it overflows."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.stack([torch.dot(values, values) for values in flat])


def decay_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """What DeepMind's code takes for the gradient where loss or gradient is no number: the variables' own values."""
    return [parameter.detach().clone() for parameter in parameters]
