"""The folder of a run, from its beginning to its manifest."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leokit import manifest
from leokit.config import MetaTrainConfig, fixed_steps, identity, run_name, to_toml
from leokit.engine import training
from leokit.engine.averaging import Ranks
from leokit.engine.events import clear_events, event_files, event_writer
from leokit.engine.logbook import cut_back, logged
from leokit.engine.state import State, new_state, pack, unpack
from leokit.figures.curves import curves_in_words, draw_curves
from leokit.runs import (
    CENTRE,
    CLASSES,
    CONFIG,
    CURVES,
    EVENTS,
    METRICS,
    SCHEMA,
    SKIP,
    STATE,
    WEIGHTS,
    fitting_state,
    kept_step,
    load_state,
    save_parameters,
    save_state,
)
from leokit.stages.meta_train.sources import Sources
from leokit.text import method_name


def default_out(config: MetaTrainConfig) -> Path:
    """Where the run goes: `--out`, else its place under the work folder."""
    return config.out or config.work / "runs" / run_name(config)


class RunFolder:
    """The folder of a run, from its beginning to its manifest.

    Attributes:
        config: of the run.
        path: of the folder.
        log: what is closed before the manifest is written.
    """

    def __init__(self, config: MetaTrainConfig) -> None:
        self.config = config
        self.path = default_out(config)
        self.log = ExitStack()

    def begin(self, sources: Sources) -> bool:
        """Make the folder ready, which is locked; whether all is done already."""
        config, folder = self.config, self.path
        goes_on, identified = _goes_on(folder, resume=config.resume), _identified(config, sources)
        if manifest.begin(
            folder, SCHEMA, identified, sources.inputs, overwrite=config.overwrite, reopen=goes_on, keep=True
        ):
            return True
        if not config.resume:
            _forget(folder)
        values = identity(config) | ({SKIP: True} if sources.classes else {})
        (folder / CONFIG).write_text(to_toml(values), encoding="utf-8")
        return False

    def start(self, dim: int, device: torch.device, ranks: Ranks) -> State:
        """The state to go on from: the last one kept, else a new one; the metrics are cut back to it.

        Raises:
            ArtifactError: the state that was kept is damaged, or of another training.
        """
        path, fresh = self.path / STATE, new_state(self.config, dim, device)
        kept = ranks.job.from_first(load_state(path, like=pack(fresh)) if ranks.first and path.exists() else None)
        if kept is None:
            if ranks.first:
                for name in (METRICS, CURVES):
                    (self.path / name).unlink(missing_ok=True)
                clear_events(self.path / EVENTS)
            return fresh
        with fitting_state(path):
            state = unpack(*kept, self.config, device)
        if ranks.first:
            cut_back(self.path / METRICS, lambda line: _belongs(line, state.step, self.config.val_every))
        return state

    @property
    def kept_step(self) -> int:
        """The step of the last kept state; 0 where there is none."""
        return kept_step(self.path)

    def course(self, state: State, ranks: Ranks, finished: Callable[[], None]) -> training.Course:
        """The run on its way; rank 0 alone writes."""
        if not ranks.first:
            return training.Course(self.config, state, lambda _: None, lambda _: None, finished)
        report = self.log.enter_context(_log(self.config, self.path))
        return training.Course(
            self.config,
            state,
            keep=lambda current: save_state(self.path / STATE, *pack(current)),
            report=report,
            finished=finished,
        )

    def finish(
        self,
        state: State,
        sources: Sources,
        *,
        gain: training.Gain | None,
        centre: Tensor | None,
        info: Mapping[str, Any],
    ) -> None:
        """Write the weights and the manifest."""
        self.log.close()
        centred = {CENTRE: centre} if centre is not None and state.best_is_centred else {}
        save_parameters(self.path / WEIGHTS, state.best | centred)
        manifest.finish(
            self.path,
            SCHEMA,
            _identified(self.config, sources),
            sources.inputs,
            results=[WEIGHTS],
            extras=[CONFIG, METRICS, STATE, CURVES, *_events(self.path)],
            facts=_facts(self.config, sources.facts, state, gain),
            info=info,
        )


def _identified(config: MetaTrainConfig, sources: Sources) -> dict[str, Any]:
    """The configuration that the run's id is made from, with the classes that are used where small ones are not."""
    return identity(config) | ({CLASSES: sources.classes} if sources.classes else {})


def _goes_on(folder: Path, *, resume: bool) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """For `manifest.begin`: a run goes on where only the steps and the patience differ.

    No fewer steps than were done can be wanted, and no less patience than it had: it might have ended earlier.
    """
    done = kept_step(folder) if resume else 0

    def reopen(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
        longer = {key: wanted["config"][key] for key in ("steps", "patience")}
        same = {**found, "config": {**found["config"], **longer}} == wanted
        longer_or_equal = longer["steps"] >= done and _patience(found) <= _patience(wanted)
        return resume and same and found != wanted and longer_or_equal

    return reopen


def _patience(intent: dict[str, Any]) -> float:
    patience: int | None = intent["config"].get("patience")
    return math.inf if patience is None else patience


def _forget(folder: Path) -> None:
    shutil.rmtree((folder / STATE).parent, ignore_errors=True)
    (folder / METRICS).unlink(missing_ok=True)


def _belongs(line: Mapping[str, Any], step: int, val_every: int) -> bool:
    """Whether a line of metrics is one that a run without interruption has up to `step`."""
    extra = "val_accuracy" in line and line["step"] % val_every  # the last validation of a shorter run
    return line["step"] <= step and not extra


@contextmanager
def _log(config: MetaTrainConfig, folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Take lines of metrics: into metrics.jsonl, TensorBoard where asked, and the picture, now and then and at the end.

    What is there goes on: `RunFolder.start` has cut it back to the state that training goes on from.
    """
    path = folder / METRICS
    lines = cut_back(path, lambda line: True)
    title = f"{method_name(config.variant)}, {config.ways}-way {config.shots}-shot, seed {config.seed}"
    draw = partial(draw_curves, folder / CURVES, title=title, ways=config.ways)
    events = event_writer(folder / EVENTS, lines) if config.tensorboard else nullcontext(lambda line: None)
    with logged(path, lines, draw) as report, events as add_events:

        def take(line: Mapping[str, Any]) -> None:
            report(line)
            add_events(line)

        yield take


def _events(folder: Path) -> list[str]:
    """The run's event files, by their names in its folder."""
    return [path.relative_to(folder).as_posix() for path in event_files(folder / EVENTS)]


def _facts(config: MetaTrainConfig, source: dict[str, Any], state: State, gain: training.Gain | None) -> dict[str, Any]:
    """What later stages check; a run that was trained on val has no accuracy on it, its best step is its last."""
    measured = not config.train_on_val
    facts = {
        **source,
        "steps": state.step,
        "stopped_early": state.step < fixed_steps(config),
        "best_step": state.best_step,
        "best_is_fallback": state.best_is_fallback,
        "centred": config.centring and state.best_is_centred,
        "val_accuracy": state.best_accuracy if measured else None,
        "val_half_width": state.best_half_width if measured else None,
        "class_mean_method": gain and gain.method,
        "class_mean_accuracy": gain and gain.class_means.mean,
        "class_mean_half_width": gain and gain.class_means.half_width,
        "gain": gain and gain.gain.mean,
        "gain_half_width": gain and gain.gain.half_width,
    }
    return facts | {"figures": {CURVES: curves_in_words(identity(config), facts)}}
