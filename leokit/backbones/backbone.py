"""What a backbone is to the rest: a module, what it needs of its images, and where its weights come from."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leokit.images.preprocess import Preprocessing


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
        trained_on: what the weights were trained on: imagenet-1k, imagenet-21k, web or unknown.
        layer: which output the vectors are: `pooled`, what the classifier would get.
    """

    module: nn.Module
    name: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing
    dim: int
    trained_on: str
    layer: str = "pooled"

    def to_plain(self) -> dict[str, Any]:
        """What identifies its vectors, as plain data for a manifest."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "layer": self.layer,
            "preprocessing": self.preprocessing.to_plain(),
        }


def embed(module: nn.Module, pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The vectors of some images, (B, D) float32, computed on the device where pixels and module are.

    Args:
        module: of a backbone.
        pixels: (B, H, W, 3) bytes, already resized and cropped.
        preprocessing: whose mean and std are applied here.
    """
    mean, std = (torch.tensor(values, device=pixels.device) for values in (preprocessing.mean, preprocessing.std))
    scaled = pixels.float().div_(255).sub_(mean).div_(std)  # (B, H, W, 3)
    with torch.inference_mode():
        vectors = module(scaled.permute(0, 3, 1, 2))
    if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(pixels):
        raise TypeError("its output is no matrix with a row for each image")
    return vectors.float()
