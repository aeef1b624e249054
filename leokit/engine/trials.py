"""A trial of a search: a meta-training selected on meta-val, kept in a folder of its own, in whichever process it runs.

A trial is a function of its configuration alone; trained as one with others, to rounding. Its folder holds `trial.json`
once it is trained as far as was asked for, its best weights, and the state from which it goes on. Two processes at one
trial would do the same work twice, so the second waits for the first.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from leokit import manifest
from leokit.config import MetaTrainConfig, fixed_steps
from leokit.devices import resolve_device
from leokit.engine import training
from leokit.engine.mapped import open_matrices
from leokit.engine.scoring import one_thread
from leokit.engine.state import State, new_state, pack, unpack
from leokit.engine.steps import Diverged
from leokit.errors import ArtifactError, LeokitError
from leokit.interrupts import stop_requests
from leokit.runs import STATE, WEIGHTS, fitting_state, load_state, require_like, save_parameters, save_state
from leokit.waiting import adapt_waiting

OUTCOME = "trial.json"
_LOOK_EVERY = 0.5  # seconds between looks for a request to stop
_CANDIDATES = ("val", "fallback", "uncentred_fallback")  # what a validation measures, in the names of its line


@dataclass(frozen=True)
class Task:
    """What a worker needs to know to run a trial: a few hundred bytes, as features are named and never carried.

    Attributes:
        index: of the trial.
        config: of its meta-training; its steps are those of a trial that runs to the end.
        until: how many steps to have taken in all.
        folder: of the trial.
        features: the store.
        rows: folder of the files that its unit rows are mapped from.
        stop: a file that is there once work shall stop.
        of: what the trial is, as a hash: its options, the features, and how it is trained.
    """

    index: int
    config: MetaTrainConfig
    until: int
    folder: Path
    features: Path
    rows: Path
    stop: Path
    of: str = ""


@dataclass(frozen=True)
class Outcome:
    """How far a trial has come, and what it found.

    Attributes:
        index: of the trial.
        steps: that it has taken.
        ended: whether more would change nothing: patience ended it, or it failed.
        failure: why it failed; None where it did not.
        validations: a line for each: its step, and accuracy and half-width of each candidate on meta-val.
        best_step: where the weights that were kept come from.
        best_is_fallback: whether these are a plain method, no step of training.
        best_is_centred: whether they are for centred features, where the trial centres them.
        seconds: that it took, over all its parts, those of several as one divided among them; no result.
        of: what the trial is, as its task says.
    """

    index: int
    steps: int
    ended: bool
    failure: str | None
    validations: list[dict[str, Any]]
    best_step: int
    best_is_fallback: bool
    best_is_centred: bool
    seconds: float = field(compare=False)
    of: str = ""

    def reaches(self, steps: int) -> bool:
        """Whether there is nothing to do for having taken so many steps."""
        return self.ended or self.steps >= steps

    def accuracy(self, until: int) -> tuple[float, float]:
        """Best accuracy on meta-val in the first `until` steps, with its half-width; -1 where there was none."""
        found = [
            (line[f"{name}_accuracy"], line[f"{name}_half_width"])
            for line in self.validations
            if line["step"] <= until
            for name in _CANDIDATES
            if f"{name}_accuracy" in line
        ]
        return max(found, key=lambda entry: entry[0], default=(-1.0, 0.0))

    def fails_by(self, until: int) -> bool:
        """Whether it failed in the first `until` steps."""
        return self.failure is not None and self.steps < until


def read_outcome(folder: Path, of: str = "") -> Outcome | None:
    """What a trial's folder says of how it went; None where it has not got that far, or says it of another trial.

    Another one's is there where a process of an earlier search, which was killed, trained on and wrote late.
    """
    try:
        found = Outcome(**json.loads((folder / OUTCOME).read_bytes()))
        _check(found)
        return found if found.of == of else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise ArtifactError(f"{folder / OUTCOME} is damaged ({error}): delete the folder {folder}.") from error


def _check(found: Outcome) -> None:
    """Check that an outcome is made of what it says.

    Raises:
        ValueError, TypeError, KeyError: it is not.
    """
    kinds: dict[str, tuple[type, ...]] = {"index": (int,), "steps": (int,), "best_step": (int,)}
    kinds |= {name: (bool,) for name in ("ended", "best_is_fallback", "best_is_centred")}
    kinds |= {"of": (str,), "failure": (str, type(None)), "validations": (list,), "seconds": (int, float)}
    for name, allowed in kinds.items():
        value = getattr(found, name)
        if type(value) not in allowed:
            raise ValueError(f"{name} is {value!r:.60}")
    _check_validations(found.validations)


def _check_validations(lines: Any) -> None:
    for line in lines:
        values = [line["step"], *(line[key] for key in _measures(line))]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise ValueError(f"a validation is {line!r:.60}")


def _measures(line: Mapping[str, Any]) -> Iterator[str]:
    for name in _CANDIDATES:
        if f"{name}_accuracy" in line:
            yield from (f"{name}_accuracy", f"{name}_half_width")


def run_trials(tasks: Sequence[Task], stop_requested: Callable[[], bool] = lambda: False) -> list[Outcome | None]:
    """Train trials as far as their tasks say, from where they are; several as one more dimension of each step.

    Each is validated, kept and ended for itself. Several at once agree to rounding with each alone.

    Args:
        tasks: which trials, and how far; several have one `leo.sets.structure`, and folders in one search.
        stop_requested: asked after each step, beside a look at `task.stop` now and then.

    Returns:
        The outcome of each; None where it was stopped, its state kept.

    Raises:
        ArtifactError: no features.
        DataError: a feature is not finite.
        LeokitError: so many do not fit the device.
    """
    stop = _asked_now_and_then(tasks[0].stop.exists, stop_requested)
    with ExitStack() as held:
        # In one order wherever trials are shared out, so that no two processes wait for each other.
        for task in sorted(tasks, key=lambda task: task.index):
            if not held.enter_context(_alone(task.folder, stop)):
                return [None for _ in tasks]
        found = {task.index: read_outcome(task.folder, task.of) for task in tasks}
        rest = [task for task in tasks if not _is_done(task, found[task.index])]
        if rest:
            with one_thread():  # as many as elsewhere, so that the same bits come out
                found |= _train(rest, stop)
        return [found[task.index] for task in tasks]


def _is_done(task: Task, found: Outcome | None) -> bool:
    return found is not None and found.reaches(task.until)


def run_in_process(tasks: Sequence[Task], parent: int) -> list[Outcome | None]:
    """`run_trials` in a worker process of its own: it stops on SIGTERM and Ctrl-C, and where its parent has died.

    Args:
        tasks: as there.
        parent: the process that started the worker; given, as one that died before this began would not be known.
    """
    adapt_waiting()
    with stop_requests() as requested:
        return run_trials(tasks, lambda: requested() or os.getppid() != parent)


class _Trial:
    """A trial that is being trained.

    Attributes:
        task: which one, and how far.
        config: of its training that far.
        seconds: that it took, in its share of those of all that are trained with it.
        outcome: once it is there.
    """

    def __init__(self, task: Task, dim: int, device: torch.device) -> None:
        self.task, self.config = task, replace(task.config, steps=task.until)
        self.validations: list[dict[str, Any]] = []
        self.outcome: Outcome | None = None
        self.seconds = 0.0
        self._path, self._folder = task.folder / STATE, _inode(task.folder)
        kept = _kept(self._path, self.config, task.of, dim, device) if self._path.exists() else None
        if kept:
            self.state, self.validations, self.seconds = kept
        else:
            self.state = new_state(self.config, dim, device)

    @property
    def is_lost(self) -> bool:
        """Whether the folder is another one by now, as of a new search at the same place, which is left alone."""
        return _inode(self.task.folder) != self._folder

    def report(self, line: Mapping[str, Any]) -> None:
        """Remember a validation."""
        if any(f"{name}_accuracy" in line for name in _CANDIDATES):
            self.validations.append(dict(line))

    def keep(self, state: State) -> None:
        """Save where it is."""
        if self.is_lost:
            return
        tensors, record = pack(state)
        more = {"validations": self.validations, "seconds": round(self.seconds, 3), "of": self.task.of}
        save_state(self._path, tensors, record | more)

    def end(self, failure: str | None = None) -> None:
        """Write how it went."""
        task, state = self.task, self.state
        self.outcome = Outcome(
            index=task.index,
            steps=state.step,
            ended=failure is not None or state.step < task.until or task.until >= fixed_steps(task.config),
            failure=failure,
            validations=self.validations,
            best_step=state.best_step,
            best_is_fallback=state.best_is_fallback,
            best_is_centred=state.best_is_centred,
            seconds=round(self.seconds, 3),
            of=task.of,
        )
        if self.is_lost:
            return
        save_parameters(task.folder / WEIGHTS, state.best)
        manifest.write_atomically(task.folder / OUTCOME, json.dumps(asdict(self.outcome), indent=1).encode())
        if self.outcome.ended:
            forget_state(task.folder)


def _train(tasks: Sequence[Task], stop: Callable[[], bool]) -> dict[int, Outcome | None]:
    """Outcomes by the numbers of trials; None of those that were stopped."""
    now = time.perf_counter()
    config = tasks[0].config
    device = resolve_device(config.device)
    matrices = open_matrices(config, tasks[0].features, tasks[0].rows, device)
    trials = [_Trial(task, matrices.training.dim, device) for task in tasks]
    stop = _asked_now_and_then(lambda: any(trial.is_lost for trial in trials), stop)

    def timed(*_: object) -> None:
        nonlocal now
        then, now = now, time.perf_counter()
        going = [trial for trial in trials if trial.outcome is None]
        for trial in going:
            trial.seconds += (now - then) / len(going)

    courses = [
        training.Course(
            trial.config,
            trial.state,
            keep=partial(_after, timed, trial.keep),
            report=trial.report,
            finished=partial(_after, timed, trial.end),
            failed=partial(_after, timed, trial.end),
        )
        for trial in trials
    ]
    try:
        with suppress(Diverged):  # each trial has been told of its own
            training.train_together(
                courses, matrices.training, matrices.validation, uncentred=matrices.uncentred, stop_requested=stop
            )
    except torch.OutOfMemoryError as error:
        if len(trials) == 1:
            raise
        raise LeokitError(
            f"The memory of {device} does not suffice for {len(trials)} trials as one: give a smaller --batched, with "
            "--overwrite, as it is part of what the search is."
        ) from error
    return {trial.task.index: trial.outcome for trial in trials}


def _after(first: Callable[[], None], then: Callable[..., None], *arguments: Any) -> None:
    first()
    then(*arguments)


def _kept(
    path: Path, config: MetaTrainConfig, of: str, dim: int, device: torch.device
) -> tuple[State, list[dict[str, Any]], float] | None:
    """What a trial has kept: its state, its validations and the seconds that they took; None where another one has.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        tensors, record = load_state(path)
        if record.get("of", "") != of:
            return None
        require_like(path, (tensors, record), pack(new_state(config, dim, torch.device("cpu"))))
        with fitting_state(path):
            validations, seconds = record["validations"], float(record["seconds"])
            _check_validations(validations)
            return unpack(tensors, record, config, device), validations, seconds
    except ArtifactError as error:
        raise ArtifactError(f"{path} is damaged: delete the folder {path.parent.parent}.") from error


