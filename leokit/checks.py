"""What can be told to be wrong from options and manifests alone, before torch is imported, which takes seconds.

`check` is what the command line calls; the stages call the same functions, so that each check has one home.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leokit import distributed, manifest
from leokit.config import (
    AnalyzeConfig,
    BenchEvalConfig,
    BenchSearchConfig,
    EvalConfig,
    ExportConfig,
    ExtractConfig,
    FitConfig,
    MetaTrainConfig,
    PredictConfig,
    PretrainConfig,
    RegressEvalConfig,
    RegressPlotConfig,
    SearchConfig,
    UncertaintyConfig,
    adapts_codes,
    build,
    check_together,
    check_weights,
    fixed_steps,
    has_posterior,
    is_wide_resnet,
    nearest_preset,
    parse_share,
    read_methods,
    read_numbers,
    read_preset,
    read_space,
    require_support,
    training_splits,
)
from leokit.devices import check_device
from leokit.errors import ArtifactError, DataError, UsageError
from leokit.features import read_recorded
from leokit.images.queries import STDIN
from leokit.images.scan import ImageTree, scan
from leokit.images.support import read_support
from leokit.runs import RecordedRun, check_same_backbone, check_ways, default_run, only_run, read_run, steps_of_best
from leokit.space import Space
from leokit.splits import Splits, classes_seen, resolve, small_classes
from leokit.text import method_name

REST = 600  # images of a class that the reference's protocol uses: K for support, the rest for queries
MOST_IMAGES = 2**20 - 1  # of a class, in episodes
LEO = "leo"  # the run's own variant, among the methods of a classifier
Divided = tuple[ImageTree, Splits]
_CLASSIFIER, _REGRESSION = "leokit/classifier@1", "leokit/regression@1"
_OPTIMIZERS = ("sgd", "adamw")  # that are known without timm
_SUPPORT_OPTIONS = ("run", "support", "class_level", "features")


def check(config: Any) -> None:
    """Refuse a configuration that its stage would refuse, as far as that can be told without torch.

    Raises:
        UsageError, DataError, ArtifactError: as the stage would.
    """
    if hasattr(config, "device"):
        check_device(config.device)
    if hasattr(config, "max_failures"):
        parse_share(config.max_failures)
    of_kind = _CHECKS.get(type(config))
    if of_kind is not None:
        of_kind(config)
    if getattr(config, "backbone_run", None) is None and hasattr(config, "backbone"):
        check_backbone(config.backbone)


# Episodes


def query_count(queries: str, shots: int) -> int | None:
    """Q for `--queries`: a number, `rest600` (600 - K), or `all` (None: all other images of a class).

    Raises:
        UsageError: anything else.
    """
    if queries == "all":
        return None
    if queries == "rest600":
        if shots >= REST:
            raise UsageError(f"rest600 leaves no query for {shots} shots: use fewer than {REST}, or --queries 15.")
        return REST - shots
    if queries.isdecimal() and int(queries) >= 1:
        return int(queries)
    raise UsageError(f"--queries {queries}: it is a number from 1 up, rest600 or all.")


def require_enough(
    classes: Sequence[str],
    counts: NDArray[np.int64],
    *,
    split: str,
    ways: int,
    shots: int,
    queries: int | None,
    options: str = "--shots or --queries",
    ways_option: str = "--ways",
    leave_out: str = "leave such classes out",
) -> None:
    """Check that every episode of the given size can be made.

    Args:
        classes, counts: of the split.
        split: its name.
        ways, shots, queries: of an episode; queries None: all other images of a class.
        options, ways_option: that would make it smaller.
        leave_out: what else to do about classes with too few images.

    Raises:
        DataError: too few classes, or a class with too few images, named with its count.
    """
    if len(classes) < ways:
        advice = f"lower {ways_option}" if len(classes) > 1 else f"give the {split} split more classes"
        raise DataError(f"The {split} split has {len(classes)} classes, {ways}-way episodes need {ways}: {advice}.")
    needed = shots + (1 if queries is None else queries)
    short = [number for number, count in enumerate(counts) if count < needed]
    if short:
        first = short[0]
        others = f" ({len(short) - 1} more classes have too few)" if len(short) > 1 else ""
        options = options.removeprefix("--shots or ") if shots == 1 else options
        lower = f"lower {options}, or " * bool(counts[short].min() > 1)  # no episode is made of one image
        raise DataError(
            f"Class {classes[first]!r} of the {split} split has {counts[first]} images, but {shots} shots + "
            f"{needed - shots} queries need {needed}{others}: {lower}{leave_out}."
        )
    if max(counts) > MOST_IMAGES:
        raise DataError(f"A class has {max(counts)} images; at most {MOST_IMAGES} are supported.")


def _require(features: manifest.Artifact, split: str, **sizes: Any) -> None:
    """`require_enough` for a split of features, or several with + between them."""
    classes = {name: count for part in split.split(" + ") for name, count in _counts(features, part).items()}
    require_enough(list(classes), np.array([*classes.values()], np.int64), split=split, **sizes)


def _counts(features: manifest.Artifact, split: str) -> Mapping[str, int]:
    return _of_split(features.facts["counts"], split)


def _of_split(counts: Mapping[str, Mapping[str, int]], split: str) -> Mapping[str, int]:
    if split not in counts:
        raise DataError(f"The feature store has no split {split!r}; it has {', '.join(counts)}.")
    return counts[split]


# Runs on features


def check_eval(config: EvalConfig) -> EvalConfig:
    """The evaluation with its run, ways and shots named.

    Raises:
        UsageError, DataError, ArtifactError: no run or features, or they do not allow it.
    """
    read_methods(config.methods)
    run = read_run(only_run(config.work, config.run, default_run(config.work, config.ways, config.shots)))
    ways, shots = config.ways or run.config.ways, config.shots or run.config.shots
    features = read_recorded(config.features or config.work / "features")
    check_same_backbone(run, features)
    queries = query_count(config.queries, shots)
    check_ways(run, ways)
    _require(features, config.split, ways=ways, shots=shots, queries=queries)
    return replace(config, run=run.folder, ways=ways, shots=shots)


def _check_evals(config: EvalConfig) -> None:
    if config.runs and (config.run or (config.out and len(config.runs) > 1)):
        raise UsageError("Name runs by position or one by --run, and --out with one run only.")
    for one in [replace(config, run=run, runs=()) for run in config.runs] or [config]:
        check_eval(one)


def check_uncertainty(config: UncertaintyConfig) -> UncertaintyConfig:
    """The study with its runs, ways and shots named.

    Raises:
        UsageError, DataError, ArtifactError: no runs or features, or they do not allow it.
    """
    curve = read_numbers("--curve-shots", config.curve_shots, int, 1, 1000)
    read_numbers("--label-noise", config.label_noise, float, 0.0, 1.0)
    runs = _runs(config)
    ways, shots = config.ways or runs[0].config.ways, config.shots or runs[0].config.shots
    features = read_recorded(config.features or config.work / "features")
    for run in runs:
        check_same_backbone(run, features)
        check_ways(run, ways)
    if len({run.id for run in runs}) < len(runs):
        raise UsageError("A run is named twice: the runs of an ensemble differ, in their seed as a rule.")
    sizes = {"ways": ways, "queries": config.queries}
    if config.calibration_episodes:
        _check_val(runs, features)
        _require(features, "val", shots=shots, **sizes)
    options = "--shots, --queries or --curve-shots"
    _require(features, "test", shots=max([shots, *curve]), options=options, **sizes)
    return replace(config, runs=tuple(run.folder for run in runs), ways=ways, shots=shots)


def _runs(config: UncertaintyConfig | AnalyzeConfig) -> list[RecordedRun]:
    preferred = default_run(config.work, config.ways, config.shots)
    return [read_run(run) for run in config.runs or [only_run(config.work, None, preferred, how="by position")]]


def _check_val(runs: Sequence[RecordedRun], features: manifest.Artifact) -> None:
    """Refuse to fit anything on classes that were trained on and are therefore unlike those of the test.

    Raises:
        ArtifactError: a run was trained on val, or its backbone was, and has not seen the test classes as well.
    """
    leave = "Give --calibration-episodes 0 to measure without temperatures and prediction sets."
    for run in runs:
        if "val" in run.facts["meta_trained_on"]:
            raise ArtifactError(
                f"The run {run.folder} ({run.id[:12]}) was trained on val, so no temperature can be fitted there: "
                f"take a run on train alone. {leave}"
            )
    classes = {split: [*_counts(features, split)] for split in ("val", "test")}
    seen = {split: classes_seen(features.facts["trained_on"], names) for split, names in classes.items()}
    if seen["val"] and any(seen[split] != len(names) for split, names in classes.items()):
        raise ArtifactError(
            f"The backbone of {features.folder} has seen {seen['val']} of the val classes, but {seen['test']} of the "
            f"{len(classes['test'])} test classes: a temperature fitted on val would not be one for new classes. "
            f"{leave}"
        )


def check_analyze(config: AnalyzeConfig) -> AnalyzeConfig:
    """The analysis with its runs named.

    Raises:
        UsageError, DataError, ArtifactError: no runs or features, or they do not allow it.
    """
    runs = list({run.id: run for run in _runs(config)}.values())
    features = read_recorded(config.features or config.work / "features")
    points = []
    for run in runs:
        check_same_backbone(run, features)
        ways, shots = config.ways or run.config.ways, config.shots or run.config.shots
        check_ways(run, ways)
        if adapts_codes(run.config):
            points.append(2 * ways * config.val_episodes)
        for split in ("val", "test") if adapts_codes(run.config) else ("test",):
            _require(features, split, ways=ways, shots=shots, queries=1, options="--shots")
    if points:
        _check_codes(config, list(_counts(features, "val")), min(points))
    return replace(config, runs=tuple(run.folder for run in runs))


def _check_codes(config: AnalyzeConfig, classes: list[str], points: int) -> None:
    if config.highlight is not None and config.highlight not in classes:
        shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
        raise UsageError(f"--highlight {config.highlight}: it is no class of the val split, which has {shown}.")
    if config.perplexity >= points:
        raise UsageError(
            f"--perplexity {config.perplexity:g}: t-SNE of {points} codes ({config.val_episodes} episodes of "
            f"{points // (2 * config.val_episodes)} classes, before and after) takes less than that: lower it, or "
            "raise --val-episodes."
        )


# Training


def check_meta_train(config: MetaTrainConfig) -> MetaTrainConfig:
    """The training with its number of steps.

    Raises:
        UsageError, DataError, ArtifactError: no features, too few classes or images, or `steps_from` does not fit.
    """
    check_together(config)
    features = read_recorded(config.features or config.work / "features")
    require_training(config, features.facts["counts"])
    if config.steps_from is None:
        return replace(config, steps=fixed_steps(config))
    earlier = read_run(config.steps_from)
    check_same_backbone(earlier, features)
    if earlier.manifest.inputs["features"].id != features.id:
        raise ArtifactError(
            f"--steps-from {earlier.folder} ({earlier.id[:12]}): that run was trained on other features "
            f"({earlier.manifest.inputs['features'].id[:12]}) than {features.folder} ({features.id[:12]}), so its best "
            "step says nothing here. Name a run on these, or give --steps."
        )
    return replace(config, steps=steps_of_best(earlier, config))


def require_training(config: MetaTrainConfig, counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Check that every episode of a training can be made of classes with these numbers of images, by split.

    Returns:
        The classes that are left out for it, where small ones are skipped.

    Raises:
        DataError: too few classes or images.
    """
    parts = [(training_splits(config), config.queries, "--shots or --queries")]
    if not config.train_on_val:
        parts.append((("val",), config.val_queries, "--shots or --val-queries"))
    left_out: dict[str, dict[str, int]] = {}
    for splits, queries, options in parts:
        here = {split: _of_split(counts, split) for split in splits}
        if config.skip_small_classes:
            left_out |= small_classes(here, config.shots + queries)
        used = {
            name: count
            for split, classes in here.items()
            for name, count in classes.items()
            if name not in left_out.get(split, ())
        }
        require_enough(
            list(used),
            np.array([*used.values()], np.int64),
            split=" + ".join(splits),
            ways=config.ways,
            shots=config.shots,
            queries=queries,
            options=options,
            leave_out="leave such classes out by --skip-small-classes",
        )
    return left_out


