"""`leokit search`: features → the best of many meta-trainings with hyper-parameters drawn at random."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import manifest
from leokit.checks import check_search, read_share
from leokit.config import MetaTrainConfig, SearchConfig, default_workers, fixed_steps, identity, run_name, to_toml
from leokit.devices import check_device, resolve_device
from leokit.engine.mapped import SPLITS, close_files, open_matrices
from leokit.engine.scoring import one_thread, score
from leokit.engine.training import classifier
from leokit.engine.trials import (
    OUTCOME,
    Outcome,
    Task,
    forget_state,
    read_outcome,
    rungs,
    survivors,
)
from leokit.engine.workers import Batch, Runner, by_dask, in_processes, in_this_process
from leokit.episodes import EpisodeSampler
from leokit.errors import ArtifactError, Interrupted, LeokitError
from leokit.features import FeatureStore
from leokit.figures.search import Axis, Line, draw_search, search_in_words
from leokit.interrupts import stop_requests
from leokit.leo.learners import make_learner
from leokit.leo.sets import structure
from leokit.metrics import mean_interval, paired_difference
from leokit.provenance import information
from leokit.runs import WEIGHTS, load_parameters, tensor_faults
from leokit.space import Space, Value, trial_config
from leokit.splits import classes_seen
from leokit.tables import write_table
from leokit.text import method_name

SCHEMA = "leokit/search@1"
TRIALS, BEST, SUMMARY, PICTURE = "trials.parquet", "best.toml", "summary.json", "search.png"
_FOLDERS, _ROWS, _STOP = "trials", "rows", ".stop"
_LISTED = 10  # trials in the summary's table
_WAIT = 60.0  # seconds that a share waits for another one to begin
_BATCHED_ON_CUDA = 8  # trials as one, where nothing else is said; not measured
Report = Callable[[int, int, str], None]


@dataclass(frozen=True, repr=False)
class Search(manifest.Artifact):
    """A finished search.

    Attributes:
        summary: counts, the best trials, and how the best compares with the preset.
    """

    summary: dict[str, Any]


@dataclass(frozen=True)
class Share:
    """A finished share of the trials of a search that is not gathered yet.

    Attributes:
        folder: of the search.
        trials: how many the share has.
        trained: of all trials, how many are trained.
        of: how many trials there are.
    """

    folder: Path
    trials: int
    trained: int
    of: int


@dataclass(frozen=True)
class _Plan:
    """A search that can begin: all is there and fits together."""

    config: SearchConfig
    base: MetaTrainConfig  # of all trials
    space: Space
    store: FeatureStore
    device: torch.device
    folder: Path
    levels: list[int]  # the steps at which trials are compared; one without halving
    batched: int  # trials that train as one, at most

    @cached_property
    def trials(self) -> list[MetaTrainConfig]:
        """The options of each trial."""
        return [trial_config(self.base, self.values(index)) for index in range(self.config.trials)]

    def values(self, index: int) -> dict[str, Value]:
        """What is drawn for a trial; for the first the base's own."""
        if index == 0:
            return {name: getattr(self.base, name) for name in self.space.ranges}
        return self.space.draw(self.base.seed, index)

    def batches(self, trials: Sequence[int]) -> list[list[int]]:
        """Trials in batches that train as one: in their order, those of one structure as many as there may be.

        They follow from the trials that are to be trained up to a rung, not from those that happen to be done.
        """
        alike: dict[str, list[int]] = {}
        for index in trials:
            alike.setdefault(structure(self.trials[index]), []).append(index)
        batches = [own[at : at + self.batched] for own in alike.values() for at in range(0, len(own), self.batched)]
        return sorted(batches)

    @cached_property
    def hashes(self) -> list[str]:
        """What each trial is, as a hash, so that no other one's results are taken for its own."""
        known = [[SCHEMA, identity(config), self.store.id, self.batched] for config in self.trials]
        return [manifest.hash_text(manifest.canonical_json(each)) for each in known]

    def outcome(self, index: int) -> Outcome | None:
        """How a trial went, as far as it has got."""
        return read_outcome(self.trial(index), self.hashes[index])

    def trial(self, index: int) -> Path:
        """The folder of a trial."""
        return self.folder / _FOLDERS / f"{index:05}"

    @property
    def rows(self) -> Path:
        """The folder of the rows that are mapped."""
        return self.config.rows or self.folder / _ROWS


