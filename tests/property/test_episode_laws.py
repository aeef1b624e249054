"""Episode i depends on the split, the ways, the seed and i alone, and is drawn uniformly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leokit.checks import query_count, require_enough
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.errors import DataError, UsageError
from leokit.features import FeatureTable


def offsets(counts):
    return torch.tensor([0, *np.cumsum(counts)])


def sampler(counts, ways=3, seed=0, purpose="test"):
    return EpisodeSampler(offsets(counts), ways=ways, seed=seed, purpose=purpose)


ragged = st.lists(st.integers(6, 30), min_size=3, max_size=12)


@settings(max_examples=50, deadline=None)
@given(ragged, st.integers(0, 2**40), st.integers(0, 10**9))
def test_rows_belong_to_their_class_and_do_not_overlap(counts, seed, first):
    rows = sampler(counts, seed=seed).draw(range(first, first + 4), shots=2, queries=4)
    starts = offsets(counts)
    for classes, support, query in zip(*rows, strict=True):
        assert len(set(classes.tolist())) == 3
        for number, images in zip(classes, torch.cat([support, query], dim=1), strict=True):
            assert len(set(images.tolist())) == 6
            assert starts[number] <= images.min()
            assert images.max() < starts[number + 1]


@settings(max_examples=30, deadline=None)
@given(ragged, st.integers(0, 2**40), st.integers(1, 5))
def test_batches_change_nothing(counts, seed, cut):
    drawn = sampler(counts, seed=seed)
    whole = drawn.draw(range(100, 106), shots=1, queries=3)
    parts = [drawn.draw(numbers, shots=1, queries=3) for numbers in (range(100, 100 + cut), range(100 + cut, 106))]
    for value, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(value, torch.cat(pieces))


def test_other_shots_and_queries_keep_the_rest():
    drawn = sampler([20] * 6)
    few, many = drawn.draw(range(9), shots=1, queries=5), drawn.draw(range(9), shots=4, queries=8)
    assert torch.equal(few.classes, many.classes)
    assert torch.equal(few.support, many.support[..., :1])
    assert torch.equal(few.query, many.query[..., :5])


def test_all_images_of_a_class_are_used_once_when_shots_and_queries_fill_it():
    rows = sampler([7, 7, 7, 7]).draw(range(5), shots=3, queries=4)
    images = torch.cat([rows.support, rows.query], dim=-1) - offsets([7] * 4)[rows.classes].unsqueeze(-1)
    assert torch.equal(images.sort(-1).values, torch.arange(7).expand_as(images))


def test_seed_and_purpose_matter():
    base = sampler([30] * 9).draw(range(8), shots=1, queries=1).support
    assert not torch.equal(base, sampler([30] * 9, seed=1).draw(range(8), shots=1, queries=1).support)
    assert not torch.equal(base, sampler([30] * 9, purpose="other").draw(range(8), shots=1, queries=1).support)


def test_images_of_a_class_do_not_depend_on_how_many_the_others_have():
    first, second = sampler([10, 10, 10]), sampler([10, 10, 400])
    ours, theirs = (one.draw(range(30), shots=2, queries=2) for one in (first, second))
    assert torch.equal(ours.classes, theirs.classes)
    small = ours.classes < 2
    assert torch.equal(ours.support[small], theirs.support[small])
    assert torch.equal(ours.query[small], theirs.query[small])


def test_every_class_position_and_image_is_equally_likely():
    episodes, classes, images = 20_000, 8, 10
    rows = sampler([images] * classes, ways=4).draw(range(episodes), shots=1, queries=1)

    def chi_square(values, cells):
        observed = torch.bincount(values.flatten(), minlength=cells).double()
        expected = values.numel() / cells
        return float(((observed - expected) ** 2 / expected).sum())

    for position in range(4):  # 7 degrees of freedom: 40 is beyond one in a million
        assert chi_square(rows.classes[:, position], classes) < 40
    assert chi_square(rows.support % images, images) < 45  # 9 degrees
    assert chi_square(rows.query % images, images) < 45
    support, query = (value.squeeze(-1) % images for value in (rows.support, rows.query))
    pairs = support * (images - 1) + query - (query > support).long()  # never the same image: 90 pairs
    assert chi_square(pairs, images * (images - 1)) < 89 + 6 * (2 * 89) ** 0.5


def test_too_few_is_said_with_class_and_counts():
    counts = np.array([20, 3, 20], dtype=np.int64)
    with pytest.raises(DataError, match=r"'b' of the val split has 3 images, but 1 shots \+ 15 queries need 16"):
        require_enough(["a", "b", "c"], counts, split="val", ways=2, shots=1, queries=15)
    with pytest.raises(DataError, match="3 classes, 5-way episodes need 5"):
        require_enough(["a", "b", "c"], counts, split="val", ways=5, shots=1, queries=1)
    require_enough(["a", "b", "c"], counts, split="val", ways=3, shots=2, queries=None)


@pytest.mark.parametrize(("text", "shots", "expected"), [("15", 1, 15), ("rest600", 5, 595), ("all", 1, None)])
def test_query_count(text, shots, expected):
    assert query_count(text, shots) == expected


@pytest.mark.parametrize(("text", "shots"), [("0", 1), ("-3", 1), ("rest", 1), ("rest600", 600), ("1.5", 1)])
def test_query_count_refuses(text, shots):
    with pytest.raises(UsageError):
        query_count(text, shots)


def test_matrix_rows_are_unit_and_zero_stays_zero():
    values = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]], dtype=np.float16)
    matrix = FeatureMatrix(FeatureTable(values, ["a", "b"], np.array([0, 2, 3])))
    torch.testing.assert_close(matrix.rows, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert matrix.counts.tolist() == [2, 1]


def test_features_that_are_not_finite_are_refused_by_name():
    values = np.array([[1.0], [2.0], [np.nan]], dtype=np.float32)
    with pytest.raises(DataError, match="Image 1 of class 'b'"):
        FeatureMatrix(FeatureTable(values, ["a", "b"], np.array([0, 1, 3])))
