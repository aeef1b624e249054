"""Other methods on the same episodes: from support images to the weights of a linear classifier, as LEO gives them.

None has a bias, so that a classifier is its weights: classes are balanced in an episode, and a prediction is the class
of the largest product with a unit query.
"""

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn.functional import normalize

COSINE_SCALE = 10.0  # what a cosine to a class mean is multiplied with to be a logit, before any temperature
RIDGE = 0.5
LOGISTIC_C = 10.0


def class_mean(support: Tensor, shares: Tensor | None = None) -> Tensor:
    """Nearest class mean: the normalised mean (..., N, D) of each class's unit features (..., N, K, D).

    With unit queries a logit is the cosine to the mean (Snell et al. 2017 with cosine similarity). Shares (..., N, K),
    of sum 1 for each class, weigh the images where classes have different numbers of them.

    Example:
        >>> support = normalize(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [0.0, -1.0]]]), dim=-1)
        >>> class_mean(support).round(decimals=3).tolist()
        [[0.7070000171661377, 0.7070000171661377], [0.0, -1.0]]
    """
    means = support.mean(-2) if shares is None else (support * shares.unsqueeze(-1)).sum(-2)
    return normalize(means, dim=-1)


def ridge_regression(support: Tensor, penalty: float = RIDGE) -> Tensor:
    """Ridge regression on one-hot labels, (..., N, K, D) -> (..., N, D), in closed form.

    In its dual form, W = Yᵀ (X Xᵀ + λ I)⁻¹ X, only a matrix of NK × NK is inverted.
    """
    ways, shots = support.shape[-3:-1]
    images = support.flatten(-3, -2)  # (..., NK, D)
    identity = torch.eye(ways * shots, dtype=support.dtype, device=support.device)
    labels = torch.eye(ways, dtype=support.dtype, device=support.device).repeat_interleave(shots, 0)  # (NK, N)
    gram = images @ images.transpose(-1, -2) + penalty * identity
    dual: Tensor = torch.linalg.solve(gram, labels.expand(*gram.shape[:-1], ways))  # (..., NK, N)
    return dual.transpose(-1, -2) @ images


def logistic_regression(
    support: Tensor, inverse_penalty: float = LOGISTIC_C, *, shares: Tensor | None = None
) -> Tensor:
    """Multinomial logistic regression by scikit-learn, (B, N, K, D) -> (B, N, D), an episode at a time.

    With shares (B, N, K), of sum 1 for each class, all classes weigh alike: as the mean class does by its images.
    """
    weighed = None if shares is None else shares.cpu().numpy()
    return torch.from_numpy(fit_logistic(support.cpu().numpy(), inverse_penalty, weighed)).to(support)


def fit_logistic(
    support: NDArray[Any], inverse_penalty: float = LOGISTIC_C, shares: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """The same on arrays, for worker processes; on one thread, so that the result is the same in all of them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _, ways, shots, _ = support.shape
    labels = np.repeat(np.arange(ways), shots)
    weights = np.empty((len(support), ways, support.shape[-1]), np.float64)
    with warnings.catch_warnings(), _thread_pools().limit(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterate is as good a classifier
        for index, images in enumerate(support.reshape(len(support), ways * shots, -1)):
            of_images = None
            if shares is not None:
                of_images = shares[index].ravel() * (shares[index] > 0).sum(1).mean()  # 1 where classes are of one size
            model = LogisticRegression(C=inverse_penalty, fit_intercept=False, max_iter=1000)
            model.fit(images, labels, sample_weight=of_images)
            # With two classes scikit-learn keeps the one difference of their weights.
            weights[index] = model.coef_ if ways > 2 else np.concatenate([-model.coef_, model.coef_]) / 2
    return weights


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries, which takes milliseconds
