"""Search spaces: what is drawn lies in its range, evenly, and depends on nothing but seed, option and trial."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leokit.config import PRESETS, SPACES, MetaTrainConfig, build, read_preset, read_space
from leokit.errors import UsageError
from leokit.space import Range, Space, trial_config

DATA = {
    "outer_lr": {"log_uniform": [1e-5, 1e-2]},
    "dropout": {"uniform": [0.1, 0.5]},
    "num_latents": {"choice": [16, 32, 64]},
    "inner_steps": {"uniform": [1, 4]},
    "meta_batch": {"log_uniform": [1, 8]},
    "steps": 50,
}


SPACE = Space.read(DATA, "here")
ALONE = {name: Space.read({name: DATA[name]}, "there") for name in SPACE.ranges}


@pytest.fixture(scope="module")
def draws():
    return [SPACE.draw(0, trial) for trial in range(4000)]


def test_values_spread_evenly_over_their_ranges(draws):
    column = {name: np.array([values[name] for values in draws]) for name in draws[0]}
    # Kolmogorov's distance between 4,000 draws and a uniform distribution is above 0.0258 in one case of 100.
    for name, share in (
        ("outer_lr", np.log(column["outer_lr"] / 1e-5) / np.log(1e3)),
        ("dropout", (column["dropout"] - 0.1) / 0.4),
    ):
        place = np.sort(share)
        assert place[0] >= 0 and place[-1] <= 1, name
        assert np.abs(place - np.linspace(0, 1, len(place))).max() < 0.0258, name
    for name, values in (("num_latents", [16, 32, 64]), ("inner_steps", [1, 2, 3, 4])):
        counts = np.array([(column[name] == value).sum() for value in values])
        assert counts.sum() == 4000
        assert abs(counts / 4000 - 1 / len(values)).max() < 0.03, name
    assert set(column["meta_batch"]) == set(range(1, 9))
    assert (column["meta_batch"] == 1).mean() == pytest.approx(math.log(2) / math.log(9), abs=0.03)


def test_options_are_drawn_independently(draws):
    numbers = np.array([[math.log(values["outer_lr"]), values["dropout"], values["num_latents"]] for values in draws])
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.06


@given(seed=st.integers(0, 2**63 - 1), trial=st.integers(0, 10**6))
def test_a_value_depends_on_seed_option_and_trial_alone(seed, trial):
    whole = SPACE.draw(seed, trial)
    for name in whole:
        assert ALONE[name].draw(seed, trial) == {name: whole[name]}
    assert SPACE.draw(seed, trial + 1) != whole
    assert SPACE.draw((seed + 1) % 2**63, trial) != whole


@given(low=st.floats(1e-12, 1e3), factor=st.floats(1.0001, 1e9), share=st.floats(0, 1, exclude_max=True))
def test_no_value_leaves_its_range(low, factor, share):
    for kind in ("uniform", "log_uniform"):
        span = Range(kind, (low, low * factor))
        assert low <= span.at(share) <= low * factor


def test_a_space_is_what_it_says_of_itself():
    space = SPACE
    assert space.fixed == {"steps": 50}
    assert Space.read(space.plain(), "there") == space
    values = space.draw(3, 5)
    base = build(MetaTrainConfig, space.fixed)
    config = trial_config(base, values)
    assert {name: getattr(config, name) for name in values} == values
    assert trial_config(config, {name: getattr(base, name) for name in values}) == base


@pytest.mark.parametrize("name", SPACES)
def test_ready_spaces_hold_the_values_that_they_are_made_around(name):
    ranges = Space.read(read_space(name), name).ranges
    presets = ["own-images"] if name == "own-images" else [preset for preset in PRESETS if preset != "own-images"]
    for preset in presets:
        config = build(MetaTrainConfig, read_preset(preset))
        for option, span in ranges.items():
            value = getattr(config, option)
            if span.kind == "choice":
                assert value in span.values
            else:
                assert span.values[0] <= value <= span.values[1], (preset, option)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"learning_rate": {"uniform": [0, 1]}}, "'learning_rate' is no option that a trial can have"),
        ({"features": "elsewhere"}, "'features' is no option"),
        ({"train_on_val": True}, "'train_on_val' is no option"),
        ({"seed": 7}, "here: seed = 7: .* give --seed"),
        ({"seed": {"choice": [1, 2]}}, "give --seed"),
        ({"steps": {"choice": [10, 20]}}, "steps cannot be drawn"),
        ({"dropout": {"uniform": [0.5, 0.1]}}, "two numbers, the lower one first"),
        ({"dropout": {"uniform": [0.5, 1.5]}}, "dropout = 1.5: it must be a number of at least 0 and below 1"),
        ({"outer_lr": {"log_uniform": [0, 1]}}, "two numbers above 0"),
        ({"outer_lr": {"normal": [0, 1]}}, "one of uniform, log_uniform, choice"),
        ({"outer_lr": {"uniform": 3}}, "needs a list"),
        ({"dropout": {"choice": [0.1, 0.1]}}, "twice"),
        ({"dropout": {"choice": []}}, "needs a list of values"),
        ({"dropout": {"choice": ["much"]}}, "dropout = 'much'"),
        ({"sampling": {"uniform": [0, 1]}}, "it is no number; give a choice"),
        ({"dropout": 0.3}, "has no range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(data, words):
    with pytest.raises(UsageError, match=words):
        Space.read(data, "here")


def test_the_options_named_for_an_unknown_one_can_all_be_given():
    with pytest.raises(UsageError) as refused:
        Space.read({"learning_rate": 1}, "here")
    named = str(refused.value).split("there are ")[1].rstrip(".").split(", ")
    assert "dropout" in named and "shots" in named and "seed" not in named
    values = build(MetaTrainConfig, {})
    given = {name: getattr(values, name) for name in named if name not in ("dropout", "steps", "patience")}
    assert Space.read({**given, "dropout": {"uniform": [0.1, 0.5]}}, "here").fixed == given


def test_a_space_that_is_nowhere_names_the_ready_ones(tmp_path):
    with pytest.raises(UsageError, match="published, own-images"):
        read_space("nowhere.toml")
    (tmp_path / "bad.toml").write_text("outer_lr = ")
    with pytest.raises(UsageError, match="no TOML"):
        read_space(str(tmp_path / "bad.toml"))
