"""`leokit export`: a classifier → an ONNX file with its backbone in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leokit import classifiers, manifest
from leokit.config import ExportConfig
from leokit.engine.chain import load_backbone
from leokit.engine.exporting import export
from leokit.errors import ArtifactError, UsageError, disk_errors


@dataclass(frozen=True)
class Exported:
    """An ONNX file.

    Attributes:
        path: of the file.
        bytes: its size.
        classes: how many.
        image_size: side of the images that it takes, in pixels.
        difference: largest difference of a probability between onnxruntime and torch, on images of noise.
    """

    path: Path
    bytes: int
    classes: int
    image_size: int
    difference: float


def _source(config: ExportConfig) -> Path:
    return config.classifier or config.work / "classifier"


def default_out(config: ExportConfig) -> Path:
    """Where the file goes: `--onnx`, else its place under the work folder.

    Raises:
        UsageError: a name that promises another format.
    """
    path = config.onnx or config.work / "classifier.onnx"
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"--onnx {path}: its name must end in .onnx.")
    return path


def run(config: ExportConfig) -> Exported:
    """Write a classifier and its backbone as one ONNX graph, checked under onnxruntime.

    Raises:
        ArtifactError: no classifier, other weights, or a file that is there already.
        UsageError: the extra 'onnx' is not installed, or the name of the file promises another format.
        LeokitError: the backbone cannot be exported.
    """
    path = default_out(config)
    if path.is_dir() or (path.exists() and not config.overwrite):
        raise ArtifactError(f"{path} is there already: choose another --onnx, or use --overwrite.")
    classifier, _ = classifiers.open_classifier(_source(config))
    backbone = load_backbone(classifier.backbone, classifier.weights_from, config.weights)
    with disk_errors(path.parent, "--onnx"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with manifest.replacing(path) as temporary:
            difference = export(temporary, backbone, classifier)
    size = backbone.preprocessing.image_size
    return Exported(path, path.stat().st_size, len(classifier.classes), size, difference)


def dry_run(config: ExportConfig) -> dict[str, Any]:
    """What `run` would do, after the checks that need no computation."""
    classifier, _ = classifiers.open_classifier(_source(config))
    return {
        "classifier": str(_source(config)),
        "classes": len(classifier.classes),
        "method": classifier.method,
        "onnx": str(default_out(config)),
    }