def check_search(config: SearchConfig) -> tuple[MetaTrainConfig, Space]:
    """The options of trial 0, and what is drawn. The search's own rank before those that the space fixes.

    Raises:
        UsageError, DataError, ArtifactError: no features, too few classes or images, or options that contradict.
    """
    if config.scheduler and (config.backend != "dask" or config.jobs):
        raise UsageError(
            "--scheduler names a cluster for --backend dask, whose workers say how many trials run at a time: give it "
            "with --backend dask and without --jobs."
        )
    read_share(config)
    base, space = _resolved(config)
    features = read_recorded(config.features or config.work / "features")
    sizes = {"ways": base.ways, "shots": base.shots}
    _require(features, "train", queries=base.queries, options="--shots or queries", **sizes)
    _require(features, "val", queries=base.val_queries, options="--shots or --val-queries", **sizes)
    return base, space


def _resolved(config: SearchConfig) -> tuple[MetaTrainConfig, Space]:
    given = ("variant", "ways", "shots", "steps", "val_every", "val_episodes", "val_queries", "patience")
    own = {name: value for name in given if (value := getattr(config, name)) is not None}
    space = _space(config.space) if config.space else None
    fixed = space.fixed if space else {}
    preset = config.preset or nearest_preset(config.shots or fixed.get("shots", 1))
    values = read_preset(preset)
    if space is None:
        variant = config.variant or values.get("variant", MetaTrainConfig.variant)
        space = _space("own-images" if variant == "anchored" else "published")
    values = {**values, **space.fixed, **own, "preset": preset, "seed": config.seed, "device": config.device}
    base = build(MetaTrainConfig, values)
    base = build(MetaTrainConfig, {**values, "steps": fixed_steps(base)})
    check_together(base)
    return base, space


