"""LEOClassifier: what `leokit eval` scores, to the last digit, and a scikit-learn classifier."""

import warnings
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import has_fit_parameter

from leokit import LEOClassifier, evaluate, meta_train
from leokit.baselines import fit_logistic
from leokit.episodes import EpisodeSampler
from leokit.errors import DataError, UsageError
from tests.e2e.conftest import make_store

TRAIN = {"steps": 6, "val_every": 3, "val_episodes": 10, "val_queries": 4, "queries": 4, "num_latents": 8}
VARIANTS = ("leo", "anchored", "meta-sgd", "random-prior", "deterministic")
EPISODES, QUERIES = 40, 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    work = tmp_path_factory.mktemp("estimator") / "work"
    store = make_store(work / "features", classes=(8, 7, 7), dim=24, images=16, spread=1.5)
    runs = {name: meta_train(work=work, variant=name, centring=name == "anchored", **TRAIN) for name in VARIANTS}
    return work, store, runs


@pytest.fixture(scope="module")
def support(made):
    """Four classes of 1 to 4 rows, and 30 further rows."""
    _, store, _ = made
    rows = [store.read_class("test", name) for name in store.classes("test")[:4]]
    X = np.concatenate([of_class[: number + 1] for number, of_class in enumerate(rows)])
    y = np.repeat(["pear", "apple", "fig", "date"], [1, 2, 3, 4])
    return X, y, np.concatenate([of_class[6:] for of_class in rows])


@pytest.mark.parametrize(("method", "variant", "shots"), [
    *(("leo", variant, 1) for variant in VARIANTS if variant != "random-prior"),
    ("leo", "leo", 5),
    ("class-mean", "leo", 3),
    ("logistic", "leo", 3),
])  # fmt: skip
def test_it_equals_eval_on_the_same_episodes(made, method, variant, shots):
    work, store, runs = made
    options = {"shots": shots, "queries": str(QUERIES), "episodes": EPISODES, "methods": "class-mean,logistic"}
    found = evaluate(runs[variant], features=store.folder, out=work / "eval" / f"{variant}{method}{shots}", **options)
    expected = found.accuracies()[variant if method == "leo" else method]
    table = store.load("test")
    sampler = EpisodeSampler(torch.from_numpy(table.offsets), ways=5, seed=0, purpose="evaluation")
    rows = sampler.draw(range(EPISODES), shots=shots, queries=QUERIES)
    for episode in range(EPISODES):
        classifier = LEOClassifier(runs[variant], method=method)
        X, queries = (table.embeddings[part[episode].flatten().numpy()] for part in (rows.support, rows.query))
        classifier.fit(X, np.repeat(np.arange(5), shots))
        right = classifier.predict(queries) == np.repeat(np.arange(5), QUERIES)
        assert right.mean() == expected[episode]


@pytest.mark.parametrize("method", ["leo", "class-mean", "logistic"])
@pytest.mark.parametrize("variant", ["leo", "anchored"])
def test_giving_every_image_of_a_class_twice_changes_nothing(made, support, method, variant):
    _, _, runs = made
    X, y, _ = support
    of_one = np.flatnonzero(y == "fig")
    doubled = np.concatenate([np.arange(len(y)), of_one])
    once, twice = (LEOClassifier(runs[variant], method=method).fit(X[rows], y[rows]) for rows in (slice(None), doubled))
    assert np.array_equal(once.coef_, twice.coef_)


def test_giving_one_image_of_a_class_twice_moves_it(made, support):
    _, _, runs = made
    X, y, _ = support
    more = np.concatenate([np.arange(len(y)), np.flatnonzero(y == "fig")[:1]])
    for method in ("leo", "class-mean", "logistic"):
        once, twice = (LEOClassifier(runs["leo"], method=method).fit(X[rows], y[rows]) for rows in (slice(None), more))
        assert not np.allclose(once.coef_, twice.coef_)


