"""What a line of metrics says beside the terms of the loss: gradients, learned rates, deviations.

All of it is read off after a step, without gradients and without any draw that training makes, so that watching changes
no result; and of the reported steps only, so that the others cost nothing more.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leokit import randomness
from leokit.leo import Parameters, decode, encode
from leokit.leo.learners import LatentLearner, Learner, Tensors
from leokit.leo.loops import MIN_STD

Numbers = dict[str, float]


@torch.no_grad()
def watch(
    learner: Learner,
    tensors: Tensors,
    gradients: Tensors,
    support: Tensor,
    *,
    step: int,
    seed: int,
    clip_value: float,
    clip_norm: float,
) -> dict[str, Any]:
    """What a run's log says of one step, as numbers by name, grouped.

    Args:
        learner: the variant.
        tensors: its parameters after the step, by name.
        gradients: of the step, by the names of the parameters, before clipping.
        support: (B, N, K, D) features of the step's episodes, without dropout.
        step: number of the step.
        seed: of the run.
        clip_value: as for `clip_gradients`.
        clip_norm: as for `clip_gradients`.

    Returns:
        `gradient_norms` by name, `clipped_entries` and `clipped_gradients` (shares, see `clipping`), `rates` by name
        where the variant steps by them, `scale` (τ) and `gate` where it has them, `encoder_std` and `decoder_std`
        (see `deviations`) where it draws from them.
    """
    line: dict[str, Any] = {"gradient_norms": {name: value.norm().item() for name, value in gradients.items()}}
    line |= clipping(gradients, clip_value, clip_norm)
    line["rates"] = {name: _spread(tensors[name]) for name in _rates(learner)}
    if "gate" in tensors:
        line |= {"scale": tensors["log_scale"].exp().item(), "gate": tensors["gate"].item()}
    if isinstance(learner, LatentLearner) and learner.method.sampled:
        line |= deviations(tensors, support, encoded=learner.method.encoded, seed=seed, step=step)
    return line


def clipping(gradients: Mapping[str, Tensor], value: float, norm: float) -> Numbers:
    """The share of all entries that lie beyond ± `value`, and of the tensors then scaled down to `norm`."""
    found = list(gradients.values())
    beyond = sum(int((gradient.abs() > value).sum()) for gradient in found)
    scaled = sum(int(gradient.clamp(-value, value).norm() > norm) for gradient in found)
    return {
        "clipped_entries": beyond / sum(gradient.numel() for gradient in found),
        "clipped_gradients": scaled / len(found),
    }


def _rates(learner: Learner) -> list[str]:
    """The learned rates that a variant takes steps by."""
    if not isinstance(learner, LatentLearner):
        return ["lr"]
    steps = {"inner_lr": learner.method.inner_steps, "finetuning_lr": learner.method.finetuning_steps}
    return [name for name, count in steps.items() if count]


def deviations(tensors: Tensors, support: Tensor, *, encoded: bool, seed: int, step: int) -> dict[str, Numbers]:
    """Minimum, mean and maximum of the deviations σ that a variant draws by, and the share at their floor, `at_floor`.

    Args:
        tensors: parameters of LEO, by name.
        support: (B, N, K, D).
        encoded: whether codes come from the encoder. The decoder's σ are then those at the codes' means before any
            step, else those at standard normal codes, drawn for the purpose.
        seed: of these draws.
        step: likewise.

    Returns:
        `decoder_std` and, where codes come from the encoder, `encoder_std`.
    """
    parameters = Parameters(**{name: tensors[name] for name in Parameters._fields})
    lead, ways = support.shape[:-2], support.shape[-3]
    if not encoded:
        shape = (*lead, parameters.num_latents)
        drawn = randomness.generator(seed, "watching", step).standard_normal(shape, np.float32)
        return {"decoder_std": _floored(decode(parameters, torch.from_numpy(drawn).to(support), ways).std)}
    codes = encode(parameters, support)
    return {
        "encoder_std": _floored(codes.std),
        "decoder_std": _floored(decode(parameters, codes.mean, ways).std),
    }


def _spread(values: Tensor) -> Numbers:
    return {"min": values.min().item(), "mean": values.mean().item(), "max": values.max().item()}


def _floored(std: Tensor) -> Numbers:
    return _spread(std) | {"at_floor": (std <= MIN_STD).float().mean().item()}
