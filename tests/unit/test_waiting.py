"""How OpenMP's threads wait: asleep beside other work, and as the user says where they say it."""

import os
import subprocess
import sys

import pytest

from tests.processes import HAS_PROC, ended, start_code

pytestmark = pytest.mark.skipif(not HAS_PROC or (os.cpu_count() or 1) < 2, reason="needs Linux and two processors")

_ROUNDS = """
import threading, time, torch
torch.set_num_threads(2)
values = torch.zeros(2**17)

def processor_seconds():
    # A thread that spins until the next operation uses its processor meanwhile, one that sleeps does not.
    before = time.process_time()
    for _ in range(100):
        values.add_(1)
        time.sleep(0.002)
    return time.process_time() - before
"""


def test_idle_threads_let_those_that_wait_sleep(tmp_path):
    code = f"""{_ROUNDS}
from leokit import waiting
processor_seconds()
spinning = processor_seconds()
held = threading.Thread(target=waiting._hold_idle_threads, args=(2.0,))
held.start()
time.sleep(0.3)
assert processor_seconds() < spinning / 2, spinning
held.join()
assert processor_seconds() > spinning / 2, spinning
"""
    said = tmp_path / "said"
    assert ended(start_code(code, tmp_path, stderr=said)) == 0, said.read_text()


def test_other_work_is_noticed_and_its_end_too(tmp_path):
    code = f"""{_ROUNDS}
import os, subprocess, sys
from pathlib import Path
from leokit import waiting
waiting._SHORTEST = waiting._LONGEST = 0.2
processor_seconds()
threads = lambda: len(list(Path("/proc/self/task").iterdir()))
waiting.adapt_waiting()
alone = threads()
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * os.cpu_count())]
def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, threads()
        values.add_(1)
try:
    until(lambda: threads() >= alone + os.cpu_count())
finally:
    for process in busy:
        process.kill()
        process.wait()
until(lambda: threads() <= alone)
"""
    said = tmp_path / "said"
    assert ended(start_code(code, tmp_path, stderr=said)) == 0, said.read_text()


@pytest.mark.parametrize(
    ("own", "watched"),
    [({}, True), ({"OMP_WAIT_POLICY": "PASSIVE"}, False), ({"GOMP_SPINCOUNT": "10"}, False), ({"NO_COLOR": "1"}, True)],
)
def test_a_users_own_setting_is_left_as_it_is(own, watched):
    code = f"""
import threading
from leokit.cli import app
from leokit.waiting import adapt_waiting
assert threading.active_count() == 1  # importing leokit starts nothing
adapt_waiting()
adapt_waiting()
assert threading.active_count() == 1 + {watched}
"""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_SPIN"))}
    done = subprocess.run([sys.executable, "-c", code], env={**unset, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
