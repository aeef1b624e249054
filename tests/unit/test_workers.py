"""Workers of Dask: what they do before they train."""

import ctypes
import os
import subprocess
import sys

import pytest

_PAGES_OF_TENSORS = """
import resource, sys
import torch
from leokit.engine.workers import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(3):
    before = faults()
    for _ in range(100):
        torch.zeros(1 << 18)  # 1 MB, 256 pages
    last = faults() - before
print(last)
"""


def _faults(what: str) -> int:
    # As Dask's nanny starts a worker.
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _PAGES_OF_TENSORS, what]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc: its allocator is left as it is")
def test_a_worker_takes_no_new_pages_for_each_tensor() -> None:
    assert _faults("as Dask sets it") > 10_000  # what is to be mended: each tensor's pages are new
    assert _faults("kept") < 1_000
