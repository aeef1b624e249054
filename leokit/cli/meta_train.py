"""`leokit meta-train`."""

from typing import Any

from leokit.cli.render import Output, TableData, percent
from leokit.config import MetaTrainConfig


def command(config: MetaTrainConfig, output: Output) -> None:
    """Meta-train LEO on features; the best weights by meta-validation are kept.

    Ctrl-C or SIGTERM keeps the state: the same command goes on from there, and with more --steps it trains on.

    Example: leokit meta-train --shots 1 --steps 6000
    """
    from leokit.stages import meta_train

    if output.dry_run:
        plan = meta_train.dry_run(config)
        rows = [[key, str(value)] for key, value in plan.items()]
        output.result(plan, [TableData("Would train", ["", ""], rows, numeric=False)])
        return
    with output.progress("Meta-training") as progress:
        run = meta_train.run(config, on_progress=progress, on_message=output.note)
    facts, info = run.facts, run.manifest.info
    rows = [
        ["run", str(run.folder)],
        ["id", run.id[:12]],
        ["features", _features(facts)],
        ["steps", f"{facts['steps']} ({info['steps_taken']} of them now, in {info['seconds']:.0f} s)"],
        ["best step", str(facts["best_step"])],
        [
            "meta-val accuracy",
            f"{percent(facts['val_accuracy'], facts['val_half_width'])} % (chosen on these episodes)",
        ],
    ]
    title = f"{config.variant}, {config.ways}-way {config.shots}-shot"
    data = {"out": str(run.folder), "id": run.id, **facts}
    output.result(data, [TableData(title, ["", ""], rows, numeric=False)])
    where = f"--run {run.folder}" if config.out else f"--shots {config.shots}"
    output.next_command(f"leokit eval {where}")


def _features(facts: dict[str, Any]) -> str:
    trained_on = facts["trained_on"]
    source = trained_on if isinstance(trained_on, str) else f"{len(trained_on)} classes"
    name = (facts["backbone"] or {}).get("name", "backbone not recorded")
    return f"{name}, {facts['dim']} wide; backbone trained on: {source}"
