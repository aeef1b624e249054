"""A classifier with its backbone as one ONNX graph, from the pixels of images to probabilities."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from leokit.backbones import Backbone
from leokit.backbones.backbone import view_of
from leokit.classifiers import Classifier
from leokit.errors import LeokitError, UsageError

TOLERANCE = 1e-3  # of a probability
_CHECKED = 16  # images of noise that the file is checked on
_INPUT, _OUTPUT = "pixels", "probabilities"


class Graph(nn.Module):
    """Pixels (B, S, S, 3), bytes as leokit's preprocessing leaves them, → probabilities (B, C)."""

    mean: Tensor
    std: Tensor
    centre: Tensor | None
    weights: Tensor

    def __init__(self, backbone: Backbone, classifier: Classifier) -> None:
        super().__init__()
        self.backbone, self.preprocessing = backbone.module, backbone.preprocessing
        self.l2 = backbone.normalize == "l2"
        self.stored = getattr(torch, classifier.stored_dtype or "float32")
        self.temperature = classifier.temperature
        for name, values in (("mean", backbone.preprocessing.mean), ("std", backbone.preprocessing.std)):
            self.register_buffer(name, torch.tensor(values))
        self.register_buffer("centre", None if classifier.centre is None else classifier.centre.float())
        self.register_buffer("weights", classifier.weights.float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities at the classifier's temperature."""
        crops = pixels.unbind(1) if pixels.ndim == 5 else (pixels,)
        views = [view for crop in crops for view in view_of(crop, self.preprocessing)]
        scaled = [((view.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2) for view in views]
        vectors = torch.stack([self.backbone(view).float() for view in scaled]).mean(0)
        if self.l2:
            vectors = normalize(vectors, dim=1)
        rows = vectors.to(self.stored).float()
        rows = rows * rows.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
        if self.centre is not None:
            rows = normalize(rows - self.centre, dim=1)
        logits = torch.einsum("bd,scd->sbc", rows, self.weights)
        mean = logits.softmax(-1).mean(0)
        return (mean.clamp_min(torch.finfo(mean.dtype).tiny).log() / self.temperature).softmax(-1)


def export(path: Path, backbone: Backbone, classifier: Classifier) -> float:
    """Write the ONNX file, and compare it under onnxruntime with what torch says, on images of noise.

    Args:
        path: of the file; what is there is replaced.
        backbone: on the CPU, not compiled.
        classifier: whose answers it gives.

    Returns:
        The largest difference of a probability.

    Raises:
        UsageError: the extra 'onnx' is not installed.
        LeokitError: the backbone cannot be exported, or the file gives other answers.
    """
    onnx, onnxruntime = _libraries()
    graph = Graph(backbone, classifier).eval()
    shape = backbone.preprocessing.shape
    pixels = np.random.default_rng(0).integers(0, 256, (_CHECKED, *shape), np.uint8)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's, about its own parts
            program: Any = torch.onnx.export(
                graph,
                (torch.from_numpy(pixels[:2]),),
                dynamo=True,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever a model's code leads it to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LeokitError(f"{backbone.name} cannot be exported to ONNX: {reason}.") from error
    model = program.model_proto
    for key, value in _metadata(backbone, classifier).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save_model(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _compared(session, graph, pixels)


def _compared(session: Any, graph: nn.Module, pixels: NDArray[np.uint8]) -> float:
    (ours,) = session.run([_OUTPUT], {_INPUT: pixels})
    with torch.inference_mode():
        theirs = graph(torch.from_numpy(pixels)).numpy()
    difference = float(np.abs(ours - theirs).max())
    if not difference <= TOLERANCE:
        raise LeokitError(
            f"The ONNX file gives other probabilities than torch, by up to {difference:.2g} (allowed: {TOLERANCE:g}): "
            "do not use it."
        )
    return difference


def _metadata(backbone: Backbone, classifier: Classifier) -> Mapping[str, str]:
    """What a program needs that uses the file: names of the classes, and how an image becomes pixels."""
    return {
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "preprocessing": json.dumps(backbone.preprocessing.to_plain()),
        "leokit": json.dumps(
            {"run": classifier.run, "method": classifier.method, "temperature": classifier.temperature}
        ),
    }


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch's exporter writes with)
    except ImportError as error:
        raise UsageError(
            f"ONNX needs the extra 'onnx' ({error.name} is missing): pip install 'leokit[onnx]'."
        ) from error
    return onnx, onnxruntime