def test_ragged_shares_of_one_size_are_the_plain_method(made):
    """Logistic regression with equal weights of images is the one that eval takes."""
    rng = np.random.default_rng(0)
    support = rng.normal(size=(2, 3, 4, 6))
    shares = np.full((2, 3, 4), 0.25)
    np.testing.assert_allclose(fit_logistic(support, shares=shares), fit_logistic(support), atol=1e-6)


def test_classes_weigh_alike_in_logistic_regression():
    """By scikit-learn's own class weights on the rows that are there."""
    rng = np.random.default_rng(0)
    support, shares = rng.normal(size=(1, 2, 3, 5)), np.array([[[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3]]])
    rows = support.reshape(6, 5)[[0, 3, 4, 5]]
    balanced = LogisticRegression(C=10.0, fit_intercept=False, class_weight="balanced", max_iter=1000, tol=1e-10)
    expected = balanced.fit(rows, [0, 1, 1, 1]).coef_[0]
    found = fit_logistic(support, shares=shares)[0]
    np.testing.assert_allclose(found[1] - found[0], expected, atol=1e-2)  # its iterations end early


def test_labels_of_any_type_in_any_order(made, support):
    _, _, runs = made
    X, y, queries = support
    words = LEOClassifier(runs["leo"]).fit(X, y)
    assert words.classes_.tolist() == ["apple", "date", "fig", "pear"]
    numbers = {"apple": 10, "date": -5, "fig": 7, "pear": 0}
    whole = LEOClassifier(runs["leo"]).fit(X, [numbers[label] for label in y])
    assert [numbers[label] for label in words.predict(queries)] == whole.predict(queries).tolist()
    order = np.random.default_rng(0).permutation(len(y))
    shuffled = LEOClassifier(runs["leo"]).fit(X[order], y[order])
    np.testing.assert_allclose(words.predict_proba(queries), shuffled.predict_proba(queries), atol=1e-5)
    np.testing.assert_allclose(words.predict_proba(queries).sum(1), 1)


def test_scikit_learn_takes_it(made):
    _, store, runs = made
    names = store.classes("test")[:3]
    X = np.concatenate([store.read_class("test", name) for name in names])
    y = np.repeat(names, 16)
    classifier = LEOClassifier(str(runs["leo"].folder))
    twin = clone(classifier)
    assert twin is not classifier and twin.get_params() == classifier.get_params()
    scores = cross_val_score(classifier, X, y, cv=4)
    assert scores.shape == (4,) and scores.mean() > 1 / 3
    pipeline = make_pipeline(FunctionTransformer(lambda rows: 3 * rows), LEOClassifier(runs["leo"]))
    assert np.array_equal(pipeline.fit(X, y).predict(X), classifier.fit(X, y).predict(X))  # the norm is divided out
    calibrated = CalibratedClassifierCV(LEOClassifier(runs["leo"]), cv=3).fit(X, y)
    assert calibrated.predict_proba(X[:5]).shape == (5, 3)


# Checks of scikit-learn that do not hold, with the reason; at present there is none.
EXCEPTIONS: dict[str, str] = {}


class _AnyWidth(LEOClassifier):
    """The classifier by a run of whatever width the features have."""

    def _open(self):
        return run_of_width(self.n_features_in_)


@lru_cache
def run_of_width(dim):
    with TemporaryDirectory() as place:
        make_store(Path(place, "features"), classes=(5, 5, 5), dim=dim, images=8)
        return meta_train("own-images", work=place, steps=2, val_every=2, val_episodes=4, val_queries=2, queries=2)


def test_every_check_of_scikit_learn_holds():
    results = check_estimator(_AnyWidth("a run"), expected_failed_checks=EXCEPTIONS, on_skip=None, on_fail=None)
    status = {result["check_name"]: result["status"] for result in results}
    assert {name: word for name, word in status.items() if word not in ("passed", "skipped")} == dict.fromkeys(
        EXCEPTIONS, "xfail"
    ), [result["exception"] for result in results if result["status"] == "failed"]
    assert len(status) > 40


