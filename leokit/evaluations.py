"""Finished evaluations on disk, and groups of those whose runs differ in nothing but the seed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leokit import manifest
from leokit.errors import ArtifactError
from leokit.metrics import Interval, interval_over_seeds, mean_interval, paired_difference
from leokit.tables import read_table
from leokit.text import method_name

SCHEMA = "leokit/eval@1"
EPISODES = "episodes.parquet"
SUMMARY = "summary.json"


@dataclass(frozen=True, repr=False)
class Evaluation(manifest.Artifact):
    """A finished evaluation, with the facts `run_config` (what the run was trained with) and `run_features` (id).

    Attributes:
        summary: mean accuracies, paired differences, and what they are of; plain data.
    """

    summary: dict[str, Any]

    @property
    def variant(self) -> str:
        """The run's variant: the name of its own method among the accuracies."""
        return str(self.manifest.facts["run_config"]["variant"])

    @property
    def seed(self) -> int:
        """The seed that the run was trained with."""
        return int(self.manifest.facts["run_config"]["seed"])

    @property
    def meta_trained_on(self) -> list[str]:
        """The splits that the run was trained on."""
        return list(self.summary["run"]["meta_trained_on"])

    def accuracies(self) -> dict[str, NDArray[np.float64]]:
        """The accuracy of each method on each episode, (episodes,); the run's own method comes first."""
        table = read_table(self.folder / EPISODES)
        methods, values = np.asarray(table["method"].to_pylist()), table["accuracy"].to_numpy()
        return {name: values[methods == name] for name in self.summary["accuracy"]}


def open_evaluation(folder: Path) -> Evaluation:
    """Open a finished evaluation, after checking its files.

    Raises:
        ArtifactError: no evaluation there, unfinished, or altered.
    """
    found = manifest.read(folder, SCHEMA)
    manifest.check_files(folder, found)
    if "run_config" not in found.facts:
        raise ArtifactError(f"{folder} was made by an older leokit: make it again with `leokit eval --overwrite`.")
    summary = manifest.read_json(folder, found, SUMMARY)
    fault = _summary_fault(summary) or _run_config_fault(found.facts["run_config"])
    if fault:
        raise ArtifactError(
            f"{folder / SUMMARY} is not that of an evaluation ({fault}): make it again with --overwrite."
        )
    return Evaluation(folder, found, summary)


_SUMMARY: Mapping[str, type | tuple[type, ...]] = {
    "ways": int,
    "shots": int,
    "queries": (int, str),
    "episodes": int,
    "split": str,
    "accuracy": dict,
    "run": dict,
    "classes": int,
}


def _summary_fault(summary: Any) -> str | None:
    """What a summary lacks of what is read from it, or None."""
    if not isinstance(summary, dict):
        return "no JSON object"
    wrong = [key for key, kind in _SUMMARY.items() if not isinstance(summary.get(key), kind)]
    if not wrong and not isinstance(summary["run"].get("meta_trained_on"), list):
        wrong = ["run.meta_trained_on"]
    return f"{wrong[0]!r} is missing or of another kind" if wrong else None


def _run_config_fault(config: Any) -> str | None:
    kinds = {"variant": str, "seed": int}
    if isinstance(config, dict) and all(isinstance(config.get(key), kind) for key, kind in kinds.items()):
        return None
    return "the run's configuration has no variant or seed"


@dataclass(frozen=True)
class Group:
    """Evaluations on the same episodes of runs that differ in nothing but the seed; one for each seed, in its order."""

    evaluations: tuple[Evaluation, ...]

    @property
    def first(self) -> Evaluation:
        """The evaluation of the lowest seed; what holds for all of the group can be read from it."""
        return self.evaluations[0]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return [entry.seed for entry in self.evaluations]

    def summary(self) -> dict[str, Any]:
        """Means over the seeds, as plain data.

        Each `half_width_95_over_episodes` is of the 95 % interval of the episodes' means over the seeds, which are on
        the same episodes; `sd_over_seeds` is the sample standard deviation of the seeds' means, None for one seed.
        Other methods know no seed: they are the same beside each run.
        """
        own = self.first.variant
        accuracies = self.first.accuracies()
        runs = np.stack([entry.accuracies()[own] for entry in self.evaluations])  # (S, episodes)
        mean = interval_over_seeds(runs)
        others = {name: values for name, values in accuracies.items() if name != own}
        setting = {key: self.first.summary[key] for key in ("ways", "shots", "queries", "episodes", "split")}
        return {
            **setting,
            "variant": own,
            "meta_trained_on": self.first.meta_trained_on,
            "seeds": self.seeds,
            "evaluations": [str(entry.folder) for entry in self.evaluations],
            "accuracy": {
                own: _plain(Interval(mean.mean, mean.half_width)) | {"sd_over_seeds": mean.sd},
                **{name: _plain(mean_interval(values)) for name, values in others.items()},
            },
            "difference": {
                f"{own} - {name}": _plain(paired_difference(runs.mean(0), values)) for name, values in others.items()
            },
        }


def _plain(interval: Interval) -> dict[str, float | None]:
    return {"mean": interval.mean, "half_width_95_over_episodes": interval.half_width}


