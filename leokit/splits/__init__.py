"""Which classes (and which of their images) are for training, validation and test.

`resolve` turns what a user names (a list of the package, a file, a folder of image lists, a random division) into
`Splits`; `read_listing` tells what a list says by itself, and `coverage` how much of it a tree holds; `classes_seen`
counts how many classes a backbone's weights were trained on, `summarize_counts` images. Knows no images, only names.
"""

from leokit.splits.counts import classes_in_words, small_classes, small_remarks, summarize_counts
from leokit.splits.covering import Coverage, coverage
from leokit.splits.lists import SPLIT_NAMES
from leokit.splits.resolving import BUILT_IN, SPLITS_FILE, Listing, Splits, division_remarks, read_listing, resolve
from leokit.splits.seen import IMAGENET_1K, IMAGENET_21K, TRAINED_ON, UNKNOWN, WEB, classes_seen

__all__ = [
    "BUILT_IN",
    "IMAGENET_1K",
    "IMAGENET_21K",
    "SPLITS_FILE",
    "SPLIT_NAMES",
    "TRAINED_ON",
    "UNKNOWN",
    "WEB",
    "Coverage",
    "Listing",
    "Splits",
    "classes_in_words",
    "classes_seen",
    "coverage",
    "division_remarks",
    "read_listing",
    "resolve",
    "small_classes",
    "small_remarks",
    "summarize_counts",
]
