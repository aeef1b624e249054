"""Running the trials of a search: one by one in this process, in processes of this machine, or by workers of Dask.

What is run is a batch of trials, whose steps are taken as one; mostly of a single trial.

Processes come from joblib's loky. Dask is driven by its own futures, not through joblib: a task then goes to whichever
worker is free and, where a worker is lost, to another one, and it carries nothing but the names of files.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from leokit.engine.trials import Outcome, Task, run_in_process, run_trials
from leokit.errors import LeokitError, UsageError
from leokit.interrupts import without_ctrl_c
from leokit.memory import keep_freed_memory

if TYPE_CHECKING:
    from distributed import Client

Batch = Sequence[Task]
Outcomes = Iterator[Outcome | None]
Runner = Callable[[list[Batch]], Outcomes]
_LOST_IN_A_ROW = 3  # times that workers may be lost without a trial that ends


def in_this_process(stop_requested: Callable[[], bool]) -> Runner:
    """Runs batches one after the other."""
    return lambda batches: (outcome for batch in batches for outcome in run_trials(batch, stop_requested))


def in_processes(jobs: int) -> Runner:
    """Runs so many batches at a time, in processes of this machine.

    The outcomes come as trials end. A lost process ends all, which begin anew: it costs what none of the trials under
    way had kept.

    Raises:
        LeokitError: processes are lost again and again.
    """

    def run(batches: list[Batch]) -> Outcomes:
        waiting, lost = dict(enumerate(batches)), 0
        while waiting:
            parallel = Parallel(jobs, backend="loky", batch_size=1, return_as="generator_unordered")
            try:
                with without_ctrl_c():
                    ended = parallel([delayed(_numbered)(*entry, os.getpid()) for entry in waiting.items()])
                for number, outcomes in ended:
                    del waiting[number]
                    lost = 0
                    yield from outcomes
            except TerminatedWorkerError as error:
                lost += 1
                if lost == _LOST_IN_A_ROW:
                    fewer = f"use fewer --jobs than {jobs}" if jobs > 1 else "make room in it"
                    raise LeokitError(
                        f"Worker processes were killed {lost} times without a trial that ended, as the system does "
                        f"when memory is short: {fewer}. What was finished is kept."
                    ) from error

    return run


def _numbered(number: int, batch: Batch, parent: int) -> tuple[int, list[Outcome | None]]:
    return number, run_in_process(batch, parent)


@contextmanager
def by_dask(jobs: int, scheduler: str | None) -> Iterator[Runner]:
    """Runs trials on a Dask cluster: the one at an address, or one of so many workers on this machine.

    Raises:
        UsageError: Dask is not installed, or nothing answers at the address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError("--backend dask needs the extra 'dask': pip install 'leokit[dask]'.") from error
    if scheduler is None:
        with ExitStack() as stack:
            with without_ctrl_c():
                cluster = LocalCluster(
                    n_workers=jobs,
                    threads_per_worker=1,
                    # Dask's limit would count the pages of mapped rows as each worker's own, and end workers for them.
                    memory_limit=0,
                    dashboard_address=None,
                    # Dask warns of workers that take more than four seconds to end, as on a busy machine.
                    silence_logs=logging.ERROR,
                )
                stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
            yield lambda batches: _by_futures(client, batches)
        return
    try:
        client = Client(scheduler, timeout=30)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}). An address is tcp://HOST:8786."
        ) from error
    with client:
        yield lambda batches: _by_futures(client, batches)


def _by_futures(client: "Client", batches: Iterable[Batch]) -> Outcomes:
    from distributed import CancelledError, KilledWorker, as_completed

    # Not pure: a key of its own each time, so that the cluster hands out no outcome of an earlier search.
    futures = [client.submit(_on_worker, batch, pure=False) for batch in batches]
    try:
        for future in as_completed(futures):
            yield from future.result()
    except KilledWorker as error:
        raise LeokitError(f"Workers of Dask were lost again and again ({error}). What was finished is kept.") from error
    except CancelledError as error:
        reason = " ".join(str(error).split())
        raise LeokitError(f"The Dask scheduler was lost ({reason}). What was finished is kept.") from error
    finally:
        client.cancel(futures)


def _on_worker(batch: Batch) -> list[Outcome | None]:
    torch.set_num_threads(1)  # for good: trials in threads of one worker would else set it back for each other
    keep_freed_memory()
    return run_trials(batch)
