"""All measures of one predictive over episodes, each with its interval.

Shapes: E episodes, M queries of an episode, N classes of an episode.
"""

from dataclasses import dataclass

import numpy as np

from leokit import calibration
from leokit.calibration import Flags, Floats, Ints

COVERAGES = (0.8, 0.95)
LEVELS = (0.8, 0.9, 0.95)  # of prediction sets
_QUERIES_AT_ONCE = 2**23  # times resamples, of risk-coverage curves


@dataclass(frozen=True)
class Truth:
    """What is the case in the episodes that predictives are assessed on.

    Attributes:
        labels: (M,), places of the right classes, the same in every episode.
        classes: (E, N), the number of the real class at each place.
        total: how many real classes there are.
        bins: of confidence.
        weights: (R, E), how often each episode is in each resample; one draw serves all measures and predictives, so
            that their intervals are of the same resamples.
    """

    labels: Ints
    classes: Ints
    total: int
    bins: int
    weights: Floats

    @property
    def of_queries(self) -> Ints:
        """The labels of all queries, (E·M,)."""
        return np.tile(self.labels, len(self.classes))

    @property
    def episodes(self) -> Ints:
        """The number of each query's episode, (E·M,)."""
        return np.repeat(np.arange(len(self.classes)), len(self.labels))


@dataclass(frozen=True)
class Estimate:
    """A measure on all episodes with its 95 % interval over them."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """A measure on all episodes and on resamples of them (R,)."""

    value: float
    resampled: Floats

    @property
    def estimate(self) -> Estimate:
        """With its 95 % interval, the percentiles of the resamples."""
        return Estimate(self.value, *calibration.percentiles(self.resampled))

    def difference(self, other: "Measured") -> Estimate:
        """This less another one on the same episodes and resamples: a paired difference."""
        return Measured(self.value - other.value, self.resampled - other.resampled).estimate


@dataclass(frozen=True)
class Assessment:
    """What a predictive is worth.

    Attributes:
        measures: by name.
        class_errors: (total,), calibration error of the probability of each real class; no number for one that was in
            no episode.
        reliability: bins of equal width.
        risk: the risk-coverage curve.
    """

    measures: dict[str, Measured]
    class_errors: Floats
    reliability: calibration.Reliability
    risk: calibration.RiskCoverage


def assess(probabilities: Floats, truth: Truth) -> Assessment:
    """All measures of the probabilities (E, M, N) of a predictive.

    Confidence is the largest probability. Bins are of equal width between 0 and 1; those of equal mass have their
    edges at the quantiles of the confidences themselves, on all episodes, also for the resamples.
    """
    flat, labels, episodes = probabilities.reshape(-1, probabilities.shape[-1]), truth.of_queries, truth.episodes
    confidence, correct = flat.max(-1), calibration.correct_of(flat, labels)
    found: dict[str, Measured] = {}
    for name, values in (
        ("accuracy", correct.astype(np.float64)),
        ("negative_log_likelihood", calibration.nll_of(flat, labels)),
        ("brier_score", calibration.brier_of(flat, labels)),
    ):
        means = values.reshape(len(probabilities), -1).mean(1)
        found[name] = _measured(float(means.mean()), truth.weights @ means / len(means))
    width = calibration.equal_width_edges(truth.bins)
    mass = calibration.equal_mass_edges(confidence, truth.bins)
    sums = {"": width, "_equal_mass": mass}
    for suffix, edges in sums.items():
        per_episode = calibration.reliability_sums(confidence, correct, episodes, edges)
        resampled = _resampled(per_episode, truth.weights)
        error = calibration.expected_error_of_sums
        found[f"expected_calibration_error{suffix}"] = _measured(error(per_episode.sum(0)), error(resampled))
        if not suffix:
            worst = calibration.maximum_error_of_sums
            found["maximum_calibration_error"] = _measured(worst(per_episode.sum(0)), worst(resampled))
    names = np.repeat(truth.classes, len(truth.labels), 0)
    by_class = calibration.classwise_sums(flat, labels, names, episodes, width, truth.total)
    class_errors = calibration.expected_error_of_sums(by_class.sum(0))
    resampled_errors = calibration.expected_error_of_sums(_resampled(by_class, truth.weights))
    found["classwise_calibration_error"] = _measured(float(np.nanmean(class_errors)), np.nanmean(resampled_errors, -1))
    risk = calibration.risk_coverage(confidence, correct)
    found |= _selective(risk, confidence, correct, truth)
    return Assessment(found, class_errors, calibration.reliability(confidence, correct, width), risk)


def _selective(risk: calibration.RiskCoverage, confidence: Floats, correct: Flags, truth: Truth) -> dict[str, Measured]:
    """Area under the risk-coverage curve, and accuracy at each of `COVERAGES`."""
    resampled = calibration.ResampledRisk(confidence, correct)
    at_once = max(1, _QUERIES_AT_ONCE // len(confidence))
    parts = []
    for start in range(0, len(truth.weights), at_once):
        weights = np.repeat(truth.weights[start : start + at_once].astype(np.float32), len(truth.labels), 1)
        parts.append(resampled.area_and_accuracies(weights, COVERAGES))
    areas, by_coverage = (np.concatenate(values) for values in zip(*parts, strict=True))
    return {
        "area_under_risk_coverage": _measured(risk.area, areas),
        **{
            f"accuracy_at_{100 * coverage:.0f}_coverage": _measured(risk.accuracy_at(coverage), by_coverage[:, index])
            for index, coverage in enumerate(COVERAGES)
        },
    }


def _resampled(sums: Floats, weights: Floats) -> Floats:
    """Totals (R, ...) over episodes of sums (E, ...), each counting as often as it was drawn."""
    totals: Floats = (weights @ sums.reshape(len(sums), -1)).reshape(len(weights), *sums.shape[1:])
    return totals


def _measured(value: float | Floats, resampled: Floats) -> Measured:
    return Measured(float(value), resampled)


@dataclass(frozen=True)
class OpenSet:
    """How well a score tells queries of an episode's classes from those of other classes."""

    auroc_per_episode: float
    auroc_pooled: float
    accepted_outside: float


