"""Score methods on episodes: the same rows for every method, in blocks whose size depends on the episode's alone."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokit.episodes import EpisodeSampler, FeatureMatrix, Rows
from leokit.leo import predict

Classifier = Callable[[Tensor, range], Tensor]  # support (B, N, K, D), numbers of the episodes -> weights (B, N, D)
_BLOCK_ELEMENTS = 2**23


def score(
    features: FeatureMatrix,
    sampler: EpisodeSampler,
    classifiers: Mapping[str, Classifier],
    *,
    shots: int,
    queries: int | None,
    episodes: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """The accuracy of each classifier on episodes 0 … `episodes` - 1, without gradients.

    Work is cut into blocks that depend on the episodes' size alone, so results are exact on one device.

    Args:
        features: unit rows of the split.
        sampler: over the same split.
        classifiers: methods by name.
        shots: K.
        queries: Q, or None for all other images of a class; then the accuracy is the mean over classes.
        episodes: how many.
        on_progress: called with the number of episodes done and wanted.

    Returns:
        For each classifier the accuracies (episodes,).
    """
    block = block_size(sampler.ways, shots, queries, features.dim)
    accuracies: dict[str, list[Tensor]] = {name: [] for name in classifiers}
    for start in range(0, episodes, block):
        numbers = range(start, min(start + block, episodes))
        for name, values in _score_block(features, sampler, classifiers, numbers, shots, queries).items():
            accuracies[name].append(values)
        if on_progress:
            on_progress(numbers.stop, episodes)
    return {name: torch.cat(values).cpu().numpy() for name, values in accuracies.items()}


def block_size(ways: int, shots: int, queries: int | None, dim: int) -> int:
    """Episodes of a block: as many as keep its gathered images near 32 MiB, from 1 to 100."""
    images = ways * (shots + (queries or 0))
    return min(100, max(1, _BLOCK_ELEMENTS // (images * dim)))


@torch.inference_mode()
def _score_block(
    features: FeatureMatrix,
    sampler: EpisodeSampler,
    classifiers: Mapping[str, Classifier],
    numbers: range,
    shots: int,
    queries: int | None,
) -> dict[str, Tensor]:
    rows = sampler.draw(numbers, shots=shots, queries=queries or 1)
    support = features.rows[rows.support]
    weights = {name: classifier(support, numbers) for name, classifier in classifiers.items()}
    if queries is None:
        return {name: _accuracy_on_others(features, rows, value) for name, value in weights.items()}
    images = features.rows[rows.query]
    return {name: _accuracy(predict(value, images)) for name, value in weights.items()}


def _accuracy(logits: Tensor) -> Tensor:
    """(B,) float64 from logits (B, N, Q, N)."""
    labels = torch.arange(logits.shape[-1], device=logits.device)[:, None]
    return (logits.argmax(-1) == labels).cpu().double().mean((-2, -1))


def _accuracy_on_others(features: FeatureMatrix, rows: Rows, weights: Tensor) -> Tensor:
    """(B,) accuracy on all images of each class that are not in the support set, mean over classes.

    The rows of a class are contiguous, so the logits of all episodes that hold the class are one matrix product.
    """
    episodes, ways = rows.classes.shape
    result = torch.zeros(episodes, ways, dtype=torch.float64)
    for number in torch.unique(rows.classes).tolist():
        start, stop = features.offsets[number : number + 2].tolist()
        episode, label = (rows.classes == number).nonzero(as_tuple=True)  # (M,) episodes that hold the class
        logits = features.rows[start:stop] @ weights[episode].flatten(0, 1).T  # (n, M·N)
        right = torch.unflatten(logits, 1, (-1, ways)).argmax(-1) == label  # (n, M)
        right.scatter_(0, rows.support[episode, label].T - start, False)
        result[episode.cpu(), label.cpu()] = right.sum(0).cpu().double() / (stop - start - rows.support.shape[-1])
    return result.mean(1)
