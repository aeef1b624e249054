"""`leokit uncertainty`."""

from collections.abc import Iterator
from typing import Any

from leokit.cli.next_steps import report_next
from leokit.cli.render import Output, TableData
from leokit.config import UncertaintyConfig

_SCORES = {
    "maximum_probability": "largest probability",
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "maximum_logit": "largest logit",
    "cosine_distance": "cosine to class mean",
}


def command(config: UncertaintyConfig, output: Output) -> None:
    """Measure how far a run's predictions can be trusted, on episodes of new classes.

    Calibration with and without a temperature, errors against coverage, telling inside from outside queries, the parts
    of uncertainty, and prediction sets: of the run as it is, of samples of its codes and weights, of an ensemble where
    further runs are named, of nearest class mean and of logistic regression. Temperatures are fitted on meta-val.

    Example: leokit uncertainty leokit-work/runs/leo-5way-1shot --samples 100
    """
    from leokit.evaluations import seen_in_words
    from leokit.stages import uncertainty

    if output.dry_run:
        output.plan(uncertainty.dry_run(config), "Would measure")
        return
    with output.progress("Predicting") as progress:
        found = uncertainty.run(config, on_progress=progress, on_message=output.note)
    summary = found.summary
    sentences = [*_sentences(summary), seen_in_words(summary), f"In {found.folder}."]
    output.result({"out": str(found.folder), "id": found.id, **summary}, list(_tables(summary)), sentences)
    report_next(config, found.folder, output)


def _tables(summary: dict[str, Any]) -> Iterator[TableData]:
    setting = f"{summary['ways']}-way {summary['shots']}-shot, {summary['episodes']} episodes of meta-test"
    rows = []
    for name, entry in summary["predictives"].items():
        for key, label in (("raw", name), ("tempered", f"at T = {entry['temperature'] or 0:.2f}")):
            if entry[key]:
                rows.append([label if key == "raw" else f"  {label}", *_row(entry[key])])
    columns = ["predictive", "accuracy %", "log-lik. loss", "cal. error %", "Brier", "AURC"]
    yield TableData(f"Calibration ({setting})", columns, rows)
    if summary["open_set"]:
        rows = [
            [name if not index else "", _SCORES[score], *(f"{100 * entry[key]:.1f}" for key in _OPEN)]
            for name, scores in summary["open_set"].items()
            for index, (score, entry) in enumerate(scores.items())
        ]
        yield TableData(
            "Telling queries of the episode's classes from others, in %",
            ["predictive", "by", "AUROC in\nan episode", "AUROC\nof all", "others let in\nat 95 % own"],
            rows,
        )
    if summary["sets"]:
        rows = [
            [name, *(f"{100 * entry['coverage']:.1f} / {entry['mean_size']:.2f}" for entry in entries)]
            for name, entries in summary["sets"].items()
        ]
        levels = [f"{100 * entry['level']:.0f} %" for entry in next(iter(summary["sets"].values()))]
        yield TableData("Prediction sets: coverage in % / classes in a set", ["predictive", *levels], rows)
    if summary["decomposition"]:
        rows = [
            [
                point["predictive"],
                str(point["shots"]),
                f"{100 * point['noise']:.0f}",
                *(f"{point[key]:.3f}" for key in ("total", "aleatoric", "epistemic")),
                f"{100 * point['accuracy']:.1f}",
            ]
            for point in summary["decomposition"]
        ]
        columns = ["predictive", "shots", "wrong\nlabels %", "total", "aleatoric", "epistemic", "accuracy %"]
        yield TableData("Entropy of the mean prediction and its parts, in nats", columns, rows)


_OPEN = ("auroc_per_episode", "auroc_pooled", "accepted_outside")


def _row(measures: dict[str, dict[str, float]]) -> list[str]:
    """Accuracy and calibration error with their intervals, the others alone: the table stays narrow."""
    return [
        _interval(measures["accuracy"], 100, 1),
        _interval(measures["negative_log_likelihood"], 1, 3),
        _range(measures["expected_calibration_error"], 100, 1),
        f"{measures['brier_score']['value']:.3f}",
        f"{measures['area_under_risk_coverage']['value']:.3f}",
    ]


def _interval(estimate: dict[str, float], scale: float, digits: int) -> str:
    """Such as `58.9 ± 0.3`: the wider side of the interval."""
    half = max(estimate["high"] - estimate["value"], estimate["value"] - estimate["low"])
    return f"{scale * estimate['value']:.{digits}f} ± {scale * half:.{digits}f}"


def _range(estimate: dict[str, float], scale: float, digits: int) -> str:
    """Such as `1.6 (1.2–2.0)`, of what is no mean and has no symmetric interval."""
    low, high = (f"{scale * estimate[key]:.{digits}f}" for key in ("low", "high"))
    return f"{scale * estimate['value']:.{digits}f} ({low}–{high})"


def _sentences(summary: dict[str, Any]) -> Iterator[str]:
    yield (
        f"± and ranges: {summary['interval']}. All measures, and paired differences to the deterministic prediction, "
        "are in summary.json."
    )
    if summary["sets"]:
        yield (
            f"Prediction sets and temperatures were fitted on {summary['calibration_episodes']} episodes of "
            f"{summary['val_classes']} meta-val classes. Meta-test has other classes: the coverage is what was "
            "measured under that shift, and no guarantee."
        )
