"""Accuracies of evaluations: the best of each setting, all of them in a plot and a table, and paired differences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leokit import manifest
from leokit.evaluations import (
    Evaluation,
    Group,
    group_by_seed,
    method_in_words,
    open_evaluation,
    protocol_in_words,
    seen_in_words,
    setting_in_words,
    trained_in_words,
)
from leokit.metrics import mean_interval, paired_difference
from leokit.report.collecting import Collection
from leokit.report.model import Block, Cell, Dot, DotPlot, DotPlots, Highlight, Note, Section, Table, Text
from leokit.report.sources import seen_note
from leokit.report.words import NOTHING, count, interval, number, numbers, plural, texts

_WARNING = "Warning"  # how `trained_in_words` begins where a result is none
_FEW = 6  # settings whose best results stand at the top
_SPREADS = (
    "The interval covers the sampling of episodes on these classes, and nothing else; sd over seeds is the standard "
    "deviation of the runs' means, which says how far training again would move them."
)


@dataclass(frozen=True)
class _Result:
    """A method on the episodes of a setting; accuracies as shares.

    Attributes:
        method: its name, with what tells it from others of the setting.
        values: of each episode, over the seeds, (episodes,).
        entry: mean, half_width_95_over_episodes and, of a run, sd_over_seeds.
        differences: of a run, to the other methods on the same episodes, by their names.
        seeds: each seed with its mean; none for a method that knows no seed.
        sound: whether it was tested on classes that it was not trained on.
        run: id of the run of the lowest seed; None of a method that is not trained.
    """

    method: str
    values: NDArray[np.float64]
    entry: dict[str, Any]
    differences: dict[str, dict[str, Any]]
    seeds: dict[int, float]
    sound: bool
    run: str | None = None

    @property
    def mean(self) -> float:
        return float(self.entry["mean"])

    @property
    def half_width(self) -> float:
        return float(self.entry["half_width_95_over_episodes"])


@dataclass(frozen=True)
class _Setting:
    """Evaluations on the same episodes of the same features, and what they found, the best first."""

    label: str
    summary: dict[str, Any]  # of one of them, which holds for all but for its run and results
    results: tuple[_Result, ...]


@dataclass(frozen=True)
class Accuracies:
    """What the evaluations of a work folder have to say.

    Attributes:
        highlights: the best method of each setting.
        notes: what must be known to read them.
        sections: all accuracies.
        best_runs: id of the best run of each setting.
    """

    highlights: tuple[Highlight, ...]
    notes: tuple[Note, ...]
    sections: tuple[Section, ...]
    best_runs: frozenset[str]


def accuracies(evaluations: Sequence[Evaluation]) -> Accuracies:
    """Highlights, what must be known to read them, and the section of all accuracies; empty without evaluations."""
    if not evaluations:
        return Accuracies((), (), (), frozenset())
    settings = _settings(group_by_seed(evaluations))
    tested = [setting for setting in settings if setting.summary["split"] == "test"] or settings
    notes = [seen_note(entry.summary["classes_seen"], seen_in_words(entry.summary)) for entry in evaluations]
    trained = list(dict.fromkeys(filter(None, (trained_in_words(entry.summary) for entry in evaluations))))
    notes += [Note("warning", words) for words in trained if words.startswith(_WARNING)]
    blocks: list[Block] = [DotPlots([_plot(setting) for setting in settings]), _table(settings), Text(_SPREADS)]
    blocks += [table] if (table := _differences(settings)) else []
    blocks += [Text(words) for words in trained if not words.startswith(_WARNING)]
    blocks += [Text(words) for words in dict.fromkeys(protocol_in_words(setting.summary) for setting in settings)]
    return Accuracies(
        tuple(highlight for setting in tested[:_FEW] for highlight in _highlight(setting)),
        tuple(dict.fromkeys(notes)),
        (Section("accuracy", "Accuracy", blocks),),
        frozenset(best for setting in tested for best in [result.run for result in setting.results if result.run][:1]),
    )


def open_evaluations(found: Collection) -> list[Evaluation]:
    """The evaluations that are whole, and whose numbers can be read."""
    opened = []
    for artifact in found.of("eval"):
        with found.guarded(artifact):
            entry = open_evaluation(artifact.folder)
            _check(entry)
            opened.append(entry)
    return opened


def _check(entry: Evaluation) -> None:
    """Use all that is needed of an evaluation, so that a strange one raises here."""
    if not all(isinstance(entry.summary[key], int) for key in ("ways", "shots", "episodes", "classes")):
        raise ValueError("ways, shots, episodes or classes that are no whole number")
    Group((entry,)).summary()
    for words in (protocol_in_words, seen_in_words, trained_in_words):
        words(entry.summary)
    if not all(np.isfinite(values).all() and len(values) > 1 for values in entry.accuracies().values()):
        raise ValueError("accuracies that are no numbers")


def _settings(groups: Iterable[Group]) -> list[_Setting]:
    """Groups by the episodes that they were tested on; test classes first, then by ways and shots."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(manifest.canonical_json(_episodes(group)), []).append(group)
    found = sorted(alike.values(), key=lambda members: _order(members[0].first.summary))
    return [
        _Setting(label, members[0].first.summary, tuple(_results(members)))
        for label, members in zip(_labels(found), found, strict=True)
    ]


def _episodes(group: Group) -> dict[str, Any]:
    """What decides on which episodes, of which features, a group was tested."""
    entry = group.first
    config = {key: value for key, value in entry.manifest.config.items() if key != "methods"}
    return config | {"features": entry.manifest.inputs["features"].id[:12]}


