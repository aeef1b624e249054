"""What a backbone is to the rest: a module, what it needs of its images, and where its weights come from."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leokit.images.preprocess import Preprocessing

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Backbone:
    """A network that maps images to vectors.

    Attributes:
        module: in evaluation mode, without its classifier: (B, 3, H, W) → (B, D).
        name: timm's, with the tag of the weights where they are timm's.
        weights: where the weights came from: bundled, pretrained or file.
        weights_sha256: of the tensors that are used, see `hash_tensors`.
        preprocessing: what its images must go through, as resolved.
        dim: length of a vector (D).
        trained_on: what the weights were trained on: imagenet-1k, imagenet-21k, web or unknown, or a list of classes.
        layer: which output the vectors are, see `Layers`.
        normalize: what is done to a vector: none, or divided by its l2 norm.
        precision: of the computation.
        compiled: whether torch.compile made it.
    """

    module: nn.Module
    name: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing
    dim: int
    trained_on: str | list[str]
    layer: str = "pooled"
    normalize: str = "none"
    precision: Precision = "float32"
    compiled: bool = False

    def to_plain(self) -> dict[str, Any]:
        """What identifies its vectors, as plain data for a manifest."""
        preprocessing = self.preprocessing.to_plain()
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "layer": self.layer,
            "views": preprocessing.pop("views"),
            "normalize": self.normalize,
            "precision": self.precision,
            "compiled": self.compiled,
            "preprocessing": preprocessing,
        }


def embed(module: nn.Module, pixels: Tensor, preprocessing: Preprocessing, precision: Precision = "float32") -> Tensor:
    """The vectors of some images, (B, D) float32, computed on the device where pixels and module are.

    Args:
        module: of a backbone.
        pixels: (B, H, W, 3) bytes, or (B, 5, H, W, 3) for ten-crop, already resized and cropped.
        preprocessing: whose mean and std are applied here, and over whose views the vectors are averaged.
        precision: of the computation; below float32 by autocast.
    """
    mean, std = (_constant(values, pixels.device) for values in (preprocessing.mean, preprocessing.std))
    total: Tensor | None = None
    views = _views(pixels, preprocessing)
    for view in views:
        # The channels stay last in memory, as the pixels came, which is what convolutions are fastest with.
        scaled = view.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)  # (B, 3, H, W)
        with torch.inference_mode(), _autocast(pixels.device, precision):
            vectors = module(scaled)
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(pixels):
            raise TypeError("its output is no matrix with a row for each image")
        total = vectors.float() if total is None else total + vectors.float()
    assert total is not None
    return total if len(views) == 1 else total / len(views)


def _views(pixels: Tensor, preprocessing: Preprocessing) -> list[Tensor]:
    """The views of each image, each (B, H, W, 3)."""
    crops = list(pixels.unbind(1)) if pixels.ndim == 5 else [pixels]
    return [view for crop in crops for view in view_of(crop, preprocessing)]


def view_of(crop: Tensor, preprocessing: Preprocessing) -> list[Tensor]:
    """What a backbone is shown of a crop (B, H, W, 3): itself, and its mirror image unless the centre is all."""
    return [crop] if preprocessing.views == "center" else [crop, crop.flip(2)]


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A few numbers on a device, copied there once."""
    return torch.tensor(values, device=device)


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    return nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))
