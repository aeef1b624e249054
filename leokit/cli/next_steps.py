"""The command to run next: told only where it can work, with the options that it needs for that."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leokit.cli.render import Output
from leokit.config import DEFAULT_WORK, EvalConfig, MetaTrainConfig, build, with_preset
from leokit.errors import DataError
from leokit.text import pasteable

if TYPE_CHECKING:
    from leokit.features import FeatureStore

_LEAST_WAYS = 2  # classes of an episode


def work_words(config: Any) -> list[str]:
    """The option that names a configuration's work folder, where it is not the default one."""
    return ["--work", pasteable(config.work)] if config.work != DEFAULT_WORK else []


def report_next(config: Any, folder: Path, output: Output) -> None:
    """Tell to make the report of a work folder, where it will show the result in `folder`."""
    if folder.resolve().is_relative_to(config.work.resolve()):
        output.next_command(" ".join(["leokit report", *work_words(config)]))


def suggest_training(store: "FeatureStore", preset: str | None, where: Sequence[str], output: Output) -> None:
    """Tell to meta-train on features, with what else that needs, or why it cannot be done.

    Args:
        store: the features.
        preset: to name, if any.
        where: options that name them.
        output: to tell.
    """
    from leokit.checks import require_training

    named = {"shots": 1, **({"preset": preset} if preset else {})}
    config = build(MetaTrainConfig, with_preset(named)[0])
    words = ["leokit meta-train", *([f"--preset {preset}"] if preset else []), "--shots 1"]
    why = ""
    for options, changed in _fitting(store, config):
        try:
            require_training(replace(config, **changed), store.facts["counts"])
        except DataError as error:
            why = why or str(error)
        else:
            output.next_command(" ".join([*words, *options, *where]))
            return
    output.note(f"These features cannot be meta-trained on: {why}")


def _fitting(store: "FeatureStore", config: MetaTrainConfig) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Options for a meta-training that features may need, the fewest first, and the values that they set."""
    yield [], {}
    yield ["--skip-small-classes"], {"skip_small_classes": True}
    if not {"train", "val"} <= set(store.splits):
        return
    parts = [store.counts(split) for split in ("train", "val")]
    ways = min(config.ways, *map(len, parts))
    queries = min(config.queries, config.val_queries, *(int(counts.min()) - config.shots for counts in parts))
    if ways >= _LEAST_WAYS:
        fewer = [f"--ways {ways}"] if ways < config.ways else []
        yield fewer, {"ways": ways}
        yield [*fewer, "--skip-small-classes"], {"ways": ways, "skip_small_classes": True}
        if queries > 0:
            changed = {"ways": ways, "queries": queries, "val_queries": queries}
            yield [*fewer, f"--queries {queries}", f"--val-queries {queries}"], changed


def suggest_eval(words: Sequence[str], counts: Mapping[str, int], config: MetaTrainConfig, output: Output) -> None:
    """Tell to test runs, with what else that needs, or why it cannot be done.

    Args:
        words: the command, which names the runs.
        counts: images of each class of test.
        config: of the runs.
        output: to tell.
    """
    ways, fewest = min(config.ways, len(counts)), min(counts.values(), default=0) - config.shots
    fewer_ways_work = config.variant != "meta-sgd" and ways >= _LEAST_WAYS
    if fewest < 1 or (ways < config.ways and not fewer_ways_work):
        output.note(
            f"leokit eval cannot test this at {config.ways}-way {config.shots}-shot: the features have {len(counts)} "
            f"test classes{f', the smallest of {fewest + config.shots} images' if counts else ''}."
        )
        return
    options = [f"--ways {ways}"] if ways < config.ways else []
    options += [f"--queries {fewest}"] if fewest < int(EvalConfig.queries) else []
    output.next_command(" ".join([*words, *options]))
