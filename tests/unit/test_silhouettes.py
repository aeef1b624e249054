"""Silhouettes against scikit-learn; the jackknife and percentiles against what is known."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples, silhouette_score

from leokit import metrics
from leokit.metrics import jackknife_half_width, percentiles, silhouettes


def points(count=60, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    return rng.normal(size=(count, 3)) + labels[:, None], labels


@pytest.mark.parametrize("rows", [7, 256])
def test_all_points_and_parts_of_them_are_scikit_learns(monkeypatch, rows):
    monkeypatch.setattr(metrics, "_SILHOUETTE_ROWS", rows)
    values, labels = points()
    chosen = np.stack([np.ones(60, bool), np.arange(60) % 3 > 0, labels != 1])
    found = silhouettes(values, labels, chosen)
    for row, those in enumerate(chosen):
        each = silhouette_samples(values[those], labels[those])
        assert found.overall[row] == pytest.approx(silhouette_score(values[those], labels[those]), abs=1e-12)
        for number in range(4):
            members = labels[those] == number
            if members.any():
                assert found.by_class[row, number] == pytest.approx(each[members].mean(), abs=1e-12)
            else:
                assert np.isnan(found.by_class[row, number])


def test_a_point_alone_or_among_equal_ones_has_none():
    labels = np.array([0, 1, 1, 2])
    found = silhouettes(np.zeros((4, 2)), labels, np.ones((1, 4), bool))
    assert found.overall == [0]
    found = silhouettes(np.array([[0.0], [5.0], [5.1], [9.0]]), labels, np.ones((1, 4), bool))
    assert found.by_class[0, 0] == found.by_class[0, 2] == 0
    assert found.by_class[0, 1] > 0.9


def test_the_jackknife_of_a_mean_is_its_standard_error():
    # Leaving out one of n values moves the mean by (mean - x_i)/(n - 1), so the jackknife gives s/√n exactly.
    values = np.random.default_rng(0).normal(size=40)
    without = (values.sum() - values) / 39
    assert jackknife_half_width(without) == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(40))
    assert jackknife_half_width(np.append(without, np.nan)) == jackknife_half_width(without)
    assert jackknife_half_width(np.array([1.0, np.nan])) is None


def test_percentiles_of_the_numbers_to_a_hundred():
    assert percentiles(np.arange(101.0)[::-1].reshape(1, 101)) == {
        "percentile_5": 5,
        "percentile_25": 25,
        "median": 50,
        "percentile_75": 75,
        "percentile_95": 95,
    }
