"""`leokit verify`: whether artifacts are whole, make sense, and were made from what is there now."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from leokit import manifest
from leokit.config import MetaTrainConfig, VerifyConfig, read_toml
from leokit.errors import ArtifactError, LeokitError
from leokit.features import FAILURES, store_faults
from leokit.images.scan import escape
from leokit.manifest import MANIFEST, UNFINISHED, Manifest
from leokit.metrics import percentiles
from leokit.splits import SPLITS_FILE, read_listing
from leokit.tables import read_table

Progress = Callable[[int, int, str], None]
Check = Callable[[Path, Manifest, Collection[str], Callable[[str], None]], Iterable[str]]

_SHOWN = 3  # files that a note names


@dataclass(frozen=True)
class Verdict:
    """What was found about an artifact.

    Attributes:
        folder: where it lies.
        schema: kind and version; None where the manifest cannot be read.
        id: of the artifact.
        files: how many files were checked.
        faults: what is wrong, each beginning with the file.
        notes: what is not wrong but worth knowing.
    """

    folder: Path
    schema: str | None
    id: str | None
    files: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def run(config: VerifyConfig, *, on_progress: Progress | None = None) -> list[Verdict]:
    """Check artifacts: every byte by its hash, then what is in the files, then what they were made from.

    Args:
        config: which artifacts.
        on_progress: called with files checked, files in all and the name of the last one; a file of features counts
            twice, for its hash and for its rows.
    """
    opened = [_open(folder) for folder in config.paths]
    total, done = sum(_steps(found) for found in opened), 0

    def step(name: str) -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, total, name)

    return [
        _verify(folder, found, step)
        if isinstance(found, Manifest)
        else Verdict(folder, None, None, 0, (str(found),), ())
        for folder, found in zip(config.paths, opened, strict=True)
    ]


def _open(folder: Path) -> Manifest | ArtifactError:
    try:
        return manifest.read(folder)
    except ArtifactError as error:
        return error
    except OSError as error:
        return ArtifactError(f"{folder / MANIFEST} cannot be read: {error.strerror}.")


def _steps(found: Manifest | ArtifactError) -> int:
    if isinstance(found, ArtifactError):
        return 0
    rows = found.schema in _CHECKS and _CHECKS[found.schema] is _features_faults
    return len(found.files) + rows * sum(name != FAILURES for name in found.files)


def _verify(folder: Path, found: Manifest, step: Callable[[str], None]) -> Verdict:
    faults, notes = [], []
    if not manifest.is_verbatim(folder):
        faults.append(f"{MANIFEST}: was altered (no value, but its bytes are not as they were written)")
    damaged = manifest.file_faults(folder, found, step)
    for name, fault in damaged.items():
        if not found.files[name].in_id and not (folder / name).exists():
            notes.append(f"{name} is missing; it is no part of the result")
        else:
            faults.append(f"{name}: {fault}")
    check = _CHECKS.get(found.schema)
    if check is None:
        notes.append(f"beyond hashes and inputs there is no check for the kind {found.schema!r}")
    else:
        faults += _guarded(check, folder, found, damaged.keys(), step)
    for wrong, text in _chain(found, "", {found.id}):
        (faults if wrong else notes).append(text)
    strays = _strays(folder, found)
    if strays:
        shown = ", ".join(strays[:_SHOWN]) + (", …" if len(strays) > _SHOWN else "")
        notes.append(f"{len(strays)} files in its folder are not of it: {shown}")
    return Verdict(
        folder,
        found.schema,
        found.id,
        len(found.files),
        tuple(f"{folder}/{fault}" for fault in faults),
        tuple(f"{folder}: {note}" for note in notes),
    )


def _guarded(
    check: Check, folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]
) -> list[str]:
    """The faults that a check finds; one more where the manifest lacks what the check goes by."""
    faults = []
    try:
        for fault in check(folder, found, damaged, step):
            faults.append(fault)
    except (LeokitError, OSError, KeyError, TypeError, ValueError) as error:
        faults.append(f"{MANIFEST}: is not that of a {found.schema} ({type(error).__name__}: {error})")
    return faults


def _chain(found: Manifest, trail: str, seen: set[str]) -> Iterator[tuple[bool, str]]:
    """What has become of the inputs, and of theirs: whether it is wrong, and what to say."""
    for role, entry in found.inputs.items():
        name = f"{trail}{role}"
        state, there = manifest.look_up(role, entry)
        if state == "missing":
            yield False, f"its input {name} ({entry.id[:12]}) is not at {entry.path}, seen from here: not compared"
        elif state == "changed":
            now = f"has the id {there.id[:12]}" if there else "is unfinished or damaged"
            yield True, f"{MANIFEST}: its input {name} was {entry.id[:12]}, but {entry.path} {now} now"
        elif there is not None and there.id not in seen:
            seen.add(there.id)
            yield from _chain(there, f"{name} → ", seen)


def _strays(folder: Path, found: Manifest) -> list[str]:
    known = {*found.files, MANIFEST, UNFINISHED}
    names = (escape(os.fsencode(path.relative_to(folder))) for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name not in known)


def _features_faults(
    folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]
) -> Iterable[str]:
    return store_faults(folder, found, damaged=damaged, on_file=step)


def _run_faults(folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]) -> Iterator[str]:
    """What is wrong with the contents of a run."""
    from leokit import runs  # torch, which checking features does without

    config = runs.config_of(found)
    if runs.WEIGHTS not in damaged:
        yield from _weights_faults(folder / runs.WEIGHTS, found.facts, config)
    yield from _training_faults(folder, found, damaged, "meta-train")


def _training_faults(folder: Path, found: Manifest, damaged: Collection[str], table: str) -> Iterator[str]:
    """What is wrong with what a training leaves beside its weights: state, metrics and configuration."""
    from leokit import runs

    if runs.STATE in found.files and runs.STATE not in damaged:
        try:
            runs.load_state(folder / runs.STATE)
        except (LeokitError, KeyError, ValueError) as error:
            yield f"{runs.STATE}: cannot be read ({error})"
    if runs.METRICS in found.files and runs.METRICS not in damaged:
        yield from (f"{runs.METRICS}: {fault}" for fault in _metrics_faults(folder / runs.METRICS))
    if runs.CONFIG in found.files and runs.CONFIG not in damaged:
        given = {key: value for key, value in found.config.items() if value is not None}
        if given.pop(runs.CLASSES, None):
            given[runs.SKIP] = True
        changes = manifest.differences(given, read_toml(folder / runs.CONFIG, table))
        if changes:
            yield f"{runs.CONFIG}: is not the configuration of the manifest ({'; '.join(changes)})"


def _weights_faults(path: Path, facts: Mapping[str, Any], config: MetaTrainConfig) -> Iterator[str]:
    dim: int = facts["dim"]
    import torch

    from leokit.leo.learners import make_learner
    from leokit.runs import CENTRE

    fitting = make_learner(config, dim).initial(getattr(torch, config.dtype))
    if facts.get("centred", config.centring):
        fitting[CENTRE] = torch.zeros(dim)
    yield from _tensor_faults(path, fitting, f"{dim} features and the configuration")


def _tensor_faults(path: Path, fitting: Mapping[str, Any], what: str) -> Iterator[str]:
    """What is wrong with tensors on disk: names or shapes that are not those of `fitting`, values that are no numbers.

    Args:
        path: of the file.
        fitting: tensors of the right names and shapes.
        what: asks for these shapes, in words.
    """
    from leokit.runs import load_parameters

    try:
        tensors = load_parameters(path)
    except LeokitError as error:
        yield f"{path.name}: {error}"
        return
    for name in sorted({*tensors, *fitting}):
        if name not in tensors or name not in fitting:
            yield f"{path.name}: {name} is {'missing' if name in fitting else 'nothing that the variant learns'}"
        elif tensors[name].shape != fitting[name].shape:
            shapes = f"{tuple(tensors[name].shape)} instead of {tuple(fitting[name].shape)}"
            yield f"{path.name}: {name} has the shape {shapes}, which {what} ask for"
        elif not tensors[name].isfinite().all():
            yield f"{path.name}: {name} has values that are not finite"


def _metrics_faults(path: Path) -> Iterator[str]:
    steps = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            steps.append((number, int(json.loads(line)["step"])))
        except (ValueError, KeyError, TypeError):
            yield f"line {number} is no JSON object with a step"
    for (_, before), (number, after) in pairwise(steps):
        if after < before:
            yield f"line {number} goes back from step {before} to {after}"


def _eval_faults(folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]) -> Iterator[str]:
    """What is wrong with the contents of an evaluation: its rows must give its summary."""
    if damaged:
        return
    summary = json.loads((folder / "summary.json").read_bytes())
    table = read_table(folder / "episodes.parquet")
    methods = np.array(table.column("method").to_pylist())
    episodes, accuracies = table.column("episode").to_numpy(), table.column("accuracy").to_numpy()
    told = summary["accuracy"]
    for method in sorted({*methods.tolist(), *told}):
        rows = methods == method
        if method not in told or not np.array_equal(np.sort(episodes[rows]), np.arange(summary["episodes"])):
            yield (
                f"episodes.parquet: {method!r} has {int(rows.sum())} rows, which are not the {summary['episodes']} "
                "episodes of the summary"
            )
        elif not ((accuracies[rows] >= 0) & (accuracies[rows] <= 1)).all():
            yield f"episodes.parquet: {method!r} has accuracies that are not from 0 to 1"
        elif not np.isclose(accuracies[rows].mean(), told[method]["mean"], rtol=1e-9, atol=0):
            mean = float(accuracies[rows].mean())
            yield f"summary.json: the accuracy of {method!r} is {told[method]['mean']}, but its episodes give {mean}"


def _analysis_faults(
    folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]
) -> Iterator[str]:
    """What is wrong with the contents of an analysis: its rows must give the percentiles of its summary."""
    if damaged:
        return
    runs = json.loads((folder / "summary.json").read_bytes())["runs"]
    for name, value, part, by in (
        ("eigenvalues.parquet", "eigenvalue", "curvature", ("point", "space")),
        ("steps.parquet", "length", "steps", ("loop", "space")),
        ("singular_values.parquet", "singular_value", "singular_values", ()),
    ):
        if name not in found.files:
            continue
        table = read_table(folder / name)
        values = table.column(value).to_numpy()
        keys, places = np.unique(
            np.stack([np.array(table.column(key).to_pylist()) for key in ("run", *by)], 1), axis=0, return_inverse=True
        )
        for number, (run, *path) in enumerate(keys.tolist()):
            told = runs[run][part]
            for key in path:
                told = told[key]
            for box, expected in percentiles(values[places.reshape(-1) == number]).items():
                if not np.isclose(told[box], expected, rtol=1e-6, atol=0):
                    where = " ".join([run, part, *path])
                    yield f"summary.json: the {box} of {where} is {told[box]}, but {name} gives {expected}"


def _demo_faults(folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]) -> Iterator[str]:
    """What is wrong with a tree of images: its folders must be the classes of its list."""
    images = [name for name in found.files if name != SPLITS_FILE]
    folders = {name.rpartition("/")[0] for name in images}
    if SPLITS_FILE not in damaged:
        listed = {name for names in read_listing(None, folder).classes.values() for name in names}
        for name in sorted(listed ^ folders):
            state = "has images, but is not listed" if name in folders else "is listed, but has no image"
            yield f"{SPLITS_FILE}: the class {name!r} {state}"
    for what, there in (("classes", len(folders)), ("images", len(images))):
        if found.facts[what] != there:
            yield f"{MANIFEST}: says {found.facts[what]} {what}, but there are {there}"


def _backbone_faults(
    folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]
) -> Iterator[str]:
    """What is wrong with the contents of a backbone: weights that its model does not take, or that are not finite."""
    from leokit.backbones import load_pretrained, pretrained  # torch and timm, which checking features does without
    from leokit.runs import load_parameters

    if pretrained.WEIGHTS in damaged:
        return
    for name, value in load_parameters(folder / pretrained.WEIGHTS).items():
        if not value.isfinite().all():
            yield f"{pretrained.WEIGHTS}: {name} has values that are not finite"
    if not damaged:
        dim = load_pretrained(folder).dim
        if dim != found.facts["dim"]:
            yield f"{MANIFEST}: says {found.facts['dim']} features, and the backbone gives {dim}"


def _classifier_faults(
    folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]
) -> Iterator[str]:
    """What is wrong with the contents of a classifier: what meta-val said of it must follow from its arrays."""
    from leokit.classifiers import WEIGHTS, open_classifier

    if damaged:
        return
    classifier, _ = open_classifier(folder)
    if not classifier.weights.isfinite().all():
        yield f"{WEIGHTS}: weights has values that are not finite"
    evidence = classifier.evidence
    if evidence is None:
        return
    if len(evidence.conformal) != evidence.episodes:
        yield f"{WEIGHTS}: {len(evidence.conformal)} conformal scores, but {evidence.episodes} episodes"
    for name in ("conformal", "inside", "outside"):
        if (np.diff(getattr(evidence, name)) < 0).any():
            yield f"{WEIGHTS}: {name} does not rise"


def _regression_faults(
    folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]
) -> Iterator[str]:
    """What is wrong with the contents of a regression model."""
    from leokit import runs
    from leokit.leo.regression import initial_tensors

    if runs.WEIGHTS not in damaged:
        yield from _tensor_faults(folder / runs.WEIGHTS, initial_tensors(0, inner_lr=1.0), "its networks")
    yield from _training_faults(folder, found, damaged, "regress-train")


def _regression_eval_faults(
    folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]
) -> Iterator[str]:
    """What is wrong with the contents of an evaluation of regression: its rows must give its summary."""
    if damaged:
        return
    summary = json.loads((folder / "summary.json").read_bytes())
    table = read_table(folder / "tasks.parquet")
    drawn = np.array(table.column("chosen").to_pylist()) == "drawn"
    predictives = np.array(table.column("predictive").to_pylist())
    for predictive, told in summary["predictives"].items():
        rows = drawn & (predictives == predictive)
        if int(rows.sum()) != summary["tasks"]:
            yield f"tasks.parquet: {predictive!r} has {int(rows.sum())} rows instead of {summary['tasks']}"
            continue
        means = {name: told[name]["mean"] for name in summary["metrics"]}
        means |= {f"inside_{level}": entry["mean"] for level, entry in told["coverage"].items()}
        for name, mean in means.items():
            given = float(table.column(name).to_numpy()[rows].mean())
            if not np.isclose(given, mean, rtol=1e-9, atol=1e-12):
                yield f"summary.json: {name} of {predictive!r} is {mean}, but its tasks give {given}"


def _regression_plot_faults(
    folder: Path, found: Manifest, damaged: Collection[str], step: Callable[[str], None]
) -> Iterator[str]:
    """What is wrong with the data of a figure of functions: each panel's samples must be there."""
    if damaged:
        return
    panels = json.loads((folder / "panels.json").read_bytes())
    table = read_table(folder / "functions.parquet")
    tasks, samples = table.column("task").to_numpy(), table.column("sample").to_numpy()
    for panel in panels:
        there = len(np.unique(samples[tasks == panel["task"]]))
        if there != panel["samples"]:
            yield f"functions.parquet: task {panel['task']} has {there} samples instead of {panel['samples']}"


_CHECKS: dict[str, Check] = {
    "leokit/backbone@1": _backbone_faults,
    "leokit/features@1": _features_faults,
    "leokit/run@1": _run_faults,
    "leokit/eval@1": _eval_faults,
    "leokit/analysis@1": _analysis_faults,
    "leokit/classifier@1": _classifier_faults,
    "leokit/demo@1": _demo_faults,
    "leokit/regression@1": _regression_faults,
    "leokit/regression-plot@1": _regression_plot_faults,
    "leokit/regression-eval@1": _regression_eval_faults,
}
