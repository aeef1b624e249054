"""A backbone at work on a device: copies, computation and results overlap where it has a memory of its own."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from leokit import backbones
from leokit.backbones import Backbone
from leokit.errors import LeokitError
from leokit.memory import keep_freed_memory

BLOCK = 64  # images that go through the model together, at most
_PIXELS = 2**18  # of the images that do so on a CPU: layers then stay in its caches, and below what is mapped anew

Fetch = Callable[[], NDArray[np.float32]]


class Model:
    """Puts blocks of pixels through a backbone.

    Attributes:
        backbone: whose module lies on the device.
        device: where it runs.
        block: images that go through the model together: on a CPU fewer the larger they are, whatever the number of
            threads; halved where the device's memory does not suffice.
        late: blocks whose results are best fetched after further ones were started.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self.backbone = backbone
        self.device = device
        self.block = BLOCK
        if device.type == "cpu":
            self.block = together(math.prod(backbone.preprocessing.shape[:-1]))
            keep_freed_memory()
        self._apart = device.type == "cuda"
        self.late = 1 if self._apart else 0
        self._copying = torch.cuda.Stream(device) if self._apart else None  # type: ignore[no-untyped-call]
        backbone.module.to(device)

    def room(self, images: int) -> NDArray[np.uint8]:
        """Room for the pixels of so many images; pinned where that lets a copy to the device overlap the rest."""
        shape = (images, *self.backbone.preprocessing.shape)
        room: NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=self._apart).numpy()
        return room

    def start(self, pixels: NDArray[np.uint8] | Tensor) -> Fetch:
        """Start on a block: (n, H, W, 3) bytes; the returned function gives its vectors, (n, D).

        The pixels must stay as they are until then: their copy may still be under way.
        """
        block = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
        if self._copying is None:
            vectors = self._embed(block.to(self.device)).cpu().numpy()
            return lambda: vectors
        return self._start_apart(block, self._copying)

    def _start_apart(self, block: Tensor, copying: torch.cuda.Stream) -> Fetch:
        """The same with copies on a stream of their own, beside the computation for the block before."""
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(copying):
            there = block.to(self.device, non_blocking=True)
        computing.wait_stream(copying)
        there.record_stream(computing)
        vectors = self._embed(there)
        result = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        result.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(computing)

        def fetch() -> NDArray[np.float32]:
            done.synchronize()
            rows: NDArray[np.float32] = result.numpy()
            return rows

        return fetch

    def _embed(self, block: Tensor) -> Tensor:
        while True:
            try:
                return torch.cat([self._embed_part(part) for part in torch.split(block, self.block)])
            except torch.OutOfMemoryError as error:
                if self.block == 1:
                    raise LeokitError(
                        f"The memory of {self.device} does not suffice for one image of "
                        f"{self.backbone.preprocessing.image_size} pixels: choose another --device, or extract with "
                        "a smaller --image-size or --backbone."
                    ) from error
                self.block //= 2
            if self._apart:
                torch.cuda.empty_cache()

    def _embed_part(self, pixels: Tensor) -> Tensor:
        backbone, count = self.backbone, len(pixels)
        if backbone.compiled and count < self.block:  # which another shape would compile anew
            pixels = torch.cat([pixels, pixels.new_zeros(self.block - count, *pixels.shape[1:])])
        vectors = backbones.embed(backbone.module, pixels, backbone.preprocessing, backbone.precision)[:count]
        return normalize(vectors, dim=1) if backbone.normalize == "l2" else vectors


def together(pixels: int) -> int:
    """How many images of so many pixels go through a model together on a CPU: a power of two from 1 to 64."""
    return min(BLOCK, 1 << max(0, (_PIXELS // pixels).bit_length() - 1))
