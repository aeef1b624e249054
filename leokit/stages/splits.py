"""`leokit splits check`: which classes of each split an image tree holds."""

from collections.abc import Callable

from leokit.config import SplitsCheckConfig
from leokit.images.scan import scan
from leokit.splits import Coverage, coverage, resolve


def run(
    config: SplitsCheckConfig,
    *,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, Coverage]:
    """What an image tree holds of each split, and what is missing.

    Where nothing is missing, the splits are also checked as extract does.

    Args:
        config: the tree and the splits.
        on_progress: not called, there is one step only.
        on_message: called with what a user should know, a sentence each.

    Raises:
        DataError: no images, or the splits themselves are wrong.
    """
    tree = scan(config.images, config.class_level)
    if on_message:
        for sentence in tree.said:
            on_message(sentence)
    covered = coverage(config.splits, config.images, tree.classes, config.seed, tree.division)
    if not any(part.missing or part.missing_images for part in covered.values()):
        note = resolve(config.splits, config.images, tree.classes, config.seed, tree.division).note
        if note and on_message:
            on_message(note)
    return covered
