"""Weights: reading them from files, giving them to a module without a tensor too many or too few, hashing them."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from leokit.backbones.programs import check_program
from leokit.errors import ArtifactError

_WRAPPERS = ("state_dict", "model")  # under which training scripts keep a model's tensors
_PREFIXES = ("module.", "_orig_mod.")  # which DistributedDataParallel and torch.compile add to each name


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file that needs nothing but tensors and plain containers.

    Raises:
        ArtifactError: missing, unreadable, or without tensors.
    """
    if not path.is_file():
        raise ArtifactError(f"The weights {path} are not there: name a file.")
    try:
        content = load(path.read_bytes()) if path.suffix == ".safetensors" else _load_torch(path)
    except Exception as error:  # a damaged file can stumble anywhere in torch's unpickler
        raise ArtifactError(
            f"The weights {path} cannot be read: {_first_line(error)} "
            "They must be safetensors, or a torch file of tensors (one that torch.load reads with weights_only=True)."
        ) from error
    tensors = _tensors(content)
    if not tensors:
        raise ArtifactError(f"The weights {path} hold no named tensors, bare or under {' or '.join(_WRAPPERS)}.")
    size = path.stat().st_size
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.numel() * value.element_size() > size:
            raise ArtifactError(
                f"The weights {path} hold {name!r:.80} of the shape {tuple(value.shape)}, which is larger than the "
                "file or no plain tensor: save it as one."
            )
    return tensors


def _load_torch(path: Path) -> Any:
    check_program(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0].split("(1)")[0].strip()
    return line if line.endswith(".") else line + "."


def _tensors(content: Any) -> dict[str, Tensor]:
    """The named tensors in what a file held, with wrappers and prefixes taken off."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    return {_bare(name): value for name, value in content.items()} if named else {}


def _bare(name: str) -> str:
    for prefix in _PREFIXES * 2:  # in either order
        name = name.removeprefix(prefix)
    return name


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, classifiers: Collection[str], source: str) -> None:
    """Give a module its weights, strictly: every tensor of its own, and no other but a classifier's.

    Args:
        module: without a classifier.
        tensors: by the module's names.
        classifiers: names of the classifier's submodules, whose tensors are left out where the module has none.
        source: of the tensors, for messages.

    Raises:
        ArtifactError: naming the first tensors that are missing, unexpected, or of another shape.
    """
    wanted = module.state_dict()
    classifier = tuple(f"{name}." for name in classifiers)
    given = {name: value for name, value in tensors.items() if name in wanted or not name.startswith(classifier)}
    faults = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in given and given[name].shape != value.shape
        ],
    }
    found = [f"{len(names)} {kind} ({_a_few(names)})" for kind, names in faults.items() if names]
    if found:
        raise ArtifactError(
            f"The weights {source} do not fit the backbone: of its {len(wanted)} tensors, {'; '.join(found)}. "
            "Name the --backbone that they belong to."
        )
    module.load_state_dict(given, strict=True)


def _a_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes in the order of the names: the same for any file that holds them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\n{value.dtype}\n{list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
