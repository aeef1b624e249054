"""`leokit demo`: a tree of character images to try everything on, without a download."""

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass

from leokit import manifest
from leokit.config import DemoConfig, default_workers, identity
from leokit.images.glyphs import glyph_classes, write_glyphs
from leokit.provenance import information

SCHEMA = "leokit/demo@1"
SPLITS = "splits.csv"


@dataclass(frozen=True, repr=False)
class Demo(manifest.Artifact):
    """A finished demo tree."""

    classes: dict[str, str]  # name → split


def run(
    config: DemoConfig,
    *,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Demo:
    """Draw the images and write `splits.csv` (class_name,split), a folder for each class beside it.

    Args:
        config: of the demo.
        on_progress: called with images drawn, images wanted and an empty line.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: the folder holds something else.
    """
    started = time.perf_counter()
    classes = glyph_classes()
    identified = identity(config)
    with manifest.locked(config.out, "folder"):
        finished = manifest.begin(config.out, SCHEMA, identified, {}, overwrite=config.overwrite, option="folder")
        if finished:
            if on_message:
                on_message(manifest.already_done(config.out))
            return Demo(config.out, finished, classes)
        images = write_glyphs(
            config.out,
            per_class=config.per_class,
            size=config.size,
            seed=config.seed,
            workers=default_workers() if config.workers is None else max(1, config.workers),
            on_progress=(lambda done, total: on_progress(done, total, "")) if on_progress else None,
        )
        manifest.write_atomically(config.out / SPLITS, _splits_csv(classes))
        written = manifest.finish(
            config.out,
            SCHEMA,
            identified,
            {},
            results=[SPLITS, *images],
            facts={"classes": len(classes), "images": len(images)},
            info=information(started=started),
        )
        return Demo(config.out, written, classes)


def _splits_csv(classes: dict[str, str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class_name", "split"])
    writer.writerows(classes.items())
    return text.getvalue().encode("utf-8")
