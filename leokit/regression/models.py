"""A trained regression model on disk; its folder is like that of a meta-training run."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from leokit import manifest
from leokit.config import RegressTrainConfig, build
from leokit.runs import WEIGHTS, load_parameters

SCHEMA = "leokit/regression@1"
PLOT_SCHEMA = "leokit/regression-plot@1"
EVAL_SCHEMA = "leokit/regression-eval@1"


@dataclass(frozen=True)
class RegressionModel(manifest.Artifact):
    """A finished model: how it was trained, and its tensors by name."""

    config: RegressTrainConfig
    tensors: dict[str, Tensor]


def open_regression(folder: Path) -> RegressionModel:
    """Open a finished model, after checking its files.

    Raises:
        ArtifactError: none there, unfinished, or altered.
    """
    found = manifest.read(folder, SCHEMA)
    manifest.check_files(folder, found)
    return RegressionModel(folder, found, build(RegressTrainConfig, found.config), load_parameters(folder / WEIGHTS))
