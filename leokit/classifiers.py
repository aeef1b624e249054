"""Classifiers of a user's classes: a method adapted to a support set, with what meta-val says of it; on disk too."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leokit import manifest
from leokit.calibration import Flags, Floats, conformal_quantile
from leokit.errors import ArtifactError, UsageError
from leokit.runs import load_parameters, save_parameters

SCHEMA = "leokit/classifier@1"
SCORES = ("maximum_probability", "entropy", "mutual_information", "highest")  # of `leokit.engine.predictives.scores`
WEIGHTS = "classifier.safetensors"
_ARRAYS = ("conformal", "inside", "outside")


@dataclass(frozen=True)
class Evidence:
    """What episodes of meta-val say about a method at a number of classes and shots.

    Attributes:
        ways: classes of an episode (N).
        shots: support images of a class (K).
        queries: query images of a class.
        episodes: how many (E).
        accuracy: mean over them.
        half_width: of its 95 % interval over them.
        temperature: that calibrates the probabilities.
        score: by which own images are told from others, see `leokit.engine.predictives.scores`; of several the one of
            the largest AUROC; None where no classes were left for others.
        auroc: of that score, over all queries.
        conformal: (E,) rising, conformal scores of one query of each episode.
        inside: rising, the score of queries of an episode's classes.
        outside: rising, the score of queries of other classes.
        spare: classes of meta-val beyond those of an episode, from which the outside ones are; None: not recorded.
    """

    ways: int
    shots: int
    queries: int
    episodes: int
    accuracy: float
    half_width: float
    temperature: float
    score: str | None
    auroc: float | None
    conformal: Floats
    inside: Floats
    outside: Floats
    spare: int | None = None

    def __post_init__(self) -> None:
        """Check what cannot be used otherwise.

        Raises:
            ValueError: naming the value.
        """
        for name in ("ways", "shots", "queries", "episodes"):
            _check(name, getattr(self, name), _is_number(getattr(self, name), int) and getattr(self, name) >= 1)
        for name in ("accuracy", "half_width", "temperature"):
            _check(name, getattr(self, name), _is_number(getattr(self, name), (int, float)))
        _check("temperature", self.temperature, 0 < self.temperature < float("inf"))
        _check("score", self.score, self.score is None or self.score in SCORES)
        _check("spare", self.spare, self.spare is None or (_is_number(self.spare, int) and self.spare >= 0))
        _check("auroc", self.auroc, self.auroc is None or _is_number(self.auroc, (int, float)))
        for name in _ARRAYS:
            values = getattr(self, name)
            _check(name, values, values.ndim == 1 and values.dtype == np.float64 and not np.isnan(values).any())
        if self.score is not None:
            _check("inside", self.inside, len(self.inside) > 0)
            _check("outside", self.outside, len(self.outside) > 0)

    def threshold(self, rate: float) -> float:
        """The score below which an image is called unknown, so that a share `rate` of own ones is, on meta-val."""
        return float(self.inside[int(np.floor(rate * len(self.inside)))])

    def found_unknown(self, rate: float) -> float:
        """The share of images of other classes that is called unknown at that threshold, on meta-val."""
        return float((self.outside < self.threshold(rate)).mean())

    def quantile(self, level: float) -> float:
        """The largest conformal score of a member of a set that shall hold the right class at a rate of `level`.

        Raises:
            UsageError: too few episodes for the level.
        """
        found = conformal_quantile(self.conformal, level)
        if not np.isfinite(found):
            raise UsageError(
                f"--sets {level:g}: {self.episodes} meta-val episodes do not suffice for that level; give a lower one, "
                f"or fit the classifier with --episodes {int(np.ceil(1 / (1 - level)))} or more."
            )
        return found


@dataclass(frozen=True)
class Withheld:
    """Why something is not said; None where it can be."""

    temperature: str | None = None
    unknown: str | None = None
    sets: str | None = None


@dataclass(frozen=True)
class Classifier:
    """A method adapted to a support set of C classes.

    Attributes:
        classes: their names (C).
        counts: support images of each (C).
        method: leo (a run's own variant), class-mean or logistic.
        variant: of the run.
        weights: (S, C, D), of each sample; a logit is the product with a unit feature vector, and probabilities are
            means over samples.
        centre: (D,), what unit features are centred on before, or None.
        dtype: of the computation, by torch's name.
        stored_dtype: that features are rounded to first, as in the store that the run was trained on; None for none.
        backbone: what the features must come from, as `Backbone.to_plain` says it; None for features of unknown origin.
        weights_from: where the backbone's weights were, see `leokit.engine.chain`.
        run: id of the run.
        chosen: how the method was chosen, in a sentence.
        evidence: what meta-val says, or None.
        withheld: why something is not said.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    method: str
    variant: str
    weights: Tensor
    centre: Tensor | None
    dtype: str
    stored_dtype: str | None
    backbone: dict[str, Any] | None
    weights_from: dict[str, Any]
    run: str
    chosen: str
    evidence: Evidence | None
    withheld: Withheld = field(default_factory=Withheld)

    @property
    def dim(self) -> int:
        """D, the width of the features."""
        return self.weights.shape[-1]

    @property
    def temperature(self) -> float:
        """Of the probabilities; 1 where none could be fitted."""
        return self.evidence.temperature if self.evidence and not self.withheld.temperature else 1.0


def _check(name: str, value: Any, fits: bool) -> None:
    if not fits:
        raise ValueError(f"its {name} is {value!r:.60}")


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def members(probabilities: Floats, quantile: float) -> Flags:
    """Members (n, C) of the prediction sets of probabilities (n, C); the most probable class always is one.

    A set that would be empty holds that class instead, which can only raise its coverage.
    """
    found: Flags = (1 - probabilities <= quantile) | (probabilities == probabilities.max(-1, keepdims=True))
    return found


def facts(classifier: Classifier) -> dict[str, Any]:
    """A classifier's plain values, for its manifest."""
    plain = {
        key: value
        for key, value in vars(classifier).items()
        if key not in ("weights", "centre", "evidence", "withheld")
    }
    evidence = None
    if classifier.evidence:
        evidence = {key: value for key, value in vars(classifier.evidence).items() if key not in _ARRAYS}
    return plain | {
        "samples": len(classifier.weights),
        "dim": classifier.dim,
        "evidence": evidence,
        "withheld": asdict(classifier.withheld),
    }


def save(folder: Path, classifier: Classifier) -> None:
    """Write a classifier's arrays; its manifest, with `facts`, is the stage's to write."""
    tensors = {"weights": classifier.weights}
    if classifier.centre is not None:
        tensors["centre"] = classifier.centre
    if classifier.evidence:
        tensors |= {name: torch.from_numpy(getattr(classifier.evidence, name)) for name in _ARRAYS}
    save_parameters(folder / WEIGHTS, tensors)


def open_classifier(folder: Path) -> tuple[Classifier, manifest.Manifest]:
    """Open a finished classifier, after checking its files.

    Raises:
        ArtifactError: none there, unfinished, or altered.
    """
    found = manifest.read(folder, SCHEMA)
    manifest.check_files(folder, found)
    return _restored(folder, load_parameters(folder / WEIGHTS), found.facts), found


def _restored(folder: Path, tensors: dict[str, Tensor], recorded: Mapping[str, Any]) -> Classifier:
    plain = dict(recorded)
    try:
        samples, dim = plain.pop("samples"), plain.pop("dim")
        evidence, withheld = plain.pop("evidence"), plain.pop("withheld")
        if evidence is not None:
            values: dict[str, Any] = evidence | {name: tensors[name].numpy() for name in _ARRAYS}
            evidence = Evidence(**values)
        plain |= {name: tuple(plain[name]) for name in ("classes", "counts")}
        weights, centre = tensors["weights"], tensors.get("centre")
        if weights.shape != (samples, len(plain["classes"]), dim) or not weights.numel():
            raise ValueError(f"its weights are {tuple(weights.shape)}")
        made = Classifier(**plain, weights=weights, centre=centre, evidence=evidence, withheld=Withheld(**withheld))
        _check_values(made)
        return made
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(
            f"{folder} is no classifier that can be read ({reason}): make it again with --overwrite."
        ) from error


def _check_values(found: Classifier) -> None:
    """Check that what a classifier records is of the kinds that it is used as.

    Raises:
        ValueError: naming the first value that is not.
    """
    classes, counts = found.classes, found.counts
    _check("classes", classes, all(isinstance(name, str) for name in classes) and len(set(classes)) == len(classes))
    _check("counts", counts, all(_is_number(count, int) and count >= 1 for count in counts))
    _check("counts", counts, len(counts) == len(classes))
    for name in ("method", "variant", "run", "chosen"):
        _check(name, getattr(found, name), isinstance(getattr(found, name), str))
    _check("dtype", found.dtype, found.dtype in ("float32", "float64"))
    _check("stored_dtype", found.stored_dtype, found.stored_dtype in (None, "float16", "float32"))
    _check("backbone", found.backbone, found.backbone is None or isinstance(found.backbone, dict))
    source = found.weights_from
    _check("weights_from", source, isinstance(source["weights"], str))
    _check("weights_from", source, isinstance(source["backbone_run"], str | None))
    for name, reason in vars(found.withheld).items():
        _check(name, reason, reason is None or isinstance(reason, str))
    if found.evidence and not found.withheld.unknown:
        _check("score", found.evidence.score, found.evidence.score is not None)
        sampled = len(found.weights) > 1
        _check("score", found.evidence.score, sampled or found.evidence.score != "mutual_information")
    for name in ("weights", "centre"):
        value = getattr(found, name)
        _check(name, value, value is None or bool(value.is_floating_point() and value.isfinite().all()))
    if found.centre is not None:
        _check("centre", tuple(found.centre.shape), found.centre.shape == (found.dim,))
