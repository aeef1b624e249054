"""`leokit meta-train`: features → run, or one run for each of several seeds."""

import time
from dataclasses import replace
from typing import Any, Literal

import torch

from leokit import distributed
from leokit.config import MetaTrainConfig, check_together, fixed_steps, training_splits
from leokit.devices import resolve_device
from leokit.engine.averaging import Ranks
from leokit.engine.events import require_tensorboard
from leokit.engine.matrices import Matrices
from leokit.engine.steps import Diverged
from leokit.errors import UsageError
from leokit.runs import Run, open_run
from leokit.splits import classes_seen
from leokit.stages.meta_train.folder import RunFolder, default_out
from leokit.stages.meta_train.group import Group, Progress, Say
from leokit.stages.meta_train.processes import in_processes, processes_at_a_time
from leokit.stages.meta_train.sources import open_features, resolve

__all__ = ["default_out", "dry_run", "one_for_each_seed", "run", "run_seeds"]


def one_for_each_seed(config: MetaTrainConfig) -> list[MetaTrainConfig]:
    """The configurations of the runs that a call trains, one for each seed.

    Where a folder is named for several of them, each but that of seed 0 has its seed added, as the default names have.
    """
    if config.seeds == 1:
        return [config]
    found = []
    for seed in range(config.seed, config.seed + config.seeds):
        out = config.out and (config.out.with_name(f"{config.out.name}-seed{seed}") if seed else config.out)
        found.append(replace(config, seed=seed, seeds=1, out=out))
    return found


def run(
    config: MetaTrainConfig,
    *,
    on_progress: Progress | None = None,
    on_message: Say | None = None,
) -> Run:
    """Meta-train on the train split of a feature store, selecting the best weights on its val split.

    With `train_on_val` the classes of both are trained on, and the weights of the last step are kept. The same call on
    a finished run returns it; on an unfinished one it goes on from the last kept state; with more steps it trains on,
    and so it does with more patience where that was what ended it. Under torchrun or srun the episodes of each step
    are divided among the ranks; rank 0 says how it goes.

    Args:
        config: of the run.
        on_progress: called with steps done, steps wanted and a line on how it goes.
        on_message: called with what a user should know, a sentence each.

    Raises:
        UsageError: the options leave open how many steps to take, `seeds` are several, or there are more ranks than a
            step has episodes.
        DataError: too few classes or images for the episodes asked for.
        ArtifactError: no features, the place holds a run with another configuration, or `steps_from` does not fit.
        Interrupted: stopped by Ctrl-C or SIGTERM; the state is kept.
        Diverged: a loss or gradient is not finite.
        LeokitError: another rank has ended.
    """
    if config.seeds > 1:
        raise UsageError(
            f"seeds = {config.seeds}: this makes one run. leokit.meta_train_seeds({config.seeds}, ...), or run_seeds() "
            "of the stage, makes one for each seed."
        )
    (found,) = run_seeds(config, on_progress=on_progress, on_message=on_message)
    return found


def run_seeds(
    config: MetaTrainConfig,
    *,
    on_progress: Progress | None = None,
    on_message: Say | None = None,
) -> list[Run]:
    """As `run`, for the seeds from `config.seed` on, `config.seeds` of them: a run for each.

    They are trained in processes that share the features, each as if alone, or batched, their steps as one on one
    device, see `config.parallel`. Each is validated, kept and finished for itself: what is finished stays so whatever
    becomes of the others, and the same call goes on with the rest.

    Args:
        config: of the first run.
        on_progress: called with the steps done by all of them, those wanted and a line on how it goes.
        on_message: as for `run`.

    Raises:
        Diverged: one of them has; raised after the others have ended.
        LeokitError: one of the processes has ended before its time; or as `run`.
    """
    started = time.perf_counter()
    if config.tensorboard:
        require_tensorboard()
    place = distributed.world()
    device = resolve_device(config.device, place)
    check_together(config)
    _check_ranks(config, Ranks(place))
    say: Say = _silent if place.rank or on_message is None else on_message
    store = open_features(config)
    seen = classes_seen(store.facts["trained_on"], store.classes("val"))
    if seen and not isinstance(store.facts["trained_on"], str) and not config.train_on_val:
        say(
            f"The backbone has seen {seen} of the {len(store.classes('val'))} val classes: accuracy on them, by which "
            "the best weights are selected, is too high.",
        )
    resolved, sources = resolve(config, store)
    exchange: Literal["gloo", "nccl"] = "nccl" if device.type == "cuda" else "gloo"
    with distributed.joined(place, steps=exchange, on_message=on_message or _silent) as job:
        group = Group(
            sources,
            device,
            lambda: Matrices.load(resolved, store, device),
            Ranks(place, job),
            say,
            None if place.rank else on_progress,
            started,
        )
        seeds = [RunFolder(one) for one in one_for_each_seed(resolved)]
        _train(group, seeds, config)
        return [open_run(seed.path) for seed in seeds]


def _check_ranks(config: MetaTrainConfig, ranks: Ranks) -> None:
    """Raise where the ranks of a job cannot train these runs."""
    ranks.tasks(config.meta_batch)
    if ranks.size > 1 and config.seeds > 1 and config.parallel in ("processes", "batched"):
        raise UsageError(
            f"--parallel {config.parallel} on {ranks.size} ranks: ranks divide each step, one seed after the other. "
            "Leave --parallel out, or start one process."
        )


def _silent(message: str) -> None:
    """Take a message and say nothing."""


def _train(group: Group, seeds: list[RunFolder], config: MetaTrainConfig) -> None:
    """Train the runs of a call, as its options, the device and the ranks want.

    Raises:
        LeokitError: as `run_seeds`.
    """
    how = _how(config, group.device, group.ranks)
    if how == "batched":
        group.train(seeds, of=len(seeds))
    elif how == "processes":
        in_processes(group, seeds, config)
    else:
        errors = []
        for number, seed in enumerate(seeds):
            try:
                group.train([seed], before=number, of=len(seeds))
            except Diverged as error:  # the others need not suffer
                errors.append(error)
        if errors:
            raise errors[0]


def _how(config: MetaTrainConfig, device: torch.device, ranks: Ranks) -> Literal["processes", "batched", "none"]:
    """How several seeds are trained at a time."""
    if config.seeds == 1 or ranks.size > 1:
        return "none"
    how = config.parallel
    if how == "auto":
        how = "batched" if device.type == "cuda" else "processes" if device.type == "cpu" else "none"
    return "none" if how == "processes" and processes_at_a_time(config.jobs) == 1 else how


def dry_run(config: MetaTrainConfig) -> dict[str, Any]:
    """What `run_seeds` would do, after the same checks: where, from what, and how large each run is."""
    if config.tensorboard:
        require_tensorboard()
    check_together(config)
    _check_ranks(config, Ranks(distributed.world()))
    store = open_features(config)
    one, sources = resolve(config, store)
    steps = fixed_steps(one)
    pair = 2 * config.num_latents
    matrices = 3 * store.dim * config.num_latents + 3 * pair**2
    folders = [str(default_out(run)) for run in one_for_each_seed(one)]
    return {
        "out": folders if config.seeds > 1 else folders[0],
        **{name: entry.id for name, entry in sources.inputs.items()},
        "meta_trained_on": ", ".join(training_splits(config)),
        "parameters": matrices + config.num_latents + store.dim,
        "steps": steps,
        "episodes": steps * config.meta_batch,
    }
