"""`leokit regress train`, `plot` and `eval`."""

from typing import Any

import typer

from leokit.cli.next_steps import work_words
from leokit.cli.options import add_command
from leokit.cli.render import Output, TableData, percent
from leokit.config import RegressEvalConfig, RegressPlotConfig, RegressTrainConfig
from leokit.text import pasteable

app = typer.Typer(
    help="Few-shot regression on sines and lines: what sampled functions know about their own uncertainty (Fig. 2).",
    no_args_is_help=True,
)


def train(config: RegressTrainConfig, output: Output) -> None:
    """Meta-train LEO on sines and lines: one code for a task, decoded to a whole network.

    Ctrl-C or SIGTERM keeps the state: the same command goes on from there.

    Example: leokit regress train
    """
    from leokit.stages.regress import train as stage

    if output.dry_run:
        output.plan(stage.dry_run(config), "Would train")
        return
    with output.progress("Meta-training") as progress:
        model = stage.run(config, on_progress=progress, on_message=output.note)
    facts, info = model.facts, model.manifest.info
    loss = facts["query_loss"]
    rows = [
        ["model", str(model.folder)],
        ["id", model.id[:12]],
        ["parameters", f"{facts['parameters']:,}, which generate networks of {facts['generated_weights']:,} weights"],
        ["steps", f"{facts['steps']} ({info['steps_taken']} of them now, in {info['seconds']:.0f} s)"],
        ["last query loss", "not reported" if loss is None else f"{loss:.3f} nats a query, on tasks never seen before"],
    ]
    table = TableData("Regression on sines and lines", ["", ""], rows, numeric=False)
    output.result({"out": str(model.folder), "id": model.id, **facts}, [table])
    words = [*(["--regression", pasteable(config.out)] if config.out else []), *work_words(config)]
    output.next_command("; ".join(" ".join(["leokit regress", what, *words]) for what in ("plot", "eval")))


def draw(config: RegressPlotConfig, output: Output) -> None:
    """Draw sampled functions of four tasks, two of them ambiguous, before the exact posterior (Fig. 2).

    Example: leokit regress plot
    """
    from leokit.stages.regress import plot as stage

    if output.dry_run:
        output.plan(stage.dry_run(config), "Would draw")
        return
    with output.progress("Drawing") as progress:
        done = stage.run(config, on_progress=progress, on_message=output.note)
    rows = [
        [letter, str(entry["task"]), entry["family"], percent(entry["share_of_sines"]), _percent_of(entry)]
        for letter, entry in zip("abcd", done.panels, strict=True)
    ]
    columns = ["panel", "task", "is a", "sampled sines (%)", "exactly (%)"]
    data = {"out": str(done.folder), "id": done.id, "panels": done.panels}
    output.result(data, [TableData("Panels", columns, rows, numeric=False)], [f"In {done.folder / stage.FIGURE}."])


def evaluate(config: RegressEvalConfig, output: Output) -> None:
    """Measure sampled functions on fresh tasks, beside the exact posterior: errors, likelihood, coverage, families.

    Example: leokit regress eval
    """
    from leokit.stages.regress import evaluate as stage

    if output.dry_run:
        output.plan(stage.dry_run(config), "Would measure")
        return
    with output.progress("Measuring") as progress:
        done = stage.run(config, on_progress=progress, on_message=output.note)
    summary = done.summary
    tables = [_measures(summary), _families(summary), _distances(summary)]
    far = summary["samples_distance_to_nearest_family"]
    sentences = [
        f"{summary['tasks']} tasks, {summary['samples']} samples each; ± is {summary['interval']}.",
        f"{percent(far['share_within_noise'])} % of the samples are closer to a sine or a line than the noise "
        f"({summary['noise_standard_deviation']}, root mean square); half of them are within {far['median']:.3f}.",
        f"In {done.folder}.",
    ]
    output.result({"out": str(done.folder), "id": done.id, **summary}, tables, sentences)


def _percent_of(entry: dict[str, Any]) -> str:
    return percent(entry["exact_probability_of_sine"])


def _measures(summary: dict[str, Any]) -> TableData:
    """A row for each measure, a column for each predictive."""
    predictives = summary["predictives"]
    names = {
        "mean_squared_error_of_mean": "mean squared error of the mean",
        "mean_squared_error_of_best_sample": f"of the best of {summary['samples']} samples",
        "negative_log_likelihood": "negative log-likelihood (nats)",
        "continuous_ranked_probability_score": "CRPS (units of y)",
        "spread": "spread of functions (units of y)",
    }
    rows = [[text, *(_number(entry[name]) for entry in predictives.values())] for name, text in names.items()]
    levels = next(iter(predictives.values()))["coverage"]
    rows += [
        [
            f"in the {100 * float(level):g} % interval (%)",
            *(percent(**e["coverage"][level]) for e in predictives.values()),
        ]
        for level in levels
    ]
    return TableData("Predictions at noisy queries", ["", *predictives], rows)


def _number(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.3f} ± {interval['half_width']:.3f}"


def _families(summary: dict[str, Any]) -> TableData:
    rows = [
        [
            name.replace("_", " "),
            str(entry["tasks"]),
            percent(entry["mean_share_of_sines"]),
            percent(entry["mean_exact_probability_of_sine"]),
            percent(entry["mean_absolute_difference"]),
            percent(entry["tasks_with_both_families"]),
        ]
        for name, entry in summary["families"].items()
        if entry
    ]
    columns = [
        "tasks",
        "number",
        "sampled\nsines (%)",
        "exactly\n(%)",
        "mean abs.\ndifference",
        "both families\nsampled (%)",
    ]
    return TableData("Families of the samples", columns, rows)


def _distances(summary: dict[str, Any]) -> TableData:
    """A row for each distance to the nearest point."""
    keys = ("spread", "root_mean_squared_error_of_mean")
    predictives = summary["predictives"]
    rows = []
    for bins in zip(*(entry["by_distance"] for entry in predictives.values()), strict=True):
        cells = [f"{entry[key]:.3f}" for entry in bins for key in keys]
        rows.append([f"{bins[0]['from']:g} to {bins[0]['to']:g}", str(bins[0]["queries"]), *cells])
    heads = [f"{name}\n{what}" for name in predictives for what in ("spread", "error")]
    return TableData("By distance to the nearest point (root mean squares)", ["distance", "queries", *heads], rows)


add_command(app, "train", RegressTrainConfig, train, table="regress-train")
add_command(app, "plot", RegressPlotConfig, draw, table="regress-plot")
add_command(app, "eval", RegressEvalConfig, evaluate, table="regress-eval")
