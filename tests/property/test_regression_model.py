"""The model that generates a whole network: against plain torch, finite differences and itself one by one."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from leokit.leo import regression as leo

SETTINGS = leo.Settings(inner_steps=2, inner_clip=1e9)
KEYWORDS = {"noise_std": 0.3, "kl_weight": 0.1, "encoder_penalty_weight": 0.01}


@pytest.fixture(scope="module")
def tensors():
    """A model in float64 with decoded weights that move with their code."""
    found = {name: value.double() for name, value in leo.initial_tensors(0, inner_lr=1e-3).items()}
    found["decoder.2.weight"] *= 3
    return found


def task(count=3, points=5, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.normal(size=(count, points))) for _ in range(2))


def noise(tasks=3, samples=2, steps=SETTINGS.inner_steps):
    draws = leo.draw([(i,) for i in range(tasks)], seed=0, purpose="test", samples=samples, inner_steps=steps)
    return leo.Draws(*(values.double() for values in draws))


def sequential(weights):
    """The network of 1,761 weights as a plain torch module."""
    module = torch.nn.Sequential(
        torch.nn.Linear(1, 40), torch.nn.ReLU(), torch.nn.Linear(40, 40), torch.nn.ReLU(), torch.nn.Linear(40, 1)
    ).double()
    first, first_bias, middle, middle_bias, last, last_bias = torch.split(weights, list(leo.PARTS))
    values = [first[:, None], first_bias, middle.view(40, 40).T, middle_bias, last[None], last_bias]
    return module, dict(zip([name for name, _ in module.named_parameters()], values, strict=True))


def plain(weights, inputs):
    module, values = sequential(weights)
    return torch.func.functional_call(module, values, (inputs[:, None],))[:, 0]


def test_it_generates_1761_weights_and_has_the_sizes_of_the_paper():
    assert leo.WEIGHTS == 1761 == sum(value.numel() for value in sequential(torch.zeros(1761).double())[0].parameters())
    shapes = {name: tuple(value.shape) for name, value in leo.initial_tensors(0, inner_lr=1.0).items()}
    assert shapes["encoder.0.weight"] == (2, 16)
    assert shapes["relation.2.weight"] == (32, 2 * 16)
    assert shapes["decoder.0.weight"] == (16, 32)
    assert shapes["decoder.2.weight"] == (32, 2 * 1761)


def test_all_networks_at_once_are_the_plain_network_of_each():
    weights, inputs = torch.randn(2, 3, 1761, generator=torch.Generator().manual_seed(0)).double(), task()[0]
    found = leo.network(weights, inputs)
    for sample in range(2):
        for row in range(3):
            torch.testing.assert_close(found[sample, row], plain(weights[sample, row], inputs[row]))


def test_the_descent_is_autograd_on_one_task_and_sample(tensors):
    inputs, targets = task()
    draws = noise()
    found = leo.adapt(tensors, inputs, targets, draws, SETTINGS)
    rate = tensors["log_inner_lr"].exp()
    for sample in range(2):
        for row in range(3):
            code = found.codes[sample, row].clone().requires_grad_()
            for step in range(SETTINGS.inner_steps):
                mean, std = leo.decode(tensors, code)
                weights = mean + std * draws.weights[step, sample, row]
                loss = (plain(weights, inputs[row]) - targets[row]).square().mean()
                (gradient,) = torch.autograd.grad(loss, code)
                code = (code - rate * gradient).detach().requires_grad_()
            torch.testing.assert_close(found.adapted_codes[sample, row], code.detach())
    assert not torch.equal(found.codes, found.adapted_codes)


def test_a_step_is_no_longer_than_its_limit(tensors):
    draws, limit = noise(steps=1), 1e-3
    found = leo.adapt(tensors, *task(), draws, leo.Settings(1, limit))
    gradient = (found.codes - found.adapted_codes) / tensors["log_inner_lr"].exp()
    torch.testing.assert_close(gradient.norm(dim=-1), torch.full((2, 3), limit).double())


@pytest.mark.parametrize("objective", ["predictive", "expected"])
def test_the_meta_gradient_is_that_of_finite_differences(tensors, objective):
    """Second-order terms, draws and KL included, along a direction in all that is learned.

    Without the penalty: its gradient holds z' fixed, which a difference does not.
    """
    draws, points, queries = noise(), task(), task(points=4, seed=2)
    keywords = {**KEYWORDS, "encoder_penalty_weight": 0.0}

    def loss(values):
        return leo.meta_loss(values, points, queries, draws, SETTINGS, objective=objective, **keywords).total

    learned = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    generator = torch.Generator().manual_seed(3)
    direction = {name: torch.randn(value.shape, generator=generator).double() for name, value in learned.items()}
    gradients = torch.autograd.grad(loss(learned), list(learned.values()))
    slope = sum((g * direction[name]).sum() for name, g in zip(learned, gradients, strict=True)).item()
    size = 1e-7
    ends = [loss({n: v + sign * size * direction[n] for n, v in tensors.items()}).item() for sign in (1, -1)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-3)


def test_terms_of_the_objective():
    rng = np.random.default_rng(0)
    values, targets = rng.normal(size=(4, 2, 3)), rng.normal(size=(2, 3))
    each = norm.logpdf(targets, values, 0.3)
    tensors = torch.from_numpy(values), torch.from_numpy(targets)
    expected = leo.query_loss(*tensors, 0.3, "expected")
    np.testing.assert_allclose(expected, -each.mean((0, 2)))
    predictive = leo.query_loss(*tensors, 0.3, "predictive")
    np.testing.assert_allclose(predictive, -(logsumexp(each.sum(-1), axis=0) - np.log(4)) / 3)
    assert (predictive <= expected).all()  # Jensen
    alone = [leo.query_loss(tensors[0][:1], tensors[1], 0.3, name) for name in ("expected", "predictive")]
    torch.testing.assert_close(*alone)


def test_divergence_and_penalty(tensors):
    draws, points = noise(), task()
    adapted = leo.adapt(tensors, *points, draws, SETTINGS)
    loss = leo.meta_loss(tensors, points, task(), draws, SETTINGS, objective="expected", **KEYWORDS)
    divergence = kl_divergence(Normal(*adapted.prior), Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(loss.kl, divergence)
    torch.testing.assert_close(loss.encoder_penalty, (adapted.codes - adapted.adapted_codes).square().mean())
    torch.testing.assert_close(loss.total, loss.query_loss + 0.1 * loss.kl + 0.01 * loss.encoder_penalty)


def test_the_order_of_points_changes_nothing(tensors):
    inputs, targets = task()
    order = torch.tensor([3, 1, 4, 0, 2])
    one, other = leo.encode(tensors, inputs, targets), leo.encode(tensors, inputs[:, order], targets[:, order])
    torch.testing.assert_close(one, other)


def test_noise_belongs_to_task_and_sample():
    all_of_them = leo.draw([(0,), (1,)], seed=0, purpose="test", samples=3, inner_steps=1)
    one = leo.draw([(1,)], seed=0, purpose="test", samples=2, inner_steps=1)
    torch.testing.assert_close(all_of_them.codes[:2, 1:], one.codes, rtol=0, atol=0)
    torch.testing.assert_close(all_of_them.weights[:, :2, 1:], one.weights, rtol=0, atol=0)
    flat = all_of_them.weights.flatten()
    assert flat.std().item() == pytest.approx(1, abs=4 / (2 * len(flat)) ** 0.5)
    assert not torch.equal(all_of_them.weights[0], all_of_them.weights[1])  # afresh at each decode
