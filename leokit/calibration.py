"""How far probabilities can be trusted: calibration, selective prediction, open sets, decompositions, prediction sets.

Pure measures over arrays: `n` queries, `C` classes of an episode, `E` episodes, `S` samples. Probabilities are
(n, C), labels (n,) the places of the right classes. A logarithm is natural, an entropy in nats.

Queries of one episode share its support set and are not independent of each other: intervals come from resampling
whole episodes (`episode_weights`), and conformal calibration takes one query of each.
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_TINY = np.finfo(np.float64).tiny


def nll_of(probabilities: Floats, labels: Ints) -> Floats:
    """Negative log-likelihood (n,) of each label."""
    return -np.log(np.maximum(_of_label(probabilities, labels), _TINY))


def brier_of(probabilities: Floats, labels: Ints) -> Floats:
    """Brier score (n,) of each query, Σ_c (p_c - 1[c = label])², from 0 to 2 (Brier 1950)."""
    squares: Floats = (probabilities**2).sum(-1) - 2 * _of_label(probabilities, labels) + 1
    return squares


def correct_of(probabilities: Floats, labels: Ints) -> Flags:
    """Whether the most probable class (n,) is the right one; the first of several."""
    right: Flags = probabilities.argmax(-1) == labels
    return right


def _of_label(probabilities: Floats, labels: Ints) -> Floats:
    chosen: Floats = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    return chosen


class Reliability(NamedTuple):
    """Confidence and accuracy by bins of confidence.

    A bin holds its lower edge and not its upper one, the last bin both; a mean is no number where a bin is empty.
    """

    edges: Floats  # (bins + 1,)
    counts: Floats  # (bins,)
    confidence: Floats  # (bins,) mean
    accuracy: Floats  # (bins,) mean

    @property
    def gaps(self) -> Floats:
        """|accuracy - confidence| (bins,), 0 for an empty bin."""
        return np.where(self.counts > 0, np.abs(self.accuracy - self.confidence), 0.0)

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean gap, each bin counting by its queries (Naeini et al. 2015)."""
        return float((self.counts * self.gaps).sum() / self.counts.sum())

    @property
    def maximum_error(self) -> float:
        """Maximum calibration error: the largest gap of a bin that is not empty."""
        return float(self.gaps.max())


def equal_width_edges(bins: int) -> Floats:
    """Edges (bins + 1,) of bins of one width between 0 and 1."""
    return np.linspace(0.0, 1.0, bins + 1)


def equal_mass_edges(confidence: Floats, bins: int) -> Floats:
    """Edges (bins + 1,), the outer ones 0 and 1, of bins that hold equally many of the confidences (n,)."""
    inner = np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1])
    return np.concatenate([[0.0], inner, [1.0]])


def bin_of(confidence: Floats, edges: Floats) -> Ints:
    """The bin (n,) of each confidence; exactly 1 is in the last one."""
    found: Ints = np.searchsorted(edges[1:-1], confidence, side="right")
    return found


def reliability(confidence: Floats, correct: Flags, edges: Floats) -> Reliability:
    """Bins of confidences (n,) with whether each was right (n,)."""
    counts, sums, right = _binned(confidence, correct, np.zeros(len(confidence), np.int64), 1, edges)[0]
    with np.errstate(invalid="ignore"):
        return Reliability(edges, counts, sums / counts, right / counts)


# Intervals


def episode_weights(episodes: int, resamples: int, generator: np.random.Generator) -> Floats:
    """How often each episode is drawn in each resample: (resamples, E)."""
    return generator.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples).astype(np.float64)


