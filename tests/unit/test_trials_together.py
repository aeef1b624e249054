"""Trials whose steps are taken as one: each has its own rates, penalties and dropout, and is what it is alone."""

from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch

from leokit.config import BenchSeedsConfig, Variant
from leokit.engine import training, trials
from leokit.engine.state import new_state, stack, unstack
from leokit.engine.steps import DeviceSteps, Steps
from leokit.engine.trials import OUTCOME, Task, read_outcome, run_trials
from leokit.errors import LeokitError
from leokit.leo.learners import make_learner
from leokit.leo.sets import OWN, Sets, structure
from leokit.runs import STATE, load_parameters
from leokit.stages import bench_learning
from tests.e2e.conftest import learnable_store
from tests.unit.test_seeds_together import CPU, DOUBLE, TRAINING, assert_close

# Every number that is each trial's own, and a rate of dropout of none.
NUMBERS = [
    {},
    {"outer_lr": 3e-3, "dropout": 0.0, "kl_weight": 0.0, "anchor_lr_factor": 3.0, "finetuning_lr": 1e-2},
    {"outer_lr": 5e-4, "dropout": 0.6, "kl_weight": 0.5, "encoder_penalty_weight": 0.1, "anchor_gate": 0.7},
    {"outer_lr": 1e-3, "dropout": 0.1, "l2_weight": 0.1, "orthogonality_weight": 1.0, "inner_lr": 0.3},
]


def drawn(config=DOUBLE, numbers=NUMBERS):
    return [replace(config, **own) for own in numbers]


@pytest.mark.parametrize(("variant", "kind"), [*((name, Steps) for name in get_args(Variant)), ("leo", DeviceSteps)])
def test_several_steps_as_one_are_those_of_each(variant, kind):
    configs = drawn(replace(DOUBLE, variant=variant, clip_norm=0.01))
    states = [new_state(config, TRAINING.dim, CPU) for config in configs]
    whole, together = stack(configs, states), kind(configs[0], TRAINING, runs=configs)
    for _ in range(5):
        together.take(whole)
    together.check(whole)
    for state in states:
        state.step = whole.step
    unstack(configs, states)
    ends = []
    for config, state in zip(configs, states, strict=True):
        expected, alone = new_state(config, TRAINING.dim, CPU), kind(config, TRAINING)
        for _ in range(5):
            alone.take(expected)
        alone.check(expected)
        assert_close(state, expected)
        torch.testing.assert_close(state.sums, expected.sums, rtol=1e-6, atol=1e-6)
        ends.append(torch.cat([value.detach().flatten() for value in state.parameters.values()]))
    assert all(not torch.allclose(one, other) for one in ends for other in ends if one is not other)


@pytest.mark.parametrize("step", [7, torch.tensor(7)], ids=["cpu", "device"])
def test_trials_of_one_seed_share_their_noise_and_the_bits_of_their_masks(step):
    configs = drawn(replace(DOUBLE, dropout=0.3))
    like = torch.zeros(1, dtype=torch.float64)
    learner = make_learner(configs[0], 10)
    together = learner.draws(step, range(1, 3), like, Sets.of(configs, dtype=like.dtype, device=CPU))
    for number, config in enumerate(configs):
        own = make_learner(config, 10).draws(step, range(1, 3), like)
        for ours, theirs in zip(together, own, strict=True):
            assert torch.equal(ours[number], torch.ones_like(ours[number]) if theirs is None else theirs)
    assert together.weights.stride(0) == together.codes.stride(0) == 0  # held once
    masks = sorted(zip([config.dropout for config in configs], together.support_masks, strict=True), key=lambda e: e[0])
    for (_, more), (_, fewer) in pairwise(masks):
        assert torch.all((more > 0) | (fewer == 0))  # what a low rate drops a high one drops too


def test_episodes_of_one_seed_are_drawn_and_held_once():
    together = Steps(DOUBLE, TRAINING, runs=drawn())
    for ours, theirs in zip(together.episodes(70), Steps(DOUBLE, TRAINING).episodes(70), strict=True):
        assert ours.stride(0) == 0
        assert all(torch.equal(own, theirs) for own in ours)


def test_what_differs_in_anything_else_has_another_structure():
    assert {structure(config) for config in drawn()} == {structure(DOUBLE)}
    others = [{"num_latents": 3}, {"meta_batch": 5}, {"inner_steps": 1}, {"clip_norm": 0.2}, {"sampling": False}]
    assert len({structure(replace(DOUBLE, **other)) for other in others} | {structure(DOUBLE)}) == 6
    assert all(hasattr(DOUBLE, name) for name in OWN)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return learnable_store(tmp_path_factory.mktemp("store") / "features")


