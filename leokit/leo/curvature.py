"""Curvature of the support loss, exactly: eigenvalues of its Hessian by classifier weights and by codes (Fig. 4a).

With P the probabilities of the support images X and s their shares, the Hessian by the weights is

    H = Σ_i s_i (diag(p_i) - p_i p_iᵀ) ⊗ x_i x_iᵀ = J Jᵀ,  a column of J for each image and class,

and J Jᵀ has the same eigenvalues but zeros as the small Gram matrix Jᵀ J, of NK·N rows. Codes decode linearly to
weights (at evaluation, where there is no noise), so by the codes the same holds with the images seen through the
decoder, M x_i.
Of either at most NK·(N - 1) eigenvalues are not zero, as the probabilities of an image sum to 1.
"""

import torch
from torch import Tensor


def hessian_eigenvalues(probabilities: Tensor, images: Tensor, share: float) -> Tensor:
    """The eigenvalues that may differ from zero, in descending order.

    Args:
        probabilities: (..., M, N) of the M = N·K support images at the point where the Hessian is.
        images: (..., M, W) what the weights are multiplied with: features, or features seen through the decoder.
        share: weight of each image in the loss, 1/K.

    Returns:
        (..., R) with R = (N - 1) · min(M, W): moving all classes alike changes no probability.
    """
    count, ways = probabilities.shape[-2:]
    roots = probabilities.sqrt()
    # B Bᵀ = diag(p) - p pᵀ
    factors = torch.diag_embed(roots) - probabilities.unsqueeze(-1) * roots.unsqueeze(-2)  # (..., M, N, N)
    stacked = factors.transpose(-1, -2).flatten(-3, -2)  # (..., M·N, N): rows are the columns of each B
    kernel = (images @ images.mT).repeat_interleave(ways, -1).repeat_interleave(ways, -2)
    gram = share * (stacked @ stacked.mT) * kernel
    rank = (ways - 1) * min(count, images.shape[-1])
    values: Tensor = torch.linalg.eigvalsh(gram).flip(-1)[..., :rank]
    return values.clamp_min(0)


def decoder_singular_values(code_map: Tensor) -> Tensor:
    """Singular values (min(Z, D),), in descending order, of a map (Z, D) from codes to weights (Fig. 4b).

    How much longer a step in the space of codes becomes in the space of weights; 1 keeps lengths.
    """
    values: Tensor = torch.linalg.svdvals(code_map)
    return values
