"""Other methods on the same episodes: from support images to the weights of a linear classifier, as LEO gives them."""

from torch import Tensor
from torch.nn.functional import normalize


def class_mean(support: Tensor) -> Tensor:
    """Nearest class mean: the normalised mean (..., N, D) of each class's unit features (..., N, K, D).

    With unit queries a logit is the cosine to the mean (Snell et al. 2017 with cosine similarity).
    """
    return normalize(support.mean(-2), dim=-1)
