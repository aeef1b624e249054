"""Ctrl-C and SIGTERM as a request to stop at the next whole step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType


@contextmanager
def stop_requests(on_request: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Within the context the first SIGINT or SIGTERM only makes the yielded function true; a second one acts at once.

    Outside the main thread, where Python delivers no signals, the function is always false.

    Args:
        on_request: called at the first signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        on_request()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Within it threads begin that block SIGINT, as do the processes that these start, later ones too.

    A terminal sends it to all processes, and this one tells its workers what to do. Those that die of it print traces,
    and may be waited for without end.
    """
    resource_tracker.ensure_running()  # started later, it would let the signal through in the thread that starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
