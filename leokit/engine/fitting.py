"""From a support set to a classifier, and from a classifier to answers."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokit.baselines import COSINE_SCALE, class_mean, logistic_regression
from leokit.calibration import Floats, tempered
from leokit.classifiers import Classifier
from leokit.engine.members import CLASS_MEAN, LOGISTIC, learner_of, tensors_of
from leokit.engine.predictives import Answers, answers
from leokit.engine.scoring import one_thread
from leokit.episodes import FeatureMatrix, all_as_support, types_of
from leokit.errors import DataError, UsageError
from leokit.features import FeatureTable
from leokit.runs import Run
from leokit.text import method_name

LEO = "leo"  # a run's own variant, whichever it is
METHODS = (LEO, CLASS_MEAN, LOGISTIC)


def support_matrix(
    vectors: NDArray[np.floating], numbers: NDArray[np.int64], classes: Sequence[str], run: Run, device: torch.device
) -> FeatureMatrix:
    """Support vectors (n, D) of the classes of these numbers (n,) as a matrix, in the types of a run.

    Raises:
        DataError: no vector of a class, another width than the run's, or a value that is not finite.
    """
    if vectors.ndim != 2 or vectors.shape[1] != run.facts["dim"]:
        raise DataError(f"The features are {vectors.shape}; the run {run.folder} wants (n, {run.facts['dim']}).")
    counts = np.bincount(numbers, minlength=len(classes))
    if not counts.all():
        raise DataError(f"The class {classes[int(counts.argmin())]!r} has no support image.")
    order = np.argsort(numbers, kind="stable")
    dtype, held = types_of(run.config)
    table = FeatureTable(vectors[order], list(classes), np.concatenate([[0], np.cumsum(counts)]))
    return FeatureMatrix(table, device=device, dtype=dtype, held=held)


@torch.inference_mode()
def fit(run: Run, support: FeatureMatrix, method: str = LEO, *, samples: int = 0) -> Tensor:
    """The classifiers (S, C, D) of a method on a support set; S is 1 unless samples are asked for.

    Classes may have different numbers of images. Giving every image of a class twice changes nothing.

    Args:
        run: whose method and parameters are adapted.
        support: of all classes, as in the store, not centred.
        method: one of `METHODS`.
        samples: of codes and weights (S), each adapted, for `leo`.

    Raises:
        UsageError: the run cannot do it: other ways for meta-sgd, samples of a variant without them.
    """
    if method == LEO and run.centre is not None:
        support = support.centred(run.centre)
    rows, shares = all_as_support(support)
    with one_thread():
        if method == CLASS_MEAN:
            return COSINE_SCALE * class_mean(rows, shares)
        if method == LOGISTIC:
            return logistic_regression(rows, shares=shares)
        learner, tensors = learner_of(run), tensors_of(run, rows.device)
        if samples:
            return learner.posterior(tensors, rows, range(1), samples, shares).squeeze(1)
        return learner.weights(tensors, rows, range(1), shares)


def centre_of(run: Run, method: str) -> Tensor | None:
    """What a method of a run centres unit features on, (D,), or None."""
    return run.centre if method == LEO else None


@torch.inference_mode()
def logits(classifier: Classifier, vectors: NDArray[np.floating], device: torch.device) -> Tensor:
    """Logits (S, 1, n, C) of feature vectors (n, D), before any temperature.

    Raises:
        DataError: another width, or a value that is not finite.
    """
    if vectors.ndim != 2 or vectors.shape[1] != classifier.dim:
        raise DataError(f"The features are {vectors.shape}; the classifier wants (n, {classifier.dim}).")
    if classifier.stored_dtype:
        vectors = vectors.astype(classifier.stored_dtype)
    table = FeatureTable(vectors, ["queries"], np.array([0, len(vectors)]))
    matrix = FeatureMatrix(table, device=device, dtype=getattr(torch, classifier.dtype))
    if classifier.centre is not None:
        matrix = matrix.centred(classifier.centre)
    weights = classifier.weights.to(device, matrix.dtype)
    with one_thread():
        return (
            torch.unflatten(matrix.take(slice(None)) @ weights.flatten(0, 1).T, 1, weights.shape[:2])
            .transpose(0, 1)
            .unsqueeze(1)
        )


def answer(classifier: Classifier, vectors: NDArray[np.floating], device: torch.device) -> Answers:
    """What a classifier says of feature vectors (n, D): arrays (n, C) and (n,), probabilities not yet tempered."""
    given = answers(logits(classifier, vectors, device))
    return Answers(*(value[0] for value in given))


def probabilities(classifier: Classifier, given: Answers) -> Floats:
    """Probabilities (n, C) at the classifier's temperature."""
    return tempered(given.probabilities, classifier.temperature)


def check_method(run: Run, method: str, samples: int) -> None:
    """Check that a run can do what was asked.

    Raises:
        UsageError: samples of what has none.
    """
    if samples and method != LEO:
        raise UsageError(f"--samples {samples} with --method {method}: only leo has samples; give --method leo.")
    if samples and not learner_of(run).has_posterior:
        raise UsageError(
            f"--samples {samples}: {run.folder} is a run of {method_name(run.config.variant)}, trained without "
            "samples; leave it out."
        )
