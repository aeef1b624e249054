"""Predictives over many episodes: samples and blocks equal loops, and outside queries are outside."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from leokit.baselines import class_mean
from leokit.engine import predictives
from leokit.engine.members import baseline_member
from leokit.engine.predictives import Member, mislabel, outside_rows, predict_episodes
from leokit.engine.studying import setting
from leokit.episodes import EpisodeSampler, FeatureMatrix, all_as_support
from leokit.errors import UsageError
from leokit.features import FeatureTable
from leokit.leo import Draws, adapt
from leokit.leo.draws import DrawShapes, posterior_draws
from leokit.leo.learners import make_learner, split_anchor
from tests.unit.test_training import CONFIG, matrix

FEATURES = matrix(classes=7, images=12, seed=3)
SAMPLER = EpisodeSampler(FEATURES.offsets, ways=3, seed=5, purpose="evaluation")
SIZE = {"shots": 2, "queries": 4, "episodes": 11, "outside": True}


def learned(variant="leo", seed=0):
    learner = make_learner(replace(CONFIG, variant=variant, seed=seed), FEATURES.dim)
    return learner, learner.initial(torch.float32)


def sampled(samples, **options):
    learner, tensors = learned(**options)
    return Member(FEATURES, lambda support, numbers, _: learner.posterior(tensors, support, numbers, samples), samples)


def single(**options):
    learner, tensors = learned(**options)
    return Member(FEATURES, lambda support, numbers, _: learner.weights(tensors, support, numbers))


MEAN = Member(FEATURES, lambda support, numbers, _: 10 * class_mean(support))
ALL = {"samples": [sampled(4)], "leo": [single()], "ensemble": [single(), single(seed=1)], "class-mean": [MEAN]}


def assert_same(first, second):
    for name in first:
        for ours, theirs in zip(first[name], second[name], strict=True):
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("variant", ["leo", "anchored"])
def test_posterior_samples_are_a_loop_over_episodes_and_samples(variant):
    learner, tensors = learned(variant)
    rows = SAMPLER.draw(range(4, 7), shots=2, queries=1)
    support = FEATURES.rows[rows.support]
    found = learner.posterior(tensors, support, range(4, 7), 5)
    assert found.shape == (5, 3, 3, FEATURES.dim)
    parameters, anchor = split_anchor(tensors)
    shapes = DrawShapes(3, 2, 4, FEATURES.dim, CONFIG.num_latents, CONFIG.inner_steps, CONFIG.finetuning_steps)
    for place, number in enumerate(range(4, 7)):
        draws = posterior_draws(shapes, seed=0, episodes=range(number, number + 1), samples=5, like=support)
        for sample in range(5):
            one = Draws(codes=draws.codes[sample, 0], weights=draws.weights[sample, 0])
            alone = adapt(parameters, support[place], learner.method, one, anchor).weights
            torch.testing.assert_close(found[sample, place], alone, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[0], found[1])


def test_more_samples_go_on_from_fewer():
    learner, tensors = learned()
    support = FEATURES.rows[SAMPLER.draw(range(2), shots=2, queries=1).support]
    few, many = (learner.posterior(tensors, support, range(2), count) for count in (3, 6))
    torch.testing.assert_close(many[:3], few, rtol=1e-5, atol=1e-6)


def test_variants_without_samples_have_no_posterior():
    for variant in ("deterministic", "random-prior", "meta-sgd"):
        learner, tensors = learned(variant)
        with pytest.raises(UsageError):
            learner.posterior(tensors, FEATURES.rows[:6].view(1, 3, 2, -1), range(1), 2)


def test_blocks_and_workers_change_nothing(monkeypatch):
    episodes, whole = predict_episodes(ALL, SAMPLER, **SIZE)
    for elements, workers in ((1, 0), (400, 2), (10**9, 2)):
        monkeypatch.setattr(predictives, "_BLOCK_ELEMENTS", elements)
        again, parts = predict_episodes(ALL, SAMPLER, **SIZE, workers=workers)
        assert_same(parts, whole)
        assert all((a == b).all() for a, b in zip(again, episodes, strict=True))


def test_predictions_are_those_of_each_method_alone():
    episodes, found = predict_episodes(ALL, SAMPLER, **SIZE)
    rows = SAMPLER.draw(range(11), shots=2, queries=4)
    weights = 10 * class_mean(FEATURES.rows[rows.support])
    queries = FEATURES.rows[torch.from_numpy(episodes.query_rows)]
    expected = (queries @ weights.mT).softmax(-1)
    np.testing.assert_allclose(found["class-mean"].inside.probabilities, expected, atol=1e-6)
    cosines = (queries @ weights.mT / 10).amax(-1)
    np.testing.assert_allclose(found["class-mean"].inside.highest / 10, cosines, atol=1e-6)
    assert (episodes.query_rows == rows.query.flatten(1).numpy()).all()
    assert episodes.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    mean = (
        found["leo"].inside.probabilities + predict_episodes({"b": [single(seed=1)]}, SAMPLER, **SIZE)[1]["b"].inside[0]
    ) / 2
    np.testing.assert_allclose(found["ensemble"].inside.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(found["leo"].inside.probabilities.sum(-1), 1, atol=1e-6)


def test_classes_with_different_numbers_of_support_images():
    """As each method makes of the fewer images alone, class by class; the others change nothing."""
    counts, size = (1, 2, 3), SIZE | {"shots": 3}
    rows = SAMPLER.draw(range(11), shots=3, queries=4)
    for name, members in {"class-mean": [baseline_member("class-mean", FEATURES)], "leo": [learned()]}.items():
        member = members[0] if name == "class-mean" else Member(FEATURES, partial(members[0][0].weights, members[0][1]))
        _, found = predict_episodes({name: [member]}, SAMPLER, **size, counts=counts)
        for episode in range(11):
            taken = [FEATURES.rows[rows.support[episode, place, :count]] for place, count in enumerate(counts)]
            table = FeatureTable(torch.cat(taken).numpy(), list("abc"), np.array([0, 1, 3, 6]))
            images, shares = all_as_support(FeatureMatrix(table))
            queries = FEATURES.rows[rows.query[episode].flatten()]
            if name == "class-mean":
                weights = torch.stack([10 * normalize(images.mean(0), dim=0) for images in taken])
            else:
                weights = member.classifiers(images, range(episode, episode + 1), shares)[0]
            expected = (queries @ weights.T).softmax(-1)
            np.testing.assert_allclose(found[name].inside.probabilities[episode], expected, atol=1e-5)


def test_equal_numbers_of_support_images_are_the_plain_case():
    _, plain = predict_episodes(ALL, SAMPLER, **SIZE)
    _, found = predict_episodes(ALL, SAMPLER, **SIZE, counts=(2, 2, 2))
    assert_same(found, plain)


@pytest.mark.parametrize(
    ("counts", "val_counts", "expected"),
    [
        ([1, 30], [40] * 5, ((1, 20), 15)),
        ([15, 1, 1, 15, 1], [40] * 5, ((1, 1, 1, 15, 15), 15)),
        ([3] * 20, [600] * 16, ((3,) * 16, 15)),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [12] * 3, ((1, 5, 9), 3)),
        ([50, 50], [10, 20], ((9, 9), 1)),
    ],
)
def test_episodes_of_a_study_are_like_the_support_set(counts, val_counts, expected):
    found = setting(counts, val_counts)
    assert (found.counts, found.queries) == expected


def test_aleatoric_is_the_mean_entropy_of_the_samples():
    _, found = predict_episodes(ALL, SAMPLER, **SIZE)
    one = found["leo"].inside
    entropy = -(one.probabilities * np.log(one.probabilities)).sum(-1)
    np.testing.assert_allclose(one.aleatoric, entropy, atol=1e-5)
    many = found["samples"].inside
    total = -(many.probabilities * np.log(many.probabilities)).sum(-1)
    assert (many.aleatoric < total + 1e-6).all()
    assert (total - many.aleatoric).max() > 1e-4


def test_outside_queries_are_of_the_other_classes_and_of_all_of_them():
    rows = SAMPLER.draw(range(200), shots=1, queries=1)
    found = outside_rows(SAMPLER, rows.classes, range(200), 30)
    owners = torch.searchsorted(FEATURES.offsets, found, right=True) - 1
    assert not (owners[:, :, None] == rows.classes[:, None, :]).any()
    assert set(owners.flatten().tolist()) == set(range(7))
    assert len(found.unique()) == 7 * 12
    assert torch.equal(outside_rows(SAMPLER, rows.classes[50:60], range(50, 60), 30), found[50:60])
    with pytest.raises(ValueError, match="none outside"):
        outside_rows(SAMPLER, torch.arange(7)[None], range(1), 3)


@pytest.mark.parametrize(("shots", "share"), [(1, 0.7), (2, 0.4), (5, 0.2), (5, 0.4), (9, 0.5)])
def test_mislabelled_images_stand_under_other_classes_all_of_them(shots, share):
    support = SAMPLER.draw(range(100), shots=shots, queries=1).support
    moved = mislabel(support, share, 1, range(100))
    assert torch.equal(moved.flatten(1).sort().values, support.flatten(1).sort().values)
    owners = torch.searchsorted(FEATURES.offsets, moved, right=True) - 1
    true = torch.searchsorted(FEATURES.offsets, support, right=True) - 1
    assert ((owners != true).flatten(1).sum(1) == round(share * 3 * shots)).all()
    assert torch.equal(mislabel(support[40:50], share, 1, range(40, 50)), moved[40:50])
    assert torch.equal(mislabel(support, 0.0, 1, range(100)), support)
