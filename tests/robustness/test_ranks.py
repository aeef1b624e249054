"""Ranks that wait for each other: they say for whom, hear signals, and do not wait forever; which processes are any."""

import os
import pty
import signal
import socket
import subprocess
import sys

import pytest

from leokit.distributed import World, world
from leokit.errors import UsageError
from tests.conftest import REPOSITORY
from tests.processes import ended, killed_after, start_code
from tests.robustness import stages

COMMAND = """
import sys
from datetime import timedelta
from leokit import cli, distributed
distributed._SILENT, distributed._MEETING = 0.2, timedelta(seconds={limit})
sys.argv = ["leokit", *{words}]
cli.main()
"""
TORCH = {"RANK": "0", "WORLD_SIZE": "2"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
WAITING = {
    "extract": (SLURM, "3 other ranks at 127.0.0.1:{}, as SLURM_STEP_NUM_TASKS = 4 says"),
    "pretrain": (TORCH, "1 other rank at 127.0.0.1:{}, as WORLD_SIZE = 2 says"),
    "meta-train": ({**TORCH, "RANK": "1"}, "rank 0 at 127.0.0.1:{}, as WORLD_SIZE = 2 says"),
}


@pytest.fixture
def port():
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        return str(link.getsockname()[1])


@pytest.fixture
def lone(made, tmp_path, port):
    """Start one rank of several; gives the process, the file of what it says, and whom it waits for."""

    def begin(name, *, limit=600):
        variables, waiting = WAITING[name]
        said, words = tmp_path / "said", [*stages.COMMANDS[name], "--out", str(tmp_path / "out")]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables}
        process = start_code(COMMAND.format(limit=limit, words=words), made.folder, stderr=said, **place)
        return process, said, waiting.format(port)

    return begin


@pytest.mark.parametrize(("name", "number"), [*zip(WAITING, ["SIGINT", "SIGTERM", "SIGINT"], strict=True)])
def test_a_lone_rank_says_for_whom_it_waits_and_hears_signals(lone, name, number):
    process, said, waiting = lone(name)
    line = f"Waiting for {waiting}; unset it to run alone.\n"
    code = killed_after(process, signal.Signals[number], lambda: said.exists() and line in said.read_text())
    assert code == 130, said.read_text()
    assert said.read_text().endswith(f"{line}Stopped. The same command goes on from what is kept, or begins again.\n")


@pytest.mark.parametrize("name", ["extract", "meta-train"])
def test_a_lone_rank_gives_up_in_the_end(lone, name):
    process, said, waiting = lone(name, limit=1)
    assert ended(process) == 1
    variable = waiting.split()[-4]
    assert said.read_text().splitlines()[-1] == (
        f"error: Waited 0 minutes for {waiting}: start all ranks within that time, or unset {variable} to run alone."
    )


def test_a_port_that_another_program_has_is_named(lone, port):
    with socket.socket() as taken:
        taken.bind(("", int(port)))
        taken.listen()
        process, said, _ = lone("extract")
        assert ended(process) == 1
    assert f"error: Rank 0 cannot listen at 127.0.0.1:{port}: another program may have the port" in said.read_text()


@pytest.mark.parametrize("call", ["gather(0)", "from_first(None)"])
def test_a_rank_that_waits_for_another_ones_work_hears_signals(tmp_path, port, call):
    """In torch's own wait it would not."""
    code = (
        "import pathlib, sys, time\n"
        "from leokit.distributed import joined, world\n"
        "try:\n"
        "    with joined(world()) as job:\n"
        "        if sys.argv.pop() == 'works':\n"
        "            time.sleep(600)\n"
        "        pathlib.Path('waits').touch()\n"
        f"        job.{call}\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    waits = {"gather(0)": "0", "from_first(None)": "1"}[call]  # rank 0 does not wait for others to take what it gives
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    working, waiting = (
        start_code(f"import sys; sys.argv.append('{role}')\n{code}", tmp_path, RANK=rank, **place)
        for role, rank in (("works", "10"[int(waits)]), ("waits", waits))
    )
    try:
        assert killed_after(waiting, signal.SIGINT, (tmp_path / "waits").exists) == 130
        assert working.is_alive()
    finally:
        working.kill()
        working.join()


PRINTED = f"{sys.executable} -c 'from leokit.distributed import world; print(\"size\", world().size)'"
STEP = {**SLURM, "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "size"),
    [({**STEP, "SLURM_PTY_PORT": "40000"}, 1), (STEP, 4), ({**TORCH, "SLURM_PTY_PORT": "40000"}, 2)],
    ids=["srun --pty bash", "no --pty", "torchrun's variables"],
)
def test_a_command_typed_into_the_shell_of_an_interactive_step_is_a_job_of_one(variables, size):
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the terminal of the session
    )
    os.close(theirs)
    os.write(ours, f"export SLURM_TASK_PID=$$\n{PRINTED}\nexit\n".encode())
    shown = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # the shell has ended
            break
        shown += read
    os.close(ours)
    assert shell.wait() == 0
    assert f"size {size}\r\n".encode() in shown, shown.decode()


def test_a_task_of_a_step_that_is_started_within_such_a_shell_is_a_rank():
    """It inherits SLURM_PTY_PORT, and is the task or of the task's process group."""
    env = {**os.environ, **STEP, "SLURM_PTY_PORT": "40000", "PYTHONPATH": str(REPOSITORY)}
    script = f"export SLURM_TASK_PID=$$\n{PRINTED}; true"
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, start_new_session=True)
    assert done.stdout == "size 4\n", done.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "two"}, "'two'.*: unset WORLD_SIZE"),
        ({**SLURM, "SLURM_STEP_ID": "x"}, "'x'.*: unset SLURM_STEP_NUM_TASKS"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 of WORLD_SIZE = 2"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(variables, words):
    with pytest.raises(UsageError, match=words):
        world(variables)
    assert world({**variables, "WORLD_SIZE": "1", "RANK": "0"}) == World()
