"""What a manifest says outside the id: when, where, how long, with which versions."""

import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

LIBRARIES = ("leokit", "torch", "timm", "numpy", "pyarrow", "pillow")


def information(*, started: float, device: object = None, **more: Any) -> dict[str, Any]:
    """The `info` of a manifest.

    Args:
        started: `time.perf_counter()` when the work began.
        device: what it ran on, where that matters.
        more: further entries.
    """
    command: Sequence[str] = sys.argv
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 3),
        "command": list(command),
        "device": None if device is None else str(device),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in LIBRARIES},
        **more,
    }
