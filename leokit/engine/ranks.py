"""Layers that give the same on any number of ranks: batch norm over the whole batch, dropout drawn for all of it."""

from typing import Any

import torch
import torch.distributed as group
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from leokit.backbones.training import synchronised
from leokit.errors import UsageError


class _SumOverRanks(Function):
    """The sum of a tensor over all ranks; so is the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """See the class."""
        summed = values.clone()
        group.all_reduce(summed)
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        """The sum of what the ranks say."""
        summed = upstream.contiguous().clone()
        group.all_reduce(summed)
        return summed


class BatchNormOverRanks(nn.BatchNorm2d):
    """Batch norm whose mean and variance are those of all ranks' images (torch's own is for CUDA alone)."""

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        if not self.training:
            return super().forward(maps)
        count = maps.numel() // maps.shape[1] * group.get_world_size()
        mean = _summed(maps.mean((0, 2, 3))) / group.get_world_size()
        centred = maps - mean[:, None, None]
        variance = _summed(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            momentum = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_(variance.to(self.running_var) * count / (count - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps) * self.weight
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)
    return total


class SharedDropout(nn.Dropout):
    """Dropout whose masks are drawn for the images of all ranks, of which this rank takes its own.

    Attributes:
        rank, size: of this process; its images come after those of the ranks before it.
    """

    rank, size = 0, 1

    def forward(self, values: Tensor) -> Tensor:
        """See the class."""
        if not self.training or not self.p:
            return values
        images = len(values)
        layout = torch.channels_last if values.ndim == 4 else torch.contiguous_format
        shape = (images * self.size, *values.shape[1:])
        mask = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=layout)
        mask.bernoulli_(1 - self.p).div_(1 - self.p)
        return values * mask[self.rank * images : (self.rank + 1) * images]


def share_over_ranks(module: nn.Module, *, rank: int, size: int, device: torch.device, steps: Any = None) -> nn.Module:
    """The module with such layers in place of those that would differ between ranks; names and tensors stay.

    Args:
        module: whose layers are replaced.
        rank: of this process.
        size: number of ranks.
        device: where it will run.
        steps: torch's group of the ranks, for what they exchange between GPUs.

    Raises:
        UsageError: several ranks on a CPU, and a batch norm of a kind that is not known here.
    """
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Dropout:
                dropout = SharedDropout(child.p)
                dropout.rank, dropout.size = rank, size
                setattr(part, name, dropout)
    if size == 1:
        return module
    if device.type == "cuda":
        return synchronised(module, steps)
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = BatchNormOverRanks
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise UsageError(
                f"{type(part).__name__}: batch norm of this kind cannot be shared over ranks on a CPU: train in one "
                "process, or on CUDA devices, or take a wrn backbone."
            )
    return module