def open_set(inside: Floats, outside: Floats) -> OpenSet:
    """Measures of scores (E, M) of inside and (E, O) of outside queries, higher for inside.

    The mean over episodes of the AUROC within each; over all queries; and the share of outside queries that is
    accepted where 95 % of all inside ones are.
    """
    ours, theirs = inside[:, :, None], outside[:, None, :]
    each = (ours > theirs).mean((1, 2)) + (ours == theirs).mean((1, 2)) / 2
    ours, theirs = inside.ravel(), outside.ravel()
    return OpenSet(float(np.mean(each)), calibration.auroc(ours, theirs), calibration.accepted_outside(ours, theirs))


@dataclass(frozen=True)
class SetResult:
    """Prediction sets of a nominal level, as measured.

    Attributes:
        level: nominal.
        quantile: largest score 1 - p that a member of a set may have; infinite where calibration was too small.
        coverage: share of queries whose label is in its set.
        mean_size: members of a set.
    """

    level: float
    quantile: float
    coverage: float
    mean_size: float


def prediction_sets(
    probabilities: Floats, truth: Truth, calibration_scores: Floats, levels: tuple[float, ...] = LEVELS
) -> list[SetResult]:
    """Split-conformal sets for probabilities (E, M, N), from one score of each calibration episode (n,)."""
    flat, labels = probabilities.reshape(-1, probabilities.shape[-1]), truth.of_queries
    results = []
    for level in levels:
        quantile = calibration.conformal_quantile(calibration_scores, level)
        found = calibration.conformal_sets(flat, labels, quantile)
        results.append(SetResult(level, quantile, float(found.covered.mean()), float(found.sizes.mean())))
    return results
