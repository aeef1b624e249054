"""`leokit predict`: a classifier and images → labels, as they become known."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from leokit import classifiers
from leokit.calibration import entropy
from leokit.checks import check_classifier, check_fit, check_queries
from leokit.classifiers import Classifier, Evidence
from leokit.config import FitConfig, PredictConfig, default_workers
from leokit.devices import resolve_device
from leokit.engine.classifying import EmbeddingModel, make_classifier, prepare
from leokit.engine.embedding import embed_images
from leokit.engine.fitting import answer, probabilities
from leokit.engine.models import BLOCK
from leokit.engine.predictives import Answers, scores
from leokit.evaluations import spare_in_words
from leokit.images.queries import STDIN, find_images, in_blocks
from leokit.images.scan import left_alone

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Prediction:
    """What is said of an image.

    Attributes:
        image: its path, as `leokit.images.scan.escape` gives it.
        label: the most probable class; None where the image could not be read, as all below.
        probability: of it, at the classifier's temperature.
        entropy: of all probabilities, in nats.
        unknown: whether it seems to be of none of the classes; None where that cannot be told.
        top: the most probable classes with their probabilities, as many as were asked for.
        set: classes of the prediction set, the most probable first; None where none was asked for.
        mutual_information: of label and sample, in nats; None without samples.
        error: why the image could not be read.
    """

    image: str
    label: str | None = None
    probability: float | None = None
    entropy: float | None = None
    unknown: bool | None = None
    top: tuple[tuple[str, float], ...] = ()
    set: tuple[str, ...] | None = None
    mutual_information: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Predictions:
    """A classifier at work: iterating gives a prediction for each image, before the last image is read.

    Attributes:
        classifier: that predicts.
        said: what a user should know about it, a sentence each.
    """

    classifier: Classifier
    said: tuple[str, ...]
    _each: Iterator[Prediction]
    _ignored: list[str]

    def __iter__(self) -> Iterator[Prediction]:
        return self._each

    def left_alone(self) -> str | None:
        """A sentence on what lies beside the images in their folders, once all of them are predicted."""
        return left_alone(self._ignored, "images")


def run(
    config: PredictConfig,
    *,
    listing: BinaryIO | None = None,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Predictions:
    """Classify images by a support set, or by a classifier that `leokit fit` made.

    Args:
        config: of the classifier and what is asked of it.
        listing: a list of paths in place of standard input.
        on_progress: called with what is done and wanted until the classifier is there, and what that is.
        on_message: called with what a user should know about the support set, a sentence each.

    Raises:
        UsageError: nothing to predict, or what the classifier cannot say.
        ArtifactError, DataError: see `make_classifier`.
    """
    places = (*config.query, *config.queries)  # as `--query A B C` is read
    check_queries(places)
    tell = on_message or (lambda text: None)
    _look_at(places, config.support, tell)
    classifier, embedding = _classifier(config, on_progress, tell)
    evidence, kept_back = classifier.evidence, classifier.withheld
    quantile = evidence.quantile(config.sets) if config.sets and evidence and not kept_back.sets else None
    unknown = config.unknown_rate if config.unknown_rate and evidence and not kept_back.unknown else None
    said = tuple(_sentences(config, classifier, unknown, quantile))
    workers = default_workers() if config.workers is None else config.workers
    ignored: list[str] = []

    def each() -> Iterator[Prediction]:
        blocks = in_blocks(find_images(places, listing, ignored.append), BLOCK)
        for paths, vectors, reasons in embed_images(blocks, embedding.model, Path(), workers=workers):
            found: Iterator[dict[str, Any]] = iter(())
            readable = [place for place in range(len(paths)) if place not in reasons]
            if readable:
                given = answer(classifier, vectors[readable], embedding.device)
                found = _predicted(config, classifier, given, unknown, quantile)
            for place, path in enumerate(paths):
                if place in reasons:
                    yield Prediction(path, error=reasons[place])
                else:
                    yield Prediction(path, **next(found))

    return Predictions(classifier, said, each(), ignored)


def _look_at(places: tuple[Path, ...], support: Path | None, tell: Callable[[str], None]) -> None:
    """Tell of places that are also examples."""
    if support is None or not os.path.isdir(support):
        return
    for place in places:
        given, known = Path(os.path.realpath(place)), Path(os.path.realpath(support))
        if place != STDIN and os.path.lexists(place) and (given.is_relative_to(known) or known.is_relative_to(given)):
            tell(f"{place} and the support set {support} have images in common: what is to be named is an example too.")


def _classifier(
    config: PredictConfig, on_progress: Progress | None, tell: Callable[[str], None]
) -> tuple[Classifier, EmbeddingModel]:
    if config.classifier is None:
        fitting = _fit_config(config)
        made = make_classifier(fitting, prepare(fitting, tell), on_progress=on_progress, on_message=tell)
        return made.classifier, made.embedding
    check_classifier(config, config.classifier)
    classifier, _ = classifiers.open_classifier(config.classifier)
    device = resolve_device(config.device)
    return classifier, EmbeddingModel(classifier.backbone, classifier.weights_from, config.weights, device)


def _fit_config(config: PredictConfig) -> FitConfig:
    shared = {entry.name for entry in fields(FitConfig)} & {entry.name for entry in fields(PredictConfig)}
    return FitConfig(**{name: getattr(config, name) for name in shared})


def _sentences(
    config: PredictConfig, classifier: Classifier, unknown: float | None, quantile: float | None
) -> Iterator[str]:
    """What a user should know: which method and why, what is called unknown, what sets hold, and what is not said."""
    yield classifier.chosen
    evidence, kept_back = classifier.evidence, classifier.withheld
    if unknown is not None and evidence:
        yield (
            f"unknown: on meta-val this rule calls {100 * unknown:g} % of images of the given classes unknown, and "
            f"{100 * evidence.found_unknown(unknown):.0f} % of images of others."
            f"{spare_in_words(' It rests', evidence.spare, 'meta-val')}"
        )
    elif config.unknown_rate:
        yield f"No image is called unknown: {kept_back.unknown}."
    if config.sets and quantile is not None:
        yield f"set: holds the right class at a rate of {config.sets:g} on meta-val; other classes may differ."
    elif config.sets:
        yield f"No sets with a level: {kept_back.sets}."
    if kept_back.temperature:
        yield f"Probabilities are as the method gives them, not calibrated: {kept_back.temperature}."
    elif evidence and evidence.ways != len(classifier.classes):
        yield (
            f"Probabilities are calibrated at {evidence.ways} classes, the most that meta-val has, and not at "
            f"{len(classifier.classes)}."
        )


def _predicted(
    config: PredictConfig, classifier: Classifier, given: Answers, unknown: float | None, quantile: float | None
) -> Iterator[dict[str, Any]]:
    """The values of `Prediction` for each of some images."""
    calibrated, evidence = probabilities(classifier, given), classifier.evidence
    order = np.argsort(-calibrated, 1, kind="stable")
    total, sampled = entropy(calibrated), len(classifier.weights) > 1
    mutual = np.maximum(entropy(given.probabilities) - given.aleatoric, 0.0)
    flags = _unknown(given, evidence, unknown, sampled) if unknown is not None and evidence else None
    members = classifiers.members(given.probabilities, quantile) if quantile is not None else None
    names = classifier.classes
    for row, ranked in enumerate(order):
        yield {
            "label": names[ranked[0]],
            "probability": float(calibrated[row, ranked[0]]),
            "entropy": float(total[row]),
            "unknown": None if flags is None else bool(flags[row]),
            "top": tuple((names[place], float(calibrated[row, place])) for place in ranked[: config.top]),
            "set": None if members is None else tuple(names[place] for place in ranked if members[row, place]),
            "mutual_information": float(mutual[row]) if sampled else None,
        }


def _unknown(given: Answers, evidence: Evidence, rate: float, sampled: bool) -> Any:
    """Whether each image (n,) is called unknown."""
    assert evidence.score is not None
    return scores(given, parted=sampled)[evidence.score] < evidence.threshold(rate)


def to_plain(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain data; what is not said is left out."""
    values = {key: value for key, value in asdict(prediction).items() if value is not None}
    if values.get("top") and len(values["top"]) > 1:
        values["top"] = [{"label": name, "probability": share} for name, share in values["top"]]
    else:
        values.pop("top")
    return values


def dry_run(config: PredictConfig, on_message: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """What `run` would do, after the checks that need no computation."""
    places = (*config.query, *config.queries)  # as `--query A B C` is read
    check_queries(places)
    queries = ", ".join(map(str, places)) or "none"
    if config.classifier is not None:
        check_classifier(config, config.classifier)
        classifier, _ = classifiers.open_classifier(config.classifier)
        return {"classifier": str(config.classifier), "classes": len(classifier.classes), "queries": queries}
    run, tree = check_fit(_fit_config(config))
    for sentence in tree.said:
        on_message(sentence)
    counts = [len(images) for images in tree.classes.values()]
    return {
        "run": str(run.folder),
        "classes": len(counts),
        "support_images": sum(counts),
        "method": config.method,
        "queries": queries,
    }
