"""SIGKILL, SIGTERM and Ctrl-C in every command, at moments drawn at random; then the same command finishes."""

import os
import signal
import time
from pathlib import Path

import pytest

from leokit import cli, manifest
from tests.processes import HAS_PROC, SIGNALS, ended, start, start_code
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
