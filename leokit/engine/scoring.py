"""Score methods on episodes: the same rows for every method, in blocks whose size depends on the episode's alone."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor

from leokit.engine.averaging import ALONE, Ranks
from leokit.episodes import EpisodeSampler, FeatureMatrix, Rows
from leokit.interrupts import without_ctrl_c
from leokit.leo import predict

Classifier = Callable[[Tensor, range], Tensor]  # support (B, N, K, D), numbers of the episodes -> weights (B, N, D)
T = TypeVar("T")
Fit = Callable[[NDArray[Any]], NDArray[np.float64]]  # support (B, N, K, D) -> weights (B, N, D)
_BLOCK_ELEMENTS = 2**23


def score(
    features: FeatureMatrix,
    sampler: EpisodeSampler,
    classifiers: Mapping[str, Classifier],
    *,
    shots: int,
    queries: int | None,
    episodes: int,
    workers: int | None = None,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
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
        workers: threads that take a block each, on the CPU; a block is then computed on one thread whatever the number
            of workers, 0 included, so that none changes a result. None: one block at a time on all of torch's threads.
        batch_size: episodes that are on their way at a time, rounded down to whole blocks; None: by the workers.
        ranks: among which the blocks are divided; each of them gets all accuracies.
        on_progress: called with the number of episodes done and wanted.

    Returns:
        For each classifier the accuracies (episodes,).

    Raises:
        LeokitError: another rank has ended.
    """
    queries = _all_if_all(features, shots, queries)
    every = _blocks(sampler.ways, shots, queries, features.dim, episodes)
    blocks = list(ranks.place.share(every))
    tasks = (partial(_score_block, features, sampler, classifiers, numbers, shots, queries) for numbers in blocks)
    threads = workers if workers and features.rows.device.type == "cpu" else 1
    with nullcontext() if workers is None else one_thread():
        done = in_threads(tasks, *_at_once(threads, blocks, batch_size)) if blocks else iter(())
        found = _gathered(done, blocks, on_progress)
    return found if ranks.size == 1 else _of_all_ranks(found, every, ranks, classifiers)


def score_fits(
    features: FeatureMatrix,
    sampler: EpisodeSampler,
    name: str,
    fit: Fit,
    *,
    shots: int,
    queries: int | None,
    episodes: int,
    workers: int = 0,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """As `score` for one method that holds the interpreter's lock, so that threads do not help: fits in processes.

    Args:
        name: of the method.
        fit: can be pickled; it takes each episode for itself, on one thread.
        workers: processes that take a block each; 0 or 1: this process.
        features, sampler, shots, queries, episodes, batch_size, on_progress: as `score` takes them.
    """
    queries = _all_if_all(features, shots, queries)
    blocks = _blocks(sampler.ways, shots, queries, features.dim, episodes)
    supports = (delayed(fit)(_support(features, sampler, numbers, shots)) for numbers in blocks)
    at_once, waiting = _at_once(workers, blocks, batch_size)
    parallel = Parallel(at_once, backend="loky", pre_dispatch=waiting, batch_size=1, return_as="generator")
    with without_ctrl_c():
        fitted = parallel(supports)

    def finished() -> Iterator[dict[str, Tensor]]:
        for numbers, weights in zip(blocks, fitted, strict=True):
            known = {name: lambda support, _, weights=weights: torch.from_numpy(weights).to(support)}
            yield _score_block(features, sampler, known, numbers, shots, queries)

    with one_thread():
        return _gathered(finished(), blocks, on_progress)


def _all_if_all(features: FeatureMatrix, shots: int, queries: int | None) -> int | None:
    """None, for all others, where so many queries are all others of every class: those need no gathering."""
    return None if queries is not None and bool((features.counts == shots + queries).all()) else queries


def _of_all_ranks(
    found: dict[str, NDArray[np.float64]], blocks: list[range], ranks: Ranks, names: Iterable[str]
) -> dict[str, NDArray[np.float64]]:
    """The accuracies of all episodes from those of this rank's share of the blocks."""
    parts = ranks.job.gather(found)
    order = np.concatenate([np.asarray(block) for rank in range(ranks.size) for block in blocks[rank :: ranks.size]])
    whole = {}
    for name in names:
        whole[name] = np.empty(len(order))
        whole[name][order] = np.concatenate([part[name] for part in parts if part])
    return whole


def _at_once(workers: int, blocks: list[range], batch_size: int | None) -> tuple[int, int]:
    """How many blocks are computed at a time, and how many are on their way."""
    at_once = min(max(1, workers), len(blocks))
    waiting = 2 * at_once if batch_size is None else max(1, batch_size // len(blocks[0]))
    return min(at_once, waiting), waiting


def in_threads(tasks: Iterable[Callable[[], T]], threads: int, waiting: int) -> Iterator[T]:
    """The results of tasks in their order; one thread is this one.

    After an error or Ctrl-C the tasks that have begun are waited for: a thread that is inside torch while the
    interpreter ends aborts the process ("terminate called without an active exception"). joblib leaves its threads
    running.

    Args:
        tasks: to be called.
        threads: that take one each.
        waiting: tasks that are on their way at a time.
    """
    if threads == 1:
        yield from (task() for task in tasks)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                pending.append(pool.submit(task))
                if len(pending) == waiting:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _gathered(
    results: Iterable[dict[str, Tensor]], blocks: list[range], on_progress: Callable[[int, int], None] | None
) -> dict[str, NDArray[np.float64]]:
    accuracies: dict[str, list[Tensor]] = {}
    for numbers, values in zip(blocks, results, strict=True):
        for name, value in values.items():
            accuracies.setdefault(name, []).append(value)
        if on_progress:
            on_progress(numbers.stop, blocks[-1].stop)
    return {name: torch.cat(values).cpu().numpy() for name, values in accuracies.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """For a time, let each operation of torch on the CPU use one thread, in whichever thread it is called."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _blocks(ways: int, shots: int, queries: int | None, dim: int, episodes: int) -> list[range]:
    return blocks_of(block_size(ways, shots, queries, dim), episodes)


def blocks_of(size: int, episodes: int) -> list[range]:
    """The numbers of episodes 0 … `episodes` - 1 in blocks of a size, the last one of what is left."""
    return [range(start, min(start + size, episodes)) for start in range(0, episodes, size)]


def block_size(ways: int, shots: int, queries: int | None, dim: int) -> int:
    """Episodes of a block: as many as keep its gathered images near 32 MiB, from 1 to 100."""
    images = ways * (shots + (queries or 0))
    return min(100, max(1, _BLOCK_ELEMENTS // (images * dim)))


def _support(features: FeatureMatrix, sampler: EpisodeSampler, numbers: range, shots: int) -> NDArray[Any]:
    rows: NDArray[Any] = features.take(sampler.draw(numbers, shots=shots, queries=1).support).cpu().numpy()
    return rows


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
    support = features.take(rows.support)
    weights = {name: classifier(support, numbers) for name, classifier in classifiers.items()}
    if queries is None:
        return {name: _accuracy_on_others(features, rows, value) for name, value in weights.items()}
    images = features.take(rows.query)
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
        logits = features.take(slice(start, stop)) @ weights[episode].flatten(0, 1).T  # (n, M·N)
        right = torch.unflatten(logits, 1, (-1, ways)).argmax(-1) == label  # (n, M)
        right.scatter_(0, rows.support[episode, label].T - start, False)
        result[episode.cpu(), label.cpu()] = right.sum(0).cpu().double() / (stop - start - rows.support.shape[-1])
    return result.mean(1)
