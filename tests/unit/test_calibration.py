"""Measures of trust: against scikit-learn where it has them, by hand otherwise, and laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import log_loss, roc_auc_score

from leokit import calibration as c


def predictions(count, classes=5, seed=0, sharpness=2.0):
    """Probabilities and labels drawn from them: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(count, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random((count, 1)) > probabilities.cumsum(1)).sum(1).clip(max=classes - 1)
    return probabilities, labels


def test_log_likelihood_is_that_of_scikit_learn():
    probabilities, labels = predictions(500)
    assert c.nll_of(probabilities, labels).mean() == pytest.approx(log_loss(labels, probabilities))


def test_brier_score_by_hand():
    probabilities, labels = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), np.array([0, 1])
    # 0.3² + 0.2² + 0.1² = 0.14;  0.1² + 0.9² + 0.8² = 1.46
    np.testing.assert_allclose(c.brier_of(probabilities, labels), [0.14, 1.46])


def test_calibration_error_by_hand():
    confidence, correct = np.array([0.05, 0.55, 0.65, 0.95, 1.0]), np.array([False, True, False, True, True])
    found = c.reliability(confidence, correct, c.equal_width_edges(2))
    # [0, ½): 0.05 against 0;  [½, 1]: (0.55 + 0.65 + 0.95 + 1)/4 = 0.7875 against 3/4
    np.testing.assert_allclose(found.counts, [1, 4])
    assert found.expected_error == pytest.approx(0.2 * 0.05 + 0.8 * 0.0375)
    assert found.maximum_error == pytest.approx(0.05)


def test_an_edge_belongs_to_the_bin_above_and_one_to_the_last():
    edges = c.equal_width_edges(10)
    assert c.bin_of(np.array([0.0, 0.1, 0.5, 0.999, 1.0]), edges).tolist() == [0, 1, 5, 9, 9]


def test_empty_bins_count_for_nothing():
    found = c.reliability(np.array([0.95, 0.96]), np.array([True, True]), c.equal_width_edges(10))
    assert found.expected_error == pytest.approx(0.045)
    assert found.maximum_error == pytest.approx(0.045)
    assert np.isnan(found.accuracy[0])


def test_bins_of_equal_mass_hold_equally_many():
    confidence = np.random.default_rng(0).random(1000) ** 3
    found = c.reliability(confidence, confidence > 0.5, c.equal_mass_edges(confidence, 10))
    assert set(found.counts) == {100}


@pytest.mark.parametrize("edges", ["width", "mass"])
def test_the_error_of_a_calibrated_predictor_goes_to_zero_with_more_data(edges):
    errors = []
    for count in (200, 3_000, 50_000, 800_000):
        probabilities, labels = predictions(count, seed=1)
        confidence = probabilities.max(1)
        chosen = c.equal_width_edges(15) if edges == "width" else c.equal_mass_edges(confidence, 15)
        errors.append(c.reliability(confidence, c.correct_of(probabilities, labels), chosen).expected_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.002


def test_classwise_errors_are_those_of_each_class_alone():
    probabilities, labels = predictions(400, classes=3)
    names = np.stack([np.random.default_rng(i).permutation(7)[:3] for i in range(400)])
    edges = c.equal_width_edges(5)
    sums = c.classwise_sums(probabilities, labels, names, np.repeat(np.arange(40), 10), edges, 8)
    assert sums.shape == (40, 8, 3, 5)
    found = c.expected_error_of_sums(sums.sum(0))
    for name in range(7):
        rows, places = np.nonzero(names == name)
        alone = c.reliability(probabilities[rows, places], labels[rows] == places, edges)
        assert found[name] == pytest.approx(alone.expected_error)
    assert np.isnan(found[7])  # is in no episode


def test_sums_of_episodes_give_the_errors_of_all_queries():
    probabilities, labels = predictions(600)
    confidence, correct = probabilities.max(1), c.correct_of(probabilities, labels)
    edges, episodes = c.equal_width_edges(8), np.repeat(np.arange(30), 20)
    totals = c.reliability_sums(confidence, correct, episodes, edges).sum(0)
    whole = c.reliability(confidence, correct, edges)
    assert c.expected_error_of_sums(totals) == pytest.approx(whole.expected_error)
    assert c.maximum_error_of_sums(totals) == pytest.approx(whole.maximum_error)


def interval_of_mean(sums):
    """Of sums and numbers of queries (E, 2)."""
    totals = c.episode_weights(len(sums), 4000, np.random.default_rng(1)) @ sums
    return c.percentiles(totals[:, 0] / totals[:, 1])


def test_the_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(0).normal(3, 2, 400)
    sums = np.stack([values, np.ones(400)], 1)
    low, high = interval_of_mean(sums)
    expected = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - expected, abs=0.02)
    assert high == pytest.approx(values.mean() + expected, abs=0.02)


def test_whole_episodes_are_resampled():
    """Twenty equal queries of an episode say no more than one."""
    values = np.repeat(np.random.default_rng(0).normal(size=50), 20).reshape(50, 20)
    sums = np.stack([values.sum(1), np.full(50, 20.0)], 1)
    low, high = interval_of_mean(sums)
    assert high - low == pytest.approx(2 * 1.96 * values[:, 0].std() / 50**0.5, rel=0.1)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_and_leaves_accuracy_unchanged(true):
    probabilities, labels = predictions(40_000)
    spoilt = c.tempered(probabilities, 1 / true)
    found = c.fit_temperature(spoilt, labels)
    assert found == pytest.approx(true, rel=0.05)
    mended = c.tempered(spoilt, found)
    assert (c.correct_of(mended, labels) == c.correct_of(spoilt, labels)).all()
    assert c.nll_of(mended, labels).mean() <= c.nll_of(spoilt, labels).mean() + 1e-9
    np.testing.assert_allclose(c.tempered(spoilt, 1.0), spoilt, atol=1e-12)


