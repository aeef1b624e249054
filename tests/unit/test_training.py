"""The outer loop: learns, resumes to the bit, keeps its state when stopped, and says when it diverges."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from leokit.config import MetaTrainConfig
from leokit.engine import training
from leokit.engine.state import new_state, pack, unpack
from leokit.engine.steps import Diverged
from leokit.episodes import FeatureMatrix
from leokit.features import FeatureTable
from leokit.interrupts import stop_requests
from leokit.runs import load_state, save_state

CONFIG = MetaTrainConfig(
    ways=3,
    shots=2,
    queries=4,
    steps=12,
    meta_batch=3,
    num_latents=6,
    outer_lr=3e-3,
    dropout=0.3,
    kl_weight=0.1,
    val_every=5,
    val_episodes=20,
    val_queries=4,
)
CPU = torch.device("cpu")


def matrix(classes=6, images=9, dim=10, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(classes, 1, dim)) + rng.normal(size=(classes, images, dim))
    names = [str(number) for number in range(classes)]
    return FeatureMatrix(FeatureTable(rows.reshape(-1, dim).astype(np.float32), names, np.arange(classes + 1) * images))


TRAINING, VALIDATION = matrix(), matrix(seed=1)


def take(config, state, **options):
    lines, kept = [], []
    options = {"keep": lambda current: kept.append(pack(current)[1]["step"]), "report": lines.append} | options
    finished = training.train(config, state, TRAINING, VALIDATION, **options)
    return finished, lines, kept


def fresh(config=CONFIG):
    return new_state(config, TRAINING.dim, CPU)


def assert_same(first, second):
    ours, theirs = pack(first), pack(second)
    assert ours[1] == theirs[1]
    for name, value in ours[0].items():
        assert torch.equal(value, theirs[0][name]), name


@pytest.mark.parametrize("cut", [1, 5, 7, 11])
def test_resuming_equals_no_interruption_to_the_bit(tmp_path, cut, monkeypatch):
    monkeypatch.setattr(training, "REPORT_EVERY", 4)
    whole, first = fresh(), fresh()
    _, lines, _ = take(CONFIG, whole)
    path = tmp_path / "last" / "state.safetensors"
    finished, before, _ = take(
        CONFIG,
        first,
        stop_requested=lambda: first.step == cut,
        keep=lambda current: save_state(path, *pack(current)),
    )
    assert not finished
    resumed = unpack(*load_state(path), CONFIG, CPU)
    assert resumed.step == cut
    _, after, _ = take(CONFIG, resumed)
    assert_same(whole, resumed)
    assert before + after == lines


@pytest.mark.parametrize("steps", [5, 7])
def test_training_longer_equals_training_long(tmp_path, steps):
    path, long = tmp_path / "state.safetensors", fresh()
    kept = {"keep": lambda current: save_state(path, *pack(current))}
    take(replace(CONFIG, steps=steps), fresh(), **kept)
    longer = unpack(*load_state(path), CONFIG, CPU)
    take(CONFIG, longer)
    take(CONFIG, long)
    assert_same(longer, long)


def test_best_is_the_best_validation_and_step_zero_counts():
    state = fresh()
    _, lines, _ = take(CONFIG, state)
    validations = {line["step"]: line["val_accuracy"] for line in lines if "val_accuracy" in line}
    assert sorted(validations) == [0, 5, 10, 12]
    assert state.best_accuracy == max(validations.values())
    assert state.best_step == min(step for step, value in validations.items() if value == state.best_accuracy)


def test_it_learns_what_untrained_weights_do_not_know():
    # Classes differ in two of ten features only; chance is a third.
    rng = np.random.default_rng(0)
    centres = np.zeros((24, 1, 10))
    centres[..., :2] = rng.normal(size=(24, 1, 2)) * 3
    rows = (centres + rng.normal(size=(24, 30, 10))).reshape(-1, 10).astype(np.float32)
    names = [str(number) for number in range(24)]
    features = FeatureMatrix(FeatureTable(rows, names, np.arange(25) * 30))
    config = replace(CONFIG, steps=300, val_every=300, val_episodes=300, dropout=0.0, kl_weight=1e-3, outer_lr=1e-2)
    lines = []
    training.train(config, fresh(config), features, features, keep=lambda state: None, report=lines.append)
    validations = [line["val_accuracy"] for line in lines if "val_accuracy" in line]
    assert validations[-1] > validations[0] + 0.05  # ten standard errors


IMPATIENT = replace(CONFIG, steps=200, val_every=3, patience=2)


def validations_of(lines):
    return {line["step"]: line["val_accuracy"] for line in lines if "val_accuracy" in line}


def test_patience_ends_training_after_so_many_validations_that_were_no_better():
    state = fresh()
    finished, lines, kept = take(IMPATIENT, state)
    assert finished
    assert 0 < state.step < 200
    assert kept[-1] == state.step == state.best_step + 2 * 3
    steps, accuracies = zip(*validations_of(lines).items(), strict=True)
    assert steps == tuple(range(0, state.step + 1, 3))
    since_best = [number - max(range(number + 1), key=lambda n: accuracies[n]) for number in range(len(steps))]
    assert since_best[-1] == 2 > max(since_best[:-1])
    without = fresh()
    take(replace(IMPATIENT, patience=None, steps=state.step), without)
    assert_same(state, without)  # patience ends training and changes nothing else


def test_patience_counts_on_after_every_interruption(tmp_path):
    whole = fresh()
    _, lines, _ = take(IMPATIENT, whole)
    path, seen, interruptions = tmp_path / "state.safetensors", [], 0
    state = fresh()
    while True:
        halt = state.step + 1
        finished, new, _ = take(
            IMPATIENT,
            state,
            stop_requested=lambda current=state, halt=halt: current.step == halt,
            keep=lambda current: save_state(path, *pack(current)),
        )
        seen += new
        state = unpack(*load_state(path), IMPATIENT, CPU)
        if finished:
            break
        interruptions += 1
    assert interruptions == whole.step - 1
    assert_same(whole, state)
    assert seen == lines


def test_more_patience_goes_on_as_if_it_had_been_there_from_the_start(tmp_path):
    path, patient = tmp_path / "state.safetensors", replace(IMPATIENT, patience=4)
    take(IMPATIENT, fresh(), keep=lambda current: save_state(path, *pack(current)))
    longer, at_once = unpack(*load_state(path), patient, CPU), fresh()
    take(patient, longer)
    take(patient, at_once)
    assert_same(longer, at_once)


def test_a_state_kept_before_the_first_step_is_not_validated_again():
    packed = []
    take(CONFIG, fresh(), keep=lambda current: packed.append(pack(current)))
    first = unpack(*packed[0], CONFIG, CPU)
    assert first.step == 0
    _, lines, _ = take(CONFIG, first)
    assert min(validations_of(lines)) == 5


def test_without_validation_the_last_weights_are_the_best():
    state, lines, kept = fresh(), [], []
    training.train(CONFIG, state, TRAINING, None, keep=lambda now: kept.append(now.step), report=lines.append)
    assert (state.step, state.best_step, state.best_accuracy) == (12, 12, -1.0)
    assert kept == [0, 5, 10, 12]
    assert not validations_of(lines)
    validated = fresh()
    take(CONFIG, validated)
    for name, value in state.parameters.items():
        assert torch.equal(value, state.best[name])
        assert torch.equal(value, validated.parameters[name]), "validation changed the course of training"


def test_state_is_kept_before_each_report_of_progress():
    _, _, kept = take(CONFIG, fresh())
    assert kept == [0, 5, 10, 12]  # the last one before the validation that a longer run has not


def test_divergence_names_step_and_episodes_and_keeps_the_state_before():
    state = fresh()
    take(replace(CONFIG, steps=4), state)
    with torch.no_grad():
        state.parameters["decoder"][0, 0] = float("nan")
    kept = []
    with pytest.raises(Diverged, match=r"step 4 \(episodes 12 to 14\)[^$]*--on-nan decay"):
        training.train(
            CONFIG, state, TRAINING, VALIDATION, keep=lambda current: kept.append(current.step), report=lambda _: None
        )
    assert kept == [4]


def test_on_nan_decay_goes_on_as_deepminds_code():
    state = fresh()
    with torch.no_grad():
        state.parameters["encoder"][0, 0] = float("inf")
    _, _, _ = take(replace(CONFIG, steps=2, on_nan="decay"), state)
    assert state.step == 2


def test_a_first_signal_asks_and_a_second_one_acts():
    with stop_requests() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_metrics_are_json():
    _, lines, _ = take(CONFIG, fresh())
    assert json.loads(json.dumps(lines)) == lines


def test_features_held_in_half_the_memory_are_rounded_and_nothing_else():
    rng = np.random.default_rng(0)
    table = FeatureTable(rng.normal(size=(9, 5)).astype(np.float32), ["a", "b"], np.array([0, 4, 9]))
    whole, half = FeatureMatrix(table), FeatureMatrix(table, held=torch.float16)
    assert half.rows.dtype == torch.float16
    assert half.take(slice(2, 5)).dtype == torch.float32
    assert torch.equal(half.take(torch.tensor([[1, 8]])), whole.rows.half().float()[torch.tensor([[1, 8]])])
    ours, theirs = half.centred(half.mean()).take(slice(None)), whole.centred(whole.mean()).rows
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    config = replace(CONFIG, hold_as="float16")
    state = new_state(config, TRAINING.dim, CPU)
    halved = matrix()
    halved.rows = halved.rows.half()
    training.train(config, state, halved, VALIDATION, keep=lambda current: None, report=lambda line: None)
    assert state.parameters["decoder"].dtype == torch.float32
