"""Laws of the LEO core: the fast form equals the obvious one, batches equal loops, and nothing leaks."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from leokit.leo import Draws, Method, Penalties, adapt, adaptation, initial_parameters, meta_loss, predict, reference

PENALTIES = Penalties(kl=0.7, encoder=0.03, l2=1e-3, orthogonality=0.2)
sizes = st.fixed_dictionaries(
    {
        "ways": st.integers(2, 6),
        "shots": st.integers(1, 4),
        "queries": st.integers(1, 5),
        "dim": st.integers(2, 20),
        "latents": st.integers(1, 9),
        "inner_steps": st.integers(0, 4),
        "finetuning_steps": st.integers(0, 3),
        "seed": st.integers(0, 2**31),
    }
)


class Problem:
    """Random episodes, parameters and draws of the given sizes."""

    def __init__(
        self,
        ways=5,
        shots=2,
        queries=3,
        dim=12,
        latents=4,
        inner_steps=3,
        finetuning_steps=2,
        seed=0,
        episodes=3,
        dtype=torch.float64,
    ):
        torch.manual_seed(seed)
        self.parameters = initial_parameters(dim, latents, inner_lr=0.2, finetuning_lr=0.05, seed=seed, dtype=dtype)
        self.support = torch.nn.functional.normalize(torch.randn(episodes, ways, shots, dim, dtype=dtype), dim=-1)
        self.query = torch.nn.functional.normalize(torch.randn(episodes, ways, queries, dim, dtype=dtype), dim=-1)
        self.method = Method(inner_steps, finetuning_steps)
        self.steps = {"inner_steps": inner_steps, "finetuning_steps": finetuning_steps}

        def mask(*shape):
            return torch.bernoulli(torch.full(shape, 0.7, dtype=dtype)) / 0.7

        gradients = inner_steps + finetuning_steps
        self.draws = Draws(
            # Small noise: with few features the deviations of the weights are large, and their exponentials explode.
            codes=0.3 * torch.randn(episodes, ways, shots, latents, dtype=dtype),
            weights=0.3 * torch.randn(episodes, inner_steps + 1, ways, shots, dim, dtype=dtype),
            encoder_mask=mask(episodes, ways, shots, dim),
            support_masks=mask(episodes, gradients, ways, shots, dim),
            query_mask=mask(episodes, ways, queries, dim),
        )

    def loss(self, draws, select=slice(None)):
        chosen = Draws(*(value[select] for value in draws)) if draws else None
        return meta_loss(self.parameters, self.support[select], self.query[select], PENALTIES, self.method, chosen)

    def twin(self, draws, index):
        chosen = Draws(*(value[index] for value in draws)) if draws else None
        return reference.episode(
            self.parameters, self.support[index], self.query[index], PENALTIES, **self.steps, draws=chosen
        )

    def gradients(self, loss):
        return torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)


@settings(max_examples=40, deadline=None)
@given(sizes, st.booleans())
def test_fast_core_equals_the_obvious_twin(size, training):
    problem = Problem(**size)
    draws = problem.draws if training else None
    twins = [problem.twin(draws, index) for index in range(len(problem.support))]
    loss = problem.loss(draws)
    expected = torch.stack([twin.loss for twin in twins]).mean()
    assume(expected.isfinite() and expected < 1e6)
    torch.testing.assert_close(loss.total, expected, atol=1e-10, rtol=1e-10)
    for ours, theirs in zip(problem.gradients(loss.total), problem.gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@settings(max_examples=20, deadline=None)
@given(sizes, st.booleans())
def test_a_batch_equals_the_loop_over_its_episodes(size, training):
    problem = Problem(**size)
    draws = problem.draws if training else None
    whole = problem.loss(draws)
    assume(whole.total.isfinite() and whole.total < 1e6)
    singles = [problem.loss(draws, slice(index, index + 1)) for index in range(len(problem.support))]
    torch.testing.assert_close(whole.total, torch.stack([single.total for single in singles]).mean())
    torch.testing.assert_close(whole.query_loss, torch.cat([single.query_loss for single in singles]))


@settings(max_examples=20, deadline=None)
@given(sizes, st.randoms())
def test_permuting_classes_permutes_predictions(size, random):
    problem = Problem(**size)
    order = list(range(size["ways"]))
    random.shuffle(order)
    adapted = adapt(problem.parameters, problem.support, problem.method)
    permuted = adapt(problem.parameters, problem.support[:, order], problem.method)
    torch.testing.assert_close(permuted.weights, adapted.weights[:, order])
    logits = predict(adapted.weights, problem.query)
    torch.testing.assert_close(predict(permuted.weights, problem.query[:, order]), logits[:, order][..., order])


def test_the_order_of_shots_changes_nothing():
    problem = Problem(shots=4)
    adapted = adapt(problem.parameters, problem.support, problem.method)
    reordered = adapt(problem.parameters, problem.support[:, :, [2, 0, 3, 1]], problem.method)
    torch.testing.assert_close(reordered.weights, adapted.weights)


def test_giving_every_image_twice_changes_nothing():
    problem = Problem(shots=2)
    adapted = adapt(problem.parameters, problem.support, problem.method)
    doubled = adapt(problem.parameters, problem.support.repeat(1, 1, 2, 1), problem.method)
    torch.testing.assert_close(doubled.weights, adapted.weights)


def test_giving_every_image_of_one_class_twice_changes_nothing():
    problem = Problem(shots=2)
    adapted = adapt(problem.parameters, problem.support, problem.method)
    ragged = torch.cat([problem.support, torch.randn_like(problem.support)], dim=2)  # images of share 0 say nothing
    ragged[:, 1, 2:] = problem.support[:, 1]
    shares = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).repeat(5, 1)
    shares[1] = 0.25
    doubled = adapt(problem.parameters, ragged, problem.method, shares=shares)
    torch.testing.assert_close(doubled.weights, adapted.weights)


def test_equal_shares_are_no_shares():
    problem = Problem(shots=3)
    adapted = adapt(problem.parameters, problem.support, problem.method)
    shared = adapt(problem.parameters, problem.support, problem.method, shares=torch.full((3, 5, 3), 1 / 3).double())
    torch.testing.assert_close(shared.weights, adapted.weights, rtol=1e-6, atol=1e-7)


def test_evaluation_draws_nothing():
    problem = Problem()
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = adapt(problem.parameters, problem.support, problem.method)
    second = adapt(problem.parameters, problem.support, problem.method)
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_adapting_touches_no_gradient_and_no_input():
    problem = Problem()
    inputs = problem.support.clone(), problem.query.clone()
    loss = problem.loss(problem.draws)
    assert all(parameter.grad is None for parameter in problem.parameters)
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in problem.parameters)
    assert torch.equal(problem.support, inputs[0])
    assert torch.equal(problem.query, inputs[1])


def test_evaluation_needs_no_graph():
    problem = Problem()
    with torch.inference_mode():
        adapted = adapt(problem.parameters, problem.support, problem.method)
    torch.testing.assert_close(
        adapted.weights, adapt(problem.parameters, problem.support, problem.method).weights.detach()
    )


def test_meta_gradient_is_right_by_finite_differences():
    problem = Problem(ways=3, shots=2, queries=2, dim=5, latents=3, inner_steps=2, finetuning_steps=2, episodes=2)

    def total(*parameters):
        moved = type(problem.parameters)(*parameters)
        penalties = Penalties(0.7, 0, 1e-3, 0.2)
        return meta_loss(moved, problem.support, problem.query, penalties, problem.method, problem.draws).total

    # The encoder penalty is left out: its stopped gradient is not the derivative of its value, on purpose.
    assert torch.autograd.gradcheck(total, tuple(problem.parameters), eps=1e-7, atol=1e-5)


def test_pairs_in_blocks_equal_all_pairs_at_once(monkeypatch):
    problem = Problem(ways=4, shots=3)
    whole = adaptation.encode(problem.parameters, problem.support)
    monkeypatch.setattr(adaptation, "_PAIR_BLOCK", 1)
    blocks = adaptation.encode(problem.parameters, problem.support)
    torch.testing.assert_close(blocks.mean, whole.mean)


def test_deviation_is_positive_for_any_output():
    output = torch.tensor([[0.0, -50.0], [0.0, -1e-3], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    std = adaptation.gaussian(output, offset=0.05).std.squeeze(-1)
    # max(exp(u) - 0.95, 1e-10) at u = -50, -0.001, 0, 1
    expected = [1e-10, 0.0490004998, 0.05, 1.7682818285]
    assert std.tolist() == pytest.approx(expected, rel=1e-8)


def test_float32_follows_float64():
    single, double = Problem(dtype=torch.float32), Problem()
    single.support, single.query = double.support.float(), double.query.float()
    draws = Draws(*(value.float() for value in double.draws))
    assert single.loss(draws).total.item() == pytest.approx(double.loss(double.draws).total.item(), rel=1e-5)
