"""`leokit eval`."""

from dataclasses import replace
from typing import Any

from leokit.cli.render import Output, TableData, percent
from leokit.config import EvalConfig
from leokit.errors import UsageError


def command(config: EvalConfig, output: Output) -> None:
    """Test runs on episodes of classes that they were not trained on, beside other methods on the same episodes.

    Example: leokit eval --shots 1
    """
    from leokit.stages import evaluate

    if config.runs and (config.run or (config.out and len(config.runs) > 1)):
        raise UsageError("Name runs by position or one by --run, and --out with one run only.")
    configs = [replace(config, run=run, runs=()) for run in config.runs] or [config]
    if output.dry_run:
        plans = [evaluate.dry_run(one) for one in configs]
        tables = [
            TableData("Would test", ["", ""], [[key, str(value)] for key, value in plan.items()], numeric=False)
            for plan in plans
        ]
        output.result({"evaluations": plans} if config.runs else plans[0], tables)
        return
    done = []
    for one in configs:
        with output.progress("Testing") as progress:
            done.append(evaluate.run(one, on_progress=progress, on_message=output.note))
    data = [{"out": str(entry.folder), "id": entry.id, **entry.summary} for entry in done]
    sentences = [text for entry in done for text in (_protocol(entry.summary), evaluate.seen_in_words(entry.summary))]
    sentences += [f"In {entry.folder}." for entry in done]
    output.result({"evaluations": data} if config.runs else data[0], [_table(data)], list(dict.fromkeys(sentences)))


def _table(summaries: list[dict[str, Any]]) -> TableData:
    """A row for each method of each evaluation; the run's own first, against which the others are set."""
    rows = []
    for entry in summaries:
        setting = f"{entry['ways']}-way {entry['shots']}-shot"
        for name, accuracy in entry["accuracy"].items():
            difference = next((value for key, value in entry["difference"].items() if key.endswith(f" - {name}")), None)
            cell = percent(**difference, sign=True) if difference else ""
            rows.append([setting, name, percent(**accuracy), cell])
            setting = ""
    title = f"Accuracy on {summaries[0]['split']} classes in %, 95 % interval over episodes"
    return TableData(title, ["", "method", "accuracy", "run - method"], rows)


def _protocol(summary: dict[str, Any]) -> str:
    known = {"all": "all other images of a class", "rest600": f"{600 - summary['shots']} images of a class"}
    queries = known.get(summary["queries"], f"{summary['queries']} images of a class")
    return (
        f"{summary['ways']}-way {summary['shots']}-shot: {summary['episodes']} episodes of {summary['classes']} "
        f"{summary['split']} classes, {queries} as queries; the interval covers the sampling of episodes on these "
        "classes."
    )
