"""Latent Embedding Optimization: Algorithm 1 of Rusu et al. (ICLR 2019) as pure functions on batches of episodes.

Symbols, here and in every module below: `B` episodes, `N` ways (classes), `K` shots (support images of a class),
`Q` queries of a class, `D` features, `Z` latent dimensions, `C` codes of a class, `T` steps in latent space, `F` steps
of fine-tuning. Leading dimensions `...` are batch. The label of a row is its position along `N`.
"""

from leokit.leo.adaptation import Adapted, Draws, Gaussian, Method, adapt, decode, drop_out, encode, predict
from leokit.leo.objective import MetaLoss, Penalties, meta_loss
from leokit.leo.optimisation import clip_gradients, decay_gradients, sums_of_squares
from leokit.leo.parameters import Anchor, Parameters, initial_parameters

__all__ = [
    "Adapted",
    "Anchor",
    "Draws",
    "Gaussian",
    "MetaLoss",
    "Method",
    "Parameters",
    "Penalties",
    "adapt",
    "clip_gradients",
    "decay_gradients",
    "decode",
    "drop_out",
    "encode",
    "initial_parameters",
    "meta_loss",
    "predict",
    "sums_of_squares",
]
