"""Sines and lines: tasks, their exact posterior, and measures, each against an independent value."""

import numpy as np
import pytest
from scipy.stats import norm

from leokit.regression import measures, scoring
from leokit.regression.posterior import exact_posterior, prior_nodes, sine_probabilities
from leokit.regression.tasks import LINE, NOISE_STD, RANGES, SINE, Tasks, draw_tasks, true_values


def drawn(count, *, shots=5, queries=3, seed=0):
    return draw_tasks(((i,) for i in range(count)), seed=seed, purpose="test", shots=shots, queries=queries)


# Tasks


def test_a_task_depends_on_its_position_alone():
    together, alone = drawn(5), draw_tasks([(3,)], seed=0, purpose="test", shots=5, queries=7)
    np.testing.assert_array_equal(together.inputs[3], alone.inputs[0])
    np.testing.assert_array_equal(together.targets[3], alone.targets[0])
    assert not np.array_equal(together.inputs[3], drawn(5, seed=1).inputs[3])


def test_tasks_are_as_the_paper_says():
    tasks = drawn(3000, queries=2)
    assert (tasks.family == SINE).mean() == pytest.approx(0.5, abs=4 * 0.5 / 3000**0.5)
    for family, name in ((SINE, "sine"), (LINE, "line")):
        for column, (low, high) in enumerate(RANGES[name]):
            values = tasks.parameters[tasks.family == family, column]
            assert low <= values.min() < low + 0.02 * (high - low)
            assert high - 0.02 * (high - low) < values.max() <= high
    noise = tasks.targets - tasks.values(tasks.inputs)
    assert noise.std() == pytest.approx(0.3, abs=4 * 0.3 / (2 * noise.size) ** 0.5)
    sine, line = int(np.argmax(tasks.family == SINE)), int(np.argmax(tasks.family == LINE))
    (a, phase), (slope, intercept) = tasks.parameters[sine], tasks.parameters[line]
    x = np.array([-2.0, 0.5])
    np.testing.assert_allclose(tasks.values(x)[sine], a * np.sin(x + phase))
    np.testing.assert_allclose(tasks.values(x)[line], slope * x + intercept)


# The exact posterior


def test_the_posterior_is_that_of_simple_monte_carlo():
    """Likelihood weighting of draws from the prior; with few points given, so that enough of them count."""
    tasks, draws = drawn(4, shots=2), 150_000
    rng = np.random.default_rng(0)
    family = np.repeat([SINE, LINE], draws)
    parameters = np.concatenate([rng.uniform(*np.array(RANGES[name]).T, (draws, 2)) for name in ("sine", "line")])
    for row in range(len(tasks.inputs)):
        exact = exact_posterior(tasks, row)
        fits = norm.logpdf(tasks.targets[row], true_values(family, parameters, tasks.inputs[row]), NOISE_STD).sum(1)
        weights = np.exp(fits)
        assert exact.log_evidence == pytest.approx(np.log(weights.mean()), abs=0.05)
        weights /= weights.sum()
        error = (weights**2).sum() ** 0.5  # of a weighted share, at most
        assert exact.sine == pytest.approx(weights[family == SINE].sum(), abs=4 * error)
        values = true_values(family, parameters, tasks.query_inputs[row])
        mean = weights @ values
        spread = np.sqrt(weights @ (values - mean) ** 2)
        found = exact.values(tasks.query_inputs[row])
        np.testing.assert_allclose(exact.weights @ found, mean, atol=float(4 * error * spread.max()))
        np.testing.assert_allclose(
            measures.spread(found.T, exact.weights), spread, atol=float(6 * error * spread.max())
        )


def test_a_finer_grid_changes_nothing():
    tasks = drawn(16)
    coarse, fine = (sine_probabilities(tasks, prior_nodes(side)) for side in (200, 283))
    np.testing.assert_allclose(coarse, fine, atol=2e-3)
    assert exact_posterior(tasks, 3).sine == pytest.approx(coarse[3])


@pytest.fixture(scope="module")
def exact_scores():
    """Tasks from the prior with the exact posterior's scores of one query each, so that they are independent."""
    tasks, nodes = drawn(300, shots=4, queries=1, seed=5), prior_nodes(100)
    truth = tasks.values(tasks.query_inputs)
    scores, sines = [], []
    for row in range(len(truth)):
        posterior = exact_posterior(tasks, row, nodes)
        values = posterior.values(tasks.query_inputs[row]).T
        scores.append(scoring.score_task(values, posterior.weights, truth[row], tasks.query_targets[row]))
        sines.append(posterior.sine)
    return tasks, {name: np.stack([entry[name] for entry in scores]) for name in scores[0]}, np.array(sines)


@pytest.mark.parametrize("level", scoring.LEVELS)
def test_intervals_of_the_exact_posterior_hold_what_they_say(exact_scores, level):
    _, scores, _ = exact_scores
    inside = measures.inside(scores["transform"], level)
    assert inside.mean() == pytest.approx(level, abs=4 * (level * (1 - level) / len(inside)) ** 0.5)


def test_the_exact_probability_of_a_sine_is_calibrated(exact_scores):
    tasks, scores, sines = exact_scores
    error = (sines * (1 - sines)).sum() ** 0.5 / len(sines)
    assert sines.mean() == pytest.approx((tasks.family == SINE).mean(), abs=4 * error)
    # The spread of the posterior is the root mean square error of its mean (law of total variance).
    squares, variances = scores["mean_squared_error_of_mean"], scores["spread"] ** 2
    noise = (squares - variances).std() / len(squares) ** 0.5
    assert squares.mean() == pytest.approx(variances.mean(), abs=4 * noise)


