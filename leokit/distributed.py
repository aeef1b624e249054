"""Ranks: the processes of one job, as `torchrun` or Slurm's `srun` started them; alone, a job of one."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

from leokit.config import default_workers
from leokit.errors import LeokitError, UsageError

T = TypeVar("T")
_PATIENCE = timedelta(days=14)  # a rank may be done long before the others
_STEP_PATIENCE = timedelta(minutes=30)  # for a step that all take together: only a rank that is gone is as late


@dataclass(frozen=True)
class World:
    """This process among those of the job.

    Attributes:
        rank: from 0.
        size: number of processes.
        local_rank: from 0 on each machine; which of its accelerators to use.
        address: of rank 0, as host:port; empty for a job of one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that are this rank's: every `size`-th."""
        return items[self.rank :: self.size]

    def workers(self) -> int:
        """Worker processes of this rank: the cores of the machine, divided among its ranks where they share them."""
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.size > 1 else 1
        return max(1, default_workers() // ranks)


def world(environment: Mapping[str, str] = os.environ) -> World:
    """This process's place, from the variables that torchrun, or a step of srun, sets.

    Raises:
        UsageError: the variables contradict each other.
    """
    get = environment.get
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            address = f"{get('MASTER_ADDR', '127.0.0.1')}:{int(get('MASTER_PORT', '29500'))}"
            found = World(
                int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(get("LOCAL_RANK", "0")), address
            )
        elif "SLURM_STEP_ID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
            # A port of its own for each job step, so that two of them may share a machine.
            port = 20_000 + (int(get("SLURM_JOB_ID", "0")) * 31 + int(environment["SLURM_STEP_ID"])) % 20_000
            host = get("MASTER_ADDR") or get("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"
            size, local = int(environment["SLURM_STEP_NUM_TASKS"]), int(get("SLURM_LOCALID", "0"))
            found = World(int(environment["SLURM_PROCID"]), size, local, f"{host}:{int(get('MASTER_PORT', str(port)))}")
        else:
            return World()
    except (KeyError, ValueError) as error:
        raise UsageError(f"The variables of torchrun or srun cannot be understood ({error}): unset RANK.") from error
    if not 0 <= found.rank < found.size:
        raise UsageError(f"RANK = {found.rank} of WORLD_SIZE = {found.size}: it is from 0 to below the size.")
    return found if found.size > 1 else World()


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
            group.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """What rank 0 has given; rank 0 itself does not wait for the others."""
        if self._size == 1:
            return value
        import torch.distributed as group

        values = [value]
        with rank_errors():
            group.broadcast_object_list(values, src=0)
        return values[0]


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
def joined(place: World, *, steps: Literal["gloo", "nccl"] | None = None) -> Iterator[Job]:
    """Join the ranks of a job.

    Args:
        place: of this process.
        steps: by what they exchange tensors in steps that they take together, if they do: NCCL between GPUs.
    """
    if place.size == 1:
        yield Job()
        return
    import torch.distributed as group

    method = f"tcp://{place.address}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        method = "env://"  # torchrun's own store is listening at the address
    group.init_process_group("gloo", init_method=method, rank=place.rank, world_size=place.size, timeout=_PATIENCE)
    try:
        together = None if steps is None else group.new_group(backend=steps, timeout=_STEP_PATIENCE)
        yield Job(place.size, together)
    finally:
        group.destroy_process_group()
