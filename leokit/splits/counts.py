"""How many images the classes of a split have."""

from collections.abc import Mapping
from statistics import median


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
