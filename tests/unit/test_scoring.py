"""Scores against a plain loop over episodes and images."""

import numpy as np
import pytest
import torch

from leokit.baselines import class_mean, fit_logistic, logistic_regression
from leokit.engine import scoring
from leokit.engine.scoring import score, score_fits
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.features import FeatureTable
from leokit.metrics import interval_over_seeds, mean_interval, paired_difference


def nearest_mean(support, numbers):
    return class_mean(support)


def matrix(counts, dim=6, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(counts), dim))
    rows = [centre + spread * rng.normal(size=(count, dim)) for centre, count in zip(centres, counts, strict=True)]
    table = FeatureTable(
        np.concatenate(rows).astype(np.float32),
        [f"class {number}" for number in range(len(counts))],
        np.array([0, *np.cumsum(counts)]),
    )
    return FeatureMatrix(table)


def plain_accuracy(features, classes, support, query):
    """Nearest class mean, one image at a time; mean over classes of the share that is right."""
    means = torch.stack([torch.nn.functional.normalize(features.rows[rows].mean(0), dim=0) for rows in support])
    shares = []
    for label, rows in enumerate(query):
        right = [int((means @ features.rows[row]).argmax()) == label for row in rows]
        shares.append(np.mean(right))
    return np.mean(shares)


@pytest.mark.parametrize("queries", [4, None])
def test_scores_equal_a_plain_loop(queries):
    features = matrix([9, 12, 7, 10, 8])
    sampler = EpisodeSampler(features.offsets, ways=3, seed=4, purpose="test")
    scores = score(features, sampler, {"mean": nearest_mean}, shots=2, queries=queries, episodes=25)["mean"]
    rows = sampler.draw(range(25), shots=2, queries=queries or 1)
    for index in range(25):
        classes, support = rows.classes[index], rows.support[index]
        query = rows.query[index].tolist()
        if queries is None:
            query = [
                [row for row in range(*features.offsets[number : number + 2].tolist()) if row not in chosen.tolist()]
                for number, chosen in zip(classes.tolist(), support, strict=True)
            ]
        assert scores[index] == pytest.approx(plain_accuracy(features, classes, support, query))


def test_all_others_equal_the_rest_when_classes_are_even(monkeypatch):
    features = matrix([11] * 6)
    sampler = EpisodeSampler(features.offsets, ways=4, seed=1, purpose="test")
    known = score(features, sampler, {"mean": nearest_mean}, shots=3, queries=8, episodes=40)["mean"]
    monkeypatch.setattr(scoring, "_all_if_all", lambda features, shots, queries: queries)  # gathered, then
    rest = score(features, sampler, {"mean": nearest_mean}, shots=3, queries=8, episodes=40)["mean"]
    others = score(features, sampler, {"mean": nearest_mean}, shots=3, queries=None, episodes=40)["mean"]
    np.testing.assert_allclose(rest, others, atol=1e-12)
    assert np.array_equal(known, others)


def test_a_longer_test_begins_with_the_shorter(monkeypatch):
    features = matrix([11] * 6)
    sampler = EpisodeSampler(features.offsets, ways=4, seed=1, purpose="test")
    arguments = dict(shots=1, queries=5)
    long = score(features, sampler, {"mean": nearest_mean}, episodes=250, **arguments)["mean"]
    short = score(features, sampler, {"mean": nearest_mean}, episodes=130, **arguments)["mean"]
    assert np.array_equal(long[:130], short)
    monkeypatch.setattr(scoring, "_BLOCK_ELEMENTS", 1)
    np.testing.assert_allclose(
        score(features, sampler, {"mean": nearest_mean}, episodes=20, **arguments)["mean"], long[:20]
    )


def test_chance_and_certainty():
    far = matrix([20] * 5, spread=1e-3)
    sampler = EpisodeSampler(far.offsets, ways=5, seed=0, purpose="test")
    assert score(far, sampler, {"m": nearest_mean}, shots=1, queries=5, episodes=50)["m"].mean() == 1
    same = matrix([200] * 5, spread=1e3)
    sampler = EpisodeSampler(same.offsets, ways=5, seed=0, purpose="test")
    chance = mean_interval(score(same, sampler, {"m": nearest_mean}, shots=1, queries=15, episodes=2000)["m"])
    assert abs(chance.mean - 0.2) < 2 * chance.half_width


def test_intervals_by_hand():
    # mean 2; squared deviations 1 + 0 + 1, variance 2/2 = 1; 1.96·1/√3 = 1.1316
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(1.1316, abs=1e-4)
    # differences 1, 1, 1: no spread at all, however wide each series is
    assert paired_difference(np.array([2.0, 5.0, 9.0]), np.array([1.0, 4.0, 8.0])) == (1.0, 0.0)


def test_interval_covers_the_mean_it_should():
    rng = np.random.default_rng(0)
    hits = [abs(interval.mean) < interval.half_width for interval in map(mean_interval, rng.normal(size=(4000, 200)))]
    assert abs(np.mean(hits) - 0.95) < 0.015


def test_two_spreads_by_hand():
    # Seeds' means 2 and 4: sd √((1 + 1)/1). Episodes' means over the seeds 2, 3, 4: variance 1, half-width 1.96/√3.
    mean, half_width, sd = interval_over_seeds(np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]))
    assert mean == 3
    assert sd == pytest.approx(2**0.5)
    assert half_width == pytest.approx(1.1316, abs=1e-4)
    assert interval_over_seeds(np.array([[1.0, 2.0]])).sd is None


def failing(support):
    raise ValueError("no fit")


@pytest.mark.parametrize("workers", [0, 2])
def test_fits_in_processes_equal_fits_here_and_their_errors_come_through(monkeypatch, workers):
    monkeypatch.setattr(scoring, "_BLOCK_ELEMENTS", 500)
    features = matrix([11] * 6)
    sampler = EpisodeSampler(features.offsets, ways=4, seed=1, purpose="test")
    arguments = dict(shots=2, queries=5, episodes=40)
    here = score(features, sampler, {"l": lambda support, _: logistic_regression(support)}, **arguments)["l"]
    there = score_fits(features, sampler, "l", fit_logistic, workers=workers, batch_size=9, **arguments)["l"]
    assert np.array_equal(here, there)
    with pytest.raises(ValueError, match="no fit"):
        score_fits(features, sampler, "l", failing, workers=workers, **arguments)


def test_progress_counts_episodes_and_threads_of_torch_are_given_back(monkeypatch):
    monkeypatch.setattr(scoring, "_BLOCK_ELEMENTS", 1500)
    features = matrix([11] * 6)
    sampler = EpisodeSampler(features.offsets, ways=4, seed=1, purpose="test")
    before, seen = torch.get_num_threads(), []
    score(
        features,
        sampler,
        {"mean": nearest_mean},
        shots=1,
        queries=5,
        episodes=25,
        workers=2,
        on_progress=lambda *now: seen.append(now),
    )
    assert seen == [(10, 25), (20, 25), (25, 25)]
    assert torch.get_num_threads() == before
