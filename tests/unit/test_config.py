"""One home for each default; values are checked and the rank of their sources holds."""

import re
from dataclasses import MISSING
from pathlib import Path

import pytest

from leokit.config import (
    PRESETS,
    EvalConfig,
    ExtractConfig,
    MetaTrainConfig,
    StageConfig,
    build,
    check_together,
    describe,
    fixed_steps,
    identity,
    nearest_preset,
    read_preset,
    read_toml,
    run_name,
    to_toml,
)
from leokit.errors import UsageError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    config = build(MetaTrainConfig, read_preset(name))
    assert f"{config.shots}shot" in name or name == "own-images"
    assert config.ways == 5


def test_published_hyper_parameters():
    # leo-paper: the "best" column of DeepMind's README for miniImageNet 5-way 1-shot.
    preset = read_preset("miniimagenet-1shot")
    assert preset["outer_lr"] == 2.739071e-4
    assert preset["kl_weight"] == 0.756143
    assert preset["orthogonality_weight"] == 0.188103


@pytest.mark.parametrize(
    ("shots", "name"), [(1, "miniimagenet-1shot"), (2, "miniimagenet-1shot"), (5, "miniimagenet-5shot")]
)
def test_nearest_preset(shots, name):
    assert nearest_preset(shots) == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ways": 1}, r"ways = 1: it must be a whole number of 2 or more\.$"),
        ({"outer_lr": float("nan")}, r"outer_lr = nan: it must be a finite number above 0\.$"),
        ({"dropout": 1.0}, r"dropout = 1.0: it must be a number of at least 0 and below 1\.$"),
        ({"wayz": 5}, "Unknown key 'wayz': the keys here are .*ways"),
        ({"shots": "many"}, r"shots = 'many': it must be a whole number of 1 or more\.$"),
        ({"seed": 2**63}, rf"it must be a whole number from 0 to {2**63 - 1}\.$"),
        ({"seeds": 0}, r"seeds = 0: it must be a whole number from 1 to 1000\.$"),
        ({"variant": "maml"}, r"variant = 'maml': it must be one of leo, .*, anchored\.$"),
        ({"centring": "perhaps"}, r"centring = 'perhaps': it must be true or false\.$"),
        ({"out": 3}, r"out = 3: it must be a path\.$"),
    ],
)
def test_bad_values_name_key_value_and_limit(values, message):
    with pytest.raises(UsageError, match=message):
        build(MetaTrainConfig, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"images is missing: it must be a path\."),
        ({"images": "x", "mean": "grey"}, r"mean = 'grey': it must be 3 numbers\."),
        ({"images": "x", "interpolation": "cubic"}, r"it must be one of bilinear, bicubic, nearest, lanczos\."),
    ],
)
def test_what_is_missing_or_a_list(values, message):
    with pytest.raises(UsageError, match=message):
        build(ExtractConfig, values)


@pytest.mark.parametrize("kind", StageConfig.__constraints__, ids=lambda kind: kind.__name__)
def test_what_each_option_takes_is_said_in_words(kind):
    """Of a value that none takes; nothing of pydantic's or Python's names is in the sentence."""
    required = {field.name: "1" for field in describe(kind) if field.default is MISSING}
    for field in describe(kind):
        with pytest.raises(UsageError, match=rf"^{field.name} = .*: it must be [a-z0-9].*\.$") as raised:
            build(kind, {**required, field.name: object()})
        assert not {"Input", "None", "Literal", "tuple", "inf"} & set(re.findall(r"\w+", str(raised.value)))


def test_unknown_preset_lists_the_known():
    with pytest.raises(UsageError, match="miniimagenet-1shot"):
        read_preset("imagenet")


def test_identity_leaves_out_places_and_machine():
    first = build(MetaTrainConfig, {"device": "cpu", "work": "a", "out": "b"})
    second = build(MetaTrainConfig, {"device": "cuda", "work": "c", "overwrite": True})
    assert identity(first) == identity(second)
    assert identity(first) != identity(build(MetaTrainConfig, {"seed": 1}))


def test_toml_round_trip(tmp_path):
    config = build(ExtractConfig, {"images": 'odd "name"\n\\ ☃', "mean": (0.5, 0.25, 1e-7), "overwrite": True})
    (tmp_path / "config.toml").write_text(to_toml({**identity(config), "images": config.images}), encoding="utf-8")
    values = read_toml(tmp_path / "config.toml", "extract")
    assert build(ExtractConfig, {**values, "overwrite": True}) == config


def test_a_file_may_hold_a_table_for_each_command(tmp_path):
    path = tmp_path / "all.toml"
    path.write_text("[eval]\nepisodes = 10\n[meta-train]\nval-every = 5\n")
    assert read_toml(path, "eval") == {"episodes": 10}
    assert read_toml(path, "meta-train") == {"val_every": 5}
    assert build(EvalConfig, read_toml(path, "eval")).episodes == 10


def test_run_names():
    assert run_name(MetaTrainConfig()) == "leo-5way-1shot"
    assert run_name(MetaTrainConfig(ways=20, shots=5, seed=3)) == "leo-20way-5shot-seed3"
    assert run_name(MetaTrainConfig(seed=3, train_on_val=True)) == "leo-5way-1shot-seed3-trainval"


def test_the_number_of_steps_is_said_once():
    assert fixed_steps(MetaTrainConfig()) == 100_000
    assert fixed_steps(MetaTrainConfig(steps=7, train_on_val=True)) == 7
    check_together(MetaTrainConfig(steps_from=Path("run"), train_on_val=True))
    with pytest.raises(UsageError, match=r"--steps-from RUN.*or --steps N"):
        fixed_steps(MetaTrainConfig(train_on_val=True))
    with pytest.raises(UsageError, match="--steps 7 and --steps-from run"):
        check_together(MetaTrainConfig(steps=7, steps_from=Path("run")))
    with pytest.raises(UsageError, match=r"--patience 3.*--train-on-val"):
        check_together(MetaTrainConfig(steps=7, patience=3, train_on_val=True))
