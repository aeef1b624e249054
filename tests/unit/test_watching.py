"""What metrics say beside the terms of the loss: keys of every variant, numbers, and that watching changes nothing."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from leokit.config import Variant
from leokit.engine import training
from leokit.engine.state import TERMS
from leokit.engine.steps import Steps
from leokit.engine.watching import clipping
from tests.unit.test_training import CONFIG, TRAINING, assert_same, fresh, take

LATENT = {"encoder", "relation_1", "relation_2", "relation_3", "decoder", "inner_lr", "finetuning_lr"}
RATES = {
    "no-finetuning": {"inner_lr"},
    "generator": set(),
    "generator-finetuning": {"finetuning_lr"},
    "meta-sgd": {"lr"},
}


def watched(config, state):
    """The lines of training metrics of a run that reports each step."""
    return [line for line in take(config, state)[1] if "loss" in line]


@pytest.fixture(autouse=True)
def report_each_step(monkeypatch):
    monkeypatch.setattr(training, "REPORT_EVERY", 1)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_a_line_has_all_that_the_variant_has(variant):
    config = replace(CONFIG, variant=variant, steps=2)
    lines = watched(config, fresh(config))
    learned = {"start", "lr"} if variant == "meta-sgd" else LATENT
    sampled = variant not in ("deterministic", "meta-sgd")
    expected = {"step", *TERMS, "gradient_norms", "clipped_entries", "clipped_gradients", "rates"}
    expected |= {"scale", "gate"} if variant == "anchored" else set()
    expected |= {"decoder_std"} if sampled else set()
    expected |= {"encoder_std"} if sampled and variant != "random-prior" else set()
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert set(line) == expected
        assert set(line["gradient_norms"]) == learned | ({"log_scale", "gate"} if variant == "anchored" else set())
        assert set(line["rates"]) == RATES.get(variant, {"inner_lr", "finetuning_lr"})
        for entry in line["rates"].values():
            assert entry["min"] <= entry["mean"] <= entry["max"]
        for part in expected & {"encoder_std", "decoder_std"}:
            std = line[part]
            assert 1e-10 * 0.999 <= std["min"] <= std["mean"] * 1.001 <= std["max"] * 1.002
            assert 0 <= std["at_floor"] <= 1


@pytest.mark.parametrize("variant", get_args(Variant))
def test_watching_changes_no_bit(variant, monkeypatch):
    config = replace(CONFIG, variant=variant)
    seen, unseen = fresh(config), fresh(config)
    take(config, seen)
    monkeypatch.setattr(Steps, "watch", lambda self, state, run: {})
    take(config, unseen)
    assert seen.step == config.steps
    assert_same(seen, unseen)


def test_only_reported_steps_are_watched(monkeypatch):
    calls = []
    monkeypatch.setattr(training, "REPORT_EVERY", 5)
    monkeypatch.setattr(Steps, "watch", lambda self, state, run: calls.append(state.step) or {})
    take(CONFIG, fresh())
    assert calls == [5, 10]


def gradients_by_differences(config, state, name, entries):
    """Derivatives of the next step's loss by central differences, at some entries of a parameter."""
    steps = Steps(config, TRAINING)
    support, query = (rows.double() for rows in steps.episodes(state.step))
    draws = steps.learner.draws(state.step, range(config.meta_batch), support)
    found = []
    for entry in entries:
        values = []
        for sign in (1, -1):
            tensors = {key: value.detach().double().clone() for key, value in state.parameters.items()}
            tensors[name].view(-1)[entry] += sign * 1e-5
            values.append(steps.learner.loss(tensors, support, query, draws).total.item())
        found.append((values[0] - values[1]) / 2e-5)
    return np.array(found)