# Measures


def mixture(seed=0, components=7):
    rng = np.random.default_rng(seed)
    values, weights = 3 * rng.normal(size=(4, components)), rng.random(components)
    return values, weights / weights.sum(), 3 * rng.normal(size=4)


def test_crps_of_one_normal_is_its_closed_form():
    mean, std, targets = np.array([0.0, 1.0, -2.0]), 0.3, np.array([0.1, -4.0, -2.0])
    z = (targets - mean) / std
    # Gneiting & Raftery (2007), eq. 21
    closed = std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(measures.crps(mean[:, None], np.ones(1), std, targets), closed, rtol=1e-9)


def test_crps_of_a_mixture_is_that_of_all_pairs():
    values, weights, targets = mixture()

    def mean_distance(distance, std):  # E|X| for X ~ N(distance, std²)
        z = distance / std
        return distance * (2 * norm.cdf(z) - 1) + 2 * std * norm.pdf(z)

    std = 0.3
    first = (weights * mean_distance(targets[:, None] - values, std)).sum(-1)
    pairs = mean_distance(values[:, :, None] - values[:, None, :], std * np.sqrt(2))
    second = np.einsum("i,j,nij->n", weights, weights, pairs) / 2
    np.testing.assert_allclose(measures.crps(values, weights, std, targets), first - second, rtol=1e-7)


def test_likelihood_and_distribution_are_those_of_scipy():
    values, weights, targets = mixture(1)
    density = (weights * norm.pdf(targets[:, None], values, 0.3)).sum(-1)
    below = (weights * norm.cdf(targets[:, None], values, 0.3)).sum(-1)
    found = measures.negative_log_likelihood(values, weights, 0.3, targets)
    np.testing.assert_allclose(found, -np.log(density), rtol=1e-10)
    np.testing.assert_allclose(measures.distribution(values, weights, 0.3, targets), below)
    # Central 80 %: from the 10th to the 90th percentile.
    assert measures.inside(np.array([0.05, 0.11, 0.5, 0.89, 0.95]), 0.8).tolist() == [0, 1, 1, 1, 0]


def test_spread_and_quantiles_are_those_of_numpy():
    values = np.random.default_rng(2).normal(size=(50, 3))
    even = np.full(50, 1 / 50)
    np.testing.assert_allclose(measures.spread(values.T, even), values.std(0))
    found = measures.weighted_quantiles(values, even, (0.05, 0.5, 0.95))
    np.testing.assert_allclose(found, np.quantile(values, (0.05, 0.5, 0.95), axis=0, method="inverted_cdf"))
    # Twice the weight is the same as being there twice.
    weights = np.where(np.arange(50) == 7, 2, 1) / 51
    doubled = np.concatenate([values, values[7:8]])
    found = measures.weighted_quantiles(values, weights, (0.3,))
    np.testing.assert_allclose(found, np.quantile(doubled, (0.3,), axis=0, method="inverted_cdf"))


def test_the_family_of_a_function_is_told_by_least_squares():
    grid = measures.family_grid()
    functions = np.stack([2 * np.sin(grid + 1), 0.5 * grid - 3, grid**2])
    distances = measures.family_distances(functions)
    np.testing.assert_allclose([distances[0, SINE], distances[1, LINE]], 0, atol=1e-12)
    columns = np.stack([np.sin(grid), np.cos(grid)], 1)
    _, squares, *_ = np.linalg.lstsq(columns, grid**2, rcond=None)
    assert distances[2, SINE] == pytest.approx(np.sqrt(squares[0] / len(grid)))
    assert scoring.sine_share(distances) == pytest.approx(1 / 3)  # the first; a parabola is nearer to a line


def test_the_best_sample_is_the_best_over_all_queries():
    truth = np.array([[0.0, 0.0]])
    values = np.array([[[3.0, 1.0], [0.0, 2.0]]])  # one task, two queries, two samples
    # (3² + 0²)/2 = 4.5 and (1² + 2²)/2 = 2.5
    assert scoring.best_sample_error(values, truth).tolist() == [2.5]


def test_spread_by_distance_by_hand():
    tasks = Tasks(
        np.array([LINE]), np.zeros((1, 2)), np.array([[0.0, 2.0]]), np.zeros((1, 2)), np.array([[0.1, 1.2, -3.5]]), None
    )
    scores = {"spread": np.array([[0.5, 1.0, 2.0]]), "mean_squared_error_of_mean": np.array([[0.04, 0.25, 9.0]])}
    rows = scoring.by_distance(tasks, scores)
    # 0.1 from 0, 0.8 from 2, 3.5 from 0
    assert [(row["from"], row["to"]) for row in rows] == [(0.0, 0.25), (0.5, 1.0), (3.0, 4.0)]
    np.testing.assert_allclose([row["mean_distance"] for row in rows], [0.1, 0.8, 3.5])
    assert [row["spread"] for row in rows] == [0.5, 1.0, 2.0]
    np.testing.assert_allclose([row["root_mean_squared_error_of_mean"] for row in rows], [0.2, 0.5, 3.0])
