"""Points of many dimensions in the plane, for pictures: principal components and t-SNE, by scikit-learn."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def principal_components(points: NDArray[np.floating[Any]]) -> Floats:
    """The first two principal components (n, 2) of points (n, W), W ≥ 2."""
    from sklearn.decomposition import PCA

    with _one_thread():
        positions: Floats = PCA(2, svd_solver="full").fit_transform(np.asarray(points, np.float64))
    return positions


def tsne(points: NDArray[np.floating[Any]], *, perplexity: float, seed: int) -> Floats:
    """Positions (n, 2) of points (n, W), W ≥ 2, that keep near ones near (van der Maaten 2014, Barnes-Hut t-SNE).

    It starts from the principal components and runs on one thread, so that a machine gives the same positions each
    time. Another machine may give others: the descent magnifies differences of rounding.

    Args:
        points: what to place.
        perplexity: how many neighbours a point has, in effect; below n.
        seed: of scikit-learn's draws.
    """
    from sklearn.manifold import TSNE

    with _one_thread():
        method = TSNE(2, perplexity=perplexity, init="pca", random_state=seed % 2**32, n_jobs=1)
        positions: Floats = method.fit_transform(np.asarray(points, np.float32)).astype(np.float64)
    return positions


def _one_thread() -> Any:
    """Limit the libraries that are loaded by now, so enter it after an import."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)
