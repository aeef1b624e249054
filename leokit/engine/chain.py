"""From a run back to what it was made from: its features, and the backbone that embeds further images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from leokit import backbones, manifest
from leokit.backbones import Backbone
from leokit.backbones.backbone import Precision
from leokit.errors import ArtifactError, UsageError
from leokit.features import SCHEMA as FEATURES
from leokit.images.preprocess import Views
from leokit.manifest import Manifest
from leokit.runs import Run

_LARGEST = 10_000  # pixels of a side
_VALUES = {"normalize": ("none", "l2"), "precision": get_args(Precision), "views": get_args(Views)}
_TEXTS = ("interpolation", "layer", "normalize", "precision", "views")
# What does not change the vectors, or by no more than rounding: a model that is compiled, and which library decodes.
_MAY_DIFFER = ("compiled", "decoder")


def find_features(run: Run, given: Path | None, work: Path) -> tuple[Path, Manifest] | None:
    """The features that a run was trained on, by their id: where they are said to be, were then, or usually are.

    Args:
        run: the run.
        given: where they are, by the user.
        work: the work folder.

    Returns:
        Their folder and manifest; None where they are at none of these places.

    Raises:
        ArtifactError: other ones, or none, are where the user says.
    """
    entry = run.manifest.inputs["features"]
    if given is not None:
        found = manifest.read(given, FEATURES)
        if found.id != entry.id:
            raise ArtifactError(
                f"--features {given} ({found.id[:12]}) are not those that the run {run.folder} was trained on "
                f"({entry.id[:12]})."
            )
        return given, found
    for folder in (Path(entry.path), work / "features", run.folder.absolute().parent.parent / "features"):
        try:
            found = manifest.read(folder, FEATURES)
        except (ArtifactError, OSError):
            continue
        if found.id == entry.id:
            return folder, found
    return None


def weights_from(run: Run, features: Manifest | None) -> dict[str, Any]:
    """Where the weights of a run's backbone are, as plain data: a folder of pretrain, or what extract took.

    A run with a model card has the folder in it.
    """
    beside = run.folder / "backbone"
    made = features.inputs.get("backbone") if features else None
    folder = str(beside) if (beside / manifest.MANIFEST).exists() else made.path if made else None
    return {"weights": features.info.get("weights", "auto") if features else "auto", "backbone_run": folder}


def load_backbone(recorded: Mapping[str, Any] | None, source: Mapping[str, Any], given: str | None) -> Backbone:
    """The backbone that features were made with, its weights compared by hash and its preprocessing by value.

    Args:
        recorded: of the features, as `Backbone.to_plain` says it.
        source: see `weights_from`.
        given: the user's word on where the weights are: a file, or a folder of pretrain.

    Raises:
        UsageError: features of a backbone that is not recorded.
        ArtifactError: the weights are missing or others, or what is recorded of the backbone is not of this form.
    """
    if not isinstance(recorded, Mapping) or "preprocessing" not in recorded:
        raise UsageError(
            "The run was trained on features that were imported: leokit does not know the backbone that made them, so "
            "it cannot embed images. In Python, LEOClassifier(run) takes features."
        )
    folder = Path(given) if given and Path(given).is_dir() else None
    if given is None and source["backbone_run"]:
        folder = Path(source["backbone_run"])
    if folder is not None and not folder.is_dir():
        raise ArtifactError(
            f"The backbone's weights were in {folder}, which is not there: give its folder, or the file, by --weights."
        )
    options = _options(recorded)
    if folder is not None:
        loaded = backbones.load_pretrained(folder, **options)
    else:
        weights = given or source["weights"]
        if weights not in ("auto", "bundled", "pretrained") and not Path(weights).is_file():
            raise ArtifactError(
                f"The backbone's weights were in {weights}, which is not there: give the file by --weights."
            )
        loaded = backbones.load(recorded["name"], weights, **options)
    ours, theirs = (_comparable(plain) for plain in (loaded.to_plain(), recorded))
    changes = manifest.differences(theirs, ours)
    if changes:
        raise ArtifactError(
            f"The backbone that was loaded is not the one that the run's features come from ({'; '.join(changes)}): "
            "give its weights by --weights."
        )
    return loaded


def _options(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What `backbones.load` shall apply.

    Raises:
        ArtifactError: a value is missing, or of another kind.
    """
    applied = recorded["preprocessing"]
    try:
        found = {
            **{key: applied[key] for key in ("image_size", "crop_pct", "interpolation", "jpeg_scaling")},
            **{key: tuple(applied[key]) for key in ("mean", "std")},
            **{key: recorded[key] for key in _TEXTS[1:]},
        }
        kinds = {**dict.fromkeys(_TEXTS, str), "jpeg_scaling": bool, "image_size": int}
        wrong = [key for key, kind in kinds.items() if type(found[key]) is not kind]
        wrong += [key for key, values in _VALUES.items() if found[key] not in values]
        wrong += [key for key in ("mean", "std") if len(found[key]) != 3 or not all(map(_is_finite, found[key]))]
        if not wrong and not 0 < found["image_size"] <= _LARGEST:
            wrong.append("image_size")
        if not _is_finite(found["crop_pct"]) or not 0 < found["crop_pct"] <= 1:
            wrong.append("crop_pct")
        if type(recorded["name"]) is not str:
            wrong.append("name")
    except (KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            f"The backbone is not recorded in full ({reason}): make the artifact again with --overwrite."
        ) from error
    if wrong:
        value = found.get(wrong[0], recorded["name"])
        raise ArtifactError(
            f"The backbone is recorded with {wrong[0]} = {value!r:.60}: make the artifact again with --overwrite."
        )
    return found


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _comparable(plain: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: value for key, value in plain["preprocessing"].items() if key not in _MAY_DIFFER}
    return {key: value for key, value in plain.items() if key not in _MAY_DIFFER} | {"preprocessing": inner}
