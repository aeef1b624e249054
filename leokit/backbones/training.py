"""What training a backbone takes from timm: the network before its first step, optimiser, schedule, loss, average."""

from collections.abc import Callable
from typing import Any

import timm
import timm.layers
import timm.loss
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leokit.backbones.loading import check_name, fit_to, preprocessing_of
from leokit.errors import UsageError


class Heads(nn.Module):
    """A backbone and what is guessed from its features: the class and, where wanted, by which quarter it was turned."""

    def __init__(self, backbone: nn.Module, dim: int, classes: int, *, rotation: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, classes)
        self.rotation = nn.Linear(dim, 4) if rotation else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, classes), and (B, 4) of the turns, of images (B, 3, H, W)."""
        features = self.dropout(self.backbone(images))
        return self.classifier(features), None if self.rotation is None else self.rotation(features)


def new_network(name: str, classes: int, *, image_size: int | None, dropout: float, rotation: bool, seed: int) -> Heads:
    """A network whose weights depend on the seed alone.

    Args:
        name: of a timm model, or of a wide residual network.
        classes: how many it shall tell apart.
        image_size: side of its images in pixels (default: its own).
        dropout: in the blocks of a wide residual network, of another model before the classifier.
        rotation: whether it shall also guess turns.
        seed: of the weights.

    Raises:
        UsageError: no such model, or it cannot take such images.
    """
    check_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # timm takes any further option of the model, which its types do not say.
        create: Any = timm.create_model
        inner = {"block_dropout": dropout} if name.startswith("wrn") else {}
        backbone: nn.Module = create(name, num_classes=0, **inner)
        size = image_size or preprocessing_of(backbone).image_size
        fit_to(backbone, name, size)
        try:
            with torch.inference_mode():
                dim = backbone.eval()(torch.zeros(1, 3, size, size)).shape[1]
        except Exception as error:  # whatever the model raises for images that it cannot take
            raise UsageError(f"{name} cannot take images of {size} pixels ({error}): choose another.") from error
        # Before the classifier as a module of its own: timm's models drop by a function, which ranks could not share.
        return Heads(backbone.train(), dim, classes, rotation=rotation, dropout=0.0 if inner else dropout)


def make_optimiser(name: str, network: nn.Module, **options: float) -> torch.optim.Optimizer:
    """An optimiser of timm's; `sgd` is with Nesterov momentum.

    Raises:
        UsageError: timm has none of that name, or it does not take the options.
    """
    try:
        make: Any = timm.optim.create_optimizer_v2  # type: ignore[attr-defined]
        optimiser: torch.optim.Optimizer = make(network, opt=name, filter_bias_and_bn=False, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise UsageError(f"optimizer = {name!r}: timm cannot make it ({error}); sgd or adamw are usual.") from error
    return optimiser


def make_schedule(
    kind: str,
    optimiser: torch.optim.Optimizer,
    *,
    epochs: int,
    decay_epochs: int,
    decay_rate: float,
    warmup_epochs: int,
    lr: float,
    steps_of_epoch: int,
) -> Any:
    """A schedule of timm's, whose `step_update(step)` sets the learning rate of a step."""
    make: Any = timm.scheduler.create_scheduler_v2  # type: ignore[attr-defined]
    schedule, _ = make(
        optimiser,
        sched="cosine" if kind == "cosine" else "step",
        num_epochs=epochs,
        decay_epochs=epochs + 1 if kind == "constant" else decay_epochs,
        decay_rate=decay_rate,
        warmup_epochs=warmup_epochs,
        warmup_lr=lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps_of_epoch,
    )
    return schedule


def make_average(network: nn.Module, decay: float) -> Any:
    """A moving average of a network's weights (timm's `ModelEmaV3`): `update(network, step=…)`, `module`."""
    make: Any = timm.utils.ModelEmaV3  # type: ignore[attr-defined]
    return make(network, decay=decay)


def synchronised(network: nn.Module, group: Any = None) -> nn.Module:
    """A network with batch norm over the images of all ranks of a group, on CUDA; timm's kind keeps its activation."""
    convert: Any = timm.layers.convert_sync_batchnorm  # type: ignore[attr-defined]
    converted: nn.Module = convert(network, process_group=group)
    return converted


def make_loss(smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of logits (B, C) and labels (B,), with smoothed labels where wanted."""
    if not smoothing:
        return cross_entropy
    make: Any = timm.loss.LabelSmoothingCrossEntropy  # type: ignore[attr-defined]
    loss: Callable[[Tensor, Tensor], Tensor] = make(smoothing)
    return loss
