"""Runs of several seeds in processes of their own, each as if alone; on a CPU they share one copy of the features."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed

from leokit import manifest
from leokit.config import MetaTrainConfig, default_workers, fixed_steps
from leokit.devices import resolve_device
from leokit.engine.averaging import ALONE
from leokit.engine.matrices import Matrices
from leokit.errors import Interrupted, LeokitError
from leokit.interrupts import stop_requests, without_ctrl_c
from leokit.stages.meta_train.folder import RunFolder
from leokit.stages.meta_train.group import Group, stopped_at
from leokit.stages.meta_train.sources import Sources, open_features
from leokit.waiting import adapt_waiting

_LOOK_EVERY = 0.2  # seconds between looks at what processes have done


def processes_at_a_time(jobs: int | None) -> int:
    """Processes at a time: by default as many as the cores have room for, each with the threads of a run alone."""
    return jobs or max(1, default_workers() // torch.get_num_threads())


class _Outcome(NamedTuple):
    """What a process made of a run, by its place in the call."""

    number: int
    messages: list[str]
    error: LeokitError | OSError | None


def in_processes(group: Group, seeds: list[RunFolder], config: MetaTrainConfig) -> None:
    """Train runs in processes, each as if alone; on a CPU they share one copy of the features.

    Raises:
        Interrupted: stopped; the states are kept.
        LeokitError: what went wrong with the first run that something went wrong with, after the others have ended; or
            a process was killed.
    """
    with ExitStack() as held:
        for seed in seeds:
            held.enter_context(manifest.locked(seed.path))
        pending = group.pending(seeds)
    done = len(seeds) - len(pending)
    if len(pending) < 2:
        group.train(pending, before=done, of=len(seeds))
        return
    jobs = min(processes_at_a_time(config.jobs), len(pending))
    arrays = group.matrices.arrays() if group.device.type == "cpu" else None
    wanted = fixed_steps(seeds[0].config)
    with tempfile.TemporaryDirectory() as folder, stop_requests() as stop_requested:
        board = _Board.make(Path(folder) / "board", len(pending))
        parallel = Parallel(jobs, backend="loky", return_as="generator_unordered", batch_size=1, max_nbytes="100K")
        tasks = (
            delayed(_train_in_process)(
                seed.config, group.sources, arrays, board.path, number, torch.get_num_threads(), os.getpid()
            )
            for number, seed in enumerate(pending)
        )
        stopped, errors, shown = list[int](), list[LeokitError | OSError](), 0

        def look() -> None:
            nonlocal shown
            if stop_requested():
                board.stop()
            steps = done * wanted + board.steps()
            if group.on_progress and steps != shown:
                group.on_progress(steps, len(seeds) * wanted, f"{jobs} at a time")
                shown = steps

        try:
            with _every(_LOOK_EVERY, look):
                with without_ctrl_c():
                    outcomes = parallel(tasks)
                for outcome in outcomes:
                    for message in outcome.messages:
                        group.say(message)
                    if isinstance(outcome.error, Interrupted):
                        stopped.append(outcome.number)
                    elif outcome.error:
                        errors.append(outcome.error)
        except BrokenProcessPool as error:
            if stop_requested():
                raise stopped_at(pending, len(seeds)) from error
            raise LeokitError(
                "A process that trained a seed was ended from outside, as by a lack of memory. What was finished and "
                "kept of each seed is there: the same command goes on; --jobs 1 needs the least memory."
            ) from error
    if errors:
        raise errors[0]
    if stopped:
        raise stopped_at([pending[number] for number in sorted(stopped)], len(seeds))


def _train_in_process(
    config: MetaTrainConfig,
    sources: Sources,
    arrays: Sequence[Any] | None,
    board: Path,
    number: int,
    threads: int,
    parent: int,
) -> _Outcome:
    """Train one run in a process of its own; what goes wrong is returned, for an exception would end the others.

    The number of threads is that of a run alone, for the last bits of a product of matrices hang on it.
    """
    adapt_waiting()
    torch.set_num_threads(threads)
    messages: list[str] = []
    steps = _Board(board)

    def stopped() -> bool:
        return steps.stopped() or os.getppid() != parent

    def load() -> Matrices:
        if arrays is not None:
            return Matrices.of(arrays)
        return Matrices.load(config, open_features(config), device)

    try:
        device = resolve_device(config.device)
        group = Group(
            sources,
            device,
            load,
            ALONE,
            lambda text: messages.append(f"Seed {config.seed}: {text[:1].lower()}{text[1:]}"),
            lambda done, _, __: steps.took(number, done),
            time.perf_counter(),
            stopped,
        )
        if stopped():
            raise Interrupted
        group.train([RunFolder(config)])
    except (LeokitError, OSError) as error:
        return _Outcome(number, messages, error)
    except KeyboardInterrupt:
        return _Outcome(number, messages, Interrupted())
    steps.took(number, fixed_steps(config))
    return _Outcome(number, messages, None)


class _Board:
    """A file of numbers that processes share: whether to stop, and the steps that each run has taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers = np.memmap(path, np.int64, mode="r+")

    @classmethod
    def make(cls, path: Path, runs: int) -> "_Board":
        """A new one."""
        path.write_bytes(bytes(8 * (1 + runs)))
        return cls(path)

    def stop(self) -> None:
        """Ask all processes to stop."""
        self._numbers[0] = 1

    def stopped(self) -> bool:
        """Whether they are asked to."""
        return bool(self._numbers[0])

    def took(self, run: int, steps: int) -> None:
        """Say how many steps a run has taken."""
        self._numbers[1 + run] = steps

    def steps(self) -> int:
        """How many all runs have."""
        return int(self._numbers[1:].sum())


@contextmanager
def _every(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Within it a function is called now and then, by another thread."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            look()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
