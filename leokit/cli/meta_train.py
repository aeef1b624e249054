"""`leokit meta-train`."""

from typing import Any

from leokit.cli.render import Output, TableData, percent
from leokit.config import MetaTrainConfig, run_name
from leokit.text import pasteable


def command(config: MetaTrainConfig, output: Output) -> None:
    """Meta-train LEO on features; the best weights by meta-validation are kept.

    Ctrl-C or SIGTERM keeps the state: the same command goes on from there, and with more --steps it trains on.

    The last run of a published protocol trains on train and val, as long as an earlier one was best at:
    --train-on-val --steps-from RUN.

    Example: leokit meta-train --shots 1 --steps 6000
    """
    from leokit.stages import meta_train

    if output.dry_run:
        output.plan(meta_train.dry_run(config), "Would train")
        return
    with output.progress("Meta-training") as progress:
        run = meta_train.run(config, on_progress=progress, on_message=output.note)
    facts, info = run.facts, run.manifest.info
    rows = [
        ["run", str(run.folder)],
        ["id", run.id[:12]],
        ["features", _features(facts)],
        ["steps", f"{facts['steps']} ({info['steps_taken']} of them now, in {info['seconds']:.0f} s)"],
        *_selection(facts),
    ]
    title = f"{config.variant}, {config.ways}-way {config.shots}-shot"
    data = {"out": str(run.folder), "id": run.id, **facts}
    output.result(data, [TableData(title, ["", ""], rows, numeric=False)], _ending(run.config.patience, facts))
    found_by_shots = not config.out and run_name(config) == run_name(MetaTrainConfig(shots=config.shots))
    where = f"--shots {config.shots}" if found_by_shots else f"--run {pasteable(run.folder)}"
    output.next_command(f"leokit eval {where}")


def _selection(facts: dict[str, Any]) -> list[list[str]]:
    """Which weights are kept, and how good they were on the episodes that chose them."""
    if facts["val_accuracy"] is None:
        classes = sum(facts["classes"].values())
        return [
            ["trained on", f"train and val, {classes} classes"],
            ["weights", "of the last step; none were selected"],
        ]
    accuracy = percent(facts["val_accuracy"], facts["val_half_width"])
    return [
        ["best step", str(facts["best_step"])],
        ["meta-val accuracy", f"{accuracy} % (chosen on these episodes)"],
    ]


def _ending(patience: int | None, facts: dict[str, Any]) -> list[str]:
    """What to say where patience ended the run."""
    if not facts["stopped_early"]:
        return []
    return [
        f"Patience ended it at step {facts['steps']}: {patience} validations in a row were no better than that of step "
        f"{facts['best_step']}. A higher --patience trains on, more --steps do not."
    ]


def _features(facts: dict[str, Any]) -> str:
    trained_on = facts["trained_on"]
    source = trained_on if isinstance(trained_on, str) else f"{len(trained_on)} classes"
    name = (facts["backbone"] or {}).get("name", "backbone not recorded")
    return f"{name}, {facts['dim']} wide; backbone trained on: {source}"
