"""The features of a run, in memory: what it is trained on, selected on and centred by."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokit.config import MetaTrainConfig, training_splits
from leokit.episodes import FeatureMatrix, MatrixArrays, types_of
from leokit.features import FeatureStore


@dataclass(frozen=True)
class Matrices:
    """The features that runs are trained and selected on, on their device.

    Attributes:
        training: of the meta-train classes.
        validation: of the meta-val classes; None where none are selected on.
        uncentred: the latter as they were before centring; None where the run does not centre.
        centre: (D,), the mean of the former, which was taken off; None where the run does not centre.
    """

    training: FeatureMatrix
    validation: FeatureMatrix | None
    uncentred: FeatureMatrix | None = None
    centre: Tensor | None = None

    @classmethod
    def load(cls, config: MetaTrainConfig, store: FeatureStore, device: torch.device) -> "Matrices":
        """Read, normalise and, where a run does, centre the features."""
        dtype, held = types_of(config)
        make = partial(FeatureMatrix, device=device, dtype=dtype, held=held)
        matrix = make(store.load(*training_splits(config)))
        validation = None if config.train_on_val else make(store.load("val"))
        if not config.centring:
            return cls(matrix, validation)
        centre = matrix.mean()
        return cls(matrix.centred(centre), validation and validation.centred(centre), validation, centre)

    def arrays(self) -> list[MatrixArrays | NDArray[Any] | None]:
        """All of it as arrays, which processes share."""
        centre = None if self.centre is None else self.centre.numpy()
        matrices = (self.training, self.validation, self.uncentred)
        return [*(None if matrix is None else matrix.arrays() for matrix in matrices), centre]

    @classmethod
    def of(cls, arrays: Sequence[Any]) -> "Matrices":
        """What `arrays` gave."""
        *matrices, centre = arrays
        made = [held and FeatureMatrix.of(held) for held in matrices]
        return cls(made[0], made[1], made[2], None if centre is None else torch.from_numpy(np.array(centre)))
