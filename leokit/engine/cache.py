"""Results that cost something and follow from their key alone, kept between commands.

An entry is a safetensors file named by the SHA-256 of its key, written atomically. A damaged one counts as none. The
folder can be deleted at any time.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leokit.errors import ArtifactError
from leokit.manifest import canonical_json, hash_text
from leokit.runs import load_state, save_state

Arrays = dict[str, NDArray[Any]]


def look_up(folder: Path, key: Any) -> tuple[Arrays, dict[str, Any]] | None:
    """The arrays and plain data that were kept under a key (plain data); None where there are none."""
    try:
        tensors, record = load_state(_path(folder, key))
        if record.pop("key") != canonical_json(key):
            return None
        return {name: value.numpy() for name, value in tensors.items()}, record
    except (ArtifactError, KeyError, TypeError, ValueError):  # TypeError: a type that NumPy has not
        return None


def keep(folder: Path, key: Any, arrays: Arrays, plain: dict[str, Any]) -> None:
    """Keep arrays and plain data under a key; where the folder cannot be written, nothing is kept."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    try:
        save_state(_path(folder, key), tensors, plain | {"key": canonical_json(key)})
    except OSError:
        return


def _path(folder: Path, key: Any) -> Path:
    return folder / f"{hash_text(canonical_json(key))}.safetensors"
