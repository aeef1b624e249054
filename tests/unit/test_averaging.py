"""Episodes divided among ranks: their weighted gradients are those of one process, whatever the division."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from leokit.distributed import Job, World
from leokit.engine.averaging import Ranks
from leokit.engine.scoring import score
from leokit.engine.state import new_state
from leokit.engine.steps import DeviceSteps, Steps
from leokit.episodes import EpisodeSampler
from leokit.errors import UsageError
from tests.unit.test_seeds_together import DOUBLE, TRAINING
from tests.unit.test_training import CPU


def ranks(size):
    return [Ranks(World(rank, size)) for rank in range(size)]


@pytest.mark.parametrize(("count", "size"), [(12, 1), (12, 2), (12, 5), (7, 7), (3, 2)])
def test_every_episode_is_one_ranks(count, size):
    shares = [place.tasks(count) for place in ranks(size)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_ranks_than_episodes_are_refused():
    with pytest.raises(UsageError, match="meta_batch = 3 on 4 ranks"):
        ranks(4)[0].tasks(3)


@pytest.mark.parametrize("kind", [Steps, DeviceSteps])
@pytest.mark.parametrize(("batch", "size"), [(4, 2), (7, 3)])
@pytest.mark.parametrize("variant", ["leo", "anchored", "meta-sgd"])
def test_the_sum_over_ranks_is_the_whole(monkeypatch, kind, batch, size, variant):
    config = replace(DOUBLE, meta_batch=batch, variant=variant)
    state, step = new_state(config, TRAINING.dim, CPU), 70
    whole = kind(config, TRAINING)
    expected, gradients = whole._gradients(state, whole.inputs(step))
    parts = []

    def record(self, values, share):
        parts.append([value * share for value in values])
        return list(values)

    monkeypatch.setattr(Ranks, "weighted_sum", record)
    for place in ranks(size):
        steps = kind(config, TRAINING, ranks=place)
        steps._gradients(state, steps.inputs(step))
    summed = [sum(values) for values in zip(*parts, strict=True)]
    torch.testing.assert_close(summed[0], expected, rtol=1e-6, atol=1e-7)  # accuracy is in single precision
    for found, gradient in zip(summed[1:], gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)


class Given(Exception):
    """What a rank gives the others."""


class Recorded(Job):
    """A job whose ranks have given what is known already, if anything."""

    def __init__(self, given=None):
        self.given = given

    def gather(self, value):
        if self.given is None:
            raise Given(value)
        return self.given


@pytest.mark.parametrize("size", [2, 3, 30])
def test_scores_of_blocks_on_ranks_are_those_of_one_process(monkeypatch, size):
    monkeypatch.setattr("leokit.engine.scoring._BLOCK_ELEMENTS", 600)  # blocks of a few episodes
    sampler = EpisodeSampler(TRAINING.offsets, ways=3, seed=0, purpose="selection")
    methods = {"mean": lambda support, numbers: support.mean(-2)}
    options = {"shots": 1, "queries": 3, "episodes": 50}
    expected = score(TRAINING, sampler, methods, **options)
    given = []
    for rank in range(size):
        with pytest.raises(Given) as raised:
            score(TRAINING, sampler, methods, ranks=Ranks(World(rank, size), Recorded()), **options)
        given.append(raised.value.args[0])
    found = score(TRAINING, sampler, methods, ranks=Ranks(World(0, size), Recorded(given)), **options)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["mean"], expected["mean"])
