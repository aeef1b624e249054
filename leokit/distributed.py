"""Ranks: the processes of one job, as `torchrun` or Slurm's `srun` started them; alone, a job of one."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

from leokit.config import default_workers
from leokit.errors import LeokitError, UsageError

T = TypeVar("T")
_PATIENCE = timedelta(days=14)  # a rank may be done long before the others
_MEETING = timedelta(minutes=10)  # for the ranks to find each other as they start
_SILENT = 5.0  # seconds of waiting for other ranks before that is said
_LOOK_EVERY = 0.1  # seconds
_STEP_PATIENCE = timedelta(minutes=30)  # for a step that all take together: only a rank that is gone is as late


@dataclass(frozen=True)
class World:
    """This process among those of the job.

    Attributes:
        rank: from 0.
        size: number of processes.
        local_rank: from 0 on each machine; which of its accelerators to use.
        address: of rank 0, as host:port; empty for a job of one.
        variable: of the environment, which says the size; empty for a job of one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    variable: str = ""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that are this rank's: every `size`-th."""
        return items[self.rank :: self.size]

    def workers(self) -> int:
        """Worker processes of this rank: the cores of the machine, divided among its ranks where they share them."""
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.size > 1 else 1
        return max(1, default_workers() // ranks)


def world(environment: Mapping[str, str] = os.environ) -> World:
    """This process's place, from the variables that torchrun, or a step of srun, sets.

    A command typed into the shell of `srun --pty bash` is a job of one, although the shell's variables are those of
    rank 0 of the step: Slurm runs task 0 alone in the terminal, and the shells of the other tasks end at once. It is
    known by SLURM_PTY_PORT, which srun sets with --pty, together with a process group other than that of
    SLURM_TASK_PID, the process that Slurm started: a shell with job control gives each command one of its own. The
    variable alone does not tell, since a step that is started from within such a shell inherits it. In the interactive
    step of salloc SLURM_STEP_NUM_TASKS is 1, and without one there is no SLURM_STEP_ID.

    Raises:
        UsageError: the variables contradict each other.
    """
    get = environment.get
    variable = "WORLD_SIZE" if "WORLD_SIZE" in environment else "SLURM_STEP_NUM_TASKS"
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            address = f"{get('MASTER_ADDR', '127.0.0.1')}:{int(get('MASTER_PORT', '29500'))}"
            size, local = int(environment["WORLD_SIZE"]), int(get("LOCAL_RANK", "0"))
            found = World(int(environment["RANK"]), size, local, address, "WORLD_SIZE")
        elif "SLURM_STEP_ID" in environment and "SLURM_STEP_NUM_TASKS" in environment and not _typed(environment):
            # A port of its own for each job step, so that two of them may share a machine.
            port = 20_000 + (int(get("SLURM_JOB_ID", "0")) * 31 + int(environment["SLURM_STEP_ID"])) % 20_000
            host = get("MASTER_ADDR") or get("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"
            size, local = int(environment["SLURM_STEP_NUM_TASKS"]), int(get("SLURM_LOCALID", "0"))
            address = f"{host}:{int(get('MASTER_PORT', str(port)))}"
            found = World(int(environment["SLURM_PROCID"]), size, local, address, "SLURM_STEP_NUM_TASKS")
        else:
            return World()
    except (KeyError, ValueError) as error:
        raise UsageError(f"The variables of torchrun or srun make no sense ({error}): unset {variable}.") from error
    if not 0 <= found.rank < found.size:
        raise UsageError(f"RANK = {found.rank} of WORLD_SIZE = {found.size}: it is from 0 to below the size.")
    return found if found.size > 1 else World()


def _typed(environment: Mapping[str, str]) -> bool:
    """Whether this process was started by a shell with job control that is a task of Slurm."""
    if "SLURM_PTY_PORT" not in environment:
        return False
    try:
        return os.getpgid(int(environment["SLURM_TASK_PID"])) != os.getpgrp()
    except ProcessLookupError:  # a container that numbers its processes itself
        return False


class Job:
    """The ranks of a job; each method returns when every rank has called it.

    Attributes:
        steps: torch's group of the ranks for what they exchange in steps that they take together; None where nothing.

    Raises:
        LeokitError: another rank has ended before its time.
    """

    def __init__(self, size: int = 1, steps: Any = None) -> None:
        self._size = size
        self.steps = steps

    def wait(self) -> None:
        """Wait for every rank."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """What the ranks have given, in their order."""
        if self._size == 1:
            return [value]
        import torch.distributed as group

        values: list[Any] = [None] * self._size
        with rank_errors():
            _wait(group.barrier(async_op=True))
            group.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """What rank 0 has given; rank 0 itself does not wait for the others."""
        if self._size == 1:
            return value
        import torch
        import torch.distributed as group

        values = [value]
        with rank_errors():
            _wait(group.broadcast(torch.zeros(1), src=0, async_op=True))
            group.broadcast_object_list(values, src=0)
        return values[0]


def _wait(work: Any) -> None:
    """Wait for the other ranks in Python: torch's own wait, in C++, hears no signal."""
    pause = 0.0
    while not work.is_completed():
        time.sleep(pause)
        pause = min(pause + 0.0005, 0.05)
    work.wait()


@contextmanager
def rank_errors(kept: str = "The same command goes on after what was finished.") -> Iterator[None]:
    """Turn what an exchange between ranks raises into a sentence that ends with what is kept.

    Raises:
        LeokitError: in place of it: another rank has ended before its time.
    """
    try:
        yield
    except RuntimeError as error:
        raise LeokitError(
            f"Another rank of the job has ended before its time; its own message says why. {kept}"
        ) from error


@contextmanager
def joined(
    place: World, *, steps: Literal["gloo", "nccl"] | None = None, on_message: Callable[[str], None] = lambda text: None
) -> Iterator[Job]:
    """Join the ranks of a job.

    Args:
        place: of this process.
        steps: by what they exchange tensors in steps that they take together, if they do: NCCL between GPUs.
        on_message: called after some seconds of waiting for other ranks, with which are missing.

    Raises:
        LeokitError: they have not all come after ten minutes, or the address of rank 0 is another one's.
    """
    if place.size == 1:
        yield Job()
        return
    import torch.distributed as group

    store = _meet(place, on_message)
    group.init_process_group("gloo", store=store, rank=place.rank, world_size=place.size, timeout=_PATIENCE)
    try:
        together = None if steps is None else group.new_group(backend=steps, timeout=_STEP_PATIENCE)
        yield Job(place.size, together)
    finally:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):  # else torch would wait for the exchange that was left
            group.destroy_process_group()


def _meet(place: World, on_message: Callable[[str], None]) -> Any:
    """Wait in Python, which hears signals, until every rank has come; the store by which torch joins them.

    Raises:
        LeokitError: as `joined`.
    """
    import torch.distributed as group

    host, _, port = place.address.rpartition(":")
    begun, told = time.monotonic(), False

    def pause(missing: str) -> None:
        nonlocal told
        seconds = time.monotonic() - begun
        waiting = f"for {missing} at {place.address}, as {place.variable} = {place.size} says"
        if seconds > _MEETING.total_seconds():
            raise LeokitError(
                f"Waited {seconds / 60:.0f} minutes {waiting}: start all ranks within that time, or unset "
                f"{place.variable} to run alone."
            )
        if seconds > _SILENT and not told:
            on_message(f"Waiting {waiting}; unset it to run alone.")
            told = True
        time.sleep(_LOOK_EVERY)

    serves = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun does
    while not serves and not _answers(host, int(port)):  # torch itself would print a trace of each vain attempt
        pause("rank 0" if place.rank else "torchrun")
    try:
        store = group.TCPStore(  # type: ignore[attr-defined]
            host, int(port), is_master=serves, wait_for_workers=False, timeout=_MEETING
        )
    except RuntimeError as error:
        what = "Rank 0 cannot listen" if serves else "No rank 0 answers"
        raise LeokitError(
            f"{what} at {place.address}: another program may have the port; set MASTER_PORT of all ranks to a free one."
        ) from error
    told = told or place.rank > 0  # rank 0 says who is missing
    ranks = [f"leokit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}" for rank in range(place.size)]
    with rank_errors():
        store.set(ranks[place.rank], "")
        while not store.check(ranks):
            missing = sum(not store.check([rank]) for rank in ranks)
            pause(f"{missing} other {'rank' if missing == 1 else 'ranks'}")
    return store


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
