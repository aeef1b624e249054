"""What LEO learns: seven tensors, no biases anywhere (DeepMind's code, model.py)."""

from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leokit import randomness


class Parameters(NamedTuple):
    """The meta-parameters φ = {φ_e, φ_r, φ_d, α} and the learned rates of fine-tuning.

    Matrices map from their first to their second dimension: `x @ encoder`.
    """

    encoder: Tensor  # (D, Z)
    relation_1: Tensor  # (2Z, 2Z): its upper half takes the first code of a pair, its lower half the second
    relation_2: Tensor  # (2Z, 2Z)
    relation_3: Tensor  # (2Z, 2Z): Z means and Z unnormalised standard deviations
    decoder: Tensor  # (Z, 2D): D means and D unnormalised standard deviations
    inner_lr: Tensor  # (Z,), the step size α in latent space
    finetuning_lr: Tensor  # (D,), the step size in weight space

    @property
    def dim(self) -> int:
        """D, the number of features."""
        return self.encoder.shape[0]

    @property
    def num_latents(self) -> int:
        """Z, the width of a code."""
        return self.encoder.shape[1]

    def matrices(self) -> tuple[Tensor, ...]:
        """The weights of encoder, relation network and decoder: what the L2 penalty is over."""
        return self[:5]


class Anchor(NamedTuple):
    """What the anchored variant learns besides: the classifier is τ · class means + gate · decoded weights."""

    log_scale: Tensor  # scalar, log τ
    gate: Tensor  # scalar


def initial_parameters(
    dim: int, num_latents: int, *, inner_lr: float, finetuning_lr: float, seed: int, dtype: torch.dtype = torch.float32
) -> Parameters:
    """Parameters before training: Glorot-uniform matrices, constant rates, as in DeepMind's code.

    Args:
        dim: D.
        num_latents: Z.
        inner_lr: start of every entry of the step size in latent space.
        finetuning_lr: start of every entry of the step size in weight space.
        seed: same seed, same parameters, whatever the dtype.
        dtype: of the tensors, which are leaves that require gradients.
    """
    rng = randomness.generator(seed, "parameters")

    def glorot(rows: int, columns: int) -> Tensor:
        limit = sqrt(6 / (rows + columns))
        return torch.from_numpy(rng.uniform(-limit, limit, (rows, columns)))

    pair = 2 * num_latents
    values = Parameters(
        encoder=glorot(dim, num_latents),
        relation_1=glorot(pair, pair),
        relation_2=glorot(pair, pair),
        relation_3=glorot(pair, pair),
        decoder=glorot(num_latents, 2 * dim),
        inner_lr=torch.from_numpy(np.full(num_latents, inner_lr)),
        finetuning_lr=torch.from_numpy(np.full(dim, finetuning_lr)),
    )
    return Parameters(*(value.to(dtype).requires_grad_() for value in values))
