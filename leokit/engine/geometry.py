"""How runs adapt: codes before and after, curvature at both ends of the path, and the lengths of its steps.

Episodes go in blocks whose size depends on theirs alone, each computed on one thread of a CPU, so that results are
exact on one device and memory is bounded.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokit.engine.scoring import blocks_of, one_thread
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.leo.curvature import hessian_eigenvalues
from leokit.leo.learners import Learner, Path, Tensors

POINTS = ("start", "adapted")
Floats = NDArray[np.floating[Any]]
Progress = Callable[[int, int], None]
_BLOCK_ELEMENTS = 2**22  # of the largest array of a block


@dataclass(frozen=True)
class Subject:
    """A run on the features of a split.

    Attributes:
        learner: its variant.
        tensors: its parameters, on the device of the features.
        features: unit rows, centred where the run wants them so.
        sampler: of the episodes, over the same rows.
        shots: K.
        steps: most steps that adapting takes, T + F.
    """

    learner: Learner
    tensors: Tensors
    features: FeatureMatrix
    sampler: EpisodeSampler
    shots: int
    steps: int


class Codes(NamedTuple):
    """The codes of E episodes at both ends of the latent loop."""

    classes: NDArray[np.int64]  # (E, N), numbers of the classes
    before: Floats  # (E, N, Z)
    after: Floats  # (E, N, Z)


class Geometry(NamedTuple):
    """Curvature and steps of E episodes, with T steps in latent space and F in weight space.

    Curvature is that of the support loss as it is descended on: the sum over classes of the mean over shots. At the
    start it is at the first codes and what they decode to; adapted, by codes at the last codes and by weights at the
    classifier. Lengths are Euclidean, over the codes or weights of all classes of an episode together.
    """

    curvature: dict[tuple[str, str], Floats]  # by point, of POINTS, and space, codes or weights: (E, R)
    code_steps: Floats  # (E, T), length of each step
    code_distances: Floats  # (E, T), from the start to where each step ends
    weight_steps: Floats  # (E, T+F), of the latent steps those that they induce
    weight_distances: Floats  # (E, T+F)


def codes_of(subject: Subject, *, episodes: int, on_progress: Progress | None = None) -> Codes:
    """The codes of episodes 0 … `episodes` - 1 before and after the latent loop.

    Args:
        subject: a run with codes.
        episodes: E.
        on_progress: called with the number of episodes done and wanted.
    """

    def ends(classes: Tensor, support: Tensor, path: Path) -> tuple[NDArray[Any], ...]:
        assert path.codes is not None
        return classes.cpu().numpy(), _array(path.codes[:, 0]), _array(path.codes[:, -1])

    return Codes(*_joined(_in_blocks(subject, episodes, ends, on_progress)))


def geometry_of(subject: Subject, *, episodes: int, on_progress: Progress | None = None) -> Geometry:
    """Curvature and steps of episodes 0 … `episodes` - 1; arguments as of `codes_of`, for a run with codes or none."""
    code_map = subject.learner.code_map(subject.tensors)
    spaces = ("weights",) if code_map is None else ("codes", "weights")
    keys = [(point, space) for point in POINTS for space in spaces]

    def measure(classes: Tensor, support: Tensor, path: Path) -> tuple[NDArray[Any], ...]:
        curvature = [
            _array(_curvature(support, path, point, code_map if by == "codes" else None)) for point, by in keys
        ]
        codes = path.weights[:, :1, :, :0] if path.codes is None else path.codes
        return *curvature, *map(_array, _lengths(codes)), *map(_array, _lengths(path.weights))

    found = _joined(_in_blocks(subject, episodes, measure, on_progress))
    return Geometry(dict(zip(keys, found[: len(keys)], strict=True)), *found[len(keys) :])


def _in_blocks(
    subject: Subject,
    episodes: int,
    measure: Callable[[Tensor, Tensor, Path], tuple[NDArray[Any], ...]],
    on_progress: Progress | None,
) -> list[tuple[NDArray[Any], ...]]:
    """What `measure` makes of classes (B, N), support (B, N, K, D) and paths of each block of episodes."""
    features, sampler = subject.features, subject.sampler
    images = sampler.ways * subject.shots
    largest = max(
        (subject.steps + 1) * sampler.ways * features.dim, images * features.dim, (images * sampler.ways) ** 2
    )
    size = max(1, _BLOCK_ELEMENTS // largest)
    parts = []
    with one_thread() if features.rows.device.type == "cpu" else nullcontext(), torch.inference_mode():
        for numbers in blocks_of(size, episodes):
            rows = sampler.draw(numbers, shots=subject.shots, queries=1)
            support = features.take(rows.support)
            parts.append(measure(rows.classes, support, subject.learner.path(subject.tensors, support, numbers)))
            if on_progress:
                on_progress(numbers.stop, episodes)
    return parts


def _curvature(support: Tensor, path: Path, point: str, code_map: Tensor | None) -> Tensor:
    """Eigenvalues (B, R) by the codes that `code_map` (Z, D) decodes, or by the weights where there is none.

    In float64, as those of one Hessian differ by many orders of magnitude.
    """
    images = support.flatten(1, 2).double()  # (B, NK, D)
    place = 0 if point == "start" else path.latent_steps if code_map is not None else -1
    probabilities = (images @ path.weights[:, place].double().mT).softmax(-1)
    seen = images if code_map is None else images @ code_map.double().T
    return hessian_eigenvalues(probabilities, seen, 1 / support.shape[2])


def _lengths(path: Tensor) -> tuple[Tensor, Tensor]:
    """Of points (B, T+1, N, W): the length of each step, and the distance of its end from the first, each (B, T)."""
    flat = path.flatten(2)
    return flat.diff(dim=1).norm(dim=-1), (flat[:, 1:] - flat[:, :1]).norm(dim=-1)


def _array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    return array


def _joined(parts: list[tuple[NDArray[Any], ...]]) -> list[NDArray[Any]]:
    return [np.concatenate(values) for values in zip(*parts, strict=True)]
