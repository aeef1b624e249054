"""The noise and masks of meta-training, by (seed, step, task), and noise of posterior samples, by (seed, episode)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leokit import randomness
from leokit.leo.adaptation import Draws

_STREAMS_AT_ONCE = 8  # whose bits stay in a core's cache


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
    seed: int | Sequence[int],
    step: int | Tensor,
    tasks: range,
    dropout: float | Sequence[float],
    sampled: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Draws:
    """Everything random that the given tasks of a step consume, stacked along a first dimension of tasks.

    Each task has its own stream of bits, so the tasks of a step may be divided in any way. Float64 gets the same
    numbers as float32. A step that is a tensor has them made on its device, without asking the host: other numbers,
    under the same promises.

    Args:
        shapes: sizes of an episode.
        seed: of the run; or those of S runs, whose draws are stacked along a further first dimension. What runs of one
            seed have in common, all but masks, is then drawn and held once.
        step: number of the meta-training step; () int64 where it is a tensor.
        tasks: which of the step's tasks.
        dropout: rate; or those of S runs. 0, of all of them, draws no masks.
        sampled: whether there is noise for codes and weights.
        dtype: of the result.
    """
    noise = [shapes._codes, shapes._weights] if sampled else []
    seeds = [seed] if isinstance(seed, int) else list(seed)
    rates = list(dropout) if isinstance(dropout, Sequence) else [dropout] * len(seeds)
    mask = [shapes._support, shapes._gradients, shapes._query] if any(rates) else []
    noise_words = -(-_count(noise) // 4) * 2  # 32 bits each, rounded up to a whole number of pairs of words
    mask_words = -(-_count(mask) // 4)  # 16 bits each
    streams = seeds[:1] if len(set(seeds)) == 1 else seeds
    if isinstance(step, Tensor):
        normals, masks = _on_device(streams, step, tasks, noise_words, mask_words, rates)
    else:
        normals, masks = _on_cpu(streams, step, tasks, noise_words, mask_words, rates)
    normals, masks = normals.to(dtype).expand(len(seeds), -1, -1), masks.to(dtype)
    if isinstance(seed, int):
        normals, masks = normals[0], masks[0]
    named = dict(zip(("codes", "weights"), _split(normals, noise), strict=False))
    named |= dict(zip(("encoder_mask", "support_masks", "query_mask"), _split(masks, mask), strict=False))
    return Draws(**named)


def posterior_draws(shapes: DrawShapes, *, seed: int, episodes: range, samples: int, like: Tensor) -> Draws:
    """The noise of samples from the posterior: one code for each class and sample, and no dropout.

    Each sample of each episode has its own stream of bits, the same on every device, so that blocks of episodes, or
    more samples, change none.

    Args:
        shapes: sizes of an episode; shots and queries do not count.
        seed: of the samples.
        episodes: their numbers, B of them.
        samples: S.
        like: of the result's dtype, on its device.

    Returns:
        Draws with codes (S, B, N, 1, Z) and weights (S, B, T+1, N, 1, D).
    """
    codes = (shapes.ways, 1, shapes.num_latents)
    weights = (shapes.inner_steps + 1, shapes.ways, 1, shapes.dim)
    words = -(-_count([codes, weights]) // 4) * 2
    numbers = torch.arange(episodes.start, episodes.stop, device=like.device)
    root = torch.full((), randomness.integer_key(seed, "posterior"), device=like.device)
    streams = randomness.keys(randomness.keys(root, numbers), torch.arange(samples, device=like.device).unsqueeze(-1))
    normals = torch.cat([_normals(stream, words) for stream in torch.split(streams.flatten(), _STREAMS_AT_ONCE)])
    lead = (samples, len(episodes))
    pieces = _split(normals.to(like.dtype), [codes, weights])
    return Draws(*(piece.view(*lead, *piece.shape[1:]) for piece in pieces))


def _normals(streams: Tensor, words: int) -> Tensor:
    return randomness.device_normals(randomness.device_words(streams, words))


def _on_cpu(
    seeds: list[int], step: int, tasks: range, noise_words: int, mask_words: int, rates: list[float]
) -> tuple[Tensor, Tensor]:
    """Normals (seeds, B, 2·noise words) and masks (S, B, 4·mask words), task by task, in the cache of a core.

    Args:
        seeds: one for each of S rates, or one for all of them.
        step: number of the step.
        tasks: B of them.
        noise_words: bits of the normals, in words of 64.
        mask_words: those of the masks.
        rates: of dropout.
    """
    normals = np.empty((len(seeds), len(tasks), 2 * noise_words), np.float32)
    masks = np.empty((len(rates), len(tasks), 4 * mask_words), np.float32)
    for row, seed in enumerate(seeds):
        own = [row] if len(seeds) == len(rates) else range(len(rates))
        for place, task in enumerate(tasks):
            bits = randomness.words(noise_words + mask_words, seed, "noise", step, task)
            if noise_words:
                randomness.normals(bits[:noise_words].view(np.int32), normals[row, place])
            if mask_words:
                for number in own:
                    randomness.masks(bits[noise_words:].view(np.int16), rates[number], masks[number, place])
    return torch.from_numpy(normals), torch.from_numpy(masks)


def _on_device(
    seeds: list[int], step: Tensor, tasks: range, noise_words: int, mask_words: int, rates: list[float]
) -> tuple[Tensor, Tensor]:
    """As `_on_cpu`, by hashing positions."""
    roots = torch.stack([torch.full_like(step, randomness.integer_key(seed, "noise")) for seed in seeds])
    numbers = torch.arange(tasks.start, tasks.stop, device=step.device)
    streams = randomness.keys(randomness.keys(roots, step).unsqueeze(-1), numbers)
    bits = randomness.device_words(streams, noise_words + mask_words)
    normals = randomness.device_normals(bits[..., :noise_words].contiguous())
    mask_bits = bits[..., noise_words:].contiguous().expand(len(rates), -1, -1)
    masks = [randomness.device_masks(own, rate) for own, rate in zip(mask_bits, rates, strict=True)]
    return normals, torch.stack(masks)


Shapes = list[tuple[int, ...]]


def _count(shapes: Shapes) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


def _split(values: Tensor, shapes: Shapes) -> list[Tensor]:
    """Cut rows (..., n) into consecutive pieces of given shapes, (..., *shape) each; what is left over is unused."""
    if not shapes:
        return []
    sizes = [int(np.prod(shape)) for shape in shapes]
    pieces = torch.split(values[..., : sum(sizes)], sizes, dim=-1)
    return [torch.unflatten(piece, -1, shape) for piece, shape in zip(pieces, shapes, strict=True)]