def group_by_seed(evaluations: Iterable[Evaluation]) -> list[Group]:
    """Evaluations in groups whose runs differ in nothing but the seed, in the order of their first members.

    An evaluation that is given twice counts once. A run that is another's equal, seed included, yet has another id (it
    was trained on another machine) starts a group of its own: seeds of a group are distinct.
    """
    groups: dict[str, list[dict[int, Evaluation]]] = {}
    for entry in {entry.id: entry for entry in evaluations}.values():
        members = groups.setdefault(_key(entry), [])
        room = next((group for group in members if entry.seed not in group), None)
        if room is None:
            members.append({entry.seed: entry})
        else:
            room[entry.seed] = entry
    return [Group(tuple(group[seed] for seed in sorted(group))) for members in groups.values() for group in members]


def _key(entry: Evaluation) -> str:
    """What evaluations of a group have in common, as text."""
    facts = entry.manifest.facts
    trained = {key: value for key, value in facts["run_config"].items() if key != "seed"}
    if "val" in entry.meta_trained_on:
        trained.pop("steps", None)  # those that the run of the same seed without val was best at
    features = [entry.manifest.inputs["features"].id, facts["run_features"]]
    return manifest.canonical_json([entry.manifest.config, features, trained])


def setting_in_words(summary: Mapping[str, Any]) -> str:
    """Ways and shots of an evaluation or a group, as `5-way 1-shot`."""
    return f"{summary['ways']}-way {summary['shots']}-shot"


def method_in_words(run: Mapping[str, Any]) -> str:
    """The variant of a run, and what it was trained on where that is not the train split alone.

    Args:
        run: the entry `run` of an evaluation's summary, or the summary of a group.
    """
    splits = run["meta_trained_on"]
    name = method_name(str(run["variant"]))
    return name if splits == ["train"] else f"{name}, {'+'.join(splits)}"


def protocol_in_words(summary: Mapping[str, Any]) -> str:
    """What episodes an evaluation is of, and what its interval covers, as a sentence for the user."""
    known = {"all": "all other images of a class", "rest600": f"{600 - summary['shots']} images of a class"}
    queries = known.get(summary["queries"], f"{summary['queries']} images of a class")
    return (
        f"{setting_in_words(summary)}: {summary['episodes']} episodes of {summary['classes']} {summary['split']} "
        f"classes, {queries} as queries; the interval covers the sampling of episodes on these classes."
    )


def seen_in_words(summary: dict[str, Any]) -> str:
    """Whether the backbone has seen the classes of the test, as a sentence for the user."""
    return seen_sentence(summary["trained_on"], summary["classes_seen"], summary["classes"], summary["split"])


def seen_sentence(trained_on: str | list[str], seen: int | None, total: int, split: str) -> str:
    """The same from its parts: what the backbone was trained on, and how many of the classes of a split it has seen."""
    data = trained_on if isinstance(trained_on, str) else f"{len(trained_on)} classes"
    if seen is None:
        reason = "what it was trained on is not known" if data == "unknown" else "the class names are no ImageNet ids"
        reason = "web images carry no class list" if data == "web" else reason
        return (
            f"Whether the backbone (trained on {data}) has seen these {total} {split} classes cannot be told: {reason}."
        )
    if seen == 0:
        return f"The backbone (trained on {data}) has seen 0 of the {total} {split} classes."
    return (
        f"The backbone (trained on {data}) has seen {seen} of the {total} {split} classes: "
        "accuracy on them is higher than on classes that it has not seen, and not comparable with the paper's."
    )


def trained_in_words(summary: dict[str, Any]) -> str:
    """A warning where a run is tested on classes that it was trained on, else which further ones it had, else ''."""
    splits, tested = summary["run"]["meta_trained_on"], summary["split"]
    name = method_name(summary["run"]["variant"])
    if tested in splits and summary["run"].get("on_its_own_features", True):
        return f"Warning: {name} was trained on the {tested} classes that it is tested on here: no few-shot result."
    return f"{name} was trained on {'+'.join(splits)}: no weights were selected on val." if len(splits) > 1 else ""


_FEW_SPARE = 5  # classes, below which a result on images of other classes is one on these very classes


def spare_in_words(what: str, spare: int | None, split: str) -> str:
    """That something rests on few classes beyond those of an episode; nothing where they are more, or not known."""
    if spare is None or spare > _FEW_SPARE:
        return ""
    return f"{what} on {spare} spare {split} class{'es'[: 2 * (spare != 1)]} in an episode: others may differ."


def gain_in_words(facts: Mapping[str, Any]) -> str:
    """That a run gained nothing over class means on the meta-val episodes that selected it, or nothing certain.

    Args:
        facts: of the run; those of earlier versions have no gain.

    Returns:
        A sentence; an empty one of a run that gained, and where nothing was measured.
    """
    gain, untrained = facts.get("gain"), facts.get("val_accuracy") is not None and facts.get("best_step") == 0
    if facts.get("best_is_fallback"):
        return "Training gained nothing over class means on meta-val; this run is the class means."
    weights = "; this run has its weights from before the first step" if untrained else ""
    if gain is not None and gain <= 0:
        return f"Training gained nothing over class means on meta-val{weights}."
    if weights:
        return f"Training gained nothing on meta-val{weights}."
    if gain is not None and gain <= facts["gain_half_width"]:
        return "What training gained over class means on meta-val is within its 95 % interval."
    return ""
