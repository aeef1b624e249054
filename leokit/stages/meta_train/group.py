"""Training runs of one call in this process: one, or several whose steps are taken as one."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from leokit import manifest
from leokit.config import fixed_steps
from leokit.engine import training
from leokit.engine.averaging import Ranks
from leokit.engine.matrices import Matrices
from leokit.engine.state import State
from leokit.errors import Interrupted
from leokit.interrupts import stop_requests
from leokit.provenance import information
from leokit.stages.meta_train.folder import RunFolder
from leokit.stages.meta_train.sources import Sources

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]


@dataclass
class Group:
    """Trains runs of one call that differ in their seeds alone, batched where they are several.

    Attributes:
        sources: what they are made from.
        device: that they are trained on.
        load: gives their features.
        ranks: that train them together.
        say: takes what a user should know.
        on_progress: as for `run_seeds`.
        started: when the work began.
        stopped: whether to stop, beside signals.
    """

    sources: Sources
    device: torch.device
    load: Callable[[], Matrices]
    ranks: Ranks
    say: Say
    on_progress: Progress | None
    started: float
    stopped: Callable[[], bool] = lambda: False

    @cached_property
    def matrices(self) -> Matrices:
        """The features, loaded when they are first needed."""
        return self.load()

    def pending(self, seeds: Sequence[RunFolder]) -> list[RunFolder]:
        """Those of the runs, whose folders are locked, that are not done already; all ranks get the same."""
        going = []
        if self.ranks.first:
            for seed in seeds:
                if seed.begin(self.sources):
                    self.say(manifest.already_done(seed.path))
                else:
                    going.append(seed.config.seed)
        going = self.ranks.job.from_first(going)
        return [seed for seed in seeds if seed.config.seed in going]

    def train(self, seeds: Sequence[RunFolder], *, before: int = 0, of: int = 1) -> None:
        """Train runs to their ends.

        Args:
            seeds: the runs.
            before: runs of the call that are done.
            of: all runs of the call.

        Raises:
            Interrupted: stopped; the states are kept.
            Diverged: one of them has; the others have ended.
            LeokitError: another rank has ended.
        """
        with ExitStack() as held:
            if self.ranks.first:
                for seed in seeds:
                    held.enter_context(manifest.locked(seed.path))
            going = self.pending(seeds)
            if going:
                finished = self._train(going, held, before + len(seeds) - len(going), of)
                self.ranks.job.wait()
                if not finished:
                    raise stopped_at(going, of)
        self.started = time.perf_counter()

    def _train(self, seeds: list[RunFolder], held: ExitStack, before: int, of: int) -> bool:
        matrices, courses = self.matrices, []
        for seed in seeds:
            state = seed.start(matrices.training.dim, self.device, self.ranks)
            if state.step:
                which = "Going" if of == 1 else f"Seed {seed.config.seed}: going"
                self.say(f"{which} on from step {state.step}.")
            held.callback(seed.log.close)
            finish = partial(self._finish, seed, state, state.step, seeds)
            courses.append(seed.course(state, self.ranks, finish))
        wanted = fixed_steps(seeds[0].config)

        def on_step(step: int, text: str) -> None:
            if self.on_progress:
                seed = f"seed {seeds[0].config.seed} " if of > 1 and len(seeds) == 1 else ""
                self.on_progress(before * wanted + step, of * wanted, f"{seed}{text}")

        begins = matrices.validation and any(course.state.best_accuracy < 0 for course in courses)
        on_step(sum(course.state.step for course in courses), "first validation" if begins else "")
        with stop_requests(self._acknowledge) as stop_requested:
            return training.train_together(
                courses,
                matrices.training,
                matrices.validation,
                uncentred=matrices.uncentred,
                ranks=self.ranks,
                on_step=on_step,
                stop_requested=lambda: stop_requested() or self.stopped(),
            )

    def _acknowledge(self) -> None:
        with suppress(RuntimeError):  # the signal came in the middle of another line
            self.say("Stopping after this step or validation; once more stops at once, at the last kept state.")

    def _finish(self, seed: RunFolder, state: State, first: int, together: Sequence[RunFolder]) -> None:
        held = self.matrices
        gain = training.measure_gain(seed.config, state, held.validation, held.uncentred, self.ranks)
        if not self.ranks.first:
            return
        batched = {"seeds_batched": [each.config.seed for each in together]} if len(together) > 1 else {}
        info = information(
            started=self.started, device=self.device, steps_taken=state.step - first, ranks=self.ranks.size, **batched
        )
        seed.finish(state, self.sources, gain=gain, centre=held.centre, info=info)


def stopped_at(runs: Sequence[RunFolder], of: int) -> Interrupted:
    """Where runs were stopped, of all the runs of a call."""
    if of == 1:
        where = f"step {runs[0].kept_step} of {runs[0].config.steps}"
    else:
        steps = ", ".join(f"{run.kept_step} (seed {run.config.seed})" for run in runs)
        where = f"step {steps} of {runs[0].config.steps}"
    return Interrupted(f"Stopped at {where}: the same command goes on from there.")