def _order(summary: dict[str, Any]) -> tuple[bool, int, int]:
    return summary["split"] != "test", summary["ways"], summary["shots"]


def _labels(settings: Sequence[Sequence[Group]]) -> list[str]:
    """The name of each setting: ways and shots, and what else tells it from another."""
    names, protocols = [], [_episodes(members[0]) for members in settings]
    for members in settings:
        summary = members[0].first.summary
        split = "" if summary["split"] == "test" else f", {summary['split']} classes"
        names.append(setting_in_words(summary) + split)
    labels = []
    for name, protocol in zip(names, protocols, strict=True):
        twins = [other for label, other in zip(names, protocols, strict=True) if label == name]
        differing = [key for key in protocol if any(other[key] != protocol[key] for other in twins)]
        labels.append(", ".join([name, *(f"{key} {protocol[key]}" for key in differing)]))
    return labels


def _results(members: Sequence[Group]) -> list[_Result]:
    """The methods of a setting, the best first: each group's own, and the others, which are the same beside each."""
    names = [_name(group) for group in members]
    results: dict[str, _Result] = {}
    for group, name in zip(members, names, strict=True):
        own, summary = group.first.variant, group.summary()
        runs = [entry.accuracies()[own] for entry in group.evaluations]
        label = name if names.count(name) == 1 else f"{name} ({group.first.folder.name})"
        results[label] = _Result(
            method=label,
            values=np.mean(runs, axis=0),
            entry=summary["accuracy"][own],
            differences={key.removeprefix(f"{own} - "): value for key, value in summary["difference"].items()},
            seeds={seed: float(values.mean()) for seed, values in zip(group.seeds, runs, strict=True)},
            sound=not any(trained_in_words(entry.summary).startswith(_WARNING) for entry in group.evaluations),
            run=group.first.manifest.inputs["run"].id,
        )
    for group in members:
        for name, values in group.first.accuracies().items():
            if name != group.first.variant and name not in results:
                entry = mean_interval(values)
                plain = {"mean": entry.mean, "half_width_95_over_episodes": entry.half_width}
                results[name] = _Result(name, values, plain, {}, {}, sound=True)
    return sorted(results.values(), key=lambda result: -result.mean)


def _name(group: Group) -> str:
    """A run's method, and for how many ways and shots it was trained where it was not these."""
    trained = group.first.summary["run"]
    other = setting_in_words(trained) != setting_in_words(group.first.summary)
    return method_in_words(trained) + (f", trained {setting_in_words(trained)}" if other else "")


def _highlight(setting: _Setting) -> list[Highlight]:
    """The best method of a setting, of those that were not trained on its classes."""
    sound = [result for result in setting.results if result.sound]
    if not sound:
        return []
    best, summary = sound[0], setting.summary
    details = [_seeds_in_words(best)] if best.seeds else ["no meta-training"]
    if len(sound) > 1:
        lead = paired_difference(best.values, sound[1].values)
        ahead = interval(lead.mean, lead.half_width, scale=100, sign=True)
        close = ": a lead within its interval" if lead.mean <= lead.half_width else ""
        details.append(f"{ahead.text} {ahead.note} over {sound[1].method}, the next best, on the same episodes{close}")
    details.append(f"{summary['episodes']:,} episodes of {summary['classes']} {summary['split']} classes")
    return [Highlight(setting.label, 100 * best.mean, 100 * best.half_width, best.method, details)]


def _seeds_in_words(result: _Result) -> str:
    if len(result.seeds) == 1:
        return f"one run, seed {next(iter(result.seeds))}"
    spread = number(result.entry["sd_over_seeds"], scale=100).text
    return f"mean of {plural(len(result.seeds), 'seed')}, sd over seeds {spread}"


def _plot(setting: _Setting) -> DotPlot:
    dots = [
        Dot(
            result.method,
            100 * result.mean,
            100 * result.half_width,
            tuple(100 * mean for mean in result.seeds.values()) if len(result.seeds) > 1 else (),
            bool(result.seeds),
        )
        for result in setting.results
    ]
    return DotPlot(setting.label, dots)


def _table(settings: Sequence[_Setting]) -> Table:
    rows = [
        [
            Cell(result.method),
            Cell(setting.label),
            interval(result.mean, result.half_width, scale=100),
            number(result.entry.get("sd_over_seeds"), scale=100),
            count(len(result.seeds) or None),
        ]
        for setting in settings
        for result in setting.results
    ]
    columns = [*texts("method", "setting"), *numbers("accuracy", "sd over seeds", "seeds")]
    return Table("Accuracy in %, ± the 95 % interval over episodes", columns, rows)


def _differences(settings: Sequence[_Setting]) -> Table | None:
    """Each run's difference to each other method, both on the same episodes; None where there is none."""
    others = dict.fromkeys(name for setting in settings for result in setting.results for name in result.differences)
    if not others:
        return None
    rows = []
    for setting in settings:
        for result in setting.results:
            if result.differences:
                cells = [_difference(result.differences.get(name)) for name in others]
                rows.append([Cell(result.method), Cell(setting.label), *cells])
    columns = [*texts("method", "setting"), *numbers(*(f"− {name}" for name in others))]
    caption = "Paired differences on the same episodes in percentage points, ± the 95 % interval over episodes"
    return Table(caption, columns, rows)


def _difference(entry: dict[str, Any] | None) -> Cell:
    if entry is None:
        return Cell(NOTHING)
    return interval(entry["mean"], entry["half_width_95_over_episodes"], scale=100, sign=True)
