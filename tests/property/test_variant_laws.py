"""Each variant has a law that defines it."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from leokit.baselines import class_mean
from leokit.config import MetaTrainConfig
from leokit.errors import UsageError
from leokit.leo import Anchor, Draws, Method, adapt, initial_parameters, predict
from leokit.leo.learners import make_learner, split_anchor

DIM = 24
CONFIG = MetaTrainConfig(
    ways=4,
    shots=2,
    queries=3,
    num_latents=6,
    inner_steps=3,
    finetuning_steps=2,
    inner_lr=0.5,
    finetuning_lr=0.05,
    dropout=0.3,
    kl_weight=0.5,
    encoder_penalty_weight=0.1,
    l2_weight=1e-3,
    orthogonality_weight=0.1,
    seed=3,
    anchor_scale=10.0,
    anchor_gate=0.3,
)


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, DIM, dtype=torch.float64, generator=generator), dim=-1)


SUPPORT, QUERY = features(5, 4, 2), features(5, 4, 3, seed=1)


def start(variant, **changes):
    learner = make_learner(replace(CONFIG, variant=variant, **changes), DIM)
    return learner, learner.initial(torch.float64)


def weights(variant, support=SUPPORT, numbers=range(5), **changes):
    learner, tensors = start(variant, **changes)
    return learner.weights(tensors, support, numbers)


def loss(variant, **changes):
    learner, tensors = start(variant, **changes)
    return learner.loss(tensors, SUPPORT, QUERY, learner.draws(7, range(5), SUPPORT))


def test_generator_is_zero_steps_of_both_loops():
    assert torch.equal(weights("generator"), weights("leo", inner_steps=0, finetuning_steps=0))
    assert torch.equal(loss("generator").total, loss("leo", inner_steps=0, finetuning_steps=0).total)
    assert not torch.equal(weights("generator"), weights("leo"))


def test_no_finetuning_and_generator_finetuning_leave_one_loop_out():
    assert torch.equal(weights("no-finetuning"), weights("leo", finetuning_steps=0))
    assert torch.equal(weights("generator-finetuning"), weights("leo", inner_steps=0))


def test_deterministic_draws_no_noise_and_has_no_kl():
    learner, _ = start("deterministic")
    draws = learner.draws(7, range(5), SUPPORT)
    assert draws.codes is draws.weights is None
    assert draws.encoder_mask is not None
    found = loss("deterministic")
    assert found.kl == found.encoder_penalty == 0
    assert torch.equal(weights("deterministic"), weights("leo"))  # evaluation has no noise in either


def test_deterministic_without_dropout_trains_on_what_it_is_tested_on():
    learner, tensors = start("deterministic", dropout=0.0)
    found = learner.loss(tensors, SUPPORT, QUERY, learner.draws(7, range(5), SUPPORT))
    logits = predict(learner.weights(tensors, SUPPORT, range(5)), QUERY)
    labels = torch.arange(4)[:, None].expand(4, 3).flatten().repeat(5)
    torch.testing.assert_close(found.query_loss.mean(), cross_entropy(logits.flatten(0, -2), labels))


def test_random_prior_ignores_the_support_set_in_its_codes():
    other = features(5, 4, 2, seed=9)
    alone = {"inner_steps": 0, "finetuning_steps": 0}
    assert torch.equal(weights("random-prior", **alone), weights("random-prior", other, **alone))
    assert not torch.equal(weights("random-prior"), weights("random-prior", other))  # but adapts to it
    assert not torch.equal(weights("random-prior", **alone), weights("random-prior", seed=4, **alone))


def test_random_prior_draws_by_the_number_of_the_episode():
    whole = weights("random-prior")
    parts = [weights("random-prior", SUPPORT[:2], range(2)), weights("random-prior", SUPPORT[2:], range(2, 5))]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert not torch.allclose(whole, weights("random-prior", numbers=range(5, 10)))


def test_random_prior_learns_no_encoder():
    learner, tensors = start("random-prior", l2_weight=0.0)
    leaves = {name: value.requires_grad_() for name, value in tensors.items()}
    total = learner.loss(leaves, SUPPORT, QUERY, learner.draws(0, range(5), SUPPORT)).total
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    moved = {name for name, gradient in zip(leaves, gradients, strict=True) if gradient.abs().max() > 0}
    assert moved == {"decoder", "inner_lr", "finetuning_lr"}


def test_meta_sgd_has_no_encoder_and_its_own_ways_only():
    learner, tensors = start("meta-sgd")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {"start": (4, 24), "lr": (4, 24)}
    with pytest.raises(UsageError, match="its own 4 ways"):
        learner.weights(tensors, features(2, 5, 1), range(2))


def test_meta_sgd_is_gradient_descent_from_its_start():
    learner, tensors = start("meta-sgd")
    point = tensors["start"].clone().requires_grad_()
    for _ in range(5):  # the steps of both of LEO's loops
        logits = predict(point.expand(1, 4, 24), SUPPORT[:1])[0]
        value = cross_entropy(logits.flatten(0, 1), torch.arange(4).repeat_interleave(2), reduction="sum") / 2
        (gradient,) = torch.autograd.grad(value, point)
        point = (point - tensors["lr"] * gradient).detach().requires_grad_()
    torch.testing.assert_close(learner.weights(tensors, SUPPORT[:1], range(1))[0], point)


def test_without_anchor_and_gate_it_is_leo_to_the_last_bit():
    _, tensors = start("anchored")
    parameters, _ = split_anchor(tensors)
    nothing = Anchor(torch.tensor(-torch.inf, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))  # τ = 0
    ours = adapt(parameters, SUPPORT, Method(3, 2), anchor=nothing)
    assert torch.equal(ours.weights, weights("leo"))


def test_with_gate_zero_and_no_steps_it_is_the_class_mean():
    still = weights("anchored", anchor_gate=0.0, inner_steps=0, finetuning_steps=0)
    torch.testing.assert_close(still, 10 * class_mean(SUPPORT))
    learner, tensors = start("anchored")
    torch.testing.assert_close(learner.weights(learner.fallback(tensors), SUPPORT, range(5)), 10 * class_mean(SUPPORT))
    assert start("leo")[0].fallback(tensors) is None


@pytest.mark.parametrize("training", [False, True])
def test_the_anchored_gradient_is_that_of_autograd(training):
    learner, tensors = start("anchored")
    parameters, anchor = split_anchor(tensors)
    draws = learner.draws(7, range(5), SUPPORT) if training else Draws()
    method = Method(1, 1)
    adapted = adapt(parameters, SUPPORT, method, draws, anchor)
    mask = (lambda step: draws.support_masks[:, step]) if training else (lambda step: 1.0)

    def classifier(codes, step):
        mean, unnormalised = (codes @ parameters.decoder).chunk(2, dim=-1)
        std = torch.clamp(unnormalised.exp() - 1 + (2 / (4 + 24)) ** 0.5, min=1e-10)
        noise = draws.weights[:, step] if training else 0.0
        return 10 * class_mean(SUPPORT) + anchor.gate * (mean + std * noise).mean(-2)

    def support_loss(classifiers, step):
        logits = predict(classifiers, SUPPORT * mask(step))
        labels = torch.arange(4)[:, None].expand(5, 4, 2).flatten()
        return cross_entropy(logits.flatten(0, -2), labels, reduction="sum") / 2

    codes = adapted.codes.detach().requires_grad_()
    # With copies the classifier is their mean, so that each gets 1/C of the gradient of the sum over the shots.
    scale = 2 if training else 1
    (gradient,) = torch.autograd.grad(scale * support_loss(classifier(codes, 0), 0), codes)
    torch.testing.assert_close(adapted.adapted_codes, codes - parameters.inner_lr * gradient)
    point = adapted.adapted_weights.detach().requires_grad_()
    torch.testing.assert_close(point, classifier(adapted.adapted_codes, 1))
    (gradient,) = torch.autograd.grad(support_loss(point, 1), point)
    torch.testing.assert_close(adapted.weights, point - parameters.finetuning_lr * gradient)


def test_initial_parameters_are_leos_whatever_the_variant():
    leo = initial_parameters(24, 6, inner_lr=0.5, finetuning_lr=0.05, seed=3, dtype=torch.float64)
    for variant in ("leo", "generator", "anchored", "random-prior"):
        _, tensors = start(variant)
        assert all(torch.equal(tensors[name], value) for name, value in leo._asdict().items())