def _space(name: str) -> Space:
    return Space.read(read_space(name), f"--space {name}")


def read_share(config: SearchConfig) -> tuple[int, int]:
    """Number and count of `--only`, 0 of 1 where all is wanted.

    Raises:
        UsageError: it is none.
    """
    if config.only is None:
        return 0, 1
    number, _, count = config.only.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UsageError(f"--only {config.only}: it is INDEX/COUNT, with an INDEX from 0 to COUNT - 1, as 0/4.")
    if config.halving:
        raise UsageError(
            "--only with --halving: which trials go on is known only when all have come to a rung. Leave one of them "
            "out; --backend dask spreads a halving over machines."
        )
    return int(number), int(count)


# Images


def check_extract(config: ExtractConfig) -> Divided:
    """The images of an extraction, and how their classes are divided.

    Raises:
        UsageError, DataError, ArtifactError: no images, splits that do not go with them, or options that contradict.
    """
    if config.backbone_run is not None:
        for name in ("backbone", "weights"):
            if getattr(config, name) != getattr(ExtractConfig, name):
                raise UsageError(
                    f"--{name} {getattr(config, name)} and --backbone-run {config.backbone_run} both say which weights "
                    "to take: give one of them."
                )
        manifest.read(config.backbone_run, "leokit/backbone@1")
    else:
        if config.weights == "random":
            raise UsageError("weights = 'random': such features mean nothing; `leokit bench extract` takes them.")
        check_weights(config.backbone, config.weights)
    if config.decode == "gpu" and config.device == "cpu":
        raise UsageError("decode = 'gpu': it needs a CUDA device, and this runs on cpu; use --decode cpu.")
    return divide(config)