def test_gradient_norms_are_those_before_clipping():
    # Clipping to next to nothing: a norm after it could not exceed 1e-6.
    config = replace(CONFIG, steps=1, clip_value=1e-6, clip_norm=1e-6)
    state = fresh(config)
    expected = np.linalg.norm(gradients_by_differences(config, state, "inner_lr", range(config.num_latents)))
    line = watched(config, state)[0]
    assert expected > 1e-4
    assert line["gradient_norms"]["inner_lr"] == pytest.approx(expected, rel=1e-2)  # float32 against differences
    assert line["clipped_gradients"] == 1
    assert line["clipped_entries"] > 0.5


def test_clipping_by_hand():
    gradients = {"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([0.1, 0.2, 0.0]), "c": torch.tensor([0.6, 0.7, 0.0])}
    # Beyond ±1: the 3 and the -4, of 8. Norms then: √2, 0.22, 0.92: the first alone is above 1.
    assert clipping(gradients, value=1.0, norm=1.0) == {"clipped_entries": 2 / 8, "clipped_gradients": 1 / 3}


def spread_out(config, layer, factor):
    """A state in which the unnormalised deviations that a layer gives are spread by a factor."""
    state = fresh(config)
    with torch.no_grad():
        weight = state.parameters[layer]
        weight[:, weight.shape[1] // 2 :] *= factor
    return state


@pytest.mark.parametrize(("layer", "part"), [("relation_3", "encoder_std"), ("decoder", "decoder_std")])
def test_share_at_the_floor_agrees_with_numpy(layer, part):
    # No inner steps: they diverge under such a decoder. Hardly a rate: the parameters after the step are those before.
    config = replace(CONFIG, steps=1, outer_lr=1e-12, inner_steps=0, finetuning_steps=0)
    state = spread_out(config, layer, 6.0)
    line = watched(config, state)[0]
    parameters = {name: value.detach().double().numpy() for name, value in state.parameters.items()}
    rows = Steps(config, TRAINING).episodes(0)[0].double().numpy()
    encoded = np.stack([relation_outputs(parameters, episode) for episode in rows])  # (B, N, 2Z)
    latents = config.num_latents
    if part == "encoder_std":
        raw = np.exp(encoded[..., latents:]) - 1
    else:
        outputs = encoded[..., :latents] @ parameters["decoder"]
        offset = (2 / (config.ways + TRAINING.dim)) ** 0.5
        raw = np.exp(outputs[..., TRAINING.dim :]) - (1 - offset)
    assert 0.05 < (raw <= 1e-10).mean() < 0.95  # else the test would say little
    assert line[part]["at_floor"] == pytest.approx((raw <= 1e-10).mean(), abs=1e-6)
    std = np.maximum(raw, 1e-10)
    expected = {"min": std.min(), "mean": std.mean(), "max": std.max()}
    assert {key: line[part][key] for key in expected} == pytest.approx(expected, rel=1e-4)


def relation_outputs(parameters, support):
    """(N, 2Z) outputs of the relation network for an episode (N, K, D), a pair at a time."""
    codes = support @ parameters["encoder"]  # (N, K, Z)
    everyone = codes.reshape(-1, codes.shape[-1])
    outputs = []
    for own in codes:
        pairs = np.array([np.concatenate([first, second]) for first in own for second in everyone])
        hidden = np.maximum(np.maximum(pairs @ parameters["relation_1"], 0) @ parameters["relation_2"], 0)
        outputs.append((hidden @ parameters["relation_3"]).mean(0))
    return np.array(outputs)


def test_rates_scale_and_gate_are_those_of_the_parameters():
    config = replace(CONFIG, variant="anchored", steps=3, anchor_scale=7.0)
    state = fresh(config)
    line = watched(config, state)[-1]
    rates = state.parameters["finetuning_lr"].detach().numpy()
    expected = {"min": rates.min(), "mean": rates.mean(), "max": rates.max()}
    assert line["rates"]["finetuning_lr"] == pytest.approx(expected)
    assert line["scale"] == pytest.approx(np.exp(state.parameters["log_scale"].item()))
    assert line["gate"] == state.parameters["gate"].item()
    assert line["scale"] == pytest.approx(7.0, rel=0.2)
