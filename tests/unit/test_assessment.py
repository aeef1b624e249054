"""All measures of a predictive: those of its parts, with intervals that are the textbook's."""

import numpy as np
import pytest

from leokit import calibration as c
from leokit.assessment import Truth, assess, open_set, prediction_sets
from tests.unit.test_calibration import predictions


def episodes(count=60, queries=10, seed=0):
    """Probabilities (E, M, 5) and truth, of labels in the order of an episode's queries."""
    labels = np.repeat(np.arange(5), queries // 5)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, queries, 5)) + 1.5 * np.eye(5)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    classes = np.stack([rng.permutation(8)[:5] for _ in range(count)])
    return probabilities, Truth(labels, classes, 8, 10, c.episode_weights(count, 2000, rng))


def test_measures_are_those_of_all_queries_together():
    probabilities, truth = episodes()
    flat, labels = probabilities.reshape(-1, 5), np.tile(truth.labels, 60)
    confidence, correct = flat.max(1), c.correct_of(flat, labels)
    found = assess(probabilities, truth)
    values = {name: measured.value for name, measured in found.measures.items()}
    width = c.reliability(confidence, correct, c.equal_width_edges(10))
    mass = c.reliability(confidence, correct, c.equal_mass_edges(confidence, 10))
    risk = c.risk_coverage(confidence, correct)
    assert values == pytest.approx(
        {
            "accuracy": correct.mean(),
            "negative_log_likelihood": c.nll_of(flat, labels).mean(),
            "brier_score": c.brier_of(flat, labels).mean(),
            "expected_calibration_error": width.expected_error,
            "expected_calibration_error_equal_mass": mass.expected_error,
            "maximum_calibration_error": width.maximum_error,
            "classwise_calibration_error": found.class_errors.mean(),
            "area_under_risk_coverage": risk.area,
            "accuracy_at_80_coverage": risk.accuracy_at(0.8),
            "accuracy_at_95_coverage": risk.accuracy_at(0.95),
        }
    )


def test_intervals_are_over_episodes():
    probabilities, truth = episodes()
    found = {name: measured.estimate for name, measured in assess(probabilities, truth).measures.items()}
    per_episode = (probabilities.argmax(-1) == truth.labels).mean(1)
    half = 1.96 * per_episode.std() / 60**0.5
    assert found["accuracy"].low == pytest.approx(per_episode.mean() - half, abs=0.01)
    assert found["accuracy"].high == pytest.approx(per_episode.mean() + half, abs=0.01)
    for estimate in found.values():
        assert estimate.low < estimate.high
    for name in ("negative_log_likelihood", "area_under_risk_coverage", "accuracy_at_80_coverage"):
        assert found[name].low < found[name].value < found[name].high


def test_temperature_moves_no_accuracy():
    probabilities, truth = episodes()
    cooled = c.tempered(probabilities, 0.3)
    accuracies = [assess(values, truth).measures["accuracy"] for values in (cooled, probabilities)]
    assert accuracies[0].estimate == accuracies[1].estimate
    assert accuracies[0].difference(accuracies[1]).high == 0


def test_a_paired_difference_is_sharper_than_two_intervals():
    probabilities, truth = episodes()
    better = c.tempered(probabilities, 0.9)
    first, second = (assess(values, truth).measures["negative_log_likelihood"] for values in (better, probabilities))
    found = first.difference(second)
    assert found.value == pytest.approx(first.value - second.value)
    assert found.high - found.low < 0.5 * (first.estimate.high - first.estimate.low)


def test_open_sets_within_episodes_and_over_all():
    """Two episodes, each told apart without fault, whose scores lie apart from each other."""
    inside, outside = np.array([[2.0, 3.0], [12.0, 13.0]]), np.array([[1.0, 0.0], [11.0, 10.0]])
    found = open_set(inside, outside)
    assert found.auroc_per_episode == 1
    assert found.auroc_pooled == pytest.approx(12 / 16)  # of 16 pairs, 2 and 3 lose to 10 and 11
    assert found.accepted_outside == pytest.approx(2 / 4)  # 95 % of 4 are all 4, the lowest has 2
    assert open_set(np.ones((1, 2)), np.ones((1, 3))).auroc_per_episode == 0.5


def test_sets_are_measured_as_they_are():
    probabilities, _ = predictions(400)
    truth = Truth(np.arange(5), np.tile(np.arange(5), (80, 1)), 5, 10, np.ones((1, 80)))
    shaped = probabilities.reshape(80, 5, 5)
    scores = np.random.default_rng(0).random(99)
    for result in prediction_sets(shaped, truth, scores):
        members = shaped >= 1 - np.sort(scores)[int(np.ceil(100 * result.level - 1e-9)) - 1]
        assert result.mean_size == pytest.approx(members.sum(-1).mean())
        assert result.coverage == pytest.approx(members[:, np.arange(5), np.arange(5)].mean())
