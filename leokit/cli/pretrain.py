"""`leokit pretrain`."""

import shlex
from pathlib import Path
from typing import Any

from leokit import distributed
from leokit.cli.next_steps import work_words
from leokit.cli.render import Output, TableData, percent
from leokit.config import PretrainConfig
from leokit.text import pasteable


def command(config: PretrainConfig, output: Output) -> None:
    """Train a backbone on the meta-train classes alone: weights that have not seen the test classes.

    Every few epochs nearest class mean is measured on the meta-val classes, which chooses the best weights. Ctrl-C or
    SIGTERM keeps the state: the same command goes on from there.

    Example: leokit pretrain images --splits miniimagenet --backbone wrn28_10 --precision bfloat16
    """
    from leokit.checks import check_pretrain

    divided = check_pretrain(config)  # before torch is imported
    from leokit.stages import pretrain

    if output.dry_run:
        planned = pretrain.plan(config, divided, output.note)
        counts = {"trained on": planned.training, "held out": planned.held_out, "meta-val": planned.val}
        classes = {"trained on": planned.classes, "held out": planned.classes, "meta-val": planned.val_classes}
        rows = [[name, str(len(classes[name])), str(len(images))] for name, images in counts.items()]
        data = {"out": str(pretrain.default_out(config)), **{name: len(images) for name, images in counts.items()}}
        output.result(data, [TableData("Would train", ["", "classes", "images"], rows)])
        return
    with output.progress("Pre-training") as progress:
        found = pretrain.run(config, divided=divided, on_progress=progress, on_message=output.note)
    if distributed.world().rank:
        return  # rank 0 says it
    out = pretrain.default_out(config)
    facts, info = found.facts, found.info
    rows = [
        ["backbone", str(out)],
        ["id", found.id[:12]],
        ["model", f"{facts['model']}, {facts['parameters'] / 1e6:.3g} million weights"],
        ["trained on", f"{len(facts['trained_on'])} classes, {facts['images']['train']} images"],
        ["epochs", f"{facts['epochs']} ({info['images_per_second']} images/s, {info['seconds']:.0f} s now)"],
        ["best epoch", f"{facts['best_epoch']} (selected by: {facts['select']})"],
        ["features", f"{facts['layer']}, {facts['dim']} wide"],
        *_accuracies(config, facts),
    ]
    output.result(
        {"out": str(out), "id": found.id, **facts}, [TableData("Backbone", ["", ""], rows, numeric=False)], []
    )
    output.next_command(_extract(config, out))


def _extract(config: PretrainConfig, out: Path) -> str:
    """The command that takes the backbone's features, as a shell reads it."""
    words = ["leokit extract", pasteable(config.images), "--backbone-run", pasteable(out)]
    words += ["--splits", shlex.quote(config.splits)] if config.splits else []
    words += ["--seed", str(config.seed)] if config.seed and config.splits else []  # a random division is by it
    words += ["--class-level", config.class_level] if config.class_level is not None else []
    return " ".join([*words, *work_words(config)])


def _accuracies(config: PretrainConfig, facts: dict[str, Any]) -> list[list[str]]:
    rows = []
    if facts["holdout_accuracy"] is not None:
        rows.append(["images held out", f"{100 * facts['holdout_accuracy']:.2f} % of them named right"])
    for shots, (mean, half_width) in (facts["few_shot"] or {}).items():
        name = f"{config.val_ways}-way {shots.removesuffix('shot')}-shot"
        rows.append([f"meta-val, {name}", f"{percent(mean, half_width)} % by nearest class mean"])
    return rows
