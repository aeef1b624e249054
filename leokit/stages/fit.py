"""`leokit fit`: run and support images → a classifier that needs neither."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leokit import classifiers, manifest
from leokit.checks import check_fit
from leokit.classifiers import Classifier
from leokit.config import FitConfig, identity
from leokit.engine.classifying import make_classifier, prepare
from leokit.provenance import information

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, repr=False)
class Fitted(manifest.Artifact):
    """A classifier on disk."""

    classifier: Classifier


def default_out(config: FitConfig) -> Path:
    """Where the classifier goes: `--out`, else its place under the work folder."""
    return config.out or config.work / "classifier"


def run(
    config: FitConfig,
    *,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Fitted:
    """Adapt a run to a support set and save the classifier.

    Args:
        config: of the classifier.
        on_progress: called with what is done and wanted, and what that is.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError, DataError, UsageError: see `make_classifier`; or the place holds something else.
    """
    started = time.perf_counter()
    tell = on_message or (lambda text: None)
    folder = default_out(config)
    prepared = prepare(config, tell)
    inputs, identified = prepared.inputs, identity(config)
    with manifest.locked(folder):
        if manifest.begin(folder, classifiers.SCHEMA, identified, inputs, overwrite=config.overwrite):
            tell(manifest.already_done(folder))
        else:
            made = make_classifier(config, prepared, on_progress=on_progress, on_message=tell)
            classifiers.save(folder, made.classifier)
            manifest.finish(
                folder,
                classifiers.SCHEMA,
                identified,
                inputs,
                results=[classifiers.WEIGHTS],
                facts=classifiers.facts(made.classifier),
                info=information(started=started, device=made.embedding.device),
            )
        saved, found = classifiers.open_classifier(folder)
        return Fitted(folder, found, saved)


def dry_run(config: FitConfig, on_message: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """What `run` would do, after the checks that need no computation."""
    run, tree = check_fit(config)
    for sentence in tree.said:
        on_message(sentence)
    counts = [len(images) for images in tree.classes.values()]
    return {
        "run": str(run.folder),
        "variant": run.config.variant,
        "classes": len(counts),
        "support_images": sum(counts),
        "images_of_a_class": f"{min(counts)} to {max(counts)}",
        "method": config.method,
        "out": str(default_out(config)),
    }
