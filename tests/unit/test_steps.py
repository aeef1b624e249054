"""Steps that stay on their device: the same promises as steps one by one, and on CUDA the same numbers."""

from dataclasses import replace

import pytest
import torch

from leokit.engine import training
from leokit.engine.state import new_state
from leokit.engine.steps import DeviceSteps, Diverged, Steps, make_steps
from leokit.episodes import FeatureMatrix
from leokit.features import FeatureTable
from tests.unit.test_training import CONFIG, CPU, TRAINING, VALIDATION, assert_same, fresh


def taken(steps, state, count):
    for _ in range(count):
        steps.take(state)
    steps.check(state)
    return state


def test_on_the_cpu_steps_are_taken_one_by_one():
    assert type(make_steps(CONFIG, TRAINING)) is Steps


def test_steps_on_a_device_choose_the_same_episodes(monkeypatch):
    seen = []
    original = DeviceSteps._gradients
    monkeypatch.setattr(
        DeviceSteps, "_gradients", lambda self, state, inputs: seen.append(inputs) or original(self, state, inputs)
    )
    taken(DeviceSteps(CONFIG, TRAINING), fresh(), 3)
    for step, inputs in enumerate(seen):
        for found, expected in zip(inputs[:2], Steps(CONFIG, TRAINING).episodes(step), strict=True):
            assert torch.equal(found, expected)


def test_fed_the_same_draws_they_do_the_same_as_single_steps(monkeypatch):
    single = taken(Steps(CONFIG, TRAINING), fresh(), 5)
    steps = DeviceSteps(CONFIG, TRAINING)
    fed = steps.learner.draws
    monkeypatch.setattr(
        type(steps.learner), "draws", lambda self, step, tasks, like, sets=None: fed(int(step), tasks, like)
    )
    together = taken(steps, fresh(), 5)
    assert_same(single, together)


@pytest.mark.parametrize("check_after", [1, 4, 7])
def test_neither_checks_nor_a_new_start_change_a_bit(check_after):
    whole = taken(DeviceSteps(CONFIG, TRAINING), fresh(), 10)
    state = taken(DeviceSteps(CONFIG, TRAINING), fresh(), check_after)
    assert_same(whole, taken(DeviceSteps(CONFIG, TRAINING), state, 10 - check_after))


def test_a_loss_that_is_no_number_leaves_the_state_before_it(monkeypatch):
    expected = taken(DeviceSteps(CONFIG, TRAINING), fresh(), 4)
    steps, state = DeviceSteps(CONFIG, TRAINING), fresh()
    original = steps._gradients

    def spoilt(current, inputs):
        terms, gradients = original(current, inputs)
        return torch.where(steps.next == 4, torch.nan, 1.0) * terms, gradients

    monkeypatch.setattr(steps, "_gradients", spoilt)
    with pytest.raises(Diverged, match=r"step 4 \(episodes 12 to 14\)"):
        taken(steps, state, 9)
    assert_same(state, expected)


def test_on_nan_decay_it_takes_the_step_that_single_steps_take(monkeypatch):
    config = replace(CONFIG, on_nan="decay")
    for kind in (Steps, DeviceSteps):  # the loss of step 2 is no number

        def spoilt(self, state, inputs, original=kind._gradients):
            terms, gradients = original(self, state, inputs)
            reached = self.next if isinstance(self, DeviceSteps) else torch.tensor(state.step)
            return torch.where(reached == 2, torch.nan, 1.0) * terms, gradients

        monkeypatch.setattr(kind, "_gradients", spoilt)
        if kind is Steps:
            single = taken(Steps(config, TRAINING), fresh(config), 4)
            monkeypatch.undo()
    steps = DeviceSteps(config, TRAINING)
    fed = steps.learner.draws
    monkeypatch.setattr(
        type(steps.learner), "draws", lambda self, step, tasks, like, sets=None: fed(int(step), tasks, like)
    )
    together = taken(steps, fresh(config), 4)
    assert together.step == 4
    for name, value in single.parameters.items():
        torch.testing.assert_close(together.parameters[name], value, msg=name)


def test_a_gradient_whose_square_overflows_is_finite_all_the_same(monkeypatch):
    original = Steps._gradients

    def huge(self, state, inputs):
        terms, gradients = original(self, state, inputs)
        return terms, [1e25 * gradient.sign() for gradient in gradients]

    monkeypatch.setattr(Steps, "_gradients", huge)
    assert taken(Steps(CONFIG, TRAINING), fresh(), 2).step == 2


def test_training_by_steps_on_a_device_learns_and_resumes(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "make_steps", DeviceSteps)
    config = replace(CONFIG, steps=30)
    whole, halves = fresh(config), fresh(config)
    lines = []
    assert training.train(config, whole, TRAINING, VALIDATION, keep=lambda state: None, report=lines.append)
    training.train(
        config,
        halves,
        TRAINING,
        VALIDATION,
        keep=lambda state: None,
        report=lines.append,
        stop_requested=lambda: halves.step == 13,
    )
    assert halves.step == 13
    training.train(config, halves, TRAINING, VALIDATION, keep=lambda state: None, report=lines.append)
    assert_same(whole, halves)


@pytest.fixture
def on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows, offsets = TRAINING.rows.numpy(), TRAINING.offsets.numpy()
    return FeatureMatrix(FeatureTable(rows, TRAINING.classes, offsets), device="cuda")


@pytest.mark.gpu
def test_on_cuda_the_losses_are_those_of_the_cpu(on_cuda, monkeypatch):
    config = replace(CONFIG, shots=1, cuda_graph=False)
    ours, theirs = new_state(config, TRAINING.dim, CPU), new_state(config, TRAINING.dim, torch.device("cuda"))
    single, device = Steps(config, TRAINING), DeviceSteps(config, on_cuda)
    assert_follows(single, device, ours, theirs, monkeypatch)


def test_a_device_fed_the_draws_of_the_cpu_follows_it(monkeypatch):
    """The test for CUDA above, as far as a CPU can tell."""
    config = replace(CONFIG, shots=1, cuda_graph=False)
    assert_follows(Steps(config, TRAINING), DeviceSteps(config, TRAINING), fresh(config), fresh(config), monkeypatch)


def assert_follows(single, device, ours, theirs, monkeypatch):
    drawn = type(single.learner).draws
    # The number of a step is a tensor on a device, for which other numbers would be drawn.
    monkeypatch.setattr(
        type(single.learner), "draws", lambda self, step, tasks, like, sets=None: drawn(self, int(step), tasks, like)
    )
    for _ in range(50):
        single.take(ours)
        device.take(theirs)
        device.check(theirs)
        torch.testing.assert_close(theirs.sums, ours.sums, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_on_cuda_the_graph_changes_nothing(on_cuda):
    states = []
    for graph in (False, True):
        config = replace(CONFIG, cuda_graph=graph)
        state = new_state(config, TRAINING.dim, torch.device("cuda"))
        states.append(taken(DeviceSteps(config, on_cuda), state, 20))
    for name, value in states[0].parameters.items():
        torch.testing.assert_close(value, states[1].parameters[name], rtol=1e-4, atol=1e-5)
