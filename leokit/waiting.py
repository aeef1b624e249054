"""How OpenMP's threads wait for each other: spinning while they have the machine, asleep beside other work.

OpenMP's threads spin for milliseconds before they sleep, which is right for the short operations here, until another
process wants the same cores: then a thread that spins holds a core for which the thread that it waits for is queuing.
Neither a long nor a short spin is right for both, and what else the machine does changes while a command runs. GNU's
libgomp, which torch brings on Linux, decides at each wait: it hardly spins where it manages more threads than there are
processors (documented under GOMP_SPINCOUNT). So idle threads, as many as processors, switch the spinning off. No result
depends on it.
"""

import ctypes
import os
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

_CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # a user's own choice
_LOOK = 0.1  # seconds between looks at how long threads have queued
_SHARED = 0.35  # of that time, for which threads queued, together: there is other work
_SHORTEST, _LONGEST = 0.5, 16.0  # seconds of sleeping until spinning is tried again; they double while it is in vain


@cache
def adapt_waiting() -> None:
    """Let OpenMP's threads in this process spin while it is alone, and sleep while other work wants its cores.

    Watches in a thread of its own. Does nothing where the user has set how threads wait, or where Linux does not say
    how long threads queue. It is for commands and their worker processes; importing leokit never calls it.
    """
    if not any(name in os.environ for name in _CHOSEN) and Path("/proc/self/schedstat").exists():
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while not _libgomps():
        time.sleep(_LOOK)
    sleep = _SHORTEST
    with suppress(RuntimeError):  # no thread can be started while the interpreter ends
        while True:
            started = time.monotonic()
            while _queued(_LOOK) < _SHARED:
                pass
            # How long others work cannot be seen while threads sleep, so spinning is tried again, ever more rarely.
            alone = time.monotonic() - started > _LONGEST
            sleep = _SHORTEST if alone else min(2 * sleep, _LONGEST)
            holder = threading.Thread(target=_hold_idle_threads, args=(sleep,), daemon=True)
            holder.start()
            holder.join()


def _hold_idle_threads(seconds: float) -> None:
    """Have more threads of libgomp than there are processors; it ends them with the thread that runs this."""
    for library in _libgomps():
        # Any function does: the threads are wanted, not their work.
        library.GOMP_parallel(library.omp_get_thread_num, None, library.omp_get_num_procs() + 1, 0)
    time.sleep(seconds)


def _libgomps() -> list[ctypes.CDLL]:
    """The copies of libgomp in this process."""
    if "torch" not in sys.modules:
        return []
    from threadpoolctl import threadpool_info

    return [ctypes.CDLL(found["filepath"]) for found in threadpool_info() if found["prefix"] == "libgomp"]


def _queued(seconds: float) -> float:
    """The share of the coming seconds for which the threads of this process queue for a core, added up."""
    before = _run_delay()
    time.sleep(seconds)
    return (_run_delay() - before) / (1e9 * seconds)


def _run_delay() -> int:
    """Nanoseconds that the threads of this process have been ready to run and did not, in all."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[1])
        except (OSError, IndexError):  # it has ended
            continue
    return total
