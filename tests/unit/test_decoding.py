"""Decoding in worker processes: the same as in one, in order, light, and gone when their parent is."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from leokit.errors import LeokitError
from leokit.images.decoding import decoder
from leokit.images.preprocess import Preprocessing

HALF = (0.5, 0.5, 0.5)
PREP = Preprocessing(8, 1.0, "center", HALF, HALF, "bilinear")


@pytest.fixture
def images(tmp_path):
    """Twelve images, of which one is empty and one is missing."""
    for number in range(10):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "10.png").touch()
    return tmp_path


GROUPS = [("0.png", "10.png", "1.png"), ("2.png",), ("11.png", "3.png"), ("4.png", "5.png", "6.png", "7.png")] * 5


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_come_in_order_and_bad_ones_are_reported(images, workers):
    with decoder(images, PREP, workers) as decode:
        results = list(decode(GROUPS))
    assert [len(result.pixels) for result in results] == [len(group) for group in GROUPS]
    assert [result.pixels[:, 0, 0, 0].tolist() for result in results[:4]] == [[0, 0, 1], [2], [0, 3], [4, 5, 6, 7]]
    assert results[0].reasons == {1: "empty file"}
    assert results[2].reasons == {0: "no such file (a broken link?)"}
    assert results[0].pixels.dtype == np.uint8


def test_no_more_than_needed_is_decoded_ahead(images):
    asked = 0

    def groups():
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield ("0.png",)

    with decoder(images, PREP, 1) as decode:
        next(decode(groups()))
        assert asked < 20


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see which processes there are")
def test_a_killed_worker_is_a_clear_error(images):
    with decoder(images, PREP, 1) as decode:
        results = decode([("0.png",)] * 1000)
        next(results)
        server_and_tracker = children(os.getpid())
        for worker in (child for process in server_and_tracker for child in children(process)):
            os.kill(worker, signal.SIGKILL)
        with pytest.raises(LeokitError, match=r"ended without a word.*fewer workers"):
            list(results)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see which processes there are")
def test_a_worker_killed_in_the_middle_of_an_answer_is_one_too(images):
    """Its half answer, larger than a pipe holds, is not waited for."""
    large = Preprocessing(1000, 1.0, "center", HALF, HALF, "nearest")
    with decoder(images, large, 2) as decode:
        results = decode([("0.png",)] * 100)
        next(results)
        time.sleep(0.2)  # both have an answer half on its way, or are in the middle of decoding
        for worker in (child for process in children(os.getpid()) for child in children(process)):
            os.kill(worker, signal.SIGKILL)
        with pytest.raises(LeokitError, match="ended without a word"):
            list(results)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see which processes there are")
def test_workers_leave_signals_to_their_parent(images):
    with decoder(images, PREP, 1) as decode:
        results = decode([("0.png",)] * 50)
        next(results)
        for worker in (child for process in children(os.getpid()) for child in children(process)):
            os.kill(worker, signal.SIGINT)
            os.kill(worker, signal.SIGTERM)
        assert len(list(results)) == 49


def test_workers_need_no_torch():
    code = "import sys, leokit.images.decoding; print({'torch', 'timm', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


ENDLESS = """
import itertools, sys
from pathlib import Path
from leokit.images.decoding import decoder
from leokit.images.preprocess import Preprocessing

if __name__ == "__main__":
    half = (0.5, 0.5, 0.5)
    with decoder(Path(sys.argv[1]), Preprocessing(8, 1.0, "center", half, half, "bilinear"), 2) as decode:
        for number, result in enumerate(decode(("0.png",) for _ in itertools.count())):
            if number == 50:
                print("ready", flush=True)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see which processes there are")
def test_workers_end_with_their_parent(images):
    (images / "endless.py").write_text(ENDLESS)
    command = [sys.executable, str(images / "endless.py"), str(images)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        family = [worker for process in children(parent.pid) for worker in children(process)]
        assert len(family) == 2
        parent.kill()
    deadline = time.monotonic() + 20
    while any(alive(child) for child in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in family if alive(child)]


def alive(process):
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(process):
    """The processes that a process started: the server that starts workers; of that server, the workers."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{task}/children", encoding="ascii") as file:
            found += map(int, file.read().split())
    return found
