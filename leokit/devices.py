"""Which device a computation runs on."""

import torch

from leokit.distributed import World
from leokit.errors import UsageError


def resolve_device(name: str, place: World | None = None) -> torch.device:
    """The device that `auto` (CUDA where it is, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps` stands for.

    Nothing was tried on `mps`, so `auto` does not choose it. Each rank of a job on a machine takes another GPU, unless
    one is named.

    Raises:
        UsageError: an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"Unknown device {name!r}: it is auto, cpu, cuda, cuda:N or mps.")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= count:
        raise UsageError(f"There is no device {name!r} here ({count} of type {device.type}): use --device cpu.")
    if place is not None and place.size > 1 and device.type == "cuda" and device.index is None:
        return torch.device("cuda", place.local_rank % count)
    return device
