"""How far the probabilities of runs can be trusted: what `leokit uncertainty` measured."""

from typing import Any

import numpy as np

from leokit import manifest
from leokit.report.collecting import Artifact, Collection, figures
from leokit.report.model import Block, Cell, Column, Figures, Fold, Note, Part, Section, Table, Text
from leokit.report.words import (
    NOTHING,
    between,
    count,
    get,
    is_number,
    mapping,
    number,
    numbers,
    records,
    texts,
)
from leokit.tables import read_table
from leokit.text import method_name

_PREDICTIONS = "predictions.parquet"

# The measures: words, decimals, scale and which way is better.
_MEASURES = {
    "accuracy": ("accuracy, %", 2, 100, "↑"),
    "negative_log_likelihood": ("negative log-likelihood, nats", 4, 1, "↓"),
    "brier_score": ("Brier score", 4, 1, "↓"),
    "expected_calibration_error": ("expected calibration error, equal widths", 4, 1, "↓"),
    "expected_calibration_error_equal_mass": ("expected calibration error, equal mass", 4, 1, "↓"),
    "maximum_calibration_error": ("maximum calibration error", 4, 1, "↓"),
    "classwise_calibration_error": ("class-wise calibration error", 4, 1, "↓"),
    "area_under_risk_coverage": ("area under the risk–coverage curve", 4, 1, "↓"),
    "accuracy_at_80_coverage": ("accuracy at 80 % coverage, %", 2, 100, "↑"),
    "accuracy_at_95_coverage": ("accuracy at 95 % coverage, %", 2, 100, "↑"),
}
_SCORES = {"cosine_distance": "cosine to the class mean"}  # others by their names
_FORMS = {"raw": "as it is", "tempered": "with temperature"}


def uncertainty(found: Collection) -> list[Section]:
    """The section of all `leokit uncertainty` results; none without one."""
    parts: list[Block] = []
    for artifact in found.of("uncertainty"):
        with found.guarded(artifact):
            summary = artifact.summary()
            parts.append(Part(_title(artifact, summary), _blocks(found, artifact, summary)))
    return [Section("uncertainty", "Uncertainty", parts)] if parts else []


def _title(artifact: Artifact, summary: dict[str, Any]) -> str:
    run = mapping(summary.get("run"))
    if "variant" not in run:
        return artifact.name
    seed = f", seed {run['seed']}" if "seed" in run else ""
    return f"{method_name(str(run['variant']))}, {summary.get('ways')}-way {summary.get('shots')}-shot{seed}"


