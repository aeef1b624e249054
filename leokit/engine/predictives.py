"""What methods predict for the queries of episodes, inside their classes and outside, in bounded memory.

A predictive is a way from the support set to probabilities: one classifier; the mean over samples of classifiers; or
the mean over several runs. All predictives see the same episodes, and the same queries from other classes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokit import randomness
from leokit.calibration import Floats, entropy
from leokit.engine.scoring import blocks_of, in_threads, one_thread
from leokit.episodes import EpisodeSampler, FeatureMatrix

# Support (B, N, K, D), numbers, and shares (B, N, K) or None where classes have K images each -> weights (S, B, N, D).
Classifiers = Callable[[Tensor, range, Tensor | None], Tensor]
_BLOCK_ELEMENTS = 2**20  # weights of a block, over samples, episodes and classes


@dataclass(frozen=True)
class Member:
    """Features and classifiers on them: of one run, or of a baseline.

    Attributes:
        features: unit rows, centred where the run wants them so.
        classifiers: from support images to one classifier or several samples of it.
        samples: how many of them (S).
    """

    features: FeatureMatrix
    classifiers: Classifiers
    samples: int = 1


class Answers(NamedTuple):
    """What a predictive says of M queries of each of E episodes; means are over samples and members."""

    probabilities: Floats  # (E, M, N), mean
    aleatoric: Floats  # (E, M), mean entropy; of a single classifier that of the mean, which has no other part
    highest: Floats  # (E, M), mean of the largest logit; of nearest class mean the scaled cosine to that mean


class Predicted(NamedTuple):
    """What a predictive says of the N·Q inside queries and as many outside ones, or none."""

    inside: Answers
    outside: Answers


class Episodes(NamedTuple):
    """Which episodes were predicted."""

    classes: NDArray[np.int64]  # (E, N), numbers of the classes
    labels: NDArray[np.int64]  # (N·Q,), places of the right classes of the inside queries
    query_rows: NDArray[np.int64]  # (E, N·Q), rows of the feature matrix
    outside_rows: NDArray[np.int64]  # (E, O)


def predict_episodes(
    predictives: Mapping[str, Sequence[Member]],
    sampler: EpisodeSampler,
    *,
    shots: int,
    queries: int,
    episodes: int,
    outside: bool,
    noise: float = 0.0,
    counts: Sequence[int] | None = None,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Episodes, dict[str, Predicted]]:
    """Predict the queries of episodes 0 … `episodes` - 1 by several predictives.

    Args:
        predictives: by name, the members whose predictions are averaged.
        sampler: of episodes, over features of the same rows.
        shots: K.
        queries: Q.
        episodes: E.
        outside: whether to predict as many queries of other classes of the split, too.
        noise: share of the support images whose classes are interchanged, see `mislabel`.
        counts: support images of the first, second, … class (N) of each episode, K at most, where classes differ in it;
            which classes these are is drawn anew for each episode.
        workers: threads that take a block of episodes each; a block is computed on one thread, whatever their number.
        on_progress: called with the number of episodes done and wanted.
    """
    members = [member for of_one in predictives.values() for member in of_one]
    size = max(1, _BLOCK_ELEMENTS // max(m.samples * sampler.ways * m.features.dim for m in members))
    blocks = blocks_of(size, episodes)
    shares = None if counts is None or set(counts) == {shots} else shares_of(counts, shots)
    options = (predictives, sampler, shots, queries, outside, noise, shares)
    threads = max(1, workers)
    parts = []
    with one_thread() if members[0].features.rows.device.type == "cpu" else nullcontext():
        tasks = (partial(_block, *options, numbers) for numbers in blocks)
        for numbers, part in zip(blocks, in_threads(tasks, threads, 2 * threads), strict=True):
            parts.append(part)
            if on_progress:
                on_progress(numbers.stop, episodes)
    labels = np.repeat(np.arange(sampler.ways), queries)
    chosen = [np.concatenate([part[0][index] for part in parts]) for index in range(3)]
    whole = {
        name: Predicted(*(_joined([part[1][name][side] for part in parts]) for side in range(2)))
        for name in predictives
    }
    return Episodes(chosen[0], labels, chosen[1], chosen[2]), whole


def _joined(parts: Sequence[Answers]) -> Answers:
    return Answers(*(np.concatenate(values) for values in zip(*parts, strict=True)))


@torch.inference_mode()
def _block(
    predictives: Mapping[str, Sequence[Member]],
    sampler: EpisodeSampler,
    shots: int,
    queries: int,
    outside: bool,
    noise: float,
    shares: Tensor | None,
    numbers: range,
) -> tuple[tuple[NDArray[np.int64], ...], dict[str, Predicted]]:
    rows = sampler.draw(numbers, shots=shots, queries=queries)
    support = mislabel(rows.support, noise, sampler.root, numbers) if noise else rows.support
    inside = rows.query.flatten(1)  # (B, N·Q)
    beyond = outside_rows(sampler, rows.classes, numbers, inside.shape[1]) if outside else inside[:, :0]
    both = torch.cat([inside, beyond], 1)
    found = {}
    for name, members in predictives.items():
        values = answers(torch.cat([_logits(member, support, both, numbers, shares) for member in members]))
        count = inside.shape[1]
        found[name] = Predicted(
            Answers(*(value[:, :count] for value in values)), Answers(*(value[:, count:] for value in values))
        )
    return tuple(value.cpu().numpy() for value in (rows.classes, inside, beyond)), found


def answers(logits: Tensor) -> Answers:
    """What samples of classifiers say together, from their logits (S, E, M, N)."""
    samples = logits.softmax(-1)
    aleatoric = torch.special.entr(samples).sum(-1).mean(0)
    pieces = (samples.mean(0), aleatoric, logits.amax(-1).mean(0))
    return Answers(*(piece.double().cpu().numpy() for piece in pieces))


def scores(given: Answers, *, parted: bool) -> dict[str, Floats]:
    """Scores (E, M) that are higher for queries of the episode's classes than for others, as a rule.

    `highest` is the largest logit, or the scaled cosine to a class mean. `parted` tells whether the predictive averages
    several classifiers, whose disagreement is then a score too.
    """
    total = entropy(given.probabilities)
    found = {"maximum_probability": given.probabilities.max(-1), "entropy": -total}
    if parted:
        found["mutual_information"] = given.aleatoric - total
    return found | {"highest": given.highest}


def shares_of(counts: Sequence[int], shots: int) -> Tensor:
    """Shares (N, K) of images of which each class has the first so many: even ones of sum 1, and 0 for the others."""
    numbers = torch.tensor(counts).unsqueeze(-1)
    return (torch.arange(shots) < numbers) / numbers.double()


def _logits(member: Member, support: Tensor, queries: Tensor, numbers: range, shares: Tensor | None) -> Tensor:
    """(S, B, M, N) of queries (B, M), by rows."""
    images = member.features.take(support)
    if shares is not None:
        shares = shares.to(images).expand(images.shape[:-1])
        images = images * (shares > 0).unsqueeze(-1)
    weights = member.classifiers(images, numbers, shares)
    weights = weights if weights.ndim == 4 else weights.unsqueeze(0)
    samples, episodes, ways, dim = weights.shape
    stacked = weights.transpose(0, 1).reshape(episodes, samples * ways, dim)
    images = member.features.take(queries)
    logits = torch.bmm(images, stacked.mT)  # (B, M, S·N): one product for all samples of an episode
    return logits.view(episodes, -1, samples, ways).permute(2, 0, 1, 3)


def outside_rows(sampler: EpisodeSampler, classes: Tensor, numbers: range, count: int) -> Tensor:
    """Rows (B, count) of images of classes that are not those of each episode (B, N), a function of its number.

    A class is drawn evenly from the others, and an image evenly from the class.

    Raises:
        ValueError: there are no other classes.
    """
    device, total, ways = classes.device, len(sampler.counts), classes.shape[1]
    if total <= ways:
        raise ValueError(f"{total} classes leave none outside {ways}-way episodes")
    root = randomness.keys(torch.tensor(sampler.root, device=device), torch.tensor(2**41, device=device))
    keys = randomness.keys(root, torch.arange(numbers.start, numbers.stop, device=device)).unsqueeze(-1)
    draws = randomness.keys(keys, torch.arange(2 * count, device=device)) & (2**62 - 1)  # (B, 2·count)
    is_other = torch.ones(len(classes), total, dtype=torch.bool, device=device).scatter_(1, classes, False)
    others = is_other.nonzero()[:, 1].view(len(classes), total - ways)
    chosen = others.gather(1, draws[:, :count] % (total - ways))
    return sampler.offsets[chosen] + draws[:, count:] % sampler.counts[chosen]


def can_mislabel(ways: int, shots: int, share: float) -> bool:
    """Whether a share of the support images, rounded, is at least the two that can be interchanged."""
    return round(share * ways * shots) >= 2


def mislabel(support: Tensor, share: float, root: int, numbers: range) -> Tensor:
    """Support rows (B, N, K) of which a share of all, rounded, stand under another class of the episode.

    The images to move are drawn for each episode, as many of each class but for one, and each takes the place of one of
    another class, so that every class keeps its number of images. (Of two classes with an odd number to move, one image
    stays where it was.)
    """
    episodes, ways, shots = support.shape
    if not can_mislabel(ways, shots, share):
        return support
    moved, device = round(share * ways * shots), support.device
    key = randomness.keys(torch.tensor(root, device=device), torch.tensor(2**42, device=device))
    keys = randomness.keys(key, torch.arange(numbers.start, numbers.stop, device=device)).unsqueeze(-1)
    draws = randomness.keys(keys, torch.arange(ways * (shots + 1), device=device))
    class_ranks = draws[:, :ways].argsort(1).argsort(1)  # (B, N)
    image_ranks = draws[:, ways:].view(episodes, ways, shots).argsort(2).argsort(2)
    quotas = moved // ways + (class_ranks < moved % ways).long()
    places = (image_ranks < quotas.unsqueeze(-1)).flatten(1).nonzero()[:, 1].view(episodes, moved)  # by class
    flat = support.flatten(1)
    step = -(-moved // ways)  # no class has more of them, so that many further on is another one's
    result = flat.clone().scatter_(1, places, flat.gather(1, places.roll(-step, 1)))
    return result.view(episodes, ways, shots)
