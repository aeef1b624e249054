"""What is told of codes, curvature and steps: medians, percentiles and intervals, as plain data for a summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leokit.engine.geometry import POINTS, Codes, Floats, Geometry
from leokit.errors import UsageError
from leokit.metrics import jackknife_half_width, percentiles, silhouettes

_GROUPS = 50  # of episodes, for the jackknife
DEFINITIONS = {
    "curvature": "Eigenvalues of the Hessian of the support loss (sum over classes of the mean over shots) by the "
    "codes or weights of all classes of an episode, but for those that are 0 by construction: NK(N-1) are left. At the "
    "start at the first codes and the weights they decode to; adapted at the last codes, and at the final weights.",
    "singular_values": "Of the linear map from a class's code to its weights, the mean half of the decoder (of "
    "anchored times its gate).",
    "steps": "Euclidean lengths over all classes of an episode; latent: of the steps in codes and of those in weights "
    "that they induce; weights: of steps in weights (fine-tuning, or all of meta-sgd).",
    "distance": "From where adapting starts to where it ends, over all classes of an episode.",
    "silhouette": "Of codes by class, Euclidean (Rousseeuw 1987), with the 95 % interval over episodes on these "
    f"classes, by the jackknife that leaves out {_GROUPS} groups of them in turn.",
}


def describe_geometry(geometry: Geometry) -> dict[str, Any]:
    """Percentiles of curvature, steps and distances; None for what a run has not."""
    curvature: dict[str, Any] = {}
    for point in POINTS:
        found = {
            space: percentiles(values) if (values := geometry.curvature.get((point, space))) is not None else None
            for space in ("codes", "weights")
        }
        curvature[point] = {**found, "ratio_of_medians": ratio_of_medians(found["codes"], found["weights"])}
    latent = geometry.code_steps.shape[1]
    induced, plain = geometry.weight_steps[:, :latent], geometry.weight_steps[:, latent:]
    steps: dict[str, Any] = {"latent": None, "weights": None}
    if latent:
        steps["latent"] = {
            "count": latent,
            "codes": percentiles(geometry.code_steps),
            "weights": percentiles(induced),
        }
    if plain.shape[1]:
        steps["weights"] = {"count": plain.shape[1], "weights": percentiles(plain)}
    distances = {"codes": geometry.code_distances, "weights": geometry.weight_distances}
    return {
        "curvature": curvature,
        "steps": steps,
        "distance": {
            space: percentiles(values[:, -1]) if values.shape[1] else None for space, values in distances.items()
        },
    }


def describe_singular_values(values: Floats) -> dict[str, float]:
    """Percentiles and ends of singular values in descending order, and how many of them expand."""
    return {
        **percentiles(values),
        "largest": float(values[0]),
        "smallest": float(values[-1]),
        "share_above_1": float((values > 1).mean()),
    }


def describe_codes(codes: Codes, names: Sequence[str], highlight: str | None) -> dict[str, Any]:
    """Silhouettes before and after adapting, of all codes and of each class, with 95 % intervals over episodes.

    Args:
        codes: of the episodes.
        names: of all classes.
        highlight: a class to name; None for the one whose silhouette changes most.

    Raises:
        UsageError: no episode has the class.
    """
    episodes, ways = codes.classes.shape
    left_out = np.arange(episodes) % min(_GROUPS, episodes) == np.arange(min(_GROUPS, episodes))[:, None]
    chosen = np.concatenate([np.ones((1, episodes), np.bool_), ~left_out]).repeat(ways, axis=1)
    labels = codes.classes.reshape(-1)
    before, after = (
        silhouettes(points.reshape(len(labels), -1), labels, chosen) for points in (codes.before, codes.after)
    )
    by_class = {
        names[number]: _describe_change(before.by_class[:, number], after.by_class[:, number])
        for number in np.unique(labels).tolist()
    }
    if highlight is not None and highlight not in by_class:
        raise UsageError(f"--highlight {highlight}: none of the {episodes} episodes has it: raise --val-episodes.")
    return {
        "points": len(labels),
        "silhouette": _describe_change(before.overall, after.overall),
        "silhouette_by_class": by_class,
        "highlighted": highlight or max(by_class, key=lambda name: abs(by_class[name]["difference"]["mean"])),
    }


def _describe_change(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    """Before, after and their paired difference; of values (1 + G,) the first counts, the others lack a group each."""
    return {
        name: {"mean": float(values[0]), "half_width_95_over_episodes": jackknife_half_width(values[1:])}
        for name, values in (("before", before), ("after", after), ("difference", after - before))
    }


def ratio_of_medians(first: dict[str, float] | None, second: dict[str, float] | None) -> float | None:
    """Of two medians, where there are both and it is a number."""
    return first["median"] / second["median"] if first and second and second["median"] > 0 else None
