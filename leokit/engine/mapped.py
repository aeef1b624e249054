"""Unit rows in files that are mapped into memory, so that any number of processes on a machine share one copy.

A file holds the rows of one split as a run wants them: normalised, in the type that they are held in, centred or not.
It is made by whichever process needs it first, a class at a time, and its name says from what; the others wait.
Pages are read as they are touched, and given back by the system where memory is short.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import manifest
from leokit.config import MetaTrainConfig
from leokit.engine.matrices import Matrices
from leokit.episodes import FeatureMatrix, Types, types_of
from leokit.errors import disk_errors
from leokit.features import SCHEMA, FeatureStore, FeatureTable

SPLITS = ("train", "val")  # all that a trial looks at
_BLOCK = 4096  # rows that are centred at a time


def open_matrices(config: MetaTrainConfig, features: Path, folder: Path, device: torch.device) -> Matrices:
    """The features of a run, mapped from files in `folder`, which are made from the store `features` where missing.

    On another device than the CPU they are copied to it.

    Raises:
        ArtifactError: no features, or they are damaged.
        DataError: a feature is not finite.
    """
    rows = MappedRows(features, folder, types_of(config))
    if not config.centring:
        return Matrices(rows.matrix("train", device), rows.matrix("val", device))
    training, validation = (rows.matrix(split, device, centred=True) for split in SPLITS)
    return Matrices(training, validation, rows.matrix("val", device), rows.mean().to(device))


@dataclass(frozen=True)
class MappedRows:
    """The unit rows of a store in files.

    Attributes:
        features: the store.
        folder: of the files.
        types: of the computation, and that rows are held in, as `FeatureMatrix` takes them.
    """

    features: Path
    folder: Path
    types: Types

    def matrix(self, split: str, device: torch.device, *, centred: bool = False) -> FeatureMatrix:
        """The rows of a split, on the CPU as pages of their file.

        Raises:
            ArtifactError: no features, or they are damaged.
            DataError: a feature is not finite.
        """
        path = self.make(split, centred=centred)
        return _opened(path, self._sidecar(split), self.types[0], device)

    def make(self, split: str, *, centred: bool = False) -> Path:
        """The file of a split's rows, made where it is missing."""
        path = self._path(split, "-centred" if centred else "")
        if centred:
            _make_once(path, lambda: self._write_centred(split, path))
        else:
            _make_once(path, lambda: self._write(split, path))
        return path

    def _path(self, split: str, kind: str) -> Path:
        identifier = _store_id(self.features)
        return self.folder / f"{identifier[:16]}-{split}-{_name(self._held)}-by-{_name(self.types[0])}{kind}.npy"

    def _sidecar(self, split: str) -> Path:
        return self._path(split, "").with_suffix(".json")

    @property
    def _held(self) -> torch.dtype:
        dtype, held = self.types
        return held or dtype

    def _write(self, split: str, path: Path) -> None:
        store = FeatureStore.open(self.features, [split])
        classes, counts = store.classes(split), store.counts(split)
        sidecar = {"classes": classes, "counts": counts.tolist()}
        manifest.write_atomically(self._sidecar(split), json.dumps(sidecar).encode())

        def blocks() -> Iterator[NDArray[Any]]:
            for name, rows in zip(classes, store.each_class(split), strict=True):
                table = FeatureTable(rows, [name], np.array([0, len(rows)]))
                dtype, held = self.types
                yield FeatureMatrix(table, dtype=dtype, held=held).rows.numpy()

        _write_rows(path, (int(counts.sum()), store.dim), _name(self._held), blocks())

    def _write_centred(self, split: str, path: Path) -> None:
        cpu = torch.device("cpu")
        plain, mean = self.matrix(split, cpu), self.mean()

        def blocks() -> Iterator[NDArray[Any]]:
            for start in range(0, len(plain.rows), _BLOCK):
                block = plain.rows[start : start + _BLOCK]
                part = FeatureMatrix.of_rows(block, [], np.array([0, len(block)]), dtype=plain.dtype)
                yield part.centred(mean).rows.numpy()

        _write_rows(path, (len(plain.rows), plain.dim), _name(self._held), blocks())

    def mean(self) -> torch.Tensor:
        """The mean (D,) of the rows that are trained on."""
        path = self._path("train", "-mean")

        def make() -> None:
            mean = self.matrix("train", torch.device("cpu")).mean().numpy()
            _write_rows(path, mean.shape, mean.dtype.name, iter([mean]))

        _make_once(path, make)
        return torch.from_numpy(np.load(path))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _store_id(features: Path) -> str:
    return _read_store_id(features, (features / manifest.MANIFEST).stat().st_mtime_ns if features.is_dir() else 0)


@lru_cache(maxsize=8)
def _read_store_id(features: Path, changed: int) -> str:
    """The id of a store whose manifest was written at a certain time; a manifest of many classes is long."""
    return manifest.read(features, SCHEMA).id


@lru_cache(maxsize=6)
def _opened(path: Path, sidecar: Path, dtype: torch.dtype, device: torch.device) -> FeatureMatrix:
    """A file's rows; those of the last files stay open, as the trials of a process use the same ones."""
    # Copy on write: nothing is ever written, so pages stay the file's own; torch warns of arrays that are read-only.
    rows = torch.from_numpy(np.load(path, mmap_mode="c")).to(device)
    entry = json.loads(sidecar.read_bytes())
    offsets = np.concatenate([[0], np.cumsum(entry["counts"])])
    return FeatureMatrix.of_rows(rows, entry["classes"], offsets, dtype=dtype)


def close_files() -> None:
    """Forget the files that this process has open."""
    _opened.cache_clear()


def _make_once(path: Path, make: Callable[[], None]) -> None:
    """Make a file that is missing, unless another process does, which is waited for."""
    if path.exists():
        return
    with disk_errors(path.parent, "--rows"), _waited_for(path):
        if not path.exists():
            make()


@contextmanager
def _waited_for(path: Path) -> Iterator[None]:
    """Hold the right to make a file; it ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_rows(path: Path, shape: tuple[int, ...], dtype: str, blocks: Iterator[NDArray[Any]]) -> None:
    """Write blocks of rows one after the other as one .npy file, which appears once it is whole and on disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    try:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
