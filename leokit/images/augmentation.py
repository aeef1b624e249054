"""Random changes of training images, a whole batch at once on the device where the images are.

The recipe is that of Qiao et al. (2018): a random part of the image resized to the input, mirrored half of the time,
its brightness, contrast and saturation changed, and light added along the principal components of ImageNet's colours.
What is drawn is a few numbers for each image, on the CPU and by (seed, position), so that devices and ranks share them.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and torchvision turn colours to grey
# Principal components of ImageNet's colours on a scale of 0 to 1 (Krizhevsky et al. 2012; the values that ResNet's
# training code has made common).
_VALUES = (0.2175, 0.0188, 0.0045)
_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True)
class Recipe:
    """What may happen to an image.

    Attributes:
        size: side of the result in pixels.
        scale: least and largest share of the area that is cut out.
        flip: probability of a mirror image.
        jitter: brightness, contrast and saturation are each multiplied by 1 ± this at most, in an order drawn.
        lighting: deviation of the light added along each principal component.
        rotation: whether images are turned by a quarter drawn, to be guessed.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: float = 0.4
    lighting: float = 0.1
    rotation: bool = False


class Draws(NamedTuple):
    """What is drawn for a batch, a row for each image."""

    boxes: NDArray[np.float32]  # (B, 4): centre x, y and half of width, height, from -1 to 1; width < 0: mirrored
    factors: NDArray[np.float32]  # (B, 3): of brightness, contrast, saturation
    order: NDArray[np.int64]  # (3,): in which these come, for the whole batch
    light: NDArray[np.float32]  # (B, 3): added to red, green, blue, on a scale of 0 to 1
    turns: NDArray[np.int64]  # (B,): quarters

    def rows(self, chosen: slice) -> "Draws":
        """Those of some of the images."""
        return Draws(self.boxes[chosen], self.factors[chosen], self.order, self.light[chosen], self.turns[chosen])


def draw(recipe: Recipe, count: int, generator: np.random.Generator) -> Draws:
    """Draw what happens to `count` square images.

    The part that is cut out has a share of the area drawn evenly and a ratio of its sides drawn evenly on a logarithmic
    scale; where it does not fit, it is drawn again, and after ten times the whole image is taken, as torchvision does.
    """
    area = generator.uniform(*recipe.scale, (_TRIES, count))
    ratio = np.exp(generator.uniform(math.log(_RATIO[0]), math.log(_RATIO[1]), (_TRIES, count)))
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (width <= 1) & (height <= 1)
    first = fits.argmax(0)
    column = np.arange(count)
    whole = ~fits.any(0)
    width = np.where(whole, 1.0, width[first, column])
    height = np.where(whole, 1.0, height[first, column])
    left, top = generator.random((2, count)) * (1 - np.stack([width, height]))
    mirror = np.where(generator.random(count) < recipe.flip, -1, 1)
    boxes = np.stack([2 * left + width - 1, 2 * top + height - 1, width * mirror, height], 1)
    factors = 1 + recipe.jitter * generator.uniform(-1, 1, (count, 3))
    light = recipe.lighting * generator.normal(size=(count, 3)) * np.array(_VALUES) @ np.array(_VECTORS).T
    turns = generator.integers(0, 4, count) if recipe.rotation else np.zeros(count, np.int64)
    order = generator.permutation(3)
    return Draws(boxes.astype(np.float32), factors.astype(np.float32), order, light.astype(np.float32), turns)


def augment(pixels: Tensor, recipe: Recipe, draws: Draws) -> Tensor:
    """Images (B, 3, size, size), from 0 to 1 and with the channels last in memory, of bytes (B, S, S, 3).

    Each image is sampled bilinearly at the places that its draws say; parts much larger than the result are first made
    smaller by whole factors, by averaging, so that nothing between the places is lost.
    """
    images = pixels.permute(0, 3, 1, 2).float().div_(255)
    # Nothing waits for the device here: what is drawn is copied in the order of its work.
    boxes, factors, light, turns = (
        torch.from_numpy(values).to(pixels.device, non_blocking=True)
        for values in (draws.boxes, draws.factors, draws.light, draws.turns)
    )
    images = _cut(images, recipe.size, boxes)
    images = _jittered(images, factors, draws.order)
    if recipe.lighting:
        images += light[:, :, None, None]
    if recipe.rotation:
        images = _turned(images, turns)
    return images.contiguous(memory_format=torch.channels_last)


def centre(pixels: Tensor, size: int) -> Tensor:
    """The middle of bytes (B, S, S, 3), (B, size, size, 3), where `fit` cuts it out too."""
    first = round((pixels.shape[1] - size) / 2)
    return pixels[:, first : first + size, first : first + size]


def _cut(images: Tensor, size: int, boxes: Tensor) -> Tensor:
    shrink = max(1, math.floor(images.shape[-1] / size / 1.5))
    if shrink > 1:
        images = torch.nn.functional.avg_pool2d(images, shrink)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = boxes[:, 2], boxes[:, 3]
    theta[:, :, 2] = boxes[:, :2]
    grid = affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _jittered(images: Tensor, factors: Tensor, order: NDArray[np.int64]) -> Tensor:
    weights = _grey(images.device)
    for kind in order:
        factor = factors[:, kind, None, None, None]
        if kind == 0:
            images = images * factor
        elif kind == 1:
            mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
            images = torch.lerp(mean, images, factor)
        else:
            images = torch.lerp((images * weights).sum(1, keepdim=True), images, factor)
        images = images.clamp_(0, 1)
    return images


@cache
def _grey(device: torch.device) -> Tensor:
    return torch.tensor(_GREY, device=device)[:, None, None]


def _turned(images: Tensor, turns: Tensor) -> Tensor:
    for quarter in (1, 2, 3):
        chosen = turns == quarter
        images = torch.where(chosen[:, None, None, None], images.rot90(quarter, (2, 3)), images)
    return images