def run(
    config: SearchConfig,
    *,
    on_progress: Report | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Search:
    """Meta-train with values drawn at random, each trial selected on meta-val, and compare the best with the preset.

    Trial 0 has the preset's own values; the values of the others are functions of the seed and their number, and so is
    what comes of them: not of the number of jobs, of the backend, of the order, or of interruptions. Where trials train
    as one (`config.batched`), that holds to rounding, and the number of them is part of the search's id. The test part
    of the features is not opened. The same call on an unfinished search goes on with the trials that are not finished;
    with more trials it goes on from a finished one.

    Args:
        config: of the search.
        on_progress: called with trainings done and wanted, and a line on how it goes.
        on_message: called with what a user should know, a sentence each.

    Raises:
        UsageError: a range or option that cannot be.
        DataError: too few classes or images for the episodes asked for.
        ArtifactError: no features, or the place holds another search.
        Interrupted: stopped by Ctrl-C or SIGTERM; what was trained is kept.
        LeokitError: workers were lost again and again, or no trial came to its end.
    """
    started = time.perf_counter()
    plan = _open(config)
    folder = plan.folder
    with manifest.locked(folder):
        finished = _begin(plan)
        if finished:
            _say(on_message, manifest.already_done(folder))
            return Search(folder, finished, json.loads(manifest.read_file(folder, finished, SUMMARY)))
        _warn(plan, on_message)
        outcomes, alive = _train_all(plan, on_progress)
        _say_failures(outcomes, on_message)
        best = _best(plan, outcomes, alive)
        fresh = _compare(plan, outcomes, best)
        rows = _rows(plan, outcomes, alive)
        summary = _summary(plan, outcomes, rows, best, fresh)
        _write(plan, rows, best, summary)
        _tidy(plan, best)
        kept = [path for index in range(config.trials) for path in _kept(plan, index)]
        taken = sum(outcome.steps for outcome in outcomes)
        written = manifest.finish(
            folder,
            SCHEMA,
            _identity(plan),
            _inputs(plan),
            results=[TRIALS, BEST, SUMMARY],
            extras=[PICTURE, *kept],
            facts={"figures": {PICTURE: search_in_words(summary)}},
            info=information(
                started=started,
                device=plan.device,
                steps_taken=taken,
                seconds_of_trials=round(sum(outcome.seconds for outcome in outcomes), 1),
            ),
        )
        return Search(folder, written, summary)


def run_share(
    config: SearchConfig,
    *,
    on_progress: Report | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Share:
    """Train one of several shares of the trials, `config.only`, beside others that do theirs; `run` gathers them.

    Raises:
        UsageError: no such share; or with halving, where all trials of a rung must be known.
        others: as `run`.
    """
    number, count = read_share(config)
    plan = _open(config)
    own = [index for batch in plan.batches(range(config.trials))[number::count] for index in batch]
    with _begun_by_one(plan.folder):
        done = _begin(plan)
    if done:
        _say(on_message, manifest.already_done(plan.folder))
    else:
        _warn(plan, on_message)
        outcomes: dict[int, Outcome] = {}
        with _runner(plan, share=f"-{number}-of-{count}") as (runner, stop):
            _level(plan, runner, stop, own, plan.levels[-1], outcomes, _counted(on_progress, outcomes, len(own)))
        _say_failures(list(outcomes.values()), on_message)
    trained = [done or plan.outcome(index) for index in range(config.trials)]
    return Share(plan.folder, len(own), sum(entry is not None for entry in trained), config.trials)


def dry_run(config: SearchConfig) -> dict[str, Any]:
    """What `run` would do, after the same checks."""
    plan = _open(config)
    rows = sum(int(plan.store.counts(split).sum()) for split in SPLITS)
    size = np.dtype(plan.base.hold_as or plan.base.dtype).itemsize
    return {
        "out": str(plan.folder),
        "features": plan.store.id,
        "trials": config.trials,
        "batched": plan.batched,
        "preset": plan.base.preset,
        "drawn": list(plan.space.ranges),
        "rungs": plan.levels,
        "steps": _most_steps(plan),
        "rows_bytes": rows * plan.store.dim * size * (1 + plan.base.centring),
    }


# What is there, and whether it fits together


def _open(config: SearchConfig) -> _Plan:
    check_device(config.device)
    base, space = check_search(config)
    device = resolve_device(config.device)
    store = FeatureStore.open(config.features or config.work / "features", SPLITS)
    name = run_name(base)
    folder = (config.out or config.work / "search" / name).absolute()
    steps = fixed_steps(base)
    levels = rungs(steps, base.val_every, config.trials, config.reduction) if config.halving else [steps]
    plan = _Plan(config, base, space, store, device, folder, levels, _batched(config, device, folder))
    _ = plan.trials  # each is checked
    return plan


def _batched(config: SearchConfig, device: torch.device, folder: Path) -> int:
    """How many trials train as one: where it is not said as many as in the search that is there, else by the device.

    So shares that are trained on CUDA can be gathered on a machine without.
    """
    if config.batched is not None:
        return config.batched
    begun = None if config.overwrite else manifest.begun(folder)
    if begun is not None and begun["schema"] == SCHEMA:
        found = begun["config"].get("batched", 1)
        return found if isinstance(found, int) and found > 0 else 1
    return _BATCHED_ON_CUDA if device.type == "cuda" else 1


def _identity(plan: _Plan) -> dict[str, Any]:
    """What can change the result of a search."""
    halving = {"reduction": plan.config.reduction} if plan.config.halving else None
    return {
        "trials": plan.config.trials,
        "space": plan.space.plain(),
        "halving": halving,
        "fresh_episodes": plan.config.fresh_episodes,
        "base": identity(plan.base),
        **({"batched": plan.batched} if plan.batched > 1 else {}),
    }


def _inputs(plan: _Plan) -> dict[str, manifest.Input]:
    return {"features": plan.store.input}


def _begin(plan: _Plan) -> manifest.Manifest | None:
    def more_trials(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
        asked = wanted["config"]["trials"]
        same = {**found, "config": {**found["config"], "trials": asked}} == wanted
        return same and not wanted["config"]["halving"] and asked > found["config"].get("trials", asked)

    done = manifest.begin(
        plan.folder, SCHEMA, _identity(plan), _inputs(plan), overwrite=plan.config.overwrite, reopen=more_trials
    )
    if done is None:
        (plan.folder / _FOLDERS).mkdir(exist_ok=True)
    return done


@contextmanager
def _begun_by_one(folder: Path) -> Iterator[None]:
    """Hold the search's folder for the moment in which a share begins; others may be at the same."""
    deadline = time.monotonic() + _WAIT
    while True:
        holder = manifest.locked(folder)
        try:
            holder.__enter__()
            break
        except ArtifactError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        holder.__exit__(None, None, None)


def _say(on_message: Callable[[str], None] | None, text: str) -> None:
    if on_message:
        on_message(text)


def _warn(plan: _Plan, on_message: Callable[[str], None] | None) -> None:
    trained_on, classes = plan.store.facts["trained_on"], plan.store.classes("val")
    seen = classes_seen(trained_on, classes)
    if seen and not isinstance(trained_on, str):
        _say(
            on_message,
            f"The backbone has seen {seen} of the {len(classes)} val classes: accuracy on them, by which trials are "
            "compared, is too high.",
        )
    there = sum(plan.outcome(index) is not None for index in range(plan.config.trials))
    if there:
        _say(on_message, f"Going on: {there} of {plan.config.trials} trials are there.")


def _say_failures(outcomes: list[Outcome], on_message: Callable[[str], None] | None) -> None:
    for outcome in outcomes:
        if outcome.failure:
            _say(on_message, f"Trial {outcome.index} failed: {outcome.failure}")


# Training


def _train_all(plan: _Plan, on_progress: Report | None) -> tuple[list[Outcome], list[int]]:
    """The outcomes of all trials, and the trials that came to the last rung."""
    outcomes: dict[int, Outcome] = {}
    alive, total, done = list(range(plan.config.trials)), _trainings(plan), 0
    with _runner(plan) as (runner, stop):
        for number, level in enumerate(plan.levels):
            report = _counted(on_progress, outcomes, total, done)
            _level(plan, runner, stop, alive, level, outcomes, report)
            done += len(alive)
            if number + 1 < len(plan.levels):
                alive = survivors([outcomes[index] for index in alive], level, plan.config.reduction)
    return [outcomes[index] for index in range(plan.config.trials)], alive


def _level(
    plan: _Plan,
    runner: Runner,
    stop: Path,
    trials: list[int],
    until: int,
    outcomes: dict[int, Outcome],
    report: Callable[[int], None],
) -> None:
    """Train trials up to so many steps; their outcomes are put into `outcomes`."""
    batches: list[Batch] = []
    for batch in plan.batches(trials):
        tasks = []
        for index in batch:
            found = plan.outcome(index)
            if found is not None and found.reaches(until):
                outcomes[index] = found
            else:
                store, rows = plan.store.folder.absolute(), plan.rows.absolute()
                own = plan.trial(index), store, rows, stop, plan.hashes[index]
                tasks.append(Task(index, plan.trials[index], until, *own))
        if tasks:
            batches.append(tasks)
    done = len(trials) - sum(map(len, batches))
    report(done)
    stopped = False
    for outcome in runner(batches) if batches else ():
        if outcome is None:
            stopped = True
            continue
        outcomes[outcome.index] = outcome
        done += 1
        report(done)
    if stopped:
        raise Interrupted(f"Stopped with {done} of {len(trials)} trials trained: the same command goes on from there.")


def _counted(
    on_progress: Report | None, outcomes: dict[int, Outcome], total: int, before: int = 0
) -> Callable[[int], None]:
    """Progress of one rung as a part of the whole, with the best accuracy so far."""

    def report(done: int) -> None:
        if on_progress:
            able = [outcome.accuracy(outcome.steps)[0] for outcome in outcomes.values() if not outcome.failure]
            on_progress(before + done, total, f"best val {max(able):.1%}" if able else "")

    return report


@contextmanager
def _runner(plan: _Plan, share: str = "") -> "Iterator[tuple[Runner, Path]]":
    """What runs trials, and the file that tells those of other processes to stop once a signal has come here."""
    config, stop = plan.config, plan.folder / f"{_STOP}{share}"
    stop.unlink(missing_ok=True)
    jobs = config.jobs or (default_workers() if plan.device.type == "cpu" else 1)
    with stop_requests(stop.touch) as requested:
        cluster = by_dask(jobs, config.scheduler) if config.backend == "dask" else nullcontext()
        with cluster as dask:
            try:
                yield dask or (in_processes(jobs) if jobs > 1 else in_this_process(requested)), stop
            except Exception:
                stop.touch()  # for the workers of a cluster; it stays until the search goes on, as they may look late
                raise
    stop.unlink(missing_ok=True)


def _sizes(plan: _Plan) -> list[int]:
    """How many trials train up to each rung, at most."""
    sizes = [plan.config.trials]
    for _ in plan.levels[1:]:
        sizes.append(min(sizes[-1], -(-sizes[-1] // plan.config.reduction) + 1))
    return sizes


def _trainings(plan: _Plan) -> int:
    return sum(_sizes(plan))


def _most_steps(plan: _Plan) -> int:
    """Steps of all trials together, at most."""
    gains = np.diff([0, *plan.levels])
    return int(sum(size * gain for size, gain in zip(_sizes(plan), gains, strict=True)))


# What came of it


def _best(plan: _Plan, outcomes: list[Outcome], alive: list[int]) -> Outcome:
    """The trial that was best on meta-val among those that came to their end; of two alike the earlier one.

    Raises:
        LeokitError: there is none.
    """
    able = [outcomes[index] for index in alive if not outcomes[index].failure]
    if not able:
        raise LeokitError(
            f"None of the {len(outcomes)} trials came to its end, the first one for: {outcomes[0].failure} Narrow the "
            "space, or give on_nan = 'decay' in it, and --overwrite."
        )
    return max(able, key=lambda outcome: (outcome.accuracy(outcome.steps)[0], -outcome.index))


def _compare(plan: _Plan, outcomes: list[Outcome], best: Outcome) -> dict[str, Any]:
    """The best trial and the preset on meta-val episodes that chose neither, the same ones for both."""
    names = {"best": best} | ({} if outcomes[0].failure else {"preset": outcomes[0]})
    accuracies = {name: _measured(plan, outcome) for name, outcome in names.items()}
    close_files()
    found: dict[str, Any] = {name: mean_interval(values)._asdict() for name, values in accuracies.items()}
    if len(accuracies) == 2:
        found["difference"] = paired_difference(accuracies["best"], accuracies["preset"])._asdict()
    return found


def _measured(plan: _Plan, outcome: Outcome) -> NDArray[np.float64]:
    """Accuracy (episodes,) of a trial's kept weights on fresh meta-val episodes."""
    config = trial_config(plan.base, plan.values(outcome.index))
    tensors = _weights(plan, config, outcome.index)
    tensors = {name: value.to(plan.device) for name, value in tensors.items()}
    with one_thread():
        matrices = open_matrices(config, plan.store.folder.absolute(), plan.rows.absolute(), plan.device)
        plain = matrices.uncentred if not outcome.best_is_centred else None
        features = plain or matrices.validation
        assert features is not None
        # A purpose of its own: these are other episodes than those that selected.
        sampler = EpisodeSampler(features.offsets, ways=config.ways, seed=config.seed, purpose="search")
        scores = score(
            features,
            sampler,
            {"trial": classifier(make_learner(config, features.dim), tensors)},
            shots=config.shots,
            queries=config.val_queries,
            episodes=plan.config.fresh_episodes,
        )
    return scores["trial"]


def _weights(plan: _Plan, config: MetaTrainConfig, index: int) -> dict[str, torch.Tensor]:
    """The weights that a trial has kept.

    Raises:
        ArtifactError: they are damaged.
    """
    path = plan.trial(index) / WEIGHTS
    try:
        found = load_parameters(path)
    except ArtifactError as error:
        raise ArtifactError(f"{path} is missing or damaged: delete the folder {path.parent}.") from error
    faults = tensor_faults(found, make_learner(config, plan.store.dim).initial(getattr(torch, config.dtype)))
    if faults:
        raise ArtifactError(f"{path} is damaged ({faults[0]}): delete the folder {path.parent}.")
    return found


def _rows(plan: _Plan, outcomes: list[Outcome], alive: list[int]) -> list[dict[str, Any]]:
    """A row for each trial: what it was, and what came of it."""
    rows = []
    for outcome in outcomes:
        accuracy, half_width = outcome.accuracy(outcome.steps)
        status = "failed" if outcome.failure else "finished" if outcome.index in alive else "stopped"
        rows.append(
            {
                "trial": outcome.index,
                "status": status,
                "val_accuracy": accuracy if accuracy >= 0 else None,
                "val_half_width": half_width if accuracy >= 0 else None,
                "best_step": outcome.best_step,
                "steps": outcome.steps,
                "failure": outcome.failure,
                **plan.values(outcome.index),
            }
        )
    return rows


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of trials from the best on: finished ones, then stopped ones, then failed ones."""
    order = ("finished", "stopped", "failed")
    return sorted(rows, key=lambda row: (order.index(row["status"]), -(row["val_accuracy"] or 0.0), row["trial"]))


def _summary(
    plan: _Plan, outcomes: list[Outcome], rows: list[dict[str, Any]], best: Outcome, fresh: dict[str, Any]
) -> dict[str, Any]:
    counts = Counter(row["status"] for row in rows)
    whole = plan.levels[-1] * len(rows)
    taken = sum(outcome.steps for outcome in outcomes)
    kept = ("trial", "val_accuracy", "val_half_width", "best_step", *plan.space.ranges)
    return {
        **{key: getattr(plan.base, key) for key in ("variant", "ways", "shots", "seed", "preset")},
        "trials": len(rows),
        **{status: counts[status] for status in ("finished", "stopped", "failed")},
        "steps_of_a_trial": plan.levels[-1],
        "rungs": plan.levels,
        "steps_taken": taken,
        "steps_saved": 1 - taken / whole,
        "drawn": list(plan.space.ranges),
        "best_trial": best.index,
        "val_episodes": plan.base.val_episodes,
        "fresh_episodes": plan.config.fresh_episodes,
        "best_on_the_episodes_that_chose": _interval(best),
        "preset_on_the_episodes_that_chose": None if outcomes[0].failure else _interval(outcomes[0]),
        "on_fresh_episodes": fresh,
        "optimism": best.accuracy(best.steps)[0] - fresh["best"]["mean"],
        "interval": "95 % over the sampling of episodes on these classes (1.96 s/√n)",
        "best_trials": [{key: row[key] for key in kept} for row in ranked(rows)[:_LISTED]],
        "preset_trial": {key: rows[0][key] for key in kept},
    }


def _interval(outcome: Outcome) -> dict[str, float]:
    accuracy, half_width = outcome.accuracy(outcome.steps)
    return {"mean": accuracy, "half_width": half_width}


def _write(plan: _Plan, rows: list[dict[str, Any]], best: Outcome, summary: dict[str, Any]) -> None:
    write_table(plan.folder / TRIALS, {key: [row[key] for row in rows] for key in rows[0]}, _types(plan, rows[0]))
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    manifest.write_atomically(plan.folder / SUMMARY, text.encode())
    config = trial_config(plan.base, plan.values(best.index))
    accuracy, half_width = (100 * value for value in best.accuracy(best.steps))
    heading = (
        f"# Trial {best.index} of {len(rows)} of leokit search, the best on meta-val: "
        f"{accuracy:.2f} ± {half_width:.2f} % on the episodes that chose it.\n# leokit meta-train --config takes it.\n"
    )
    values = {"preset": config.preset, **identity(config)}
    manifest.write_atomically(plan.folder / BEST, (heading + to_toml(values)).encode())
    title = f"{method_name(config.variant)}, {config.ways}-way {config.shots}-shot: {len(rows)} trials"
    draw_search(plan.folder / PICTURE, title, *_drawn(plan, rows, best))


def _types(plan: _Plan, row: dict[str, Any]) -> dict[str, str]:
    """The Arrow types of the columns of trials; of a drawn option by its values."""
    types = {"trial": "int64", "status": "string", "best_step": "int64", "steps": "int64", "failure": "string"}
    types |= {"val_accuracy": "double", "val_half_width": "double"}
    names = {bool: "bool", int: "int64", float: "double", str: "string"}
    for name, span in plan.space.ranges.items():
        types[name] = names[type(span.values[0])] if span.kind == "choice" else "int64" if span.whole else "double"
    return {key: types[key] for key in row}


def _drawn(plan: _Plan, rows: list[dict[str, Any]], best: Outcome) -> tuple[list[Axis], list[Line]]:
    """The picture's axes, one for each option that is drawn, and its lines, one for each trial."""
    axes = []
    for name, span in plan.space.ranges.items():
        own = rows[0][name]
        if span.kind == "choice":
            values = [*span.values, *([] if own in span.values else [own])]
            axes.append(Axis(name, tuple(values), "choice"))
        else:
            ends = [float(value) for value in (*span.values, own)]
            axes.append(
                Axis(name, (min(ends), max(ends)), "log" if span.kind == "log_uniform" and min(ends) > 0 else "linear")
            )
    lines = [
        Line(
            values={name: row[name] for name in plan.space.ranges},
            accuracy=row["val_accuracy"],
            status=row["status"],
            role="best" if row["trial"] == best.index else "preset" if row["trial"] == 0 else "",
        )
        for row in rows
    ]
    return axes, lines


def _kept(plan: _Plan, index: int) -> list[str]:
    """The files of a trial that stay, by their names in the search's folder."""
    folder = plan.trial(index)
    return [
        (folder / name).relative_to(plan.folder).as_posix() for name in (OUTCOME, WEIGHTS) if (folder / name).exists()
    ]


def _tidy(plan: _Plan, best: Outcome) -> None:
    """Delete what only the search itself needed: states, weights of other trials, and its own copy of the rows."""
    for index in range(plan.config.trials):
        forget_state(plan.trial(index))
        if index not in (0, best.index):
            (plan.trial(index) / WEIGHTS).unlink(missing_ok=True)
    shutil.rmtree(plan.folder / _ROWS, ignore_errors=True)
