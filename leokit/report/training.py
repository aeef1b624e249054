"""How runs and backbones were trained: what selected their weights, and their learning curves."""

from collections.abc import Container, Sequence
from dataclasses import replace
from itertools import groupby

from leokit.evaluations import gain_in_words, method_in_words, setting_in_words
from leokit.report.collecting import Artifact, Collection, figures
from leokit.report.model import Block, Cell, Figures, Fold, Note, Section, Table, Text
from leokit.report.words import anything, count, get, interval, listed, mapping, numbers, plural, records, texts

_FEW = 4  # folds that need no fold around them
_Row = tuple[Artifact, str, str]  # a run, its method and its setting


def training(found: Collection, best: Container[str]) -> list[Section]:
    """The section of runs; none without one.

    Args:
        found: the artifacts.
        best: ids of the runs whose curves are not folded away; where it holds none, those of the first run are not.
    """
    runs: list[_Row] = []
    for artifact in found.of("run"):
        with found.guarded(artifact):
            run = artifact.manifest.config | {"meta_trained_on": artifact.manifest.facts["meta_trained_on"]}
            runs.append((artifact, method_in_words(run), setting_in_words(run)))
    if not runs:
        return []
    shown = [artifact for artifact, *_ in runs if artifact.manifest.id in best] or [runs[0][0]]
    blocks: list[Block] = [_table(runs)]
    if pictures := [picture for artifact in shown for picture in figures(found, artifact)]:
        blocks.append(Figures(pictures))
    others = [row for row in runs if row[0] not in shown]
    folds: list[Block] = []
    for (method, setting), members in groupby(others, key=lambda row: row[1:]):
        pictures = [picture for artifact, *_ in members for picture in figures(found, artifact)]
        if pictures:
            folds.append(Fold(f"{method}, {setting}: {plural(len(pictures), 'picture')}", [Figures(pictures)]))
    blocks += [Fold(f"Learning curves of {plural(len(others), 'more run')}", folds)] if len(folds) > _FEW else folds
    return [Section("training", "Learning curves", blocks)]


def _table(runs: Sequence[_Row]) -> Table:
    rows = []
    for artifact, method, setting in runs:
        facts = artifact.manifest.facts
        best = Cell("class means") if facts.get("best_is_fallback") else count(facts.get("best_step"))
        rows.append(
            [
                Cell(artifact.name.removeprefix("runs/")),
                Cell(method),
                Cell(setting),
                anything(artifact.manifest.config.get("seed")),
                interval(facts.get("val_accuracy"), facts.get("val_half_width"), scale=100),
                interval(facts.get("class_mean_accuracy"), facts.get("class_mean_half_width"), scale=100),
                interval(facts.get("gain"), facts.get("gain_half_width"), scale=100, sign=True),
                best,
                replace(count(facts.get("steps")), note="stopped early" if facts.get("stopped_early") else ""),
            ]
        )
    names = [
        *texts("run", "method", "setting"),
        *numbers("seed", "meta-val accuracy", "class means", "gain", "best step", "steps"),
    ]
    caption = (
        "Runs: accuracy in % on the meta-val episodes that selected the weights, that of class means on the same "
        "episodes, and the gain over these in percentage points, ± the 95 % interval over episodes"
    )
    return Table(caption, names, rows)


def gain_notes(found: Collection) -> list[Note]:
    """Runs that gained nothing, or nothing certain, over class means; a sentence for all of which the same is true."""
    said: dict[str, list[str]] = {}
    for artifact in found.of("run"):
        with found.guarded(artifact):
            if words := gain_in_words(artifact.manifest.facts):
                said.setdefault(words, []).append(artifact.name)
    return [Note("warning", f"{listed(names)}: {words}") for words, names in said.items()]


def backbones(found: Collection) -> list[Section]:
    """The section of backbones that were trained here; none without one."""
    blocks: list[Block] = []
    for artifact in found.of("backbone"):
        facts = artifact.manifest.facts
        rows = [
            [
                Cell(artifact.name),
                anything(facts.get("model")),
                anything(facts.get("layer")),
                count(len(facts["trained_on"])) if isinstance(facts.get("trained_on"), list) else anything(None),
                count(get(facts, "images", "train")),
                count(facts.get("parameters")),
                count(facts.get("epochs")),
                count(facts.get("best_epoch")),
                *(
                    interval(*[*(get(facts, "few_shot", shots) or ()), None, None][:2], scale=100)
                    for shots in mapping(facts.get("few_shot"))
                ),
            ]
        ]
        few_shot = [f"{shots.removesuffix('shot')}-shot, %" for shots in mapping(facts.get("few_shot"))]
        columns = [
            *texts("backbone", "model", "layer"),
            *numbers("classes", "images", "parameters", "epochs", "best epoch", *few_shot),
        ]
        splits = "train and val" if artifact.manifest.config.get("classes") == "train+val" else "meta-train"
        caption = f"Trained on the {splits} classes"
        if few_shot:
            caption += "; accuracy of nearest class mean on meta-val, ± the 95 % interval over episodes"
        blocks.append(Table(caption, columns, rows, sortable=False))
        if pictures := figures(found, artifact):
            blocks.append(Figures(pictures))
    return [Section("backbone", "Backbone", blocks)] if blocks else []


def published(found: Collection) -> list[Section]:
    """The section of the paper's tables beside ours; none without one."""
    blocks: list[Block] = []
    for artifact in found.of("table"):
        with found.guarded(artifact):
            blocks += _published(artifact)
    return [Section("published", "Beside the published numbers", blocks)] if blocks else []


def _published(artifact: Artifact) -> list[Block]:
    name = next(name for name in artifact.manifest.files if name.endswith(".json"))
    content = artifact.json(name)
    entries = records(content["rows"])
    shots = list(dict.fromkeys(key for entry in entries for key in entry["by_shots"]))
    rows = []
    for entry in entries:
        cells = [Cell(str(entry["method"])), Cell(str(entry["whose"]))]
        for key in shots:
            numbers_of = mapping(entry["by_shots"].get(key))
            own, theirs = numbers_of.get("half_width_95_over_episodes"), numbers_of.get("plus_minus_as_published")
            cell = interval(numbers_of.get("mean"), own if theirs is None else theirs)
            cells.append(cell if theirs is None else Cell(cell.text, f"{cell.note}*", cell.value))
            cells += [interval(numbers_of.get("sd_over_seeds"), None), count(numbers_of.get("seeds"))]
        rows.append(cells)
    heads = [name for key in shots for name in (f"{key}-shot, %", "sd over seeds", "seeds")]
    spreads = "± is the 95 % interval over episodes, * as published"
    caption = f"Table {content['table']} of the paper, {content['dataset']}; {spreads}"
    sentences = [Text(str(text)) for text in content.get("sentences", [])]
    sources = [Text(f"{name}: {cite}.") for name, cite in mapping(content.get("sources")).items()]
    notes = Fold("What these numbers are, and their sources", [*sentences, *sources])
    return [Table(caption, [*texts("method", "whose"), *numbers(*heads)], rows), notes]
