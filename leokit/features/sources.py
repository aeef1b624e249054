"""Finding embeddings that others made: DeepMind's folders of pickles, and NumPy files with labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leokit.errors import DataError, UsageError
from leokit.features.arrays import labels_of, read_npy, read_npz
from leokit.features.labelled import LabelledRows
from leokit.features.pickles import read_pickle
from leokit.splits import SPLIT_NAMES

_DEPTH = 3  # folders below a root in which pickles are looked for: embeddings/miniImageNet/center
_READERS = {".npz": read_npz, ".npy": read_npy}
_FORMS = (
    "a folder with train_embeddings.pkl, val_embeddings.pkl and test_embeddings.pkl (or one that holds such folders), "
    "a folder with train, val, test as .npz or .npy, or one such file"
)


@dataclass(frozen=True)
class Source:
    """Files of embeddings.

    Attributes:
        files: the file of each split; of one file whose classes are still to be divided, under the empty name.
        pickles: whether they are DeepMind's pickles.
    """

    files: Mapping[str, Path]
    pickles: bool

    @property
    def divided(self) -> bool:
        """Whether the files say which split a class belongs to."""
        return "" not in self.files

    def all_files(self) -> Iterator[tuple[str, Path]]:
        """Every file that is read, under a name that does not depend on where it lies."""
        for split, path in self.files.items():
            yield split, path
            if path.suffix == ".npy":
                labels = labels_of(path)
                yield f"{split}{labels.name.removeprefix(path.stem)}", labels

    def read(self, split: str) -> tuple[LabelledRows, list[str]]:
        """The rows of a file, and the names of what was found beside them and is not used.

        Raises:
            DataError: unreadable, refused, or its contents do not fit together.
        """
        path = self.files[split]
        return read_pickle(path) if self.pickles else (_READERS[path.suffix](path), [])


def find_source(path: Path, *, dataset: str | None = None, crop: str | None = None) -> Source:
    """The files of embeddings that a user means.

    Args:
        path: a file, a folder of files by split, or a folder with DeepMind's folders `DATASET/CROP` below it.
        dataset: which of DeepMind's data sets, where there are several.
        crop: which of its crops, where there are several.

    Raises:
        DataError: nothing there that can be read, or a split is missing.
        UsageError: there are several to choose from, or the options do not go with what is there.
    """
    if path.is_file():
        if path.suffix not in _READERS:
            raise DataError(f"{path} is no file of embeddings that leokit reads: give {_FORMS}.")
        _no_choice(path, dataset, crop)
        return Source({"": path}, pickles=False)
    if not path.is_dir():
        raise DataError(f"There is nothing at {path}: give {_FORMS}.")
    below = (folder for depth in range(1, _DEPTH + 1) for folder in sorted(path.glob("*/" * depth)))
    folders = [folder for folder in (path, *below) if _pickles(folder)]
    if folders:
        return _chosen(path, folders, dataset, crop)
    _no_choice(path, dataset, crop)
    return _arrays(path)


def _no_choice(path: Path, dataset: str | None, crop: str | None) -> None:
    if dataset is not None or crop is not None:
        raise UsageError(f"--dataset and --crop choose among DeepMind's folders DATASET/CROP, but {path} has none.")


def _pickles(folder: Path) -> dict[str, Path]:
    """DeepMind's pickles in a folder, by split."""
    paths = {split: folder / f"{split}_embeddings.pkl" for split in SPLIT_NAMES}
    return {split: path for split, path in paths.items() if path.is_file()}


def _chosen(root: Path, folders: Sequence[Path], dataset: str | None, crop: str | None) -> Source:
    fitting = [
        folder
        for folder in folders
        if crop in (None, folder.absolute().name) and dataset in (None, folder.absolute().parent.name)
    ]
    if len(fitting) != 1:
        there = ", ".join(str(folder) for folder in folders)
        asked = " and ".join(
            f"--{name} {value}" for name, value in (("dataset", dataset), ("crop", crop)) if value is not None
        )
        if fitting:
            raise UsageError(f"{root} holds several sets of embeddings ({there}): choose by --dataset and --crop.")
        raise UsageError(f"No embeddings in {root} are those of {asked}; there are: {there}.")
    files = _pickles(fitting[0])
    missing = [f"{split}_embeddings.pkl" for split in SPLIT_NAMES if split not in files]
    if missing:
        raise DataError(f"{fitting[0]} has no {', '.join(missing)}: all three of DeepMind's pickles are needed.")
    return Source(files, pickles=True)


def _arrays(folder: Path) -> Source:
    """NumPy files by split; some splits may be missing."""
    files = {}
    for split in SPLIT_NAMES:
        found = [folder / f"{split}{suffix}" for suffix in _READERS if (folder / f"{split}{suffix}").is_file()]
        if len(found) > 1:
            raise DataError(f"{folder} has both {found[0].name} and {found[1].name}: leave one of them there.")
        if found:
            files[split] = found[0]
    if not files:
        raise DataError(f"{folder} has no embeddings: give {_FORMS}.")
    return Source(files, pickles=False)
