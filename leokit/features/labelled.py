"""Embeddings from elsewhere, with the class and the image of each row."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from leokit.errors import DataError


@dataclass(frozen=True)
class LabelledRows:
    """Embeddings in the order of their file; `checked` makes them.

    Attributes:
        embeddings: (n, D), finite.
        classes: (n,) names of the rows' classes.
        images: (n,) names of the rows' images, no two alike.
    """

    embeddings: NDArray[np.floating[Any]]
    classes: Sequence[str]
    images: Sequence[str]

    @classmethod
    def checked(
        cls, path: Path, embeddings: NDArray[Any], classes: Sequence[str], images: Sequence[str] | None = None
    ) -> Self:
        """Rows whose shapes, numbers and names fit together.

        Args:
            path: where they come from, for messages.
            embeddings: (n, D) floats.
            classes: (n,) names.
            images: (n,) names; without them an image is called by its class and the number of its row.

        Raises:
            DataError: they do not fit, a value is not finite, a class has no name, or two rows have one image.
        """
        if embeddings.ndim != 2 or not embeddings.size or embeddings.dtype.kind != "f":
            raise DataError(
                f"The embeddings in {path} have the shape {embeddings.shape} and the type {embeddings.dtype}: a matrix "
                "of floats is needed, a row for each image."
            )
        names = [f"{name}/{row:08}" for row, name in enumerate(classes)] if images is None else images
        for what, values in (("labels", classes), ("images", names)):
            if len(values) != len(embeddings):
                raise DataError(
                    f"{path} has {len(embeddings)} embeddings, but {len(values)} {what}: as many are needed."
                )
        if "" in classes:
            raise DataError(f"The label of row {list(classes).index('')} in {path} is empty: every row needs a class.")
        _check_finite(path, embeddings, names)
        twice = repeated(names)
        if twice:
            raise DataError(f"{path} has the image {twice[0]!r} more than once ({len(twice)} such).")
        return cls(embeddings, classes, names)

    def by_class(self) -> dict[str, tuple[list[str], NDArray[np.floating[Any]]]]:
        """For each class its images and their embeddings, in the order of the rows."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.classes):
            rows.setdefault(name, []).append(row)
        return {name: ([self.images[row] for row in of], self.embeddings[of]) for name, of in rows.items()}


def _check_finite(path: Path, embeddings: NDArray[Any], names: Sequence[str]) -> None:
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        value = embeddings[row][~np.isfinite(embeddings[row])][0]
        raise DataError(
            f"The embedding of {names[row]!r} (row {row} in {path}) has the value {value:g}: every value must be a "
            f"finite number ({int(bad.sum())} of {len(bad)} rows have others)."
        )


def repeated(names: Iterable[str]) -> list[str]:
    """The names that are there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
