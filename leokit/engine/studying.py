"""What meta-val says about methods at a number of classes and shots, and which of them it would choose.

Episodes are those that `leokit uncertainty` calibrates on, not those that selected the run. Nothing is taken from
meta-test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leokit import calibration, randomness
from leokit.calibration import Floats
from leokit.checks import LEO
from leokit.classifiers import Evidence, Withheld
from leokit.engine import cache
from leokit.engine.members import baseline_member, run_member
from leokit.engine.predictives import Member, Predicted, predict_episodes, scores
from leokit.episodes import EpisodeSampler, FeatureMatrix, types_of
from leokit.evaluations import seen_sentence
from leokit.features import FeatureStore
from leokit.metrics import Interval, mean_interval, paired_difference
from leokit.runs import Run
from leokit.splits import classes_seen

QUERIES = 15  # of each class, where it has as many
MOST_SHOTS = 20  # of a class: beyond, methods and their scores hardly change, and episodes take long
_ARRAYS = ("conformal", "inside", "outside")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Setting:
    """The episodes of a study.

    Attributes:
        counts: support images of each class (N), the fewest first.
        queries: Q.
    """

    counts: tuple[int, ...]
    queries: int

    @property
    def ways(self) -> int:
        """N."""
        return len(self.counts)

    @property
    def shots(self) -> int:
        """K, of the class that has most."""
        return self.counts[-1]

    def in_words(self) -> str:
        """Such as `5-way 1-shot`, or `5-way 1-to-15-shot`."""
        fewest = "" if self.counts[0] == self.shots else f"{self.counts[0]}-to-"
        return f"{self.ways}-way {fewest}{self.shots}-shot"


def setting(counts: Sequence[int], val_counts: Sequence[int]) -> Setting:
    """The episodes of meta-val that are most like a support set, of at most `MOST_SHOTS` images of a class.

    Classes with different numbers of images have them in the episodes too; where meta-val has fewer classes, they have
    evenly spaced ones of the numbers in their order.

    Args:
        counts: different support images of each class of it.
        val_counts: images of each class of meta-val.
    """
    fewest, ordered = min(val_counts), sorted(counts)
    ways = min(len(counts), len(val_counts))
    places = np.linspace(0, len(ordered) - 1, ways).round().astype(int)
    chosen = tuple(max(1, min(ordered[place], MOST_SHOTS, fewest - 1)) for place in places)
    return Setting(chosen, max(1, min(QUERIES, fewest - chosen[-1])))


def withheld(run: Run, store_facts: Mapping[str, Any], classes: Mapping[str, Sequence[str]], ways: int) -> Withheld:
    """What cannot be said from meta-val, and why.

    Args:
        run: the run.
        store_facts: of its features.
        classes: of val and test.
        ways: classes that a classifier is asked for.
    """
    val = len(classes["val"])
    if "val" in run.facts["meta_trained_on"]:
        return Withheld(*repeat("the run was trained on val, so there are no classes that are new to it", 3))
    seen = {split: classes_seen(store_facts["trained_on"], names) for split, names in classes.items()}
    if seen["val"] and any(count != len(classes[split]) for split, count in seen.items()):
        reason = f"the backbone has seen {seen['val']} of the {val} val classes, which are therefore unlike new ones"
        return Withheld(*repeat(reason, 3))
    few = f"meta-val has {val} classes, and {ways} are to be told apart"
    return Withheld(
        unknown=f"{few}, which leaves none to be unknown" if val <= ways else None,
        sets=few if val < ways else None,
    )


def remark(trained_on: Any, val: Sequence[str]) -> str:
    """A sentence on meta-val classes that the backbone has seen, or may have; else nothing.

    Args:
        trained_on: of the backbone, see `leokit.splits.classes_seen`.
        val: the classes.
    """
    seen = classes_seen(trained_on, val)
    return "" if seen == 0 else f" {seen_sentence(trained_on, seen, len(val), 'meta-val')}"


@dataclass(frozen=True)
class Study:
    """What meta-val says of several methods, on the same episodes.

    Attributes:
        evidence: by method.
        accuracies: by method, of each episode (E,).
    """

    evidence: dict[str, Evidence]
    accuracies: dict[str, Floats]

    def best(self) -> str:
        """The method of the highest mean accuracy; of equal ones the first."""
        return max(self.evidence, key=lambda name: self.evidence[name].accuracy)

    def difference(self, name: str, other: str) -> Interval:
        """The paired difference of two methods, with its 95 % interval over episodes."""
        return paired_difference(self.accuracies[name], self.accuracies[other])


def study(
    run: Run,
    open_store: Callable[[], FeatureStore],
    methods: Sequence[str],
    found: Setting,
    *,
    samples: int,
    episodes: int,
    seed: int,
    device: torch.device,
    workers: int,
    folder: Path,
    on_progress: Progress | None = None,
) -> Study:
    """Look at methods on episodes of meta-val; a result that is in the cache is taken from there.

    Args:
        run: whose own method is `leo`.
        open_store: opens the features that it was trained on; not called where all is in the cache.
        methods: of `leokit.engine.fitting.METHODS`.
        found: the episodes.
        samples: of codes and weights, for `leo`.
        episodes: how many (E).
        seed: of the draws.
        device: of the computation.
        workers: threads.
        folder: of the cache.
        on_progress: called with episodes done and wanted, of all methods, and the method.
    """
    done: dict[str, tuple[Evidence, Floats]] = {}
    matrix: FeatureMatrix | None = None
    for number, name in enumerate(methods):
        own = {"run": run.id, "samples": samples} if name == LEO else {"types": list(map(str, types_of(run.config)))}
        key = ["study", name, own, run.manifest.inputs["features"].id, vars(found), episodes, seed, device.type]
        there = _in_cache(folder, key)
        if there is None:
            if matrix is None:
                dtype, held = types_of(run.config)
                matrix = FeatureMatrix(open_store().load("val"), device=device, dtype=dtype, held=held)
            member = run_member(run, matrix, samples=samples) if name == LEO else baseline_member(name, matrix)
            report = _part(on_progress, number, len(methods), name)
            kept = _look(member, matrix, found, episodes, seed, workers, report)
            cache.keep(folder, key, *kept)
            there = _restored(*kept)
        done[name] = there
    return Study({name: value[0] for name, value in done.items()}, {name: value[1] for name, value in done.items()})


def _part(on_progress: Progress | None, number: int, parts: int, name: str) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(number * total + done, parts * total, f"{name} on meta-val")


def _look(
    member: Member,
    matrix: FeatureMatrix,
    found: Setting,
    episodes: int,
    seed: int,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Floats], dict[str, Any]]:
    """The arrays and plain values of what is found of a method."""
    sampler = EpisodeSampler(matrix.offsets, ways=found.ways, seed=seed, purpose="calibration")
    chosen, by_name = predict_episodes(
        {"": [member]},
        sampler,
        shots=found.shots,
        counts=found.counts,
        queries=found.queries,
        episodes=episodes,
        outside=len(matrix.classes) > found.ways,
        workers=workers,
        on_progress=on_progress,
    )
    predicted, labels = by_name[""], chosen.labels
    values = predicted.inside.probabilities
    accuracies = (values.argmax(-1) == labels).mean(1)
    mean = mean_interval(accuracies)
    temperature = calibration.fit_temperature(values.reshape(-1, found.ways), np.tile(labels, episodes))
    # Queries of an episode share its support set: one of each is exchangeable with one of a further episode.
    picks = randomness.generator(seed, "conformal").integers(len(labels), size=episodes)
    conformal = calibration.conformal_scores(values[np.arange(episodes), picks], labels[picks])
    score, auroc, inside, outside = _separation(predicted, parted=member.samples > 1)
    arrays = {"accuracies": accuracies, "conformal": np.sort(conformal), "inside": inside, "outside": outside}
    plain = {
        **{key: getattr(found, key) for key in ("ways", "shots", "queries")},
        "episodes": episodes,
        "accuracy": mean.mean,
        "half_width": mean.half_width,
        "temperature": temperature,
        "score": score,
        "auroc": auroc,
    }
    return arrays, plain


def _separation(predicted: Predicted, *, parted: bool) -> tuple[str | None, float | None, Floats, Floats]:
    """The score that tells own queries from others best, its AUROC, and its values of both, rising."""
    none = np.empty(0)
    if not predicted.outside.highest.size:
        return None, None, none, none
    ours, theirs = (scores(side, parted=parted) for side in predicted)
    areas = {name: calibration.auroc(ours[name].ravel(), theirs[name].ravel()) for name in ours}
    best = max(areas, key=lambda name: areas[name])
    return best, areas[best], np.sort(ours[best], None), np.sort(theirs[best], None)


def _in_cache(folder: Path, key: Any) -> tuple[Evidence, Floats] | None:
    kept = cache.look_up(folder, key)
    try:
        return _restored(*kept) if kept else None
    except (KeyError, TypeError, ValueError):
        return None


def _restored(arrays: dict[str, Floats], plain: dict[str, Any]) -> tuple[Evidence, Floats]:
    values: dict[str, Any] = plain | {name: arrays[name] for name in _ARRAYS}
    evidence = Evidence(**values)
    if arrays["accuracies"].shape != (evidence.episodes,):
        raise ValueError("accuracies of other episodes")
    return evidence, arrays["accuracies"]
