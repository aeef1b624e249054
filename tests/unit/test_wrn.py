"""Wide residual networks: their published size, what a layer's name stands for, and timm's ways with them."""

import pytest
import timm
import torch
from torch.nn.functional import batch_norm, conv2d

from leokit.backbones import Layers, default_layers, layer_names, load, preprocessing_of
from leokit.errors import UsageError

IMAGES = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = timm.create_model("wrn16_2", num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return model.eval()


def conv(inputs, outputs, side):
    return inputs * outputs * side**2


def test_wrn28_10_has_the_published_size():
    expected = conv(3, 16, 3)
    before = 16
    for channels in (160, 320, 640):
        for block in range(4):
            inputs = before if block == 0 else channels
            expected += 2 * inputs + conv(inputs, channels, 3) + 2 * channels + conv(channels, channels, 3)
            expected += conv(inputs, channels, 1) if block == 0 else 0
        before = channels
    expected += 2 * before
    model = timm.create_model("wrn28_10", num_classes=0)
    assert sum(value.numel() for value in model.parameters()) == expected
    assert round(expected / 1e6, 1) == 36.5
    assert default_layers(model) == ("group3.block2", "group3.block2.relu")
    assert Layers(model, default_layers(model)).widths(16) == [640, 640]
    # 1 + 2 · (4 + 4 + 2): the main path's convolutions up to there
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    main = [name for name in names if not name.endswith("shortcut")]
    assert [name for name in main if name.startswith("group3.block2")] == main[19:21]


def test_the_forward_pass_is_that_of_the_publication(small):
    """Written again from the publication, with plain functions on the tensors of the model."""
    tensors = small.state_dict()

    def active(maps, name):
        values = (tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(maps, *values, training=False).relu()

    maps = conv2d(IMAGES, tensors["stem.weight"], padding=1)
    for group in (1, 2, 3):
        for block in (1, 2):
            at, stride = f"group{group}.block{block}", 2 if block == 1 else 1
            first = active(maps, f"{at}.norm1")
            inner = conv2d(first, tensors[f"{at}.conv1.weight"], stride=stride, padding=1)
            inner = conv2d(active(inner, f"{at}.norm2"), tensors[f"{at}.conv2.weight"], padding=1)
            shortcut = f"{at}.shortcut.weight"
            maps = inner + (conv2d(first, tensors[shortcut], stride=stride) if shortcut in tensors else maps)
    pooled = active(maps, "norm").mean((2, 3))
    expected = pooled @ tensors["fc.weight"].T + tensors["fc.bias"]
    torch.testing.assert_close(small(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_is_taken_before_or_after_what_follows_it(small):
    seen = {}
    hooks = [
        small.group3.block1.register_forward_hook(lambda module, given, made: seen.update(raw=made.mean((2, 3)))),
        small.group3.block2.norm1.register_forward_hook(
            lambda module, given, made: seen.update(relu=made.relu().mean((2, 3)))
        ),
    ]
    small(IMAGES)
    names = ("group3.block1", "group3.block1.relu", "group3.block2.relu", "pooled", "group1.block2")
    raw, relu, last, pooled, narrow = Layers(small, names)(IMAGES)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(raw, seen["raw"])
    torch.testing.assert_close(relu, seen["relu"])
    torch.testing.assert_close(last, small.forward_head(small.forward_features(IMAGES), pre_logits=True))
    assert narrow.shape == (2, 32)
    assert Layers(small, names).widths(16) == [128, 128, 128, pooled.shape[1], 32]
    assert not small.training


def test_unknown_layers_are_refused_with_those_there_are(small):
    with pytest.raises(UsageError, match=r"group3.block3.*group1.block1.*group3.block2.relu"):
        Layers(small, ("group3.block3",))
    assert layer_names(small)[0] == "pooled"


def test_timm_knows_it_as_any_model():
    assert "wrn28_10" in timm.list_models("wrn*")
    model = timm.create_model("wrn10_1", features_only=True, out_indices=(0, 2))
    assert [maps.shape[1:] for maps in model(IMAGES)] == [(16, 20, 20), (64, 5, 5)]
    assert model.feature_info.reduction() == [2, 8]
    preprocessing = preprocessing_of(timm.create_model("wrn10_1"))
    assert (preprocessing.image_size, preprocessing.resized) == (80, 92)  # Qiao et al.


def test_its_features_are_those_of_layer_21_unless_told_otherwise():
    backbone = load("wrn16_1", "random", image_size=32)
    assert (backbone.layer, backbone.dim) == ("group3.block2", 64)
    assert load("wrn16_1", "random", image_size=32, layer="pooled").layer == "pooled"


def test_dropout_in_blocks_acts_in_training_alone():
    model = timm.create_model("wrn10_1", num_classes=3, block_dropout=0.5)
    assert not torch.equal(model.train()(IMAGES), model(IMAGES))
    assert torch.equal(model.eval()(IMAGES), model(IMAGES))
