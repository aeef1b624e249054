"""The stages as functions, with the options of the command line as keyword arguments.

Names, types, limits and defaults of the options are those of the configuration classes in `leokit.config`, which
`leokit COMMAND --help` prints, with underscores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from leokit.config import EvalConfig, ExtractConfig, MetaTrainConfig, build, with_preset
from leokit.evaluations import Evaluation
from leokit.features import FeatureStore
from leokit.runs import Run

Progress = Callable[[int, int, str], None]


def extract(images: str | Path, *, on_progress: Progress | None = None, **options: Any) -> FeatureStore:
    """Embed the images of a tree by a backbone: `leokit extract`.

    Args:
        images: a folder with a folder for each class.
        on_progress: called with images done, images wanted, and a line on how it goes.
        options: fields of `leokit.config.ExtractConfig`, as `image_size=84` or `work="leokit-work"`.

    Returns:
        The feature store; the same call on finished features returns them.

    Raises:
        UsageError: an unknown option, backbone or device, or a value out of range.
        DataError: no images, splits that do not go with them, or too many unreadable images.
        ArtifactError: weights that do not fit, or another result at the same place.

    Example:
        >>> features = extract(images, splits="random:4/3/3", workers=0, work=new_work, **tiny_backbone)
        >>> len(features.classes("train"))
        4
    """
    from leokit.stages import extract as stage

    return stage.run(build(ExtractConfig, {"images": Path(images), **options}), on_progress=on_progress)


def meta_train(preset: str | None = None, *, on_progress: Progress | None = None, **options: Any) -> Run:
    """Meta-train LEO on features: `leokit meta-train`.

    Args:
        preset: `own-images`, `miniimagenet-1shot`, `miniimagenet-5shot`, `tieredimagenet-1shot` or
            `tieredimagenet-5shot` (default: the miniImageNet one nearest to the shots).
        on_progress: called with steps done, steps wanted, and a line on how it goes.
        options: fields of `leokit.config.MetaTrainConfig`, which rank before the preset, as `shots=5, steps=2000`.

    Returns:
        The run with its best weights; the same call on a finished run returns it.

    Raises:
        UsageError: an unknown option or preset, a value out of range, or `seeds` that are several, for which there is
            `meta_train_seeds`.
        DataError: too few classes or images.
        ArtifactError: no features, or another result at the same place.

    Example:
        >>> run = meta_train("own-images", steps=2, val_episodes=10, val_queries=4, queries=4, work=work)
        >>> run.folder.name
        'anchored-5way-1shot'
    """
    from leokit.stages import meta_train as stage

    values, _ = with_preset({**options, **({} if preset is None else {"preset": preset})})
    return stage.run(build(MetaTrainConfig, values), on_progress=on_progress)


def meta_train_seeds(
    seeds: int, preset: str | None = None, *, on_progress: Progress | None = None, **options: Any
) -> list[Run]:
    """Meta-train a run for each of several seeds, several at a time: `leokit meta-train --seeds`.

    Args:
        seeds: how many, from the option `seed` on.
        preset: as for `meta_train`.
        on_progress: called with the steps done by all of them, those wanted, and a line on how it goes.
        options: as for `meta_train`, `parallel` and `jobs` among them.

    Returns:
        The runs in the order of their seeds; each is found where it is finished.

    Raises:
        UsageError, DataError, ArtifactError: as `meta_train`.
        Diverged: one of the runs has; raised after the others have ended.
        LeokitError: a process that trained one was ended from outside.

    Example:
        >>> options = {"steps": 2, "val_episodes": 10, "val_queries": 4, "queries": 4, "work": work}
        >>> [run.folder.name for run in meta_train_seeds(2, "own-images", parallel="batched", **options)]
        ['anchored-5way-1shot', 'anchored-5way-1shot-seed1']
    """
    from leokit.stages import meta_train as stage

    values, _ = with_preset({**options, "seeds": seeds, **({} if preset is None else {"preset": preset})})
    return stage.run_seeds(build(MetaTrainConfig, values), on_progress=on_progress)


def evaluate(run: str | Path | Run | None = None, *, on_progress: Progress | None = None, **options: Any) -> Evaluation:
    """Test a run on episodes of new classes: `leokit eval`.

    Args:
        run: its folder, or the run itself (default: as `leokit eval` finds it).
        on_progress: called with episodes done, episodes wanted, and the method.
        options: fields of `leokit.config.EvalConfig`, as `shots=1, episodes=2000`.

    Returns:
        The evaluation: `summary["accuracy"]` by method, `accuracies()` by episode.

    Raises:
        UsageError: an unknown option, or a value out of range.
        DataError: too few classes or images.
        ArtifactError: no run or features, or they do not fit together.

    Example:
        >>> found = evaluate(shots=1, episodes=20, queries="5", work=work)
        >>> sorted(found.summary["accuracy"])
        ['class-mean', 'leo']
        >>> found.accuracies()["leo"].shape
        (20,)
    """
    from leokit.stages import evaluate as stage

    named = {} if run is None else {"run": run.folder if isinstance(run, Run) else Path(run)}
    return stage.run(build(EvalConfig, {**named, **options}), on_progress=on_progress)
