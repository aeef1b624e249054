"""Which device a computation runs on."""

import ctypes
import os
import re
import sys
from typing import TYPE_CHECKING

from leokit.distributed import World
from leokit.errors import UsageError

if TYPE_CHECKING:
    import torch


def check_device(name: str) -> None:
    """Refuse a device that cannot be, without the seconds that the import of torch takes.

    Raises:
        UsageError: an unknown name, or CUDA without a driver, or `mps` elsewhere than on a Mac.
    """
    if name != "auto" and not re.fullmatch(r"(cpu|cuda|mps)(:\d{1,4})?", name):
        raise UsageError(f"Unknown device {name!r}: it is auto, cpu, cuda, cuda:N or mps.")
    if (name.startswith("cuda") and not _has_driver()) or (name.startswith("mps") and sys.platform != "darwin"):
        raise _missing(name, 0)


def resolve_device(name: str, place: World | None = None) -> "torch.device":
    """The device that `auto` (CUDA where it is, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps` stands for.

    Nothing was tried on `mps`, so `auto` does not choose it. Each rank of a job on a machine takes another GPU, unless
    one is named.

    Raises:
        UsageError: an unknown name, or a device that this machine does not have.
    """
    import torch

    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= count:
        raise _missing(name, count)
    if place is not None and place.size > 1 and device.type == "cuda" and device.index is None:
        return torch.device("cuda", place.local_rank % count)
    return device


def _missing(name: str, count: int) -> UsageError:
    kind = name.partition(":")[0]
    return UsageError(f"There is no device {name!r} here ({count} of type {kind}): use --device cpu.")


def _has_driver() -> bool:
    """Whether there may be a driver of CUDA, or of ROCm, which torch calls cuda too; whether it works, torch tells."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return os.path.exists("/dev/kfd") or os.name == "nt"
    return True
