"""Baselines against scikit-learn, one episode at a time."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn.functional import normalize

from leokit.baselines import class_mean, logistic_regression, ridge_regression
from leokit.episodes import FeatureMatrix
from leokit.features import FeatureTable
from leokit.leo import predict

WAYS, SHOTS, DIM = 4, 3, 15
LABELS = np.repeat(np.arange(WAYS), SHOTS)


@pytest.fixture
def episodes():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, WAYS, 1, DIM, dtype=torch.float64, generator=generator)
    noise = torch.randn(6, WAYS, SHOTS + 5, DIM, dtype=torch.float64, generator=generator)
    images = normalize(centres + noise, dim=-1)
    return images[:, :, :SHOTS], images[:, :, SHOTS:]


def flat(images):
    return images.flatten(0, 1).numpy()


def test_class_mean_predicts_the_largest_cosine(episodes):
    support, query = episodes
    ours = predict(class_mean(support), query).argmax(-1)
    for index in range(len(support)):
        similarity = cosine_similarity(flat(query[index]), support[index].mean(1).numpy())
        assert np.array_equal(ours[index].flatten(), similarity.argmax(1))


def test_ridge_regression_is_scikit_learns(episodes):
    support, _ = episodes
    weights = ridge_regression(support, 0.5)
    for index in range(len(support)):
        model = Ridge(alpha=0.5, fit_intercept=False).fit(flat(support[index]), np.eye(WAYS)[LABELS])
        np.testing.assert_allclose(weights[index], model.coef_, atol=1e-9)


@pytest.mark.parametrize("ways", [2, 4])
def test_logistic_regression_predicts_as_scikit_learn(episodes, ways):
    support, query = (images[:, :ways] for images in episodes)
    ours = predict(logistic_regression(support), query).argmax(-1)
    for index in range(len(support)):
        model = LogisticRegression(C=10, fit_intercept=False, max_iter=1000)
        model.fit(flat(support[index]), np.repeat(np.arange(ways), SHOTS))
        assert np.array_equal(ours[index].flatten(), model.predict(flat(query[index])))


def test_centred_rows_are_unit_and_their_origin_is_the_mean():
    rng = np.random.default_rng(0)
    table = FeatureTable((rng.normal(size=(8, 5)) + 3).astype(np.float32), ["a", "b"], np.array([0, 4, 8]))
    matrix = FeatureMatrix(table, dtype=torch.float64)
    mean = matrix.rows.mean(0)
    centred = matrix.centred(mean)
    torch.testing.assert_close(centred.rows, normalize(matrix.rows - mean, dim=-1))
    torch.testing.assert_close(centred.rows.norm(dim=1), torch.ones(8, dtype=torch.float64))
    assert centred.classes == matrix.classes