def divide(config: ExtractConfig | PretrainConfig) -> Divided:
    """The images of a tree, and how their classes are divided.

    Raises:
        UsageError, DataError: no images, or splits that do not go with them.
    """
    tree = scan(config.images, config.class_level)
    return tree, resolve(config.splits, config.images, tree.classes, config.seed, tree.division)


def check_pretrain(config: PretrainConfig) -> Divided:
    """The images of a pre-training, and how their classes are divided.

    Raises:
        UsageError, DataError: no images, splits that do not go with them, classes with too few, or options that
            contradict.
    """
    select = selecting(config)
    tree, splits = divide(config)
    of_split = splits.images(tree.classes)
    used = {**of_split["train"], **(of_split["val"] if config.classes == "train+val" else {})}
    for name, images in used.items():
        if config.holdout and len(images) < 2:
            raise DataError(
                f"The class {name!r} has {len(images)} image, but one to train on and one to hold out are needed: give "
                "it more, leave it out of the splits, or give --holdout 0."
            )
    if len(used) < 2:
        raise DataError(f"There is {len(used)} class to train on ({', '.join(used)}): at least 2 are needed.")
    held = [min(len(images) - 1, max(1, int(config.holdout * len(images)))) for images in used.values()]
    total = sum(map(len, used.values())) - (sum(held) if config.holdout else 0)
    check_batch(config, total, distributed.world().size)
    if config.optimizer not in _OPTIMIZERS:
        from torch.nn import Linear

        from leokit.backbones.training import make_optimiser

        rates = {name: getattr(config, name) for name in ("lr", "weight_decay", "momentum")}
        make_optimiser(config.optimizer, Linear(1, 1), **rates)
    if select == "few-shot":
        counts = np.array([min(len(images), config.val_images) for images in of_split["val"].values()], np.int64)
        require_val(config, list(of_split["val"]), counts, config.val_shots)
    return tree, splits


