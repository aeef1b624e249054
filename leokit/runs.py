"""A meta-training run on disk: its weights, and the state from which training goes on.

`weights.safetensors` holds the best parameters; `last/state.safetensors` holds in one file, replaced atomically,
everything that the next step depends on.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from leokit import manifest
from leokit.config import MetaTrainConfig, build, identity
from leokit.errors import ArtifactError, UsageError
from leokit.features import FeatureStore

SCHEMA = "leokit/run@1"
WEIGHTS = "weights.safetensors"
STATE = "last/state.safetensors"
METRICS = "metrics.jsonl"
CURVES = "curves.png"
EVENTS = "tensorboard"
CONFIG = "config.toml"
CENTRE = "centre"  # a tensor among the weights


@dataclass(frozen=True)
class Run(manifest.Artifact):
    """A finished run: how it was trained and its best parameters, by name.

    Its facts are width and backbone of the features, and when the best weights were found.
    """

    config: MetaTrainConfig
    parameters: dict[str, Tensor]
    centre: Tensor | None  # (D,): what features are centred on, where the run was trained on centred ones


def open_run(folder: Path) -> Run:
    """Open a finished run, after checking its files.

    Raises:
        ArtifactError: no run there, unfinished, or altered.
    """
    found = manifest.read(folder, SCHEMA)
    manifest.check_files(folder, found)
    parameters = load_parameters(folder / WEIGHTS)
    centre = parameters.pop(CENTRE, None)
    return Run(folder, found, build(MetaTrainConfig, found.config), parameters, centre)


def check_same_backbone(run: Run, store: FeatureStore) -> None:
    """Check that features come from the backbone that the run was trained on.

    Raises:
        ArtifactError: naming both ids and what differs.
    """
    ours = {"dim": run.facts["dim"], "backbone": run.facts["backbone"]}
    theirs = {"dim": store.dim, "backbone": store.facts["backbone"]}
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


def check_ways(run: Run, ways: int) -> None:
    """Check that a run can be used for episodes of so many classes: with a learned start only for as many as it has.

    Raises:
        UsageError: it cannot.
    """
    if run.config.variant == "meta-sgd" and ways != run.config.ways:
        raise UsageError(f"--ways {ways}: {run.folder} is a meta-sgd run, tested at its own {run.config.ways} only.")


# What two runs may differ in where one takes its number of steps from the other: it moves no best step, or by chance.
_NOT_COMPARED = {"steps", "patience", "train_on_val", "val_every", "val_episodes", "val_queries"}
_NOT_COMPARED |= {"seed", "dtype", "on_nan"}


def steps_of_best(run: Run, config: MetaTrainConfig) -> int:
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


def save_parameters(path: Path, parameters: dict[str, Tensor]) -> None:
    """Write parameters as safetensors, atomically."""
    manifest.write_atomically(path, save_tensors(_plain(parameters)))


def load_parameters(path: Path) -> dict[str, Tensor]:
    """Read parameters that `save_parameters` wrote, by name, on the CPU.

    Raises:
        ArtifactError: the file is damaged.
    """
    return _read(path)[0]


def save_state(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write tensors and plain data as one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_atomically(path, save_tensors(_plain(tensors), metadata={"record": json.dumps(record)}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote.

    Raises:
        ArtifactError: the file is damaged.
    """
    tensors, metadata = _read(path)
    return tensors, json.loads(metadata["record"])


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_tensors(path.read_bytes()), metadata
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is damaged or missing ({error}): make it again with --no-resume --overwrite."
        ) from error
