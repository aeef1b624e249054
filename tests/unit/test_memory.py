"""What processes do with freed memory, and how much a model takes at a time."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from leokit import backbones
from leokit.engine.models import Model, together

_PAGES_OF_TENSORS = """
import resource, sys
import torch
from leokit.memory import keep_freed_memory

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
def test_no_new_pages_for_each_tensor() -> None:
    assert _faults("as Dask sets it") > 10_000  # what is to be mended: each tensor's pages are new
    assert _faults("kept") < 1_000


@pytest.mark.parametrize("side", [16, 64, 84, 128, 224, 384, 1000])
def test_what_goes_through_a_model_together_is_as_much_as_fits(side: int) -> None:
    images = together(side * side)
    assert images == 1 or images * side * side <= 2**18
    assert images == 64 or 2 * images * side * side > 2**18


def test_how_much_goes_through_a_model_together_changes_nothing() -> None:
    backbone = backbones.load("test_resnet", "random", image_size=96)
    model = Model(backbone, torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 96, 3), np.uint8)
    rows, model.block = model.start(pixels)(), 64
    np.testing.assert_allclose(rows, model.start(pixels)(), rtol=1e-5, atol=1e-6)