def check_batch(config: PretrainConfig, images: int, ranks: int) -> None:
    """Check that batches can be made of so many images, and divided among ranks.

    Raises:
        UsageError: they cannot.
    """
    if config.batch_size % (config.accumulate * ranks):
        raise UsageError(
            f"batch_size = {config.batch_size}: it must be a multiple of --accumulate {config.accumulate} times "
            f"the {ranks} rank{'s' * (ranks > 1)}, so that all parts are of one size."
        )
    if images < config.batch_size:
        raise UsageError(f"batch_size = {config.batch_size}: there are {images} images to train on; take fewer.")


def require_val(config: PretrainConfig, classes: Sequence[str], counts: NDArray[np.int64], shots: int) -> None:
    """Check that few-shot accuracy can be measured on episodes of these classes.

    Raises:
        DataError: too few classes, or a class with too few images.
    """
    limited = len(counts) and counts.min() == config.val_images
    require_enough(
        classes,
        counts,
        split="val",
        ways=config.val_ways,
        shots=shots,
        queries=config.val_queries,
        options=f"--val-shots or --val-queries{', raise --val-images' * bool(limited)}",
        ways_option="--val-ways",
    )


def selecting(config: PretrainConfig) -> str:
    """What chooses the best weights of a pre-training.

    Raises:
        UsageError: there is nothing that it could be measured on.
    """
    with_val = config.classes == "train+val"
    chosen = config.select or ("few-shot" if not with_val else "supervised" if config.holdout else "last")
    if chosen == "few-shot" and with_val:
        raise UsageError(
            "--select few-shot with --classes train+val: the weights would be selected on classes that they were "
            "trained on; give --select supervised or last."
        )
    if chosen == "supervised" and not config.holdout:
        raise UsageError(
            "--select supervised with --holdout 0: no images are held out to measure it on. Give --select last, or a "
            "--holdout above 0."
        )
    return chosen