def test_risk_and_coverage_by_hand():
    found = c.risk_coverage(np.array([0.9, 0.5, 0.8, 0.6]), np.array([True, False, True, False]))
    np.testing.assert_allclose(found.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.risk, [0, 0, 1 / 3, 1 / 2])
    assert found.area == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert found.accuracy_at(0.5) == 1
    assert found.accuracy_at(0.51) == pytest.approx(2 / 3)


def test_equal_confidences_are_accepted_together():
    order = np.random.default_rng(0)
    correct = np.array([True] * 6 + [False] * 4)
    areas = {round(c.risk_coverage(np.full(10, 0.5), order.permutation(correct)).area, 12) for _ in range(5)}
    assert areas == {0.4}


def test_risk_of_resamples_is_that_of_repeated_queries():
    probabilities, labels = predictions(200)
    confidence, correct = probabilities.max(1), c.correct_of(probabilities, labels)
    weights = np.random.default_rng(0).integers(0, 4, (3, 200)).astype(float)
    resampled = c.ResampledRisk(confidence, correct)
    rows = np.concatenate([weights, np.ones((1, 200))]).astype(np.float32)
    areas, accuracies = resampled.area_and_accuracies(rows, [0.5, 0.8])
    whole = c.risk_coverage(confidence, correct)
    assert (areas[-1], accuracies[-1, 1]) == (pytest.approx(whole.area), pytest.approx(whole.accuracy_at(0.8)))
    for row, area, accuracy in zip(weights.astype(int), areas, accuracies[:, 0], strict=False):
        order = np.argsort(-confidence)
        repeated = np.repeat(~correct[order], row[order])
        risks = repeated.cumsum() / np.arange(1, len(repeated) + 1)
        assert accuracy == pytest.approx(1 - risks[np.ceil(len(risks) / 2).astype(int) - 1], abs=0.01)
        assert area == pytest.approx(risks.mean(), abs=0.01)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_auroc_is_that_of_scikit_learn(inside, outside):
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    expected = roc_auc_score(truth, [*inside, *outside])
    assert c.auroc(np.array(inside, float), np.array(outside, float)) == pytest.approx(expected)


def test_outside_queries_accepted_by_hand():
    inside = np.arange(1, 21, dtype=float)  # 19 of 20 reach 2
    assert c.accepted_outside(inside, np.array([0.0, 1.0, 2.0, 3.0])) == 0.5


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0, 20))
def test_total_is_aleatoric_and_epistemic_and_neither_is_below_zero(seed, samples, sharpness):
    parts = np.stack([predictions(20, seed=seed + s, sharpness=sharpness)[0] for s in range(samples)])
    found = c.decompose(parts)
    np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic, atol=1e-12)
    assert (found.epistemic >= 0).all()
    assert (found.aleatoric >= 0).all()
    assert found.total.max() <= np.log(5) + 1e-12


def test_equal_samples_have_nothing_epistemic_and_certain_ones_nothing_aleatoric():
    same = np.tile(predictions(10)[0], (4, 1, 1))
    np.testing.assert_allclose(c.decompose(same).epistemic, 0, atol=1e-12)
    certain = np.eye(5)[np.arange(5)][:, None]  # five samples, each certain of another class
    found = c.decompose(certain)
    assert found.aleatoric.tolist() == [0]
    assert found.epistemic == pytest.approx(np.log(5))


def test_the_conformal_quantile_by_hand():
    scores = np.arange(1, 10) / 10  # n = 9
    assert c.conformal_quantile(scores, 0.9) == 0.9  # ⌈10 · 0.9⌉ = 9th
    assert c.conformal_quantile(scores, 0.8) == 0.8
    assert c.conformal_quantile(scores, 0.95) == float("inf")  # the 10th of 9


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_conformal_sets_cover_as_promised_where_episodes_are_exchangeable(level):
    """Coverage over many calibrations lies in its binomial interval around ⌈(n + 1) · level⌉ / (n + 1)."""
    rng, trials, n = np.random.default_rng(0), 4000, 99
    probabilities, labels = predictions(trials * (n + 1), seed=2)
    probabilities = probabilities**2 / (probabilities**2).sum(1, keepdims=True)  # not calibrated: it does not matter
    scores = c.conformal_scores(probabilities, labels).reshape(trials, n + 1)
    covered = sum(row[-1] <= c.conformal_quantile(row[:-1], level) for row in scores)
    low, high = binom.interval(0.999, trials, np.ceil((n + 1) * level - 1e-9) / (n + 1))
    assert low <= covered <= high
    del rng


def test_sets_hold_what_is_probable_enough():
    probabilities, labels = np.array([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25]]), np.array([1, 2])
    found = c.conformal_sets(probabilities, labels, 0.7)
    assert found.members.tolist() == [[True, True, False], [True, True, False]]
    assert found.covered.tolist() == [True, False]
    assert found.sizes.tolist() == [2, 2]
    assert c.conformal_sets(probabilities, labels, float("inf")).sizes.tolist() == [3, 3]
