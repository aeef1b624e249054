"""`leokit search`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from leokit.cli.next_steps import work_words
from leokit.cli.render import Output, TableData, percent
from leokit.config import SearchConfig
from leokit.text import in_short, pasteable

if TYPE_CHECKING:
    from leokit.stages.search import Search

_SHOWN = 4  # trials, beside the preset


def command(config: SearchConfig, output: Output) -> None:
    """Search hyper-parameters at random: many meta-trainings, the best on meta-val chosen; meta-test is not opened.

    Trial 0 is the preset. The same command goes on after an interruption, and the table is the same for any number of
    jobs, on one machine or on a cluster. The best trial's options go to best.toml, for leokit meta-train --config.

    Example: leokit search --preset miniimagenet-1shot --trials 40 --steps 5000 --halving
    """
    from leokit.stages import search

    if output.dry_run:
        output.plan(search.dry_run(config), "Would search")
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
    data = {"out": str(done.folder), "id": done.id, **done.summary}
    output.result(data, [_table(done.summary)], list(_sentences(done)))
    words = ["leokit meta-train --config", pasteable(done.folder / search.BEST), "--out RUN"]
    words += ["--features", pasteable(config.features)] if config.features else []
    output.next_command(" ".join([*words, *work_words(config)]))


def _table(summary: dict[str, Any]) -> TableData:
    """The best trials side by side, and the preset: a column each, so that any number of options fits."""
    preset = summary["preset_trial"]
    shown = summary["best_trials"][:_SHOWN]
    if preset["trial"] not in [row["trial"] for row in shown]:
        shown = [*shown, preset]
    rows = [
        ["meta-val accuracy, %", *(_percent(row["val_accuracy"]) for row in shown)],
        ["± (95 % interval)", *(_percent(row["val_half_width"]) for row in shown)],
        ["best step", *(str(row["best_step"]) for row in shown)],
        *([key, *(in_short(row[key]) for row in shown)] for key in summary["drawn"]),
    ]
    names = [f"trial {row['trial']}" + ("\n(preset)" if row is preset or row["trial"] == 0 else "") for row in shown]
    return TableData(f"The best of {summary['trials']} trials", ["", *names], rows)


def _percent(value: float | None) -> str:
    return "failed" if value is None else percent(value)


def _sentences(done: "Search") -> Iterator[str]:
    summary = done.summary
    fresh = summary["on_fresh_episodes"]
    chosen = percent(**summary["best_on_the_episodes_that_chose"])
    halved = len(summary["rungs"]) > 1
    saved = f", {100 * summary['steps_saved']:.0f} % fewer than all trials to the end" if halved else ""
    yield (
        f"{summary['finished']} trials came to their end, {summary['stopped']} were stopped early, "
        f"{summary['failed']} failed: {summary['steps_taken']:,} steps{saved}."
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