def _blocks(found: Collection, artifact: Artifact, summary: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [Text(_protocol(summary))]
    blocks += [table for table in (_calibration(summary),) if table]
    pictures = figures(found, artifact)
    blocks += [Figures(pictures)] if pictures else []
    if open_set := _open_set(summary):
        blocks.append(open_set)
    if sets := _sets(summary):
        blocks += [
            sets,
            Note(
                "plain", "Coverage was measured on classes other than those that it was set on: it is not guaranteed."
            ),
        ]
    if decomposition := _decomposition(summary):
        blocks.append(Fold("Total, aleatoric and epistemic uncertainty by shots and label noise", [decomposition]))
    with found.guarded(artifact):
        if tables := _by_class(artifact, summary):
            title = f"Errors and calibration errors of each of {len(tables[0].rows)} classes"
            blocks.append(Fold(title, tables))
    return blocks


def _protocol(summary: dict[str, Any]) -> str:
    """What was measured on what; what is not known is left out."""
    parts = []
    if is_number(summary.get("episodes")):
        of = f" of {summary['classes']} {summary.get('split')} classes" if is_number(summary.get("classes")) else ""
        parts.append(f"{count(summary['episodes']).text} episodes{of}")
    if summary.get("queries") is not None:
        parts.append(f"{summary['queries']} queries of a class")
    if is_number(summary.get("samples")):
        parts.append(f"{count(summary['samples']).text} posterior samples")
    if is_number(summary.get("calibration_episodes")):
        parts.append(f"temperatures fitted on {count(summary['calibration_episodes']).text} meta-val episodes")
    if is_number(summary.get("bins")):
        parts.append(f"{summary['bins']} bins")
    if summary.get("interval"):
        parts.append(f"intervals: {summary['interval']}")
    return "; ".join(parts)


def _calibration(summary: dict[str, Any]) -> Table | None:
    """A row for each measure and form, a column for each predictive."""
    predictives = {name: mapping(entry) for name, entry in mapping(summary.get("predictives")).items()}
    if not predictives:
        return None
    rows = [[Cell("temperature"), Cell(""), *(number(entry.get("temperature"), 3) for entry in predictives.values())]]
    for measure in _measures(predictives):
        words, digits, scale, better = _MEASURES.get(measure, (measure.replace("_", " "), 4, 1, ""))
        for form, means in _FORMS.items():
            entries = [get(entry, form, measure) for entry in predictives.values()]
            if any(is_number(get(entry, "value")) for entry in entries):
                cells = [_measured(entry, digits, scale) for entry in entries]
                rows.append([Cell(f"{words} {better}".strip()), Cell(means), *cells])
    columns = [*texts("measure", "probabilities"), *numbers(*predictives)]
    return Table("Calibration and selective prediction; ↑ more is better, ↓ less is better", columns, rows, False)


def _measures(predictives: dict[str, dict[str, Any]]) -> list[str]:
    """The measures that there are: known ones in order, then others."""
    there = dict.fromkeys(
        measure for entry in predictives.values() for form in _FORMS for measure in mapping(entry.get(form))
    )
    return [name for name in _MEASURES if name in there] + [name for name in there if name not in _MEASURES]


def _measured(entry: Any, digits: int, scale: float) -> Cell:
    return between(get(entry, "value"), get(entry, "low"), get(entry, "high"), digits, scale=scale)


def _open_set(summary: dict[str, Any]) -> Table | None:
    rows = [
        [
            Cell(name),
            Cell(_SCORES.get(score, score.replace("_", " "))),
            number(get(entry, "auroc_per_episode"), 4),
            number(get(entry, "auroc_pooled"), 4),
            number(get(entry, "accepted_outside"), 1, scale=100),
        ]
        for name, scores in mapping(summary.get("open_set")).items()
        for score, entry in mapping(scores).items()
    ]
    columns = [*texts("predictive", "score"), *numbers("AUROC, per episode", "AUROC, pooled", "accepted outside, %")]
    caption = "Open set: telling queries of other classes; outside queries accepted where 95 % of the inside ones are"
    return Table(caption, columns, rows) if rows else None


def _sets(summary: dict[str, Any]) -> Table | None:
    rows = [
        [
            Cell(name),
            number(entry.get("level"), 0, scale=100),
            number(entry.get("coverage"), 1, scale=100),
            number(entry.get("mean_size"), 2),
            number(entry.get("quantile"), 4),
        ]
        for name, entries in mapping(summary.get("sets")).items()
        for entry in records(entries)
    ]
    columns = [Column("predictive"), *numbers("nominal, %", "coverage, %", "mean size", "quantile")]
    return Table("Prediction sets by split conformal", columns, rows) if rows else None


def _decomposition(summary: dict[str, Any]) -> Table | None:
    rows = [
        [
            Cell(str(entry.get("predictive", NOTHING))),
            count(entry.get("shots")),
            number(entry.get("noise"), 0, scale=100),
            *(number(entry.get(key), 4) for key in ("total", "aleatoric", "epistemic")),
            number(entry.get("accuracy"), scale=100),
        ]
        for entry in records(summary.get("decomposition"))
    ]
    names = ("shots", "wrong support labels, %", "total", "aleatoric", "epistemic", "accuracy, %")
    caption = "Entropy of the prediction in nats: total = aleatoric + epistemic"
    return Table(caption, [Column("predictive"), *numbers(*names)], rows) if rows else None


def _by_class(artifact: Artifact, summary: dict[str, Any]) -> list[Table]:
    """What predictives get wrong of each class, and how far their probabilities of it are off.

    Raises:
        ArtifactError: the stored predictions are damaged.
    """
    calibration = {name: mapping(entry) for name, entry in mapping(summary.get("class_errors")).items()}
    tempered = any(get(entry, "tempered") for entry in mapping(summary.get("predictives")).values())
    form = _FORMS["tempered"] if tempered else _FORMS["raw"]
    tables = []
    for caption, errors in (
        ("Share of the queries of a class that are classified wrongly, in %", _wrong_by_class(artifact)),
        (f"Calibration error of the probability of a class {form}, in percentage points", calibration),
    ):
        classes = dict.fromkeys(name for entry in errors.values() for name in entry)
        rows = [[Cell(name), *(number(entry.get(name), 1, scale=100) for entry in errors.values())] for name in classes]
        tables += [Table(caption, [Column("class"), *numbers(*errors)], rows)] if rows else []
    return tables


def _wrong_by_class(artifact: Artifact) -> dict[str, dict[str, float]]:
    """By predictive and class, the share of the stored queries whose most probable class is another.

    Raises:
        ArtifactError: a file of the artifact is missing, altered or no table.
    """
    if _PREDICTIONS not in artifact.manifest.files:
        return {}
    manifest.check_files(artifact.folder, artifact.manifest)
    columns = ["predictive", "inside", "label", "class_name", "probabilities"]
    table = read_table(artifact.folder / _PREDICTIONS, columns)
    table = table.filter(table["inside"])
    probabilities = table["probabilities"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    wrong = (probabilities.argmax(1) != table["label"].to_numpy()).astype(np.float64)
    means = table.append_column("wrong", [wrong]).group_by(["predictive", "class_name"], use_threads=False)
    found: dict[str, dict[str, float]] = {}
    for row in means.aggregate([("wrong", "mean")]).to_pylist():
        found.setdefault(row["predictive"], {})[row["class_name"]] = row["wrong_mean"]
    return {name: dict(sorted(of_class.items())) for name, of_class in found.items()}