def forget_state(folder: Path) -> None:
    """Delete what a trial would go on from."""
    path = folder / STATE
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _inode(folder: Path) -> int:
    """Which folder is at a place; 0 for none. That of a folder that is held by `manifest.locked` is not used again."""
    try:
        return os.stat(folder).st_ino
    except OSError:
        return 0


def _asked_now_and_then(look: Callable[[], bool], stop_requested: Callable[[], bool]) -> Callable[[], bool]:
    """Whether to stop: as the second says, or as a look does, which costs system calls and is had now and then."""
    looked, there = -math.inf, False

    def asked() -> bool:
        nonlocal looked, there
        now = time.monotonic()
        if not there and now - looked > _LOOK_EVERY:
            looked, there = now, look()
        return there or stop_requested()

    return asked


@contextmanager
def _alone(folder: Path, stop: Callable[[], bool]) -> Iterator[bool]:
    """Hold a trial's folder, after waiting for another process that does; False where work shall stop."""
    if not folder.parent.parent.is_dir():
        raise ArtifactError(
            f"{os.uname().nodename} does not see {folder.parent.parent}: a worker needs the search and the features "
            "under the same paths, on a file system that all share."
        )
    folder.mkdir(parents=True, exist_ok=True)
    while not stop():
        holder = manifest.locked(folder)
        try:
            holder.__enter__()
        except ArtifactError:
            time.sleep(_LOOK_EVERY)
            continue
        try:
            yield True
        finally:
            holder.__exit__(None, None, None)
        return
    yield False


