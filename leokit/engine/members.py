"""Runs and baselines as members of a predictive: features, and classifiers on them."""

from functools import partial

import torch

from leokit.baselines import COSINE_SCALE, class_mean, logistic_regression
from leokit.engine.predictives import Member
from leokit.episodes import FeatureMatrix
from leokit.leo.learners import Learner, Tensors, make_learner
from leokit.runs import Run

CLASS_MEAN, LOGISTIC = "class-mean", "logistic"


def baseline_member(name: str, features: FeatureMatrix) -> Member:
    """Nearest class mean or logistic regression, by name, on unit features."""
    if name == CLASS_MEAN:
        return Member(features, lambda support, _, shares: COSINE_SCALE * class_mean(support, shares))
    return Member(features, lambda support, _, shares: logistic_regression(support, shares=shares))


def run_member(run: Run, features: FeatureMatrix, *, samples: int = 0) -> Member:
    """A run on unit features, centred here where it was trained on centred ones.

    Args:
        run: the run.
        features: as they are in the store.
        samples: of codes and weights (S), each adapted; 0 for one classifier by their means.
    """
    learner, tensors = learner_of(run), tensors_of(run, features.rows.device)
    matrix = features if run.centre is None else features.centred(run.centre)
    if not samples:
        return Member(matrix, partial(learner.weights, tensors))
    return Member(
        matrix, lambda support, ids, shares: learner.posterior(tensors, support, ids, samples, shares), samples
    )


def learner_of(run: Run) -> Learner:
    """The run's method."""
    return make_learner(run.config, run.facts["dim"])


def tensors_of(run: Run, device: torch.device) -> Tensors:
    """The run's parameters on a device."""
    return {name: value.to(device) for name, value in run.parameters.items()}
