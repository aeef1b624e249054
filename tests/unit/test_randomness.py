"""Draws depend on their key alone and have the distribution they claim."""

import numpy as np
import torch

from leokit import randomness
from leokit.leo.draws import DrawShapes, meta_training_draws

SHAPES = DrawShapes(ways=3, shots=2, queries=4, dim=5, num_latents=4, inner_steps=2, finetuning_steps=1)


def draw(tasks, *, step=7, seed=1, shapes=SHAPES, dropout=0.3, dtype=torch.float32):
    return meta_training_draws(shapes, seed=seed, step=step, tasks=tasks, dropout=dropout, dtype=dtype)


def test_tasks_may_be_divided_in_any_way():
    whole, parts = draw(range(4)), [draw(range(0, 1)), draw(range(1, 4))]
    for value, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(value, torch.cat(pieces))


def test_on_a_device_tasks_may_be_divided_too_and_the_shapes_are_the_same():
    step = torch.tensor(7)
    whole, parts = draw(range(4), step=step), [draw(range(0, 1), step=step), draw(range(1, 4), step=step)]
    for value, reference, *pieces in zip(whole, draw(range(4)), *parts, strict=True):
        assert torch.equal(value, torch.cat(pieces))
        assert value.shape == reference.shape
    assert not torch.equal(whole.weights, draw(range(4), step=torch.tensor(8)).weights)
    assert not torch.equal(whole.weights, draw(range(4), step=step, seed=2).weights)


def test_seed_step_and_task_all_matter():
    base = draw(range(1)).weights
    assert not torch.equal(base, draw(range(1), seed=2).weights)
    assert not torch.equal(base, draw(range(1), step=8).weights)
    assert not torch.equal(base, draw(range(1, 2)).weights)


def test_float64_gets_the_numbers_of_float32():
    for single, double in zip(draw(range(2)), draw(range(2), dtype=torch.float64), strict=True):
        assert double.dtype == torch.float64
        assert torch.equal(single.double(), double)


def test_no_dropout_no_masks():
    draws = draw(range(1), dropout=0.0)
    assert draws.encoder_mask is draws.support_masks is draws.query_mask is None


def test_shapes():
    shapes = {name: tuple(value.shape) for name, value in draw(range(6))._asdict().items()}
    assert shapes == {
        "codes": (6, 3, 2, 4),
        "weights": (6, 3, 3, 2, 5),
        "encoder_mask": (6, 3, 2, 5),
        "support_masks": (6, 3, 3, 2, 5),
        "query_mask": (6, 3, 4, 5),
    }


def normals(bits):
    out = np.empty(len(bits), np.float32)
    randomness.normals(bits, out)
    return torch.from_numpy(out)


def test_normals_of_a_device_follow_those_of_the_cpu():
    words = randomness.words(10_000, 5, "test")
    found = randomness.device_normals(torch.from_numpy(words.view(np.int64)))
    torch.testing.assert_close(found, normals(words.view(np.int32)), rtol=1e-4, atol=1e-5)


def test_normals_are_normal():
    values = normals(randomness.words(200_000, 3, "test").view(np.int32)).double()
    count = len(values)  # 400,000: standard errors are about 0.0016 for the mean, 0.0011 for the deviation
    assert abs(values.mean()) < 5 / count**0.5
    assert abs(values.std() - 1) < 5 / (2 * count) ** 0.5
    for point in (-2.0, -1.0, 0.0, 0.5, 3.0):
        expected = torch.special.ndtr(torch.tensor(point, dtype=torch.float64))
        error = (expected * (1 - expected) / count) ** 0.5
        assert abs((values < point).double().mean() - expected) < 5 * error
    halves = values.view(2, -1)  # radius·cos and radius·sin of the same pairs must not be correlated
    assert abs(torch.corrcoef(halves)[0, 1]) < 5 / (count / 2) ** 0.5
    assert abs(torch.corrcoef(halves.square())[0, 1]) < 5 / (count / 2) ** 0.5


def test_extreme_bits_give_finite_normals():
    ends = np.array([-(2**31), 2**31 - 1, 0, 1, -1, 5], np.int32)
    pairs = np.concatenate([ends.repeat(6), np.tile(ends, 6)])
    assert normals(pairs).isfinite().all()
    assert randomness.device_normals(torch.from_numpy(pairs.view(np.int64))).isfinite().all()


def test_masks_have_mean_one_and_the_rate():
    every = np.arange(-(2**15), 2**15).astype(np.int16)
    for rate in (0.0, 0.1, 0.307651, 0.5, 0.999999):
        out = np.empty(2**16, np.float32)
        randomness.masks(every, rate, out)
        mask = torch.from_numpy(out)
        assert torch.equal(mask, randomness.device_masks(torch.from_numpy(every.view(np.int64)), rate))
        assert abs(mask.double().mean() - 1) < 1e-6
        assert abs((mask == 0).double().mean() - rate) <= 2**-16
        assert mask.unique().numel() <= 2


def test_keys_do_not_collide_and_spread_evenly():
    parents = randomness.keys(torch.tensor(5), torch.arange(300))
    children = randomness.keys(parents.unsqueeze(-1), torch.arange(1000)).flatten()
    assert children.unique().numel() == children.numel()
    bits = torch.stack([(children >> position) & 1 for position in range(64)]).double().mean(1)
    assert (bits - 0.5).abs().max() < 5 * 0.5 / children.numel() ** 0.5