CONFIG = replace(
    DOUBLE, steps=30, val_every=5, val_episodes=20, val_queries=5, queries=5, num_latents=8, meta_batch=4, device="cpu"
)
SEARCHED = drawn(replace(CONFIG, outer_lr=1e-4), [*NUMBERS[1:], {"outer_lr": 0.01, "dropout": 0.4}])


@pytest.fixture
def tasks(store, tmp_path):
    """Tasks of the same trials in a search of a name, trained as far as asked."""

    def make(name, configs=SEARCHED, until=30):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        place = (store.folder, tmp_path / "rows", folder / ".stop")
        return [
            Task(number, config, until, folder / "trials" / f"{number:05}", *place)
            for number, config in enumerate(configs)
        ]

    return make


def assert_alike(ours, theirs, exact=False):
    """Trials by their folders."""
    for one, other in zip(ours, theirs, strict=True):
        assert read_outcome(one.folder) == read_outcome(other.folder)
        weights, expected = (load_parameters(task.folder / "weights.safetensors") for task in (one, other))
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-9}
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], **tolerance, msg=name)


@pytest.mark.parametrize("patience", [None, 1])
def test_trials_as_one_are_the_trials_alone(tasks, patience):
    configs = [replace(config, patience=patience, val_every=3) for config in SEARCHED]
    together, alone = tasks("together", configs), tasks("alone", configs)
    done = run_trials(together)
    assert [outcome.index for outcome in done] == [0, 1, 2, 3]
    for task in alone:
        run_trials([task])
    assert_alike(together, alone)
    assert len({outcome.accuracy(30) for outcome in done}) > 1
    assert len({outcome.steps for outcome in done}) == (2 if patience else 1)  # or this test says little
    assert not any((task.folder / STATE).exists() for task in together)


def test_stopped_and_in_parts_they_come_to_the_same(tasks):
    whole, cut = tasks("whole"), tasks("cut")
    run_trials(whole)
    for stops_after in (7, 2):
        asked = iter([False] * stops_after + [True])
        assert run_trials(cut, lambda asked=asked: next(asked)) == [None] * 4
    for until in (15, 30):
        found = run_trials(tasks("cut", until=until))
        assert {outcome.steps for outcome in found} == {until}
    assert_alike(cut, whole, exact=True)


def test_those_that_are_done_are_left_alone_and_the_others_go_on(tasks):
    together, alone = tasks("together"), tasks("alone")
    run_trials(together[1:2])
    written = (together[1].folder / OUTCOME).stat().st_mtime_ns
    assert [outcome.index for outcome in run_trials(together)] == [0, 1, 2, 3]
    assert (together[1].folder / OUTCOME).stat().st_mtime_ns == written
    for task in alone:
        run_trials([task])
    assert_alike(together, alone)


def test_one_that_diverges_fails_alone(tasks):
    configs = [*SEARCHED[:1], replace(SEARCHED[1], outer_lr=1e200), *SEARCHED[2:]]
    together, alone = tasks("together", configs), tasks("alone", configs)
    done = run_trials(together)
    assert [outcome.failure is None for outcome in done] == [True, False, True, True]
    assert done[1].ended and done[1].steps < 30
    for task in alone:
        run_trials([task])
    assert read_outcome(alone[1].folder).failure.split(" (loss")[0] == done[1].failure.split(" (loss")[0]
    assert_alike(together[:1] + together[2:], alone[:1] + alone[2:])


def test_trials_that_were_drawn_alike_come_to_the_same(tasks):
    wild = replace(SEARCHED[1], outer_lr=1e200)
    first, failed, second, again = run_trials(tasks("together", [SEARCHED[3], wild, SEARCHED[3], wild]))
    assert replace(second, index=first.index) == first and first.failure is None
    assert replace(again, index=failed.index) == failed and failed.failure is not None


def test_seconds_are_divided_among_them(tasks, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(trials.time, "perf_counter", lambda: next(clock))
    done = run_trials(tasks("together"))
    last = next(clock)
    assert last / 2 < sum(outcome.seconds for outcome in done) <= last
    assert max(outcome.seconds for outcome in done) < last / 2


def test_too_many_for_the_device_are_said(tasks, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training, "train_together", full)
    with pytest.raises(LeokitError, match="4 trials as one: give a smaller --batched"):
        run_trials(tasks("together"))


def test_bench_takes_trials_in_turns():
    found = bench_learning.run_seeds(
        BenchSeedsConfig(trials=True, seeds=2, dim=8, meta_batch=2, steps=1, rounds=2, device="cpu")
    )
    assert found["seconds"].keys() == found["ratio"].keys() == found["processor_ratio"].keys()
    assert found["ratio"]["one after the other"] == 1 and found["ratio"]["batched"] > 0
