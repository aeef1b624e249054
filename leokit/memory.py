"""How this process's allocator treats what is freed."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MMAP = 32 << 20  # bytes; the most that glibc allows
_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Let glibc hand freed memory out again rather than give it back to the system, up to 1 GiB of it.

    By default what is larger than some threshold is mapped anew for each tensor and given back after it, and the system
    zeroes its pages each time: half the time of a backbone on a CPU. The threshold of 32 MiB is glibc's limit. Dask
    sets `MALLOC_TRIM_THRESHOLD_` for its workers, which makes the threshold 128 kB for good; this overrides it. Where
    another allocator is used nothing happens. It holds for the whole process.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MMAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
