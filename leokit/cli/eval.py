"""`leokit eval`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from leokit.cli.render import Output, TableData, percent
from leokit.config import EvalConfig
from leokit.errors import UsageError

if TYPE_CHECKING:
    from leokit.evaluations import Evaluation


def command(config: EvalConfig, output: Output) -> None:
    """Test runs on episodes of classes that they were not trained on, beside other methods on the same episodes.

    Of runs that differ in nothing but the seed, the mean over seeds is reported too, with the 95 % interval over
    episodes and the standard deviation over seeds.

    Example: leokit eval --shots 1
    """
    from leokit.stages import evaluate

    configs = [replace(config, run=run, runs=()) for run in config.runs] or [config]
    shared = evaluate.Shared()
    plans = [evaluate.dry_run(one, shared) for one in configs]  # all are checked before the first begins
    _refuse_one_place_for_two(plans)
    if output.dry_run:
        tables = [
            TableData("Would test", ["", ""], [[key, str(value)] for key, value in plan.items()], numeric=False)
            for plan in plans
        ]
        output.result({"evaluations": plans} if config.runs else plans[0], tables)
        return
    done = []
    for one in configs:
        with output.progress("Testing") as progress:
            done.append(evaluate.run(one, shared=shared, on_progress=progress, on_message=output.note))
    _report(done, output, several=bool(config.runs))


def _refuse_one_place_for_two(plans: list[dict[str, Any]]) -> None:
    """Refuse runs whose evaluations would go to one folder, as they do by the run's name.

    Raises:
        UsageError: naming them.
    """
    taken: dict[str, str] = {}
    for plan in plans:
        other = taken.setdefault(plan["out"], plan["run"])
        if other != plan["run"]:
            raise UsageError(
                f"The evaluations of {other} and {plan['run']} would both go to {plan['out']}: test them one by one, "
                "with --out."
            )


def _report(done: "Sequence[Evaluation]", output: Output, *, several: bool) -> None:
    from leokit.evaluations import group_by_seed

    groups = group_by_seed(done)
    summaries = [group.summary() for group in groups]
    alone = [group.first for group in groups if len(group.seeds) == 1]
    repeated = [group for group in groups if len(group.seeds) > 1]
    tables = [_table(alone)] if alone else []
    for count in sorted({len(group.seeds) for group in repeated}):
        tables.append(_group_table([entry for entry in summaries if len(entry["seeds"]) == count], count))
    if repeated:
        tables.append(_seed_table([entry for group in repeated for entry in group.evaluations]))
    data = [
        {"out": str(entry.folder), "id": entry.id, **entry.summary, "episodes_per_second": _rates(entry)}
        for entry in done
    ]
    result = {"evaluations": data, "groups": summaries} if several else data[0]
    output.result(result, tables, list(dict.fromkeys(_sentences(done, repeated=bool(repeated)))))


def _sentences(done: "Sequence[Evaluation]", *, repeated: bool) -> Iterator[str]:
    from leokit.evaluations import protocol_in_words, seen_in_words, trained_in_words

    for entry in done:
        yield protocol_in_words(entry.summary)
    if repeated:
        yield (
            "The standard deviation over seeds says how far training it again would move the mean; the interval does "
            "not cover that."
        )
    for entry in done:
        yield seen_in_words(entry.summary)
        if words := trained_in_words(entry.summary):
            yield words
    for entry in done:
        yield f"In {entry.folder}."


def _table(evaluations: "Sequence[Evaluation]") -> TableData:
    """A row for each method of each evaluation; the run's own first, against which the others are set."""
    from leokit.evaluations import method_in_words, setting_in_words

    names = [(setting_in_words(entry.summary), method_in_words(entry.summary["run"])) for entry in evaluations]
    unclear = len(set(names)) < len(names)
    rows = []
    for entry, (setting, own) in zip(evaluations, names, strict=True):
        label = entry.folder.name if unclear else setting
        for name, accuracy in entry.summary["accuracy"].items():
            cell = _difference(entry.summary["difference"], name)
            rate = f"{_rates(entry)[name]:.0f}"
            rows.append([label, own if name == entry.variant else name, percent(**accuracy), cell, rate])
            label = ""
    return TableData(_title(evaluations[0].summary), ["", "method", "accuracy", "run - method", "episodes/s"], rows)


def _rates(entry: "Evaluation") -> dict[str, float]:
    """Episodes a second of each method, when it was tested."""
    rates = entry.manifest.info["episodes_per_second"]
    return {name: rates[name] for name in entry.summary["accuracy"]}  # a manifest's keys are sorted


def _group_table(groups: Sequence[dict[str, Any]], seeds: int) -> TableData:
    """As `_table`, of means over so many seeds."""
    from leokit.evaluations import method_in_words, setting_in_words

    rows = []
    for group in groups:
        label = setting_in_words(group)
        for name, accuracy in group["accuracy"].items():
            own = name == group["variant"]
            spread = percent(accuracy["sd_over_seeds"]) if own else ""
            cell = _difference(group["difference"], name)
            method = method_in_words(group) if own else name
            rows.append([label, method, _percent(accuracy), spread, cell])
            label = ""
    title = f"Mean over {seeds} seeds: a{_title(groups[0])[1:]}"
    return TableData(title, ["", "method", "accuracy", f"sd over\n{seeds} seeds", "run - method"], rows)


def _seed_table(evaluations: "Sequence[Evaluation]") -> TableData:
    """A row for each run of groups of several."""
    rows = []
    for entry in evaluations:
        accuracy = entry.summary["accuracy"][entry.variant]
        rows.append([entry.folder.name, str(entry.seed), percent(**accuracy)])
    return TableData(f"Each run: a{_title(evaluations[0].summary)[1:]}", ["run", "seed", "accuracy"], rows)


def _title(summary: dict[str, Any]) -> str:
    return f"Accuracy on {summary['split']} classes in %, 95 % interval over episodes"


def _percent(entry: dict[str, Any], *, sign: bool = False) -> str:
    return percent(entry["mean"], entry["half_width_95_over_episodes"], sign=sign)


def _difference(differences: dict[str, dict[str, float]], name: str) -> str:
    """The cell of the paired difference to a method; empty for the run's own."""
    found = next((value for key, value in differences.items() if key.endswith(f" - {name}")), None)
    return percent(*found.values(), sign=True) if found else ""
