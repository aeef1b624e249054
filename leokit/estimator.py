"""A run as a scikit-learn classifier on feature arrays."""

import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from leokit.calibration import tempered
from leokit.checks import LEO, check_method
from leokit.classifiers import Classifier
from leokit.devices import resolve_device
from leokit.engine.fitting import METHODS, answer, centre_of, fit, support_matrix
from leokit.errors import UsageError
from leokit.runs import Run, open_run

_DTYPES = [np.float64, np.float32, np.float16]  # what is none of them, as a list, becomes the first


class LEOClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """LEO's inner loop as a classifier: `fit` adapts a meta-trained run to labelled features.

    Features are rows of the backbone that the run was trained on, as `leokit extract` stores them; they are normalised
    here as the run wants them. Labels are of any type, classes of any number, each with any number of rows: all classes
    weigh alike, and giving every row of a class twice changes nothing. `fit` and `predict` give exactly what
    `leokit eval` scores on the same episode.

    Args:
        run: the folder of a run, or the run.
        method: `leo`, the run's own variant; `class-mean` or `logistic` on the same features.
        samples: of codes and weights (S), each adapted, whose predictions are averaged; 0 for their means alone.
        temperature: that probabilities are taken at; `leokit uncertainty` fits one on meta-val.
        device: auto, cpu, cuda, cuda:N or mps.

    Attributes:
        classes_: (C,), the labels, sorted.
        coef_: (S, C, D), the weights of the linear classifiers on unit (and centred, if the run was) features.
        n_features_in_: D.

    Example:
        >>> from leokit import FeatureStore, LEOClassifier
        >>> features = FeatureStore.open(work / "features")
        >>> names = features.classes("test")[:5]
        >>> rows = [features.read_class("test", name) for name in names]
        >>> X, y = np.concatenate([of_class[:1] for of_class in rows]), names
        >>> classifier = LEOClassifier(work / "runs" / "leo-5way-1shot").fit(X, y)
        >>> classifier.predict_proba(rows[0][1:4]).shape
        (3, 5)
        >>> classifier.predict(rows[0][1:4])[0] in names
        True
    """

    def __init__(
        self,
        run: str | Path | Run,
        *,
        method: str = LEO,
        samples: int = 0,
        temperature: float = 1.0,
        device: str = "auto",
    ) -> None:
        self.run = run
        self.method = method
        self.samples = samples
        self.temperature = temperature
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Adapt the run to a support set.

        Images of a class weigh alike, and classes do: there are no sample weights. An image that is given several times
        weighs more within its class.

        Args:
            X: (n, D), features of the run's backbone; also n lists of D numbers, as a column of a data frame.
            y: (n,), labels (strings, whole numbers or booleans) of at least two classes.

        Raises:
            ValueError: one class alone, a value that is not finite.
            UsageError: a method or samples that the run does not have.
            DataError: features of another width than the run's.
        """
        if self.method not in METHODS:
            raise UsageError(f"method = {self.method!r}: it is one of {', '.join(METHODS)}.")
        if not isinstance(self.temperature, int | float | np.number) or not 0 < self.temperature < np.inf:
            raise UsageError(f"temperature = {self.temperature!r}: it must be a number above 0.")
        if not isinstance(self.samples, int | np.integer) or self.samples < 0:
            raise UsageError(f"samples = {self.samples!r}: it must be a whole number, 0 or more.")
        rows, labels = validate_data(self, _as_matrix(X), y, dtype=_DTYPES)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="The number of unique classes"
            )  # one image of each is a support set
            check_classification_targets(labels)
        run = self._open()
        check_method(run, self.method, self.samples)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        names = [str(label) for label in self.classes_]
        if len(names) < 2:
            raise ValueError(f"The support set has one class, {names[0]!r}: at least 2 are needed.")
        support = support_matrix(rows, numbers, names, run, resolve_device(self.device))
        weights = fit(run, support, self.method, samples=self.samples).cpu()
        self.coef_: NDArray[Any] = weights.numpy()
        self._classifier = Classifier(
            classes=tuple(names),
            counts=tuple(np.bincount(numbers).tolist()),
            method=self.method,
            variant=run.config.variant,
            weights=weights,
            centre=centre_of(run, self.method),
            dtype=run.config.dtype,
            stored_dtype=None,
            backbone=run.facts["backbone"],
            weights_from={},
            run=run.id,
            chosen="",
            evidence=None,
        )
        return self

    def _open(self) -> Run:
        return self.run if isinstance(self.run, Run) else open_run(Path(self.run))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities (n, C), in the order of `classes_`, of features (n, D)."""
        check_is_fitted(self)
        rows = validate_data(self, _as_matrix(X), dtype=_DTYPES, reset=False)
        given = answer(self._classifier, rows, resolve_device(self.device))
        return tempered(given.probabilities, self.temperature)

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logarithms (n, C) of the probabilities of features (n, D); -inf where one is 0."""
        with np.errstate(divide="ignore"):
            found: NDArray[np.float64] = np.log(self.predict_proba(X))
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (n,) of features (n, D): those of the largest probability."""
        probabilities = self.predict_proba(X)  # first, as it says where there is no classifier yet
        labels: NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return labels


def _as_matrix(X: ArrayLike) -> Any:
    """A column of rows, as the lists in a column of a data frame, as one array; all else as it is.

    Raises:
        ValueError: rows of different lengths.
    """
    column = np.asarray(X) if hasattr(X, "__array__") else np.empty(0)
    if column.ndim != 1 or not len(column) or not isinstance(column[0], list | tuple | np.ndarray):
        return X
    rows = [np.asarray(row) for row in column]
    if shapes := {row.shape for row in rows} - {rows[0].shape}:
        raise ValueError(f"The rows of X have different shapes: {rows[0].shape} and {shapes.pop()}.")
    return np.stack(rows)
