"""`leokit demo`."""

from collections import Counter

from leokit.cli.render import Output, TableData
from leokit.config import DemoConfig
from leokit.text import pasteable


def command(config: DemoConfig, output: Output) -> None:
    """Draw a tree of character images to try everything on, without a download.

    A class is a letter. Latin and Cyrillic are for training, Greek for validation, Armenian and Georgian for testing.

    Example: leokit demo glyphs
    """
    from leokit.images.glyphs import glyph_classes

    counts = Counter(glyph_classes().values())
    rows = [[split, str(counts[split]), str(counts[split] * config.per_class)] for split in ("train", "val", "test")]
    table = TableData("Demo images", ["split", "classes", "images"], rows)
    if output.dry_run:
        output.result({"out": str(config.out), "classes": dict(counts)}, [table], [f"Would go to {config.out}."])
        return
    from leokit.stages import demo

    with output.progress("Drawing") as progress:
        done = demo.run(config, on_progress=progress, on_message=output.note)
    data = {"out": str(done.folder), "id": done.id, "classes": dict(counts), **done.facts}
    output.result(data, [table], [f"In {done.folder}."])
    output.next_command(f"leokit extract {pasteable(config.out)} --image-size {config.size}")
