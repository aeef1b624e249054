"""How many images the classes of a split have."""

from collections.abc import Mapping
from statistics import median

from leokit.config import MetaTrainConfig


def small_classes(counts: Mapping[str, Mapping[str, int]], needed: int) -> dict[str, dict[str, int]]:
    """The classes of each split with fewer images than are needed; a split without any is left out."""
    found = {
        split: {name: images for name, images in classes.items() if images < needed}
        for split, classes in counts.items()
    }
    return {split: classes for split, classes in found.items() if classes}


def classes_in_words(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Classes by split, each with its images, as `train 'cat' (3), 'dog' (12); val 'owl' (1)`."""
    return "; ".join(
        f"{split} {', '.join(f'{name!r} ({images})' for name, images in classes.items())}"
        for split, classes in counts.items()
    )


def small_remarks(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A sentence that names the classes too small for 1-shot episodes of the default size, where there are any."""
    shots, queries = MetaTrainConfig.shots, MetaTrainConfig.queries
    small = small_classes(counts, shots + queries)
    if not small:
        return []
    advice = []
    if small.keys() - {"test"}:
        advice.append("Those of train and val stop `leokit meta-train`, unless --skip-small-classes leaves them out.")
    if "test" in small:
        fewest = min(small["test"].values()) - shots
        lower = f", unless --queries is {fewest} or less" if fewest > 0 else ""
        advice.append(f"Those of test stop `leokit eval` and `leokit uncertainty`{lower}.")
    return [
        f"Classes with fewer than {shots + queries} images, {shots} shot and {queries} queries of an episode: "
        f"{'; '.join(_some_or_all(split, of, counts[split]) for split, of in small.items())}. {' '.join(advice)}"
    ]


def _some_or_all(split: str, small: Mapping[str, int], classes: Mapping[str, int]) -> str:
    if 1 < len(small) == len(classes):
        return f"{split} all {len(small)} classes ({min(small.values())} to {max(small.values())})"
    return classes_in_words({split: small})


def summarize_counts(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """For each split its number of classes and images, and the fewest, median and most images of a class.

    Args:
        counts: images of each class of each split; a split without classes is left out.
    """
    return {
        split: {
            "classes": len(classes),
            "images": sum(classes.values()),
            "min": min(classes.values()),
            "median": median(classes.values()),
            "max": max(classes.values()),
        }
        for split, classes in counts.items()
        if classes
    }
