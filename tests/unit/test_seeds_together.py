"""Runs of several seeds that take their steps as one: each is what it is alone."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from leokit.config import Variant
from leokit.engine import training
from leokit.engine.state import new_state, pack, stack, unpack, unstack
from leokit.engine.steps import DeviceSteps, Diverged, Steps
from leokit.engine.training import Course, train_together
from leokit.episodes import EpisodeSampler, SeveralSeeds
from leokit.leo.learners import make_learner
from leokit.leo.sets import Sets
from tests.unit.test_training import CONFIG, CPU, matrix

# In double precision the order of sums is far below what is learned.
DOUBLE = replace(CONFIG, dtype="float64")
SEEDS = (0, 3, 4)


def doubled(**options):
    made = matrix(**options)
    made.rows, made.dtype = made.rows.double(), torch.float64
    return made


TRAINING, VALIDATION = doubled(), doubled(seed=1)


def runs(config=DOUBLE, seeds=SEEDS):
    return [replace(config, seed=seed) for seed in seeds]


def course(config, state=None):
    """A run with what it reported and kept."""
    lines, kept = [], []
    state = state or new_state(config, TRAINING.dim, CPU)
    made = Course(config, state, keep=lambda now: kept.append(pack(now)), report=lines.append)
    return made, lines, kept


def assert_close(ours, theirs, **tolerance):
    assert ours.step == theirs.step
    assert (ours.best_step, ours.best_accuracy) == (theirs.best_step, theirs.best_accuracy)
    first, second = pack(ours)[0], pack(theirs)[0]
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **{"rtol": 1e-7, "atol": 1e-10, **tolerance}, msg=name)


def assert_lines_close(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_lines_close(value, theirs[key])
    else:
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("variant", get_args(Variant))
@pytest.mark.parametrize("shots", [1, 2])
def test_a_step_of_several_is_the_step_of_each(variant, shots):
    config = replace(DOUBLE, variant=variant, shots=shots, inner_lr=0.1)
    together = Steps(config, TRAINING, runs=runs(config))
    states = [new_state(run, TRAINING.dim, CPU) for run in runs(config)]
    whole = stack(runs(config), states)
    for step in (0, 70):  # of two blocks of episodes
        inputs = together.inputs(step)
        terms, gradients = together._gradients(whole, inputs)
        assert terms.shape == (len(SEEDS), 7)
        for number, run in enumerate(runs(config)):
            alone = Steps(run, TRAINING)
            own = alone.inputs(step)
            for ours, theirs in zip([*inputs[:2], *inputs.draws], [*own[:2], *own.draws], strict=True):
                assert ours is theirs is None or torch.equal(ours[number], theirs)
            expected, expected_gradients = alone._gradients(new_state(run, TRAINING.dim, CPU), own)
            torch.testing.assert_close(terms[number], expected, rtol=1e-6, atol=1e-7)  # accuracy is single
            for ours, theirs in zip(gradients, expected_gradients, strict=True):
                torch.testing.assert_close(ours[number], theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("variant", "steps"), [("leo", Steps), ("anchored", Steps), ("leo", DeviceSteps)])
def test_several_steps_of_several_are_those_of_each(variant, steps):
    config = replace(DOUBLE, variant=variant, clip_norm=0.01, anchor_lr_factor=3.0)
    states = [new_state(run, TRAINING.dim, CPU) for run in runs(config)]
    whole, together = stack(runs(config), states), steps(config, TRAINING, runs=runs(config))
    for _ in range(6):
        together.take(whole)
    together.check(whole)
    for state in states:
        state.step = whole.step
    unstack(runs(config), states)
    for run, state in zip(runs(config), states, strict=True):
        expected, alone = new_state(run, TRAINING.dim, CPU), steps(run, TRAINING)
        for _ in range(6):
            alone.take(expected)
        alone.check(expected)
        assert_close(state, expected)
        torch.testing.assert_close(state.sums, expected.sums)
        alone.take(expected)  # moments and the count of steps went back to each
        alone.take(state)
        assert_close(state, expected)


def test_several_seeds_draw_the_episodes_of_each(monkeypatch):
    options = {"ways": 3, "purpose": "meta-train"}
    together = SeveralSeeds(TRAINING.offsets, seeds=SEEDS, **options)
    whole = together.draw(range(5, 16), shots=2, queries=3)
    monkeypatch.setattr("leokit.episodes._KEYS", 200)  # a few episodes at a time
    parts = together.draw(range(5, 16), shots=2, queries=3)
    for number, seed in enumerate(SEEDS):
        own = EpisodeSampler(TRAINING.offsets, seed=seed, **options).draw(range(5, 16), shots=2, queries=3)
        for rows, cut, expected in zip(whole, parts, own, strict=True):
            assert torch.equal(rows[number], expected)
            assert torch.equal(cut[number], expected)


def test_on_a_device_several_seeds_get_the_noise_of_each():
    learner, like, step = make_learner(CONFIG, 10), torch.zeros(1), torch.tensor(7)
    together = learner.draws(step, range(1, 3), like, Sets.of(runs(CONFIG), dtype=like.dtype, device=CPU))
    for number, run in enumerate(runs(CONFIG)):
        own = make_learner(run, 10).draws(step, range(1, 3), like)
        for ours, theirs in zip(together, own, strict=True):
            assert torch.equal(ours[number], theirs)


@pytest.mark.parametrize("variant", ["leo", "anchored"])
def test_training_together_is_training_each_alone(monkeypatch, variant):
    monkeypatch.setattr(training, "REPORT_EVERY", 4)
    config = replace(DOUBLE, variant=variant, steps=14, val_every=3, patience=3)
    together = [course(run) for run in runs(config)]
    counted = []
    assert train_together(
        [made for made, _, _ in together],
        TRAINING,
        VALIDATION,
        uncentred=TRAINING,
        on_step=lambda step, text: counted.append(step),
    )
    assert counted == sorted(counted)
    for run, (made, lines, kept) in zip(runs(config), together, strict=True):
        alone, expected_lines, expected_kept = course(run)
        assert train_together([alone], TRAINING, VALIDATION, uncentred=TRAINING)
        assert_close(made.state, alone.state)
        assert [record["step"] for _, record in kept] == [record["step"] for _, record in expected_kept]
        assert len(lines) == len(expected_lines)
        for line, expected in zip(lines, expected_lines, strict=True):
            assert_lines_close(line, expected)


def test_patience_ends_each_for_itself():
    config = replace(DOUBLE, steps=60, val_every=2, patience=2, outer_lr=1e-2)
    together, ended = [course(run) for run in runs(config, range(5))], []
    for made, _, _ in together:
        made.finished = lambda made=made: ended.append((made.config.seed, made.state.step))
    assert train_together([made for made, _, _ in together], TRAINING, VALIDATION)
    steps = {made.config.seed: made.state.step for made, _, _ in together}
    assert len(set(steps.values())) > 1, "all ended at once, so nothing was shown"
    assert ended == sorted(ended, key=lambda entry: entry[1])  # as soon as each was over
    assert dict(ended) == steps
    for run, (made, _, _) in zip(runs(config, range(5)), together, strict=True):
        alone, _, _ = course(run)
        train_together([alone], TRAINING, VALIDATION)
        assert_close(made.state, alone.state)


def test_runs_that_are_at_other_steps_catch_up_and_go_on_together():
    whole, states = [], []
    for run, cut in zip(runs(), (0, 7, 3), strict=True):
        made, _, kept = course(run)
        train_together([made], TRAINING, VALIDATION)
        whole.append(made)
        made, _, kept = course(run)
        now = made.state
        if cut:
            train_together([made], TRAINING, VALIDATION, stop_requested=lambda now=now, cut=cut: now.step == cut)
        states.append(unpack(*kept[-1], run, CPU) if cut else now)
    assert [state.step for state in states] == [0, 7, 3]
    together = [course(run, state)[0] for run, state in zip(runs(), states, strict=True)]
    assert train_together(together, TRAINING, VALIDATION)
    for made, alone in zip(together, whole, strict=True):
        assert_close(made.state, alone.state)


def test_stopped_and_resumed_together_is_not_stopped():
    expected = [course(run) for run in runs()]
    train_together([made for made, _, _ in expected], TRAINING, VALIDATION)
    cut = [course(run) for run in runs()]
    assert not train_together(
        [made for made, _, _ in cut], TRAINING, VALIDATION, stop_requested=lambda: cut[0][0].state.step >= 6
    )
    resumed = [course(run, unpack(*kept[-1], run, CPU))[0] for run, (_, _, kept) in zip(runs(), cut, strict=True)]
    assert {made.state.step for made in resumed} == {7}
    assert train_together(resumed, TRAINING, VALIDATION)
    for made, (alone, _, _) in zip(resumed, expected, strict=True):
        for name, value in pack(made.state)[0].items():
            assert torch.equal(value, pack(alone.state)[0][name]), name


@pytest.mark.parametrize("kind", [Steps, DeviceSteps])
def test_one_that_diverges_ends_and_the_others_go_on(monkeypatch, kind):
    monkeypatch.setattr(training, "make_steps", kind)
    original = kind._gradients

    def spoilt(self, state, inputs):
        terms, gradients = original(self, state, inputs)
        reached = int(self.next) if kind is DeviceSteps else state.step
        if self.sets and 3 in self.sets.seeds and reached == 4:
            terms[self.sets.seeds.index(3)] = torch.nan
        return terms, gradients

    monkeypatch.setattr(kind, "_gradients", spoilt)
    together = [course(run) for run in runs()]
    with pytest.raises(Diverged, match=r"step 4 \(episodes 12 to 14\) of seed 3 is not finite"):
        train_together([made for made, _, _ in together], TRAINING, VALIDATION)
    assert together[1][2][-1][1]["step"] == 4  # kept before it
    for number, run in enumerate(runs()):
        if run.seed != 3:
            alone, _, _ = course(run)
            train_together([alone], TRAINING, VALIDATION)
            assert_close(together[number][0].state, alone.state)


def test_decay_takes_the_place_of_what_is_no_number_in_one_run_alone(monkeypatch):
    config = replace(DOUBLE, on_nan="decay", steps=6)
    original = Steps._gradients

    def spoilt(self, state, inputs):
        terms, gradients = original(self, state, inputs)
        rows = [self.sets.seeds.index(3)] if self.sets else [...] if self.config.seed == 3 else []
        for row in rows if state.step == 2 else []:
            terms[row] = torch.nan
        return terms, gradients

    monkeypatch.setattr(Steps, "_gradients", spoilt)
    together = [course(run) for run in runs(config)]
    train_together([made for made, _, _ in together], TRAINING, VALIDATION)
    for run, (made, _, _) in zip(runs(config), together, strict=True):
        alone, _, _ = course(run)
        train_together([alone], TRAINING, VALIDATION)
        for name, value in alone.state.parameters.items():
            torch.testing.assert_close(made.state.parameters[name], value, rtol=1e-7, atol=1e-10)
