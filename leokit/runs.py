"""A meta-training run on disk: its weights, and the state from which training goes on.

`weights.safetensors` holds the best parameters; `last/state.safetensors` holds in one file, replaced atomically,
everything that the next step depends on.

What a run's manifest says is read without torch, which takes seconds to import.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from leokit import manifest
from leokit.config import MetaTrainConfig, build, identity, run_name
from leokit.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "leokit/run@1"
WEIGHTS = "weights.safetensors"
STATE = "last/state.safetensors"
METRICS = "metrics.jsonl"
CURVES = "curves.png"
EVENTS = "tensorboard"
CONFIG = "config.toml"
CENTRE = "centre"  # a tensor among the weights
CLASSES, SKIP = (
    "used_classes",
    "skip_small_classes",
)  # in a recorded configuration: those used, where small ones were not

Packed: TypeAlias = "tuple[dict[str, Tensor], dict[str, Any]]"  # a state as tensors and plain data
_SHOWN = 5  # runs that a message names
_LENGTH = 8  # bytes at the start of a safetensors file, which say how long its header is
_ANEW = "make it again with --no-resume --overwrite"


@dataclass(frozen=True, repr=False)
class RecordedRun(manifest.Artifact):
    """A finished run as its manifest describes it.

    Its facts are width and backbone of the features, and when the best weights were found.
    """

    config: MetaTrainConfig


@dataclass(frozen=True, repr=False)
class Run(RecordedRun):
    """A finished run with its best parameters, by name."""

    parameters: "dict[str, Tensor]"
    centre: "Tensor | None"  # (D,): what features are centred on, where the run was trained on centred ones


def only_run(work: Path, given: Path | None, preferred: Path | None = None, *, how: str = "by --run") -> Path:
    """The run that is meant: the one named, else the only finished one of the work folder.

    Args:
        work: the work folder.
        given: the run that the user names.
        preferred: the run that is taken where there are several, this one among them.
        how: a run is named, for messages.

    Raises:
        ArtifactError: there is none.
        UsageError: there are several.
    """
    if given is not None:
        return given
    runs = sorted(path.parent for path in (work / "runs").glob(f"*/{manifest.MANIFEST}"))
    if not runs:  # of one that was begun `read_run` tells how to finish it
        runs = sorted(path.parent.parent for path in (work / "runs").glob(f"*/{STATE}"))
    if not runs:
        raise ArtifactError(f"There is no run in {work / 'runs'}: run `leokit meta-train` first, or name one {how}.")
    if len(runs) == 1:
        return runs[0]
    if preferred is not None and preferred in runs:
        return preferred
    names = ", ".join(path.name for path in runs[:_SHOWN]) + ", …" * (len(runs) > _SHOWN)
    raise UsageError(f"There are {len(runs)} runs in {work / 'runs'} ({names}): name one {how}.")


def default_run(work: Path, ways: int | None, shots: int | None) -> Path:
    """Where a run of variant `leo`, seed 0 and these ways and shots, else 5 and 1, goes by default."""
    return work / "runs" / run_name(MetaTrainConfig(ways=ways or 5, shots=shots or 1))


def read_run(folder: Path) -> RecordedRun:
    """A finished run as its manifest describes it; its files are not looked at.

    Raises:
        ArtifactError: no run there, or unfinished.
    """
    _require_finished(folder)
    found = manifest.read(folder, SCHEMA)
    return RecordedRun(folder, found, config_of(found))


def open_run(folder: Path) -> Run:
    """Open a finished run, after checking its files.

    Raises:
        ArtifactError: no run there, unfinished, altered, or its weights are not those of its configuration.
    """
    recorded = read_run(folder)
    found, config = recorded.manifest, recorded.config
    manifest.check_files(folder, found)
    parameters = load_parameters(folder / WEIGHTS)
    faults = weight_faults(parameters, config, found.facts)
    if faults:
        raise ArtifactError(
            f"{folder / WEIGHTS} does not fit the run's configuration: {faults[0]}. Make it again with --overwrite."
        )
    centre = parameters.pop(CENTRE, None)
    return Run(folder, found, config, parameters, centre)


def config_of(found: manifest.Manifest) -> MetaTrainConfig:
    """The configuration that a run's manifest records.

    Raises:
        UsageError: an unknown key, or a value out of its range.
    """
    return build(MetaTrainConfig, {key: value for key, value in found.config.items() if key != CLASSES})


def _require_finished(folder: Path) -> None:
    """Refuse a run that was begun, with the way to finish it early.

    Raises:
        ArtifactError: it is unfinished.
    """
    if (folder / manifest.MANIFEST).exists() or not (folder / STATE).exists():
        return
    step = kept_step(folder)
    ends = f"; with --steps {step} it ends there, with the best weights so far" * bool(step)
    raise ArtifactError(
        f"{folder} is unfinished, at step {step}: the command that began it, run again, goes on from there{ends}."
    )


def kept_step(folder: Path) -> int:
    """The step of the last kept state of a run; 0 where there is none. The tensors of the state are not read.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return 0
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            step = json.loads(json.loads(file.read(length))["__metadata__"]["record"])["step"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({_line(error)}): {_ANEW}.") from error
    if type(step) is not int or step < 0:
        raise ArtifactError(f"{path} is no state of this training (step is {step!r:.60}): {_ANEW}.")
    return step


def weight_faults(parameters: "Mapping[str, Tensor]", config: MetaTrainConfig, facts: Mapping[str, Any]) -> list[str]:
    """In what the weights of a run are not those that its configuration and the width of its features ask for.

    Raises:
        ArtifactError: the facts do not say how wide the features are.
    """
    dim = facts["dim"]
    if not isinstance(dim, int) or dim < 1:
        raise ArtifactError(
            f"A run on features of width {dim!r} cannot be: it was altered, make it again with --overwrite."
        )
    import torch

    from leokit.leo.learners import make_learner

    latents, count = config.num_latents, sum(value.numel() for value in parameters.values())
    needed = 2 * config.ways * dim if config.variant == "meta-sgd" else 3 * dim * latents + 12 * latents**2
    if not needed <= count:  # before there is room for as many
        return [f"{count} weights instead of the {needed} or more of {dim} features and {latents} latents"]
    dtype = getattr(torch, config.dtype)
    expected = make_learner(config, dim).initial(dtype)
    if facts.get("centred", config.centring):
        expected[CENTRE] = torch.zeros(dim, dtype=dtype)
    finite = (f"{name} has values that are not finite" for name in parameters if not parameters[name].isfinite().all())
    return [*tensor_faults(parameters, expected), *finite]


def check_same_backbone(run: RecordedRun, store: manifest.Artifact) -> None:
    """Check that features come from the backbone that the run was trained on.

    Raises:
        ArtifactError: naming both ids and what differs.
    """
    ours = {"dim": run.facts["dim"], "backbone": run.facts["backbone"]}
    theirs = {"dim": store.facts["dim"], "backbone": store.facts["backbone"]}
    if ours["backbone"] is None and run.manifest.inputs["features"].id != store.id:
        raise ArtifactError(
            f"The run {run.folder} was trained on features whose backbone is not recorded: it can be tested on those "
            f"features only ({run.manifest.inputs['features'].id[:12]}), not on {store.folder} ({store.id[:12]})."
        )
    changes = manifest.differences(ours, theirs)
    if changes:
        raise ArtifactError(
            f"The features {store.folder} ({store.id[:12]}) come from another backbone than those of the run "
            f"{run.folder} ({run.id[:12]}): {'; '.join(changes)}. Extract with the run's backbone, or train on these."
        )


def check_ways(run: RecordedRun, ways: int) -> None:
    """Check that a run can be used for episodes of so many classes: with a learned start only for as many as it has.

    Raises:
        UsageError: it cannot.
    """
    if run.config.variant == "meta-sgd" and ways != run.config.ways:
        raise UsageError(f"--ways {ways}: {run.folder} is a meta-sgd run, tested at its own {run.config.ways} only.")


# What two runs may differ in where one takes its number of steps from the other: it moves no best step, or by chance.
_NOT_COMPARED = {"steps", "patience", "train_on_val", "val_every", "val_episodes", "val_queries"}
_NOT_COMPARED |= {"seed", "dtype", "on_nan"}


def steps_of_best(run: RecordedRun, config: MetaTrainConfig) -> int:
    """How many steps a run had taken when it was best on meta-val, for another one with the same hyper-parameters.

    Args:
        run: the earlier run.
        config: of the run that shall take as many.

    Raises:
        ArtifactError: the hyper-parameters differ, or selection on meta-val chose no step of training.
    """
    ours, theirs = (_hyper_parameters(each) for each in (config, run.config))
    changes = manifest.differences(theirs, ours)
    if changes:
        raise ArtifactError(
            f"--steps-from {run.folder} ({run.id[:12]}): that run was trained with other options than this one shall "
            f"be ({'; '.join(changes)}), so its best step says nothing here. Name a run with the same, or give --steps."
        )
    if "val" in run.facts["meta_trained_on"]:
        raise ArtifactError(
            f"--steps-from {run.folder} ({run.id[:12]}): that run was trained on val, so no step of it was selected. "
            "Name one that was trained on train alone."
        )
    if run.facts["best_is_fallback"] or not run.facts["best_step"]:
        best = "the class means" if run.facts["best_is_fallback"] else "its weights before the first step"
        raise ArtifactError(
            f"--steps-from {run.folder} ({run.id[:12]}): the best of that run on meta-val were {best} (best step 0), "
            "so it has no number of steps to take over. Train it longer or with other options, or give --steps."
        )
    return int(run.facts["best_step"])


def _hyper_parameters(config: MetaTrainConfig) -> dict[str, Any]:
    return {key: value for key, value in identity(config).items() if key not in _NOT_COMPARED}


def save_parameters(path: Path, parameters: "dict[str, Tensor]") -> None:
    """Write parameters as safetensors, atomically."""
    from safetensors.torch import save as save_tensors

    manifest.write_atomically(path, save_tensors(_plain(parameters)))


def load_parameters(path: Path) -> "dict[str, Tensor]":
    """Read parameters that `save_parameters` wrote, by name, on the CPU.

    Raises:
        ArtifactError: the file is damaged.
    """
    return _read(path)[0]


def save_state(path: Path, tensors: "dict[str, Tensor]", record: dict[str, Any]) -> None:
    """Write tensors and plain data as one safetensors file, atomically."""
    from safetensors.torch import save as save_tensors

    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_atomically(path, save_tensors(_plain(tensors), metadata={"record": json.dumps(record)}))


def load_state(path: Path, like: "Packed | None" = None) -> Packed:
    """Read what `save_state` wrote.

    Args:
        path: of the file.
        like: a state of the same training, at any step; what is read must have its names, shapes and types.

    Raises:
        ArtifactError: the file is damaged, or not like that.
    """
    tensors, metadata = _read(path)
    try:
        record = json.loads(metadata["record"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} has no record of a state ({error!r}): {_ANEW}.") from error
    if not isinstance(record, dict):
        raise ArtifactError(f"{path} has no record of a state: {_ANEW}.")
    if like is not None:
        require_like(path, (tensors, record), like)
    return tensors, record


def require_like(path: Path, found: Packed, like: Packed) -> None:
    """Check that what `load_state` has read from a file has the names, shapes and types of another state.

    Raises:
        ArtifactError: it has not.
    """
    faults = tensor_faults(found[0], like[0]) + _record_faults(found[1], like[1])
    if faults:
        raise ArtifactError(f"{path} is no state of this training ({faults[0]}): {_ANEW}.")


def tensor_faults(found: "Mapping[str, Tensor]", expected: "Mapping[str, Tensor]") -> list[str]:
    """In what names, shapes and types of tensors differ from those expected."""
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} is one too many" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(found.keys() & expected.keys()):
        value, wanted = found[name], expected[name]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            shapes = f"{tuple(value.shape)} {value.dtype} instead of {tuple(wanted.shape)} {wanted.dtype}"
            faults.append(f"{name} is {shapes.replace('torch.', '')}")
    return faults


def _record_faults(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} is {found.get(key)!r:.60}"
        for key, value in expected.items()
        if type(found.get(key)) is not type(value) or (isinstance(value, list) and len(found[key]) != len(value))
    ]


@contextmanager
def fitting_state(path: Path) -> Iterator[None]:
    """Where a state is put to use; whatever it lacks for that is said.

    Raises:
        ArtifactError: in place of what a state of another form raises.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ArtifactError(f"{path} is no state of this training ({_line(error)}): {_ANEW}.") from error


def _plain(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _read(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    if not path.is_file():
        raise ArtifactError(f"{path} is missing: {_ANEW}.")
    try:
        data = path.read_bytes()  # not by its path, of which safetensors takes UTF-8 alone
        tensors = load_tensors(data)
        header = json.loads(data[_LENGTH : _LENGTH + int.from_bytes(data[:_LENGTH], "little")])
        return tensors, header.get("__metadata__") or {}
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:  # KeyError: a type torch has not
        raise ArtifactError(f"{path} is damaged ({_line(error)}): {_ANEW}.") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
