"""`leokit analyze`."""

from collections.abc import Iterator
from typing import Any

from leokit.cli.next_steps import report_next
from leokit.cli.render import Output, TableData
from leokit.config import AnalyzeConfig


def command(config: AnalyzeConfig, output: Output) -> None:
    """Look into how runs adapt: the paper's Figures 3 and 4, with their numbers.

    Codes of meta-val episodes before and after adaptation, by t-SNE and PCA, with silhouettes; on meta-test episodes
    the exact curvature of the support loss by codes and by weights, singular values of the decoder, lengths of steps.

    Example: leokit analyze leokit-work/runs/leo-5way-1shot leokit-work/runs/meta-sgd-5way-1shot
    """
    from leokit.stages import analyze

    if output.dry_run:
        output.plan(analyze.dry_run(config), "Would analyse")
        return
    with output.progress("Analysing") as progress:
        done = analyze.run(config, on_progress=progress, on_message=output.note)
    data = {"out": str(done.folder), "id": done.id, **done.summary}
    output.result(data, list(_tables(done.summary["runs"])), [*_sentences(done.summary), f"In {done.folder}."])
    report_next(config, done.folder, output)


def _tables(runs: dict[str, Any]) -> Iterator[TableData]:
    rows = [
        [name, point, _median(found["codes"]), _median(found["weights"]), _number(found["ratio_of_medians"])]
        for name, entry in runs.items()
        for point, found in entry["curvature"].items()
    ]
    columns = ["run", "point", "by codes", "by weights", "ratio"]
    yield TableData("Curvature of the support loss: median eigenvalue of its Hessian", columns, _once(rows))
    rows = [
        [name, loop, _median(found.get("codes")), _median(found["weights"])]
        for name, entry in runs.items()
        for loop, found in entry["steps"].items()
        if found
    ]
    if rows:
        yield TableData("Median length of a step", ["run", "loop", "in codes", "in weights"], _once(rows))
    rows = [
        [name, _median(found), _number(found["largest"]), f"{100 * found['share_above_1']:.0f} %"]
        for name, entry in runs.items()
        if (found := entry["singular_values"])
    ]
    if rows:
        columns = ["run", "median", "largest", "above 1"]
        yield TableData("Singular values of the decoder", columns, rows)
    rows = [
        [name, *(_interval(entry["codes"]["silhouette"][key]) for key in ("before", "after", "difference"))]
        for name, entry in runs.items()
        if entry["codes"]
    ]
    if rows:
        columns = ["run", "before", "after", "difference"]
        yield TableData("Silhouette of codes by class, 95 % interval over episodes", columns, rows)


def _sentences(summary: dict[str, Any]) -> Iterator[str]:
    from leokit.evaluations import seen_sentence

    for pair in summary["compared_with_meta_sgd"]:
        yield (
            f"{pair['run']} moves weights {_number(pair['ratio_of_median_distances_in_weights'])} times as far as "
            f"{pair['meta_sgd_run']} in all, and {_number(pair['ratio_of_median_steps_in_weights'])} times in a step."
        )
    for name, entry in summary["runs"].items():
        if entry["codes"] is None:
            why = "its codes are not adapted" if entry["has_codes"] else "it has none"
            yield f"There is no picture of codes of {name}: {why}."
        elif "val" in entry["meta_trained_on"]:
            yield f"Warning: {name} was trained on the val classes whose codes are shown here."
    yield seen_sentence(summary["trained_on"], summary["classes_seen"]["test"], summary["classes"]["test"], "test")


def _once(rows: list[list[str]]) -> list[list[str]]:
    """Rows whose first cell is empty where it is that of the row above."""
    names = [None, *(row[0] for row in rows)]
    return [["" if row[0] == above else row[0], *row[1:]] for row, above in zip(rows, names, strict=False)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _median(found: dict[str, float] | None) -> str:
    return _number(found["median"]) if found else ""


def _interval(found: dict[str, float | None]) -> str:
    half_width = found["half_width_95_over_episodes"]
    return f"{found['mean']:+.3f}" + ("" if half_width is None else f" ± {half_width:.3f}")
