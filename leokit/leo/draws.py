"""The noise and dropout masks of meta-training: a function of (seed, step, task)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leokit import randomness
from leokit.leo.adaptation import Draws


@dataclass(frozen=True)
class DrawShapes:
    """The sizes that decide how much one task draws (symbols in the package's docstring)."""

    ways: int
    shots: int
    queries: int
    dim: int
    num_latents: int
    inner_steps: int
    finetuning_steps: int

    @property
    def _codes(self) -> tuple[int, ...]:
        return (self.ways, self.shots, self.num_latents)

    @property
    def _weights(self) -> tuple[int, ...]:
        return (self.inner_steps + 1, self.ways, self.shots, self.dim)

    @property
    def _support(self) -> tuple[int, ...]:
        return (self.ways, self.shots, self.dim)

    @property
    def _gradients(self) -> tuple[int, ...]:
        return (self.inner_steps + self.finetuning_steps, *self._support)

    @property
    def _query(self) -> tuple[int, ...]:
        return (self.ways, self.queries, self.dim)


def meta_training_draws(
    shapes: DrawShapes,
    *,
    seed: int,
    step: int,
    tasks: range,
    dropout: float,
    sampled: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Draws:
    """Everything random that the given tasks of a step consume, stacked along a first dimension of tasks.

    Each task has its own stream of bits, so the tasks of a step may be divided in any way. Float64 gets the same
    numbers as float32.

    Args:
        shapes: sizes of an episode.
        seed: of the run.
        step: number of the meta-training step.
        tasks: which of the step's tasks.
        dropout: rate; 0 draws no masks.
        sampled: whether there is noise for codes and weights.
        dtype: of the result.
        device: of the result.
    """
    noise = [shapes._codes, shapes._weights] if sampled else []
    mask = [shapes._support, shapes._gradients, shapes._query] if dropout else []
    noise_count, mask_count = _count(noise), _count(mask)
    noise_words = -(-noise_count // 4) * 2  # 32 bits each, rounded up to a whole number of pairs of words
    words = noise_words + -(-mask_count // 4)  # 16 bits each
    bits = np.empty((len(tasks), words), np.uint64)
    for row, task in enumerate(tasks):
        bits[row] = randomness.words(words, seed, "noise", step, task)
    normal_bits = torch.from_numpy(bits[:, :noise_words].view(np.int32)).to(device)
    mask_bits = torch.from_numpy(bits[:, noise_words:].view(np.int16)).to(device)
    normals = _split(randomness.normals(normal_bits).to(dtype), noise) if noise else [None, None]
    masks = _split(randomness.masks(mask_bits, dropout).to(dtype), mask) if mask else []
    return Draws(*normals, *masks)


def _count(shapes: list[tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


def _split(values: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Cut rows (B, n) into consecutive pieces of the given shapes, (B, *shape) each; what is left over is unused."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    pieces = torch.split(values[:, : sum(sizes)], sizes, dim=1)
    return [torch.unflatten(piece, 1, shape) for piece, shape in zip(pieces, shapes, strict=True)]
