"""`leokit bench pretrain`, `meta-train` and `eval`, at a tiny size."""

import json
from dataclasses import replace

import pytest
import torch

from leokit.config import BenchMetaTrainConfig
from leokit.engine.state import new_state
from leokit.engine.steps import Steps
from leokit.stages import bench_learning


@pytest.mark.parametrize(
    ("what", "twin"), [("meta-train", "obvious twin"), ("eval", "obvious twin"), ("uncertainty", "one at a time")]
)
def test_benchmarks_print_a_ratio_and_a_limit(leokit, what, twin):
    size = ("--dim", 32, "--rounds", 1, "--seconds", 0.05)
    result = json.loads(leokit("bench", what, *size, "--json").stdout)
    assert result["ratio"] > 0
    assert result["operations"] > 0
    assert 0 < result["share_of_limit"] < 1
    assert twin in leokit("bench", what, *size).stdout


def test_both_sides_of_the_benchmark_do_the_same_work():
    config = BenchMetaTrainConfig(dim=96, shots=2, queries=3, meta_batch=4)
    trained = bench_learning._config(config.shots, config.ways, config.queries, config.meta_batch)
    trained = replace(trained, dtype="float64")  # Adam makes much of gradients that are rounding and nothing else
    features = bench_learning.made_up_features(20, 30, config.dim, torch.device("cpu"))
    features.rows, features.dtype = features.rows.double(), torch.float64
    states = [new_state(trained, config.dim, torch.device("cpu")) for _ in range(2)]
    sides = [Steps(trained, features), bench_learning._TwinSteps(trained, features)]
    for _ in range(3):
        for state, side in zip(states, sides, strict=True):
            side.take(state)
    for name, value in states[0].parameters.items():
        torch.testing.assert_close(value, states[1].parameters[name], atol=1e-9, rtol=1e-7)


def test_the_benchmark_of_pre_training(leokit):
    size = ("--backbone", "wrn10_1", "--image-size", 16, "--batch-size", 8, "--seconds", 0.1)
    result = json.loads(leokit("bench", "pretrain", *size, "--json").stdout)
    assert result["images_per_second"] > 0
    assert 0 < result["share_of_limit"] < 1
    # Forward and backward: three products for each multiplication and addition, but for the first layer's input.
    forward = 2 * sum(
        inputs * outputs * kernel**2 * side**2
        for inputs, outputs, kernel, side in [
            (3, 16, 3, 16),
            *[(16, 16, 3, 8), (16, 16, 3, 8), (16, 16, 1, 8)],
            *[(16, 32, 3, 4), (32, 32, 3, 4), (16, 32, 1, 4)],
            *[(32, 64, 3, 2), (64, 64, 3, 2), (32, 64, 1, 2)],
            (64, 64, 1, 1),
        ]
    )
    first = 2 * 3 * 16 * 9 * 16**2
    assert result["operations"] == 3 * forward - first
    assert "GFLOP an image" in leokit("bench", "pretrain", *size).stdout
