"""Wide residual networks (Zagoruyko & Komodakis 2016) as the few-shot literature trains them, registered with timm.

`wrn28_10` is the backbone of the paper: 28 layers deep, 10 times as wide as the first residual networks. Blocks are
pre-activated (batch norm, ReLU, convolution), with dropout between their two convolutions; every group halves the maps,
so that images of 80 pixels end in maps of 10 x 10 (as Qiao et al. 2018, whose recipe the paper follows).

The paper takes its features from "layer 21": counting the convolutions of the main path, 1 + 2·(4 + 4 + 2), the output
of the second block of group 3, averaged over places. Here it is called `group3.block2`, and `group3.block2.relu` after
the batch norm and ReLU that the next block begins with.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

DEPTHS = (10, 16, 22, 28, 34, 40)  # 6 n + 4, n blocks in each of three groups
WIDTHS = (1, 2, 4, 6, 8, 10)
RELU = ".relu"  # at the end of a layer's name: after the batch norm and ReLU that follow it
_STEM = 16


class Block(nn.Module):
    """Two 3 x 3 convolutions, each after batch norm and ReLU, beside a shortcut: (B, C, H, W) -> (B, C', H/s, W/s)."""

    def __init__(self, before: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = before == channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, channels, 1, stride, bias=False)

    def activate(self, maps: Tensor) -> Tensor:
        """The batch norm and ReLU that the block begins with."""
        return torch.relu(self.norm1(maps))

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        active = self.activate(maps)
        inner = self.conv2(self.dropout(torch.relu(self.norm2(self.conv1(active)))))
        added: Tensor = inner + (maps if self.shortcut is None else self.shortcut(active))
        return added


class WideResNet(nn.Module):
    """The network, with what timm asks of a model: features, intermediate ones by index, a classifier that is changed.

    Attributes:
        feature_info: a line for each block: width, how much smaller its maps are than the image, and its name.
        default_layer: where features are taken unless told otherwise: the paper's layer 21 (the last block of group 3
            where it has only one).
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        block_dropout: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        count = (depth - 4) // 6
        widths = [_STEM * width * 2**group for group in range(3)]
        self.stem = nn.Conv2d(in_chans, _STEM, 3, 1, 1, bias=False)
        self.feature_info: list[dict[str, Any]] = []
        before = _STEM
        for group, channels in enumerate(widths, 1):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range(1, count + 1):
                blocks[f"block{number}"] = Block(before, channels, 2 if number == 1 else 1, block_dropout)
                name = f"group{group}.block{number}"
                self.feature_info.append({"num_chs": channels, "reduction": 2**group, "module": name})
                before = channels
            self.add_module(f"group{group}", nn.Sequential(blocks))
        self.norm = nn.BatchNorm2d(before)
        self.num_features = self.head_hidden_size = before
        self.num_classes, self.drop_rate, self.global_pool = num_classes, drop_rate, global_pool
        self.fc: nn.Module = nn.Linear(before, num_classes) if num_classes else nn.Identity()
        self.default_layer = f"group3.block{min(2, count)}"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def blocks(self) -> Iterator[Block]:
        """The blocks, in order."""
        for group in (1, 2, 3):
            yield from getattr(self, f"group{group}")

    def get_classifier(self) -> nn.Module:
        """Timm's name for the last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Take another last layer, for so many classes; none for 0."""
        self.num_classes = num_classes
        self.global_pool = global_pool or self.global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps (B, C, H/8, W/8) of images (B, 3, H, W), after the last batch norm and ReLU."""
        maps = self.stem(images)
        for block in self.blocks():
            maps = block(maps)
        return torch.relu(self.norm(maps))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Averages over places (B, C), and from them logits (B, classes) unless `pre_logits`."""
        if self.global_pool:
            maps = maps.mean((2, 3))
        maps = nn.functional.dropout(maps, self.drop_rate, self.training)
        return maps if pre_logits else self.fc(maps)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps after some of the blocks, by their places in `feature_info`; timm's interface.

        Args:
            x: images (B, 3, H, W).
            indices: of the blocks; a number for so many last ones, None for all.
            norm: take them after the batch norm and ReLU that follow the block.
            stop_early: leave out the blocks after the last one that is asked for.
            output_fmt: NCHW.
            intermediates_only: leave out the final maps.
        """
        count = len(self.feature_info)
        if indices is None or isinstance(indices, int):
            indices = range(count - (indices or count), count)
        wanted = {index % count for index in indices}
        maps, found = self.stem(x), []
        for index, block in enumerate(self.blocks()):
            maps = block(maps)
            if index in wanted:
                found.append(self.activated(index, maps) if norm else maps)
            if stop_early and intermediates_only and index == max(wanted):
                return found
        return found if intermediates_only else (torch.relu(self.norm(maps)), found)

    def activated(self, index: int, maps: Tensor) -> Tensor:
        """The maps after a block as what follows takes them: after its batch norm and ReLU."""
        blocks = list(self.blocks())
        if index + 1 < len(blocks):
            return blocks[index + 1].activate(maps)
        return torch.relu(self.norm(maps))

    def prune_intermediate_layers(
        self, indices: Sequence[int] = (), prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Timm's interface for models of features: drop the classifier; the blocks stay."""
        if prune_head:
            self.reset_classifier(0, "")
        return list(indices)


# What timm keeps of a model: images of 80 pixels, cut out of 92 (Qiao et al.), with ImageNet's mean and deviation.
_CONFIGURATION = {
    "num_classes": 1000,
    "input_size": (3, 80, 80),
    "pool_size": (10, 10),
    "crop_pct": 80 / 92,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "stem",
    "classifier": "fc",
    "url": "",
}
_NAMES = {f"wrn{depth}_{width}": (depth, width) for depth in DEPTHS for width in WIDTHS}
default_cfgs = generate_default_cfgs({name: dict(_CONFIGURATION) for name in _NAMES})  # under the name timm looks for


def _register(name: str, depth: int, width: int) -> None:

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            WideResNet,
            name,
            pretrained,
            feature_cfg={"feature_cls": "getter", "out_indices": (-1,)},
            depth=depth,
            width=width,
            **options,
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Wide residual network, {depth} layers deep and {width} times as wide."
    create.__module__ = __name__
    register_model(create)


__all__ = ["DEPTHS", "RELU", "WIDTHS", "Block", "WideResNet"]

for _name, (_depth, _width) in _NAMES.items():
    _register(_name, _depth, _width)
