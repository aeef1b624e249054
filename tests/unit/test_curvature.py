"""Closed-form curvature against autograd's Hessian."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from leokit.leo import initial_parameters
from leokit.leo.curvature import decoder_singular_values, hessian_eigenvalues


def problem(ways=3, shots=2, dim=7, latents=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(ways * shots, dim, dtype=torch.float64, generator=generator)
    labels = torch.arange(ways).repeat_interleave(shots)
    decoder = torch.randn(latents, 2 * dim, dtype=torch.float64, generator=generator)
    codes = torch.randn(ways, latents, dtype=torch.float64, generator=generator)
    return images, labels, decoder, codes, 1 / shots


@pytest.mark.parametrize("shape", [{}, {"ways": 2, "shots": 1, "dim": 2}, {"ways": 4, "shots": 3, "dim": 5}])
def test_by_weights(shape):
    images, labels, _, _, share = problem(**shape)
    weights = torch.randn(int(labels.max()) + 1, images.shape[1], dtype=torch.float64)

    def loss(flat):
        return share * cross_entropy(images @ flat.view(weights.shape).T, labels, reduction="sum")

    expected = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, weights.flatten())).flip(0)
    found = hessian_eigenvalues((images @ weights.T).softmax(-1), images, share)
    torch.testing.assert_close(found, expected[: len(found)], atol=1e-10, rtol=1e-8)
    assert (expected[len(found) :].abs() < 1e-10).all()


def test_by_codes_through_the_decoder():
    images, labels, decoder, codes, share = problem()
    mean = decoder[:, : images.shape[1]]

    def loss(flat):
        return share * cross_entropy(images @ (flat.view(codes.shape) @ mean).T, labels, reduction="sum")

    expected = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, codes.flatten())).flip(0)
    found = hessian_eigenvalues((images @ (codes @ mean).T).softmax(-1), images @ mean.T, share)
    torch.testing.assert_close(found, expected[: len(found)], atol=1e-10, rtol=1e-8)
    assert len(found) == 8  # (N - 1) · Z: codes are narrower than images are many
    assert (expected[len(found) :].abs() < 1e-10).all()


def test_many_at_once_are_each_alone():
    images, _, _, _, share = problem()
    probabilities = torch.randn(4, 6, 3, dtype=torch.float64).softmax(-1)
    batch = torch.stack([images * scale for scale in (1, 2, 3, 4)])
    found = hessian_eigenvalues(probabilities, batch, share)
    for index in range(4):
        torch.testing.assert_close(found[index], hessian_eigenvalues(probabilities[index], batch[index], share))


def test_the_decoder_stretches_by_its_singular_values():
    parameters = initial_parameters(20, 5, inner_lr=1.0, finetuning_lr=1e-3, seed=0, dtype=torch.float64)
    mean = parameters.decoder[:, :20]
    values = decoder_singular_values(mean)
    torch.testing.assert_close(values.square().sum(), mean.square().sum())
    torch.testing.assert_close(values[0], torch.linalg.matrix_norm(mean, 2))
