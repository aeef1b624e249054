"""SIGKILL, SIGTERM and Ctrl-C in every command, at moments drawn at random; then the same command finishes."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from leokit import cli, manifest
from tests.processes import HAS_PROC, SIGNALS, ended, killed_after, start, start_code, start_in_terminal
from tests.robustness import stages, tally
from tests.robustness.conftest import SEED


def listens(process):
    """Whether a forked process is leokit already, and has its handler of SIGTERM; before, nothing is promised."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def started(folder, arguments, said):
    """A process that is leokit already."""
    said.unlink(missing_ok=True)
    process = start(folder, *arguments, stderr=said, stdout=os.devnull)
    while process.is_alive() and not (listens(process) if HAS_PROC else said.exists()):
        time.sleep(0.001)
    return process


def test_a_signal_while_the_command_line_is_put_together(monkeypatch, capsys):
    """That takes typer some ten milliseconds, before any command is there to handle it."""
    tally.count("signals", "SIGTERM, before the command")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "app", lambda: signal.raise_signal(signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as ended_by:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended_by.value.code == 130
    assert capsys.readouterr().err == "Stopped before anything was done.\n"


def _take_away(name, made, out):
    """Delete a table that `predict` has finished, which it does not write again."""
    table = out.with_name(f"{out.name}.csv")
    if name == "predict" and table.exists():
        assert manifest.hash_file(table) == made.results[name]["bytes"]
        table.unlink()


LONG = ("analyze", "regress plot", "regress eval")
OFTEN = [name if name not in LONG else pytest.param(name, marks=pytest.mark.slow) for name in stages.NAMES]


def test_a_signal_where_python_lets_no_exception_out(tmp_path):
    """In a callback of the garbage collector, among them those of the import system."""
    tally.count("signals", "SIGTERM, in a callback")
    said = tmp_path / "said"
    code = (
        "import signal, time, weakref\n"
        "from leokit import cli\n"
        "class Thing: pass\n"
        "def app():\n"
        "    thing = Thing()\n"
        "    watched = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))\n"
        "    del thing\n"
        "    time.sleep(60)\n"
        "cli.app = app\n"
        "cli.main()\n"
    )
    assert ended(start_code(code, tmp_path, stderr=said)) == 130
    assert said.read_text() == "Stopped before anything was done.\n"


def ticks(task):
    """Of the processor, that a thread or process has used."""
    try:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def busy_threads(process):
    """How many threads beside the first one have computed."""
    tasks = Path(f"/proc/{process.pid}/task").glob("[0-9]*")
    return sum(ticks(task) > 2 for task in tasks if task.name != str(process.pid))


def busy_workers(process):
    """How many processes below a process are computing."""
    children = []
    for task in Path(f"/proc/{process.pid}/task").glob("[0-9]*"):
        with suppress(OSError):
            children += (task / "children").read_text().split()
    return sum(ticks(Path(f"/proc/{child}")) > 20 for child in children)


ENDLESS = "--episodes 9000000"
THREADED = {
    "eval": f"eval --run inputs/run --features inputs/features --queries 2 {ENDLESS}",
    "uncertainty": (
        f"uncertainty inputs/run --features inputs/features --queries 2 --samples 2 --curve-shots none {ENDLESS}"
    ),
    "fit": f"fit --run inputs/photo-run --features inputs/photos --support support --device cpu {ENDLESS}",
    "predict": f"predict images --run inputs/photo-run --features inputs/photos --support support {ENDLESS}",
}


@pytest.mark.skipif(not HAS_PROC, reason="looks at threads in /proc")
@pytest.mark.parametrize(("name", "number"), [*zip(THREADED, [signal.SIGINT, signal.SIGTERM] * 2, strict=True)])
def test_a_signal_while_threads_compute(made, tmp_path, name, number):
    """One that is inside torch while the interpreter ends aborts the process: exit 134 and "terminate called"."""
    tally.count("signals", f"{number.name}, threads of {name}")
    said, work = tmp_path / "said", ["--work", tmp_path / "work"]
    process = start(made.folder, *THREADED[name].split(), "--workers", 4, *work, stderr=said)
    assert killed_after(process, number, lambda: busy_threads(process) > 2, 120) == 130, said.read_text()
    assert said.read_text().splitlines()[-1].startswith("Stopped"), said.read_text()
    assert "terminate" not in said.read_text()


IN_PROCESSES = {
    "eval, logistic": (  # the run itself comes first
        "eval --run inputs/run --features inputs/features --queries 2 --methods logistic --episodes 20000 --workers 2"
    ),
    "meta-train": (
        "meta-train --features inputs/features --steps 9000000 --val-every 5000 --val-episodes 5 --val-queries 2 "
        "--queries 2 --num-latents 4 --seeds 2 --jobs 2"
    ),
    "search": (
        "search --features inputs/features --trials 2 --steps 9000000 --val-every 5000 --val-episodes 4 "
        "--val-queries 2 --fresh-episodes 4 --space space.toml --device cpu --jobs 2"
    ),
}


@pytest.mark.skipif(not HAS_PROC, reason="looks at processes in /proc")
@pytest.mark.parametrize("name", IN_PROCESSES)
def test_ctrl_c_in_a_terminal_while_worker_processes_begin(made, tmp_path, name):
    """A terminal sends it to all of them; those that import what they need would die of it, with traces."""
    tally.count("signals", f"SIGINT, worker processes of {name}")
    said = tmp_path / "said"
    arguments = [*IN_PROCESSES[name].split(), "--out", tmp_path / "out"]
    process = start_in_terminal(made.folder, *arguments, stderr=said)
    deadline = time.monotonic() + 120
    while process.is_alive() and busy_workers(process) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process) == 130, said.read_text()
    text = said.read_text()
    assert text.splitlines()[-1].startswith("Stopped") and "Traceback" not in text, text


@pytest.mark.parametrize("name", OFTEN)
@pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_the_same_command_finishes(made, tmp_path, moments, name, times):
    out, said = tmp_path / "out", tmp_path / "said"
    lasts = made.seconds[name]
    for _ in range(times):
        number, delay = moments.choice(SIGNALS), moments.uniform(0, lasts)
        what = f"{name}: {signal.Signals(number).name} after {delay:.3f} s of {lasts:.3f} (seed {SEED})"
        _take_away(name, made, out)
        process = started(made.folder, made.arguments(name, out), said)
        time.sleep(delay)
        if process.is_alive():
            os.kill(process.pid, number)
        code = ended(process)
        text = said.read_text()
        tally.count("signals", f"{signal.Signals(number).name}, {name}")
        assert "Traceback" not in text, f"{what}\n{text}"
        if number == signal.SIGKILL:
            assert code in (0, -signal.SIGKILL), f"{what}: exit {code}\n{text}"
        else:
            assert code in (0, 130), f"{what}: exit {code}\n{text}"
    _take_away(name, made, out)
    assert ended(started(made.folder, made.arguments(name, out), said)) == 0, said.read_text()
    assert stages.result(out) == made.results[name]
