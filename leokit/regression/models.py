"""A trained regression model on disk; its folder is like that of a meta-training run."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from leokit import manifest
from leokit.config import RegressTrainConfig, build
from leokit.errors import ArtifactError
from leokit.leo.regression import initial_tensors
from leokit.runs import WEIGHTS, load_parameters, tensor_faults

SCHEMA = "leokit/regression@1"
PLOT_SCHEMA = "leokit/regression-plot@1"
EVAL_SCHEMA = "leokit/regression-eval@1"


@dataclass(frozen=True, repr=False)
class RegressionModel(manifest.Artifact):
    """A finished model: how it was trained, and its tensors by name."""

    config: RegressTrainConfig
    tensors: dict[str, Tensor]


def open_regression(folder: Path) -> RegressionModel:
    """Open a finished model, after checking its files.

    Raises:
        ArtifactError: none there, unfinished, altered, or its weights are none of such a model.
    """
    found = manifest.read(folder, SCHEMA)
    manifest.check_files(folder, found)
    tensors = load_parameters(folder / WEIGHTS)
    faults = tensor_faults(tensors, initial_tensors(0, inner_lr=1.0))
    if faults:
        raise ArtifactError(
            f"{folder / WEIGHTS} holds no model of regression: {faults[0]}. Make it again with --overwrite."
        )
    return RegressionModel(folder, found, build(RegressTrainConfig, found.config), tensors)