@pytest.mark.parametrize("rows", [
    lambda X: pd.DataFrame({"embedding": X.tolist()}, index=range(7, 7 + len(X)))["embedding"],
    lambda X: pd.DataFrame({"embedding": list(X)})["embedding"],
    lambda X: np.array([*map(tuple, X.tolist()), None], dtype=object)[:-1],
    lambda X: X.tolist(),
    lambda X: pd.DataFrame(X),
])  # fmt: skip
def test_features_in_any_container(made, support, rows):
    _, _, runs = made
    X, y, queries = support
    expected = LEOClassifier(runs["leo"]).fit(X, y).predict_log_proba(queries)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X has feature names")
        found = LEOClassifier(runs["leo"]).fit(rows(X), y).predict_log_proba(rows(queries))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(1), 1)


def test_bagging_takes_it(made):
    """It passes no sample weights, as `fit` has none: it draws rows instead."""
    _, store, runs = made
    X = np.concatenate([store.read_class("test", name) for name in store.classes("test")[:3]])
    y = np.repeat(["a", "b", "c"], 16)
    assert not has_fit_parameter(LEOClassifier(runs["leo"]), "sample_weight")
    assert BaggingClassifier(LEOClassifier(runs["leo"]), 3, random_state=0).fit(X, y).score(X, y) > 1 / 3


def test_more_ways_than_it_was_trained_for_and_samples(made):
    _, store, runs = made
    table = store.load("train", "val", "test")
    starts = table.offsets[:-1]
    X, y = table.embeddings[starts], table.classes
    found = LEOClassifier(runs["leo"]).fit(X, y)
    assert found.predict_proba(table.embeddings[starts + 1]).shape == (22, 22)
    sampled = LEOClassifier(runs["leo"], samples=5).fit(X, y)
    assert sampled.coef_.shape == (5, 22, 24)
    assert not np.allclose(sampled.coef_[0], sampled.coef_[1])
    hot, cold = (LEOClassifier(runs["leo"], temperature=value).fit(X, y) for value in (10.0, 0.1))
    rows = table.embeddings[starts + 1]
    assert (hot.predict_proba(rows).max(1) < cold.predict_proba(rows).max(1)).all()
    assert np.array_equal(hot.predict(rows), cold.predict(rows))


def test_bad_input_is_a_sentence(made, support):
    _, _, runs = made
    X, y, queries = support
    with pytest.raises(ValueError, match=r"different shapes: \(24,\) and \(23,\)"):
        LEOClassifier(runs["leo"]).fit(np.array([*X[:-1], X[-1, 1:]], dtype=object), y)
    with pytest.raises(ValueError, match="one class, 'pear'"):
        LEOClassifier(runs["leo"]).fit(X[:1], y[:1])
    with pytest.raises(DataError, match=r"wants \(n, 24\)"):
        LEOClassifier(runs["leo"]).fit(X[:, :8], y)
    with pytest.raises(ValueError, match="NaN"):
        LEOClassifier(runs["leo"]).fit(np.where(X == X[0, 0], np.nan, X), y)
    with pytest.raises(UsageError, match="one of leo, class-mean, logistic"):
        LEOClassifier(runs["leo"], method="maml").fit(X, y)
    with pytest.raises(UsageError, match="its own 5 ways only"):
        LEOClassifier(runs["meta-sgd"]).fit(X, y)
    with pytest.raises(UsageError, match="without samples"):
        LEOClassifier(runs["deterministic"], samples=3).fit(X, y)
    with pytest.raises(ValueError, match="features"):
        LEOClassifier(runs["leo"]).fit(X, y).predict(queries[:, :8])


def test_before_a_fit_it_says_that_it_is_not_fitted(made):
    with pytest.raises(NotFittedError):
        LEOClassifier(made[2]["leo"]).predict(np.zeros((1, 4)))
