"""What every reader owes: a valid value, or a `LeokitError` of one line; in time, and in bounded memory."""

import resource
import signal
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from leokit.errors import LeokitError
from tests.processes import FORKED, HAS_PROC
from tests.robustness import tally

SECONDS = 120  # that reading a few bytes may take on a busy machine
ROOM = 1_500_000_000  # bytes that reading a small file may take, far less than what the bombs here ask for


def examples(fast, slow):
    """So many examples as a rule, and so many with `-m slow`."""
    return pytest.mark.parametrize("examples", [fast, pytest.param(slow, marks=pytest.mark.slow)])


def sized(number):
    """Settings of hypothesis for so many examples, in a test whose folder may be used again by the next example."""
    return settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def in_time(seconds=SECONDS):
    """Fail where what is done hangs."""

    def late(number, frame):
        raise AssertionError(f"still not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_line(error):
    """Whether the message of an error is one line for a person."""
    text = str(error)
    return bool(text.strip()) and len(text.splitlines()) == 1 and "Traceback" not in text


def value_or_refusal(area, fault, read):
    """What a reader gives, or the error that it refuses with; any other exception fails the test."""
    tally.count(area, fault)
    with in_time():
        try:
            return read()
        except LeokitError as error:
            assert one_line(error), repr(str(error))
            return error


def refused(area, fault, read):
    """The error that a reader refuses with, which it must."""
    error = value_or_refusal(area, fault, read)
    assert isinstance(error, LeokitError), f"{fault} was taken: {error!r:.200}"
    return error


def in_bounds(area, fault, function, *arguments):
    """The same in a process of bounded memory: the text of the error, or None where it gave a value."""
    tally.count(area, fault)
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=_bounded, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), f"{fault}: no answer in time"
        kind, text = ours.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"{fault}: the process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    assert kind != "other", f"{fault}: {text}"
    if kind == "value":
        return None
    assert len(text.splitlines()) == 1 and text.strip()
    return text


def _bounded(answer, function, arguments):
    if HAS_PROC:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    try:
        function(*arguments)
        answer.send(("value", ""))
    except LeokitError as error:
        answer.send(("refused", str(error)))
    except BaseException:
        answer.send(("other", traceback.format_exc()))
