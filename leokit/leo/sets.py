"""Parameter sets that are trained as one, along a first dimension of each tensor: what each has of its own.

Everything else (sizes, variant, numbers of steps) they have in common.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leokit.config import MetaTrainConfig, identity
from leokit.leo.objective import Penalties
from leokit.manifest import canonical_json

# The seed, the starts of what is learned, and what a step takes as a number for each set.
OWN = (
    "seed",
    "inner_lr",
    "finetuning_lr",
    "anchor_scale",
    "anchor_gate",
    "outer_lr",
    "anchor_lr_factor",
    "dropout",
    "kl_weight",
    "encoder_penalty_weight",
    "l2_weight",
    "orthogonality_weight",
)


def structure(config: MetaTrainConfig) -> str:
    """What runs that are trained as one have in common: all that can change results, but for `OWN`."""
    return canonical_json({name: value for name, value in identity(config).items() if name not in OWN})


def penalties(config: MetaTrainConfig) -> Penalties:
    """The weights of the penalties that a configuration names."""
    return Penalties(
        kl=config.kl_weight,
        encoder=config.encoder_penalty_weight,
        l2=config.l2_weight,
        orthogonality=config.orthogonality_weight,
    )


class Sets(NamedTuple):
    """What steps of S parameter sets as one take of each."""

    seeds: tuple[int, ...]  # of episodes, noise and masks
    dropout: tuple[float, ...]  # rates
    penalties: Penalties  # (S,) each

    @classmethod
    def of(cls, configs: Sequence[MetaTrainConfig], *, dtype: torch.dtype, device: torch.device) -> "Sets":
        """Those of runs.

        Args:
            configs: of one `structure`.
            dtype: of the computation.
            device: likewise.
        """

        def weights(name: str) -> Tensor:
            return torch.tensor([getattr(penalties(config), name) for config in configs], dtype=dtype, device=device)

        return cls(
            tuple(config.seed for config in configs),
            tuple(config.dropout for config in configs),
            Penalties(weights("kl"), weights("encoder"), weights("l2"), weights("orthogonality")),
        )

    @property
    def draw_alike(self) -> bool:
        """Whether all have one seed, so that one draw of episodes and noise serves all of them."""
        return len(set(self.seeds)) == 1
