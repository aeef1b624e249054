"""The path of adaptation, and what is measured on it, against autograd, a step at a time."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from leokit.config import MetaTrainConfig, Variant
from leokit.engine import geometry
from leokit.engine.geometry import Subject, codes_of, geometry_of
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.features import FeatureTable
from leokit.leo.adaptation import class_means
from leokit.leo.learners import make_learner

WAYS, SHOTS, DIM, LATENTS = 3, 2, 10, 4
CONFIG = MetaTrainConfig(
    ways=WAYS,
    shots=SHOTS,
    num_latents=LATENTS,
    inner_steps=3,
    finetuning_steps=2,
    inner_lr=0.7,
    finetuning_lr=0.2,
    anchor_scale=4.0,
    anchor_gate=-0.6,
    dtype="float64",
)


def matrix():
    rows = np.random.default_rng(0).normal(size=(6 * 8, DIM)) + np.arange(6).repeat(8)[:, None] / 3
    return FeatureMatrix(FeatureTable(rows, list("abcdef"), np.arange(0, 49, 8)), dtype=torch.float64)


def subject(variant):
    learner = make_learner(replace(CONFIG, variant=variant), DIM)
    features = matrix()
    sampler = EpisodeSampler(features.offsets, ways=WAYS, seed=5, purpose="evaluation")
    return Subject(learner, learner.initial(torch.float64), features, sampler, SHOTS, steps=5)


def support_of(given, numbers):
    return given.features.take(given.sampler.draw(numbers, shots=SHOTS, queries=1).support)


def support_loss(weights, images):
    labels = torch.arange(WAYS).repeat_interleave(SHOTS)
    return cross_entropy(images.flatten(0, 1) @ weights.T, labels, reduction="sum") / SHOTS


@pytest.mark.parametrize("variant", get_args(Variant))
def test_the_path_ends_at_the_classifier_and_each_step_is_that_of_autograd(variant):
    given = subject(variant)
    learner, tensors = given.learner, given.tensors
    support = support_of(given, range(4))
    path = learner.path(tensors, support, range(4))
    torch.testing.assert_close(path.weights[:, -1], learner.weights(tensors, support, range(4)), rtol=0, atol=0)
    code_map = learner.code_map(tensors)
    assert (code_map is None) == (path.codes is None) == (variant == "meta-sgd")
    base = torch.zeros(4, WAYS, DIM, dtype=torch.float64)
    if variant == "anchored":
        base = tensors["log_scale"].exp() * normalize(class_means(support, None), dim=-1)
    rates = tensors["lr"] if code_map is None else tensors["finetuning_lr"]
    for episode, images in enumerate(support):
        for step in range(path.weights.shape[1]):
            weights = path.weights[episode, step].requires_grad_()
            if step <= path.latent_steps and code_map is not None:
                codes = path.codes[episode, step].requires_grad_()
                decoded = base[episode] + codes @ code_map
                torch.testing.assert_close(weights, decoded)
                if step < path.latent_steps:
                    (slope,) = torch.autograd.grad(support_loss(decoded, images), codes)
                    torch.testing.assert_close(path.codes[episode, step + 1], codes - tensors["inner_lr"] * slope)
            if step >= path.latent_steps and step < path.weights.shape[1] - 1:
                (slope,) = torch.autograd.grad(support_loss(weights, images), weights)
                torch.testing.assert_close(path.weights[episode, step + 1], weights - rates * slope)


def eigenvalues_by_autograd(images, weights, decoder):
    """Of the Hessian of the support loss by what moves the weights through a decoder (W, D), descending."""

    def loss(move):
        return support_loss(weights + move.view(WAYS, -1) @ decoder, images)

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(WAYS * len(decoder), dtype=torch.float64))
    return torch.linalg.eigvalsh(hessian).flip(0)


@pytest.mark.parametrize("variant", ["leo", "anchored", "random-prior", "meta-sgd"])
def test_curvature_and_lengths_are_those_of_an_episode_alone(monkeypatch, variant):
    monkeypatch.setattr(geometry, "_BLOCK_ELEMENTS", 500)  # several blocks of so few episodes
    given = subject(variant)
    found = geometry_of(given, episodes=5)
    spaces = {"weights"} if variant == "meta-sgd" else {"codes", "weights"}
    assert set(found.curvature) == {(point, space) for point in geometry.POINTS for space in spaces}
    for episode in range(5):
        numbers = range(episode, episode + 1)
        (images,) = support = support_of(given, numbers)
        path = given.learner.path(given.tensors, support, numbers)
        code_map = given.learner.code_map(given.tensors)
        for (point, space), values in found.curvature.items():
            place = 0 if point == "start" else path.latent_steps if space == "codes" else -1
            decoder = code_map if space == "codes" else torch.eye(DIM, dtype=torch.float64)
            expected = eigenvalues_by_autograd(images, path.weights[0, place], decoder)[: values.shape[1]]
            np.testing.assert_allclose(values[episode], expected, atol=1e-12)
            assert values.shape[1] == (WAYS - 1) * min(WAYS * SHOTS, len(decoder))
        steps = [torch.linalg.vector_norm(b - a) for a, b in zip(path.weights[0], path.weights[0, 1:], strict=False)]
        np.testing.assert_allclose(found.weight_steps[episode], steps)
        assert found.weight_distances[episode, -1] == pytest.approx(
            float((path.weights[0, -1] - path.weights[0, 0]).norm())
        )
        if variant != "meta-sgd":
            moved = (path.codes[0, 1] - path.codes[0, 0]).norm()
            assert found.code_steps[episode, 0] == found.code_distances[episode, 0] == pytest.approx(float(moved))
            stretch = np.linalg.svd(code_map, compute_uv=False)
            ratio = found.weight_steps[episode, :3] / found.code_steps[episode]
            assert ((ratio <= stretch[0] + 1e-9) & (ratio >= stretch[-1] - 1e-9)).all()


def test_codes_are_those_of_the_episodes_classes(monkeypatch):
    given = subject("leo")
    whole = codes_of(given, episodes=7)
    monkeypatch.setattr(geometry, "_BLOCK_ELEMENTS", 500)
    for ours, theirs in zip(whole, codes_of(given, episodes=7), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    support = support_of(given, range(7))
    path = given.learner.path(given.tensors, support, range(7))
    np.testing.assert_allclose(whole.before, path.codes[:, 0])
    np.testing.assert_allclose(whole.after, path.codes[:, 3])
    np.testing.assert_array_equal(whole.classes, given.sampler.draw(range(7), shots=1, queries=1).classes)
