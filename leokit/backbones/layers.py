"""The layers of a network whose maps, averaged over places, are features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leokit.backbones.wrn import RELU, WideResNet
from leokit.errors import UsageError

POOLED = "pooled"  # what the classifier would get


class Layers(nn.Module):
    """A timm model up to some of its layers: (B, 3, H, W) → a vector (B, D) of each."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        """Take layers by name: `pooled`, or an inner one by timm's name for it.

        A wide residual network has each block before and, with `.relu` at the end of the name, after the batch norm and
        ReLU that follow it.

        Raises:
            UsageError: timm cannot take inner layers of this model, or not these.
        """
        super().__init__()
        self._model = model
        self.names = tuple(names)
        known = layer_names(model)
        for name in names:
            if name not in known:
                raise UsageError(_unknown(name, known))
        inner = [name.removesuffix(RELU) for name in names if name != POOLED]
        self._indices = sorted({_blocks(model).index(name) for name in inner})

    def widths(self, side: int) -> list[int]:
        """Length of the vector of each layer (D), as a black image of `side` pixels gives it.

        What timm notes of a model is not always what it gives: the features of some are widened before the classifier.
        """
        training, device = self._model.training, next(self._model.parameters()).device
        self.eval()
        try:
            with torch.inference_mode():
                return [vector.shape[1] for vector in self(torch.zeros(1, 3, side, side, device=device))]
        finally:
            self.train(training)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        model: Any = self._model
        vectors: dict[str, Tensor] = {}
        if POOLED in self.names:
            vectors[POOLED] = model(images)
        if self._indices:
            # timm gives the maps of any model as (B, D, H, W), tokens without the class token.
            maps = model.forward_intermediates(
                images, indices=self._indices, stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )
            for index, found in zip(self._indices, maps, strict=True):
                name = _blocks(model)[index]
                vectors[name] = found.mean((2, 3))
                if name + RELU in self.names:
                    vectors[name + RELU] = model.activated(index, found).mean((2, 3))
        return [vectors[name] for name in self.names]


class Tap(Layers):
    """A timm model up to one of its layers: (B, 3, H, W) → (B, D)."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__(model, (name,))

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """See the class."""
        return super().forward(images)[0]


def layer_names(model: nn.Module) -> list[str]:
    """The layers that can be taken of a model."""
    names = _blocks(model)
    with_relu = [name + RELU for name in names] if isinstance(model, WideResNet) else []
    return [POOLED, *names, *with_relu]


def default_layers(model: nn.Module) -> tuple[str, ...]:
    """Where features are taken unless told otherwise: the first, or the best on meta-val where that is known."""
    if isinstance(model, WideResNet):
        return model.default_layer, model.default_layer + RELU
    return (POOLED,)


def _blocks(model: nn.Module) -> list[str]:
    information: Any = getattr(model, "feature_info", None)
    if information is None or not hasattr(model, "forward_intermediates"):
        return []
    return [entry["module"] for entry in information]


def _unknown(name: str, known: Sequence[str]) -> str:
    if known == [POOLED]:
        return f"layer = {name!r}: timm has no inner layers of this model to take; leave the option out."
    return f"layer = {name!r}: the layers of this model are {', '.join(known)}."