def check_backbone(name: str) -> None:
    """Refuse a backbone that timm does not have; timm is imported only where its source does not show the name.

    Raises:
        UsageError: with names like it.
    """
    found = find_spec("timm")
    if is_wide_resnet(name) or found is None or found.origin is None:
        return
    architecture, _, tag = name.partition(".")
    sources = [path.read_text(encoding="utf-8") for path in (Path(found.origin).parent / "models").glob("*.py")]
    if any(f"def {architecture}(" in text for text in sources) and (
        not tag or any(f"'{name}'" in text or f'"{name}"' in text for text in sources)
    ):
        return
    from leokit.backbones import check_name

    check_name(name)


# Classifiers


def check_fit(config: FitConfig | PredictConfig) -> tuple[RecordedRun, ImageTree]:
    """The run and the support set of a classifier.

    Raises:
        UsageError, DataError, ArtifactError: none there, or what the run cannot do.
    """
    require_support(config.support)
    assert config.support
    run = read_run(only_run(config.work, config.run))
    check_method(run, config.method, config.samples)
    return run, read_support(config.support, config.class_level)


def check_method(run: RecordedRun, method: str, samples: int) -> None:
    """Check that a run can do what was asked of a classifier.

    Raises:
        UsageError: samples of what has none.
    """
    if samples and not has_posterior(run.config):
        raise UsageError(
            f"--samples {samples}: {run.folder} is a run of {method_name(run.config.variant)}, trained without "
            "samples; leave it out."
        )
    if samples and method not in (LEO, "auto"):
        raise UsageError(f"--samples {samples} with --method {method}: only leo has samples; give --method leo.")


def _check_predict(config: PredictConfig) -> None:
    check_queries((*config.query, *config.queries))
    if config.classifier is None:
        check_fit(config)
    else:
        check_classifier(config, config.classifier)


def check_classifier(config: PredictConfig, folder: Path) -> None:
    """Check that options go with a classifier that is named.

    Raises:
        UsageError, ArtifactError: they do not, or it is not there.
    """
    for name in _SUPPORT_OPTIONS:
        if getattr(config, name) is not None:
            option = name.replace("_", "-")
            raise UsageError(
                f"--{option} {getattr(config, name)} and --classifier {folder}: a classifier has its run and its "
                "support set in it; give one or the other."
            )
    made = manifest.read(folder, _CLASSIFIER).facts
    if config.method not in ("auto", made["method"]) or config.samples not in (0, made["samples"]):
        raise UsageError(
            f"--method or --samples with --classifier {folder}: that is {made['method']} of "
            f"{made['samples']} already; make another one by `leokit fit`."
        )


def check_queries(places: Sequence[Path]) -> None:
    """Refuse queries of which none is there.

    Raises:
        UsageError: none is named.
        DataError: none is there.
    """
    if not places:
        raise UsageError("No image to predict: name images, folders, or - for a list of paths on standard input.")
    if not any(place == STDIN or os.path.lexists(place) for place in places):
        raise DataError(
            f"There is no image or folder at {places[0]}{' and others' * (len(places) > 1)}: name images, folders, or "
            "- for a list of paths on standard input; quote names with spaces."
        )


_CHECKS: dict[type, Callable[[Any], object]] = {
    EvalConfig: _check_evals,
    UncertaintyConfig: check_uncertainty,
    AnalyzeConfig: check_analyze,
    MetaTrainConfig: check_meta_train,
    SearchConfig: check_search,
    FitConfig: check_fit,
    PredictConfig: _check_predict,
    ExportConfig: lambda config: manifest.read(config.classifier or config.work / "classifier", _CLASSIFIER),
    RegressPlotConfig: lambda config: manifest.read(config.regression or config.work / "regression", _REGRESSION),
    RegressEvalConfig: lambda config: manifest.read(config.regression or config.work / "regression", _REGRESSION),
    BenchEvalConfig: lambda config: query_count(config.queries, config.shots),
    BenchSearchConfig: lambda config: read_numbers("--jobs", config.jobs, int, 1, 1024),
}
