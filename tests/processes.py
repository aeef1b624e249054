"""Processes of leokit that start in milliseconds: each is forked from one that has imported what takes seconds.

They are real processes, with a command line, signals and an exit code; only their imports are shared. Scripts that call
`leokit` find it in the folder of `leokit_on_path`.
"""

import asyncio
import ctypes
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

FORKED = multiprocessing.get_context("forkserver")
_STAGES = ("demo", "extract", "pretrain", "importing", "meta_train", "search", "evaluate", "uncertainty", "analyze")
_STAGES = (*_STAGES, "fit", "predict", "paper_table", "report", "regress.train", "regress.plot", "regress.evaluate")
FORKED.set_forkserver_preload(
    ["timm", "distributed", "leokit.cli", *(f"leokit.stages.{name}" for name in _STAGES), __name__]
)
HAS_PROC = Path("/proc/self/fd").exists()
_CLIENT = """#!{python} -IS
import json, os, socket, stat, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    streams = ["/proc/%d/fd/%d" % (os.getpid(), number) for number in (1, 2)]
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        streams.append("/proc/%d/fd/0" % os.getpid())
    request = [sys.argv[1:], os.getcwd(), streams, dict(os.environ)]
    link.sendall(json.dumps(request).encode() + b"\\n")
    sys.exit(int(link.makefile().readline()))
"""


def start(folder, *arguments, stdout=os.devnull, stderr=os.devnull, **environment):
    """Run `leokit ARGUMENTS` in `folder`, with its output in files: a process of multiprocessing, started."""
    return _start(_leokit, folder, [str(argument) for argument in arguments], [stdout, stderr], environment)


def start_in_terminal(folder, *arguments, stderr):
    """As `start`, as the leader of a process group of its own: `os.killpg` reaches its workers too, as Ctrl-C does."""
    return _start(_leokit_in_terminal, folder, [str(argument) for argument in arguments], [os.devnull, stderr], {})


def start_script(path, folder, call, **streams):
    """Run the function `main` of a Python script in `folder` with the keyword arguments `call`, as `start`."""
    outputs = [streams.get(name, os.devnull) for name in ("stdout", "stderr")]
    return _start(_script, folder, [str(path), call], outputs, {})


def start_code(text, folder, *, stdout=os.devnull, stderr=os.devnull, **environment):
    """Run Python code in `folder`, as `start`."""
    return _start(_code, folder, [text], [stdout, stderr], environment)


def _start(target, folder, arguments, streams, environment):
    process = FORKED.Process(target=target, args=(str(folder), arguments, list(map(str, streams)), environment))
    process.start()
    return process


def _leokit(folder, arguments, streams, environment):
    from leokit.cli import main

    _become(folder, streams, environment)
    sys.argv = ["leokit", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code == 130:
            _end_interpreter(130)
        raise


def _leokit_in_terminal(folder, arguments, streams, environment):
    os.setsid()
    _leokit(folder, arguments, streams, environment)


def _end_interpreter(code):
    """End as a process of its own does; one of multiprocessing leaves at once, whatever its threads are at."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.pythonapi.Py_Exit(code)


def _script(folder, arguments, streams, environment):
    _become(folder, streams, environment)
    path, call = arguments
    print(runpy.run_path(path)["main"](**call))


def _code(folder, arguments, streams, environment):
    _become(folder, streams, environment)
    exec(compile(arguments[0], "code", "exec"), {"__name__": "__main__"})


def _become(folder, streams, environment):
    """Take over a folder, an environment, and standard output, error and, where there is a third stream, input."""
    os.chdir(folder)
    os.environ.update(environment)
    for number, path in zip((1, 2, 0), streams, strict=False):
        with open(path, "a" if number else "r") as stream:
            os.dup2(stream.fileno(), number)
    if len(streams) > 2:
        sys.stdin = open(0, closefd=False)  # that of a process of multiprocessing is /dev/null


def ended(process, seconds=120):
    """Wait for the end of a process; its exit code."""
    process.join(seconds)
    return process.exitcode


def killed_after(process, number, ready, seconds=60):
    """Send a signal to a process once `ready()`, or after so many seconds; the exit code once it has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.is_alive() and not ready():
        time.sleep(0.005)
    if process.is_alive():
        os.kill(process.pid, number)
    return ended(process, seconds)


def interrupted(folder, arguments, lines, number, **options):
    """Run a command until its metrics.jsonl has so many further lines, and send it a signal; the exit code.

    Args:
        folder: where to run it; the last of its arguments is the folder that it writes.
        arguments: of leokit.
        lines: that it shall have written before.
        number: of the signal.
        options: as `start` takes them.
    """
    path = folder / arguments[-1] / "metrics.jsonl"
    before = _count(path)
    return killed_after(start(folder, *arguments, **options), number, lambda: _count(path) >= before + lines)


def _count(path):
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def workers_of_this_process():
    """The processes of loky below this one that have a task or wait for one."""
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"popen_loky" in Path(f"/proc/{child}/cmdline").read_bytes():
                yield int(child)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


@contextmanager
def leokit_on_path(folder, rewrite=lambda arguments: arguments):
    """Put a command `leokit` into `folder`, whose processes are forked here; yields what PATH should begin with.

    Args:
        folder: for the command.
        rewrite: what to make of its arguments, a list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = str(folder / "socket")
    client = folder / "leokit"
    client.write_text(_CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        threading.Thread(target=_serve, args=(server, rewrite), daemon=True).start()
        yield str(folder)


def _serve(server, rewrite):
    while True:
        try:
            link, _ = server.accept()
        except OSError:  # closed: the tests are over
            return
        threading.Thread(target=_answer, args=(link, rewrite), daemon=True).start()


def _answer(link, rewrite):
    with link, link.makefile("rw") as text:
        arguments, folder, streams, environment = json.loads(text.readline())
        process = _start(_leokit, folder, rewrite(arguments), streams, environment)
        process.join()
        text.write(f"{process.exitcode}\n")


@contextmanager
def dask_cluster(folder, workers):
    """A scheduler of Dask and so many workers, of a thread each, as processes; yields its address and the workers."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "address"
    processes = [FORKED.Process(target=_dask_scheduler, args=(str(place),), daemon=True)]
    try:
        processes[0].start()
        deadline = time.monotonic() + 60
        while not place.exists():
            assert time.monotonic() < deadline and processes[0].is_alive(), "the scheduler has not begun"
            time.sleep(0.01)
        for number in range(workers):
            local = str(folder / f"worker-{number}")
            processes.append(FORKED.Process(target=_dask_worker, args=(place.read_text(), local), daemon=True))
            processes[-1].start()
        yield place.read_text(), processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.join()


def _dask_scheduler(place):
    from distributed import Scheduler

    async def serve():
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            Path(f"{place}.tmp").write_text(scheduler.address)
            os.replace(f"{place}.tmp", place)
            await scheduler.finished()

    asyncio.run(serve())


def _dask_worker(address, local):
    from distributed import Worker

    async def serve():
        async with Worker(address, nthreads=1, dashboard=False, local_directory=local) as worker:
            await worker.finished()

    asyncio.run(serve())
