"""A backbone that `leokit pretrain` made: an artifact with its weights and all that goes with them."""

from pathlib import Path
from typing import Any

from leokit import manifest
from leokit.backbones.backbone import Backbone
from leokit.backbones.loading import load
from leokit.errors import UsageError

SCHEMA = "leokit/backbone@1"
WEIGHTS = "weights.safetensors"
STATE = "last/state.safetensors"
METRICS = "metrics.jsonl"
CURVES = "curves.png"
CONFIG = "config.toml"
_RESOLVED = ("image_size", "crop_pct", "mean", "std", "interpolation")


def open_pretrained(folder: Path) -> manifest.Manifest:
    """The manifest of a finished pre-training, after checking its files.

    Raises:
        ArtifactError: none there, unfinished, or altered.
    """
    found = manifest.read(folder, SCHEMA)
    manifest.check_files(folder, found)
    return found


def load_pretrained(folder: Path, **options: Any) -> Backbone:
    """The backbone of a pre-training, with its preprocessing and layer; the options are those of `load`.

    Raises:
        ArtifactError: see `open_pretrained`.
        UsageError: an option says otherwise than the training what its weights are.
    """
    facts = open_pretrained(folder).facts
    said = options.get("trained_on")
    if said is not None:
        raise UsageError(f"trained_on = {said!r}: the backbone {folder} says it itself; leave the option out.")
    recorded = {name: facts["preprocessing"][name] for name in _RESOLVED} | {"layer": facts["layer"]}
    chosen = {**options, **{key: value for key, value in recorded.items() if options.get(key) is None}}
    for key in ("mean", "std"):
        chosen[key] = tuple(chosen[key])
    chosen |= {"trained_on": list(facts["trained_on"]), "weights_size": recorded["image_size"]}
    return load(facts["model"], str(folder / WEIGHTS), **chosen)