def percentiles(values: Floats) -> tuple[float, float]:
    """The 95 % interval of a statistic from its values (resamples,) on resamples of episodes (Efron 1979)."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def reliability_sums(confidence: Floats, correct: Flags, episodes: Ints, edges: Floats) -> Floats:
    """What each episode adds to counts, confidences and right ones of each bin: (E, 3, bins).

    Args:
        confidence: (n,).
        correct: (n,).
        episodes: (n,), the number of each query's episode, from 0.
        edges: of the bins.
    """
    return _binned(confidence, correct, episodes, int(episodes.max()) + 1, edges)


def classwise_sums(
    probabilities: Floats, labels: Ints, names: Ints, episodes: Ints, edges: Floats, classes: int
) -> Floats:
    """The same for the probability that each real class is given, in the episodes that it is in: (E, classes, 3, bins).

    Args:
        probabilities: (n, C).
        labels: (n,).
        names: (n, C), the number of the real class at each place of each query's episode.
        episodes: (n,), the number of each query's episode, from 0.
        edges: of the bins.
        classes: how many real classes there are.
    """
    is_it = np.arange(names.shape[1]) == labels[:, None]
    count = int(episodes.max()) + 1
    groups = (episodes[:, None] * classes + names).ravel()
    sums = _binned(probabilities.ravel(), is_it.ravel(), groups, count * classes, edges)
    return sums.reshape(count, classes, 3, -1)


def _binned(confidence: Floats, correct: Flags, groups: Ints, count: int, edges: Floats) -> Floats:
    """(count, 3, bins): sums of 1, confidence and correctness by group and bin."""
    bins = len(edges) - 1
    cell = groups * bins + bin_of(confidence, edges)
    parts = [
        np.bincount(cell, values, count * bins).reshape(count, bins)
        for values in (None, confidence, correct.astype(np.float64))
    ]
    return np.stack(parts, 1).astype(np.float64)


def expected_error_of_sums(totals: Floats) -> Floats:
    """Expected calibration error (...,) from totals (..., 3, bins) of either of the two."""
    counts, confidence, right = np.moveaxis(totals, -2, 0)
    with np.errstate(invalid="ignore"):  # a class that is in no episode has no error
        error: Floats = np.abs(right - confidence).sum(-1) / counts.sum(-1)
    return error


def maximum_error_of_sums(totals: Floats) -> Floats:
    """Maximum calibration error (...,) from the same totals."""
    counts, confidence, right = np.moveaxis(totals, -2, 0)
    gaps: Floats = np.abs(right - confidence) / np.maximum(counts, 1)
    return np.asarray(gaps.max(-1))


# Temperature


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities (n, C) to the power 1/T, normalised; for a softmax its logits divided by T. The order stays.

    Example:
        >>> tempered(np.array([[0.8, 0.2]]), 2.0).round(3).tolist()
        [[0.667, 0.333]]
    """
    logits = np.log(np.maximum(probabilities, _TINY)) / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def fit_temperature(probabilities: Floats, labels: Ints) -> float:
    """The temperature, between 1/50 and 50, of the least negative log-likelihood of labels (n,) (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar  # takes a moment to import

    logs = np.log(np.maximum(probabilities, _TINY))
    places = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        highest = scaled.max(1)
        total = np.log(np.exp(scaled - highest[:, None]).sum(1)) + highest
        return float((total - scaled[places, labels]).mean())

    found = minimize_scalar(loss, bounds=(-np.log(50), np.log(50)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


# Selective prediction


class RiskCoverage(NamedTuple):
    """Risk of the most confident queries, at each share of them."""

    coverage: Floats  # (n,), 1/n … 1
    risk: Floats  # (n,), share of wrong ones among them

    @property
    def area(self) -> float:
        """Area under the curve (AURC; Geifman & El-Yaniv 2017): the mean risk over coverages."""
        return float(self.risk.mean())

    def accuracy_at(self, coverage: float) -> float:
        """Accuracy on the most confident share `coverage` of the queries, rounded up to a whole one."""
        return 1 - float(self.risk[ceil(coverage * len(self.risk)) - 1])


def risk_coverage(confidence: Floats, correct: Flags) -> RiskCoverage:
    """The curve of confidences (n,); queries of one confidence are accepted together, each taking their mean risk."""
    _, risks = _ranked(confidence, correct)
    taken = np.arange(1, len(risks) + 1)
    return RiskCoverage(taken / len(risks), np.cumsum(risks) / taken)


def _ranked(confidence: Floats, correct: Flags) -> tuple[Ints, Floats]:
    """Queries (n,) by falling confidence, and for each in this order the mean risk (n,) of those of its confidence."""
    order = np.argsort(-confidence, kind="stable")
    _, starts, counts = np.unique(-confidence[order], return_index=True, return_counts=True)
    means = np.add.reduceat((~correct[order]).astype(np.float64), starts) / counts
    return order, np.repeat(means, counts)


class ResampledRisk:
    """The risk-coverage curve where queries count several times or not at all, as episodes do in resamples."""

    def __init__(self, confidence: Floats, correct: Flags) -> None:
        """Sort queries by their confidence (n,); each has the mean risk of those of its confidence."""
        self._order, risks = _ranked(confidence, correct)
        self._wrong = risks.astype(np.float32)

    def area_and_accuracies(self, weights: NDArray[np.float32], coverages: Sequence[float]) -> tuple[Floats, Floats]:
        """Areas under the curves (R,), and accuracies (R, coverages) on the most confident shares.

        Args:
            weights: (R, n), how often each query is in each resample.
            coverages: the shares.
        """
        ordered = weights[:, self._order]
        taken = ordered.cumsum(1)  # whole numbers, which float32 holds exactly below 2²⁴
        risk = (ordered * self._wrong).cumsum(1, dtype=np.float64)
        risk /= np.maximum(taken, 1)
        total = taken[:, -1:].astype(np.float64)
        areas = np.einsum("rn,rn->r", risk, ordered) / total[:, 0]
        wanted = np.ceil(total * np.asarray(coverages) - 1e-9)
        places = np.stack([np.searchsorted(row, counts) for row, counts in zip(taken, wanted, strict=True)])
        return np.asarray(areas), np.asarray(1 - np.take_along_axis(risk, places, 1))


# Open sets


def auroc(inside: Floats, outside: Floats) -> float:
    """Probability that a score of an inside query is above that of an outside one, ties counting half (AUROC)."""
    both = np.concatenate([inside, outside])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of equal ones
    total = ranks[place[: len(inside)]].sum()
    return float((total - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def accepted_outside(inside: Floats, outside: Floats, share: float = 0.95) -> float:
    """Share of outside queries whose score reaches what `share` of the inside ones reach (FPR at 95 % TPR)."""
    threshold = np.sort(inside)[len(inside) - ceil(share * len(inside))]
    return float((outside >= threshold).mean())


# Decomposition


class Decomposition(NamedTuple):
    """Entropy of the mean prediction (n,), and its parts; total = aleatoric + epistemic."""

    total: Floats
    aleatoric: Floats  # mean entropy of the samples' predictions
    epistemic: Floats  # mutual information of label and sample, at least 0


def entropy(probabilities: Floats) -> Floats:
    """Entropy (...,) of distributions (..., C).

    Example:
        >>> print(entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(3))
        [0.693 0.   ]
    """
    terms = np.where(probabilities > 0, probabilities * np.log(np.maximum(probabilities, _TINY)), 0.0)
    found: Floats = 0.0 - terms.sum(-1)  # no -0.0
    return found


def decompose(probabilities: Floats) -> Decomposition:
    """The parts of the predictive entropy of samples (S, n, C) (Depeweg et al. 2018)."""
    total, aleatoric = entropy(probabilities.mean(0)), entropy(probabilities).mean(0)
    return Decomposition(total, aleatoric, np.maximum(total - aleatoric, 0.0))


# Prediction sets


def conformal_scores(probabilities: Floats, labels: Ints) -> Floats:
    """1 - the probability of the right class (n,): how badly each label fits (Sadinle et al. 2019)."""
    scores: Floats = 1 - _of_label(probabilities, labels)
    return scores


def conformal_quantile(scores: Floats, level: float) -> float:
    """The ⌈(n + 1) · level⌉-th smallest of n exchangeable scores; infinite where n is too small for the level.

    A set of all classes whose score is at most this covers the label of a further exchangeable query with probability
    `level` or more (Vovk et al. 2005). Scores of one episode are not exchangeable with each other: give one of each.

    Example:
        >>> conformal_quantile(np.array([0.1, 0.2, 0.3, 0.4]), 0.6)
        0.3
        >>> conformal_quantile(np.array([0.1, 0.2, 0.3, 0.4]), 0.9)
        inf
    """
    rank = ceil((len(scores) + 1) * level - 1e-9)  # (n + 1) · 0.9 shall not be a hair above a whole number
    return float("inf") if rank > len(scores) else float(np.sort(scores)[rank - 1])


class Sets(NamedTuple):
    """Prediction sets of queries."""

    members: Flags  # (n, C)
    covered: Flags  # (n,), whether the label is a member

    @property
    def sizes(self) -> Ints:
        """Members of each set (n,)."""
        return np.asarray(self.members.sum(-1))


def conformal_sets(probabilities: Floats, labels: Ints, quantile: float) -> Sets:
    """All classes of probability 1 - quantile or more."""
    members = 1 - probabilities <= quantile
    covered: Flags = np.take_along_axis(members, labels[:, None], 1)[:, 0]
    return Sets(members, covered)
