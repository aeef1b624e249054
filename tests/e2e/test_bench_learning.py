"""`leokit bench meta-train` and `leokit bench eval`, at a tiny size."""

import json
from dataclasses import replace

import pytest
import torch

from leokit.config import BenchMetaTrainConfig
from leokit.engine.state import new_state
from leokit.engine.steps import Steps
from leokit.stages import bench_learning


@pytest.mark.parametrize("what", ["meta-train", "eval"])
def test_benchmarks_print_a_ratio_and_a_limit(leokit, what):
    size = ("--dim", 32, "--rounds", 1, "--seconds", 0.05)
    result = json.loads(leokit("bench", what, *size, "--json").stdout)
    assert result["ratio"] > 0
    assert result["operations"] > 0
    assert 0 < result["share_of_limit"] < 1
    assert "obvious twin" in leokit("bench", what, *size).stdout


def test_both_sides_of_the_benchmark_do_the_same_work():
    config = BenchMetaTrainConfig(dim=96, shots=2, queries=3, meta_batch=4)
    trained = bench_learning._config(config.shots, config.ways, config.queries, config.meta_batch)
    trained = replace(trained, dtype="float64")  # Adam makes much of gradients that are rounding and nothing else
    features = bench_learning.made_up_features(20, 30, config.dim, torch.device("cpu"))
    features.rows = features.rows.double()
    states = [new_state(trained, config.dim, torch.device("cpu")) for _ in range(2)]
    sides = [Steps(trained, features), bench_learning._TwinSteps(trained, features)]
    for _ in range(3):
        for state, side in zip(states, sides, strict=True):
            side.take(state)
    for name, value in states[0].parameters.items():
        torch.testing.assert_close(value, states[1].parameters[name], atol=1e-9, rtol=1e-7)
