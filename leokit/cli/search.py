"""`leokit search`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from leokit.cli.render import Output, TableData, percent
from leokit.config import SearchConfig

if TYPE_CHECKING:
    from leokit.stages.search import Search


def command(config: SearchConfig, output: Output) -> None:
    """Search hyper-parameters at random: many meta-trainings, the best on meta-val chosen; meta-test is not opened.

    Trial 0 is the preset. The same command goes on after an interruption, and the table is the same for any number of
    jobs, on one machine or on a cluster. The best trial's options go to best.toml, for leokit meta-train --config.

    Example: leokit search --preset miniimagenet-1shot --trials 40 --steps 5000 --halving
    """
    from leokit.stages import search

    if output.dry_run:
        plan = search.dry_run(config)
        rows = [
            [key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)] for key, value in plan.items()
        ]
        output.result(plan, [TableData("Would search", ["", ""], rows, numeric=False)])
        return
    if config.only:
        with output.progress("Training") as progress:
            share = search.run_share(config, on_progress=progress, on_message=output.note)
        data = {"out": str(share.folder), "trials": share.trials, "trained": share.trained, "of": share.of}
        sentence = f"Share {config.only} is trained. Of all shares {share.trained} of {share.of} trials are."
        output.result(data, [], [sentence, f"In {share.folder}."])
        output.next_command("the same without --only, once all shares are done: it gathers them")
        return
    with output.progress("Searching") as progress:
        done = search.run(config, on_progress=progress, on_message=output.note)
    data = {"out": str(done.folder), "id": done.manifest.id, **done.summary}
    output.result(data, [_table(done.summary)], list(_sentences(done)))
    output.next_command(f"leokit meta-train --config {done.folder / search.BEST} --out RUN")


def _table(summary: dict[str, Any]) -> TableData:
    rows = []
    for row in summary["best_trials"]:
        found = row["val_accuracy"] is not None
        accuracy = percent(row["val_accuracy"], row["val_half_width"]) if found else "failed"
        name = f"{row['trial']} (preset)" if row["trial"] == 0 else str(row["trial"])
        rows.append([name, accuracy, str(row["best_step"]), *(_value(row[key]) for key in summary["drawn"])])
    columns = ["trial", "meta-val", "best\nstep", *(key.replace("_", "\n") for key in summary["drawn"])]
    return TableData(f"The best of {summary['trials']} trials: meta-val accuracy in %, 95 % interval", columns, rows)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def _sentences(done: "Search") -> Iterator[str]:
    summary = done.summary
    fresh = summary["on_fresh_episodes"]
    chosen = percent(**summary["best_on_the_episodes_that_chose"])
    saved = f"{100 * summary['steps_saved']:.0f} % fewer than all trials to the end"
    yield (
        f"{summary['finished']} trials came to their end, {summary['stopped']} were stopped early, "
        f"{summary['failed']} failed: {summary['steps_taken']:,} steps, {saved}."
    )
    yield (
        f"{chosen} % is on the {summary['val_episodes']:,} episodes that chose among trials and validations, so it is "
        f"too high. On {summary['fresh_episodes']:,} others of the same classes: {percent(**fresh['best'])} %."
    )
    if summary["best_trial"] == 0:
        yield "No trial was better than the preset."
    elif "preset" in fresh:
        difference = percent(**fresh["difference"], sign=True)
        yield (
            f"On those the preset has {percent(**fresh['preset'])} %; paired difference {difference}. Other classes "
            "and other training seeds are not in the interval."
        )
    yield f"In {done.folder}."