# Successive halving


def rungs(steps: int, val_every: int, trials: int, reduction: int) -> list[int]:
    """The numbers of steps at which trials are compared, the last being all of them (Jamieson and Talwalkar, 2016).

    Each is the next one divided by `reduction`, rounded up to a validation; there are as many as leave at least one
    trial at the end, and a first rung of at least one validation.
    """
    levels = [steps]
    for power in range(1, int(math.log(max(trials, 1), reduction) + 1e-9) + 1):
        level = -(-steps // (val_every * reduction**power)) * val_every
        if steps < val_every * reduction**power or level >= levels[0]:
            break
        levels.insert(0, level)
    return levels


def survivors(outcomes: Sequence[Outcome], rung: int, reduction: int) -> list[int]:
    """The trials that go on from a rung: the best of them, one in `reduction`, and trial 0, which is the preset.

    They are ranked by their best accuracy on meta-val in so many steps; of two alike the earlier trial is ahead. What
    has failed does not go on.
    """
    able = [outcome for outcome in outcomes if not outcome.fails_by(rung)]
    ranked = sorted(able, key=lambda outcome: (-outcome.accuracy(rung)[0], outcome.index))
    kept = {outcome.index for outcome in ranked[: -(-len(outcomes) // reduction)]}
    return sorted(kept | {outcome.index for outcome in able if outcome.index == 0})
