"""How much of each split an image tree holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from leokit.splits.resolving import RANDOM, Division, find_images, read_listing, resolve


@dataclass(frozen=True)
class Coverage:
    """What a tree holds of a split.

    Attributes:
        present: classes that are in the tree, in bytewise order.
        missing: classes that are not.
        images: how many images of the present classes would be used.
        missing_images: images that a list names in a present class and that are not there, as the list writes them.
    """

    present: tuple[str, ...]
    missing: tuple[str, ...]
    images: int
    missing_images: tuple[str, ...] = ()


def coverage(
    spec: str | None,
    images: Path,
    available: Mapping[str, Sequence[str]],
    seed: int = 0,
    division: Division = MappingProxyType({}),
) -> dict[str, Coverage]:
    """What an image tree holds of each split, and what of it is missing.

    Args:
        spec: the splits, as `resolve` takes them.
        images: root of the image tree.
        available: the images of each class there, as paths relative to the root.
        seed: of a random division.
        division: the classes in folders train, val and test of the tree, see `ImageTree`.

    Raises:
        DataError: the list itself is wrong; a random division needs more classes than there are.
    """
    if spec is not None and spec.startswith(RANDOM):
        divided = resolve(spec, images, available, seed).images(available)
        return {split: Coverage(tuple(classes), (), _total(classes)) for split, classes in divided.items()}
    listing = read_listing(spec, images, division)
    covered = {}
    for split, names in listing.classes.items():
        present = tuple(name for name in names if name in available)
        used, lost = 0, []
        for name in present:
            if name in listing.images:
                found = find_images(listing.images[name], available[name])
                used += sum(image is not None for image in found.values())
                lost += [entry.image for entry, image in found.items() if image is None]
            else:
                used += len(available[name])
        missing = tuple(name for name in names if name not in available)
        covered[split] = Coverage(present, missing, used, tuple(lost))
    return covered


def _total(classes: Mapping[str, Sequence[str]]) -> int:
    return sum(len(images) for images in classes.values())
