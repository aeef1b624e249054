"""`leokit table`: evaluations → the paper's Table 1 or 2, our numbers beside the published ones."""

import csv
import io
import json
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from typing import Any

from leokit import manifest
from leokit.config import TableConfig, identity
from leokit.errors import ArtifactError
from leokit.evaluations import Evaluation, Group, group_by_seed, open_evaluation, seen_in_words
from leokit.provenance import information
from leokit.tables import spreadsheet_safe
from leokit.text import method_name

SCHEMA = "leokit/table@1"
WAYS, SHOTS = 5, (1, 5)  # what the paper's tables are of
EXTRA = ("anchored",)  # our variants that no table of the paper has
MEASURES = ("mean", "half_width_95_over_episodes", "sd_over_seeds", "plus_minus_as_published")

DATASETS = {"miniimagenet": "miniImageNet", "tieredimagenet": "tieredImageNet"}
Row = dict[
    str, Any
]  # method, whose, and by_shots: for each number of shots the MEASURES in per cent and seeds, or None


@dataclass(frozen=True, repr=False)
class PaperTable(manifest.Artifact):
    """A finished table: its rows and the sentences below it, as plain data."""

    content: dict[str, Any]


def run(config: TableConfig, *, on_message: Callable[[str], None] | None = None) -> PaperTable:
    """Set the means of finished evaluations beside those of the paper, as Markdown, CSV and JSON.

    Args:
        config: of the table.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no evaluation that the table can take, a damaged one, or some that were not tested alike.
    """
    started = time.perf_counter()
    chosen = choose(config, on_message)
    folder = config.out or config.work / "tables" / f"table{config.number}"
    inputs = {f"eval {entry.id[:12]}": entry.input for entry in chosen}
    identified = identity(config)
    names = {kind: f"table{config.number}.{kind}" for kind in ("md", "csv", "json")}
    with manifest.locked(folder):
        finished = manifest.begin(folder, SCHEMA, identified, inputs, overwrite=config.overwrite)
        if finished:
            if on_message:
                on_message(manifest.already_done(folder))
            return PaperTable(folder, finished, manifest.read_json(folder, finished, names["json"]))
        content = _content(config, chosen)
        texts = {
            "md": _markdown(content),
            "csv": _csv(content),
            "json": json.dumps(content, indent=1, ensure_ascii=False),
        }
        for kind, text in texts.items():
            manifest.write_atomically(folder / names[kind], text.encode())
        written = manifest.finish(
            folder,
            SCHEMA,
            identified,
            inputs,
            results=names.values(),
            facts={"rows": len(content["rows"])},
            info=information(started=started),
        )
        return PaperTable(folder, written, content)


def choose(config: TableConfig, on_message: Callable[[str], None] | None = None) -> list[Evaluation]:
    """The evaluations that the table is made of: those named, or all under the work folder, that the paper's protocol
    can take. What is left out is told.

    Raises:
        ArtifactError: there is none, one is damaged, or two were not tested alike.
    """
    place = config.work / "eval"
    folders = config.evals or sorted(path.parent for path in place.glob(f"*/{manifest.MANIFEST}"))
    chosen = []
    for folder in dict.fromkeys(folders):
        entry = open_evaluation(folder)
        reason = _unfit(entry)
        if reason is None:
            chosen.append(entry)
        elif on_message:
            on_message(f"Left out: {folder} is {reason}; the table is of 5-way 1-shot and 5-shot on test classes.")
    if not chosen:
        raise ArtifactError(
            f"There is no evaluation of 5-way 1-shot or 5-shot episodes of test classes "
            f"{'among those named' if config.evals else f'under {place}'}: run `leokit eval` first."
        )
    _require_alike(chosen)
    return chosen


def _unfit(entry: Evaluation) -> str | None:
    """Why the table cannot take an evaluation, or None where it can."""
    summary = entry.summary
    trained, tested = summary["run"], (summary["ways"], summary["shots"])
    if summary["split"] != "test":
        return f"of {summary['split']} classes"
    if tested[0] != WAYS or tested[1] not in SHOTS:
        return f"{tested[0]}-way {tested[1]}-shot"
    if (trained["ways"], trained["shots"]) != tested:
        return f"of a run that was trained {trained['ways']}-way {trained['shots']}-shot"
    return None


def _require_alike(chosen: Sequence[Evaluation]) -> None:
    for entry in chosen[1:]:
        changes = manifest.differences(_protocol(chosen[0]), _protocol(entry))
        if changes:
            raise ArtifactError(
                f"{chosen[0].folder} and {entry.folder} were not tested alike ({'; '.join(changes)}): name the "
                "evaluations that belong into one table."
            )


def _protocol(entry: Evaluation) -> dict[str, Any]:
    config = entry.manifest.config
    alike = {key: config[key] for key in ("queries", "episodes", "seed")}
    return {**alike, "features": entry.manifest.inputs["features"].id[:12]}


def _content(config: TableConfig, chosen: list[Evaluation]) -> dict[str, Any]:
    published = tomllib.loads((files("leokit") / "published.toml").read_text(encoding="utf-8"))
    number, groups = int(config.number), group_by_seed(chosen)
    theirs = [row for row in published["rows"] if number in row["tables"] and config.dataset in row]
    rows = list(_rows(theirs, published["sources"], config.dataset, groups))
    used = dict.fromkeys(row["source"] for row in theirs)
    return {
        "table": number,
        "dataset": config.dataset,
        "unit": "per cent",
        "rows": rows,
        "sentences": list(_sentences(config.dataset, chosen[0].summary)),
        "sources": {published["sources"][name]["name"]: published["sources"][name]["cite"] for name in used},
    }


def _rows(
    theirs: list[dict[str, Any]], sources: dict[str, dict[str, str]], dataset: str, groups: list[Group]
) -> Iterator[Row]:
    """Methods that both have, ours above theirs; then what only we have; then what only they have."""
    labels = {row["variant"]: row["method"] for row in reversed(theirs) if "variant" in row}
    for variant in [*reversed(labels), *EXTRA]:
        yield from _ours(groups, variant, labels.get(variant, method_name(variant)))
        yield from (_published(row, sources, dataset) for row in theirs if row.get("variant") == variant)
    yield from _baselines(groups)
    yield from (_published(row, sources, dataset) for row in theirs if "variant" not in row)


def _ours(groups: list[Group], variant: str, label: str) -> Iterator[Row]:
    """Rows of our runs of a variant: one for each thing it was trained on, more where there are several groups."""
    found = [group.summary() for group in groups if group.first.variant == variant]
    for splits in sorted({tuple(entry["meta_trained_on"]) for entry in found}):
        alike = [entry for entry in found if tuple(entry["meta_trained_on"]) == splits]
        for pair in zip_longest(*([entry for entry in alike if entry["shots"] == shots] for shots in SHOTS)):
            yield {
                "method": label if len(splits) == 1 else f"{label}, trained on {'+'.join(splits)}",
                "whose": "ours",
                "by_shots": {
                    str(shots): entry and _measures(entry["accuracy"][variant], seeds=len(entry["seeds"]))
                    for shots, entry in zip(SHOTS, pair, strict=True)
                },
            }


def _baselines(groups: list[Group]) -> Iterator[Row]:
    """Rows of the other methods, which are the same beside each run."""
    found: dict[str, dict[int, Any]] = {}
    for group in groups:
        summary = group.first.summary
        for name, entry in group.summary()["accuracy"].items():
            if name != group.first.variant:
                found.setdefault(name, {}).setdefault(summary["shots"], _measures(entry))
    for name, entries in found.items():
        by_shots = {str(shots): entries.get(shots) for shots in SHOTS}
        yield {"method": name, "whose": "ours", "by_shots": by_shots}


def _measures(entry: dict[str, float | None], seeds: int | None = None) -> dict[str, float | None]:
    """MEASURES of one of our means, in per cent, and of how many seeds it is the mean."""
    values = {key: entry.get(key) for key in MEASURES}
    return {**{key: None if value is None else 100 * value for key, value in values.items()}, "seeds": seeds}


def _published(row: dict[str, Any], sources: dict[str, dict[str, str]], dataset: str) -> Row:
    spread = "sd_over_seeds" if row["plus_minus"] == "seeds" else "plus_minus_as_published"
    by_shots = {}
    for shots in map(str, SHOTS):
        numbers = row[dataset].get(shots)
        known = dict(zip(("mean", spread), numbers or (), strict=False))
        by_shots[shots] = {key: known.get(key) for key in (*MEASURES, "seeds")} if numbers else None
    return {"method": row["method"], "whose": sources[row["source"]]["name"], "by_shots": by_shots}


def _sentences(dataset: str, summary: dict[str, Any]) -> Iterator[str]:
    queries = {"all": "all other images", "rest600": "600 - K images"}.get(
        summary["queries"], f"{summary['queries']} images"
    )
    yield f"Ours: {summary['episodes']} episodes of {summary['classes']} test classes, {queries} of a class as queries."
    backbone = summary["backbone"] or "a backbone that is not recorded"
    yield (
        f"Our numbers are on features of {backbone}, the paper's on features of a WRN-28-10 trained on the meta-train "
        f"classes of {DATASETS[dataset]}: where the features differ, so do the numbers, whatever the method."
    )
    yield seen_in_words(summary)
    yield "The paper's LEO and its authors' code were trained on train+val; cited methods had features of their own."
    yield "× counts seeds of training, over which a number of ours is the mean."
    yield "* ± as published by its source, which does not say what it is; for most it is 95 % over episodes."


def header() -> list[str]:
    """Names of the columns, in full."""
    columns = ["method", "whose"]
    for shots in SHOTS:
        columns += [f"{shots}-shot ± 95 % over episodes", "sd over seeds"]
    return columns


def cells(row: Row) -> list[str]:
    """A row as text, for `header`; an asterisk marks a ± of another or unknown kind."""
    entries = list(row["by_shots"].values())
    seeds = "/".join(dict.fromkeys(str(entry["seeds"]) for entry in entries if entry and entry["seeds"]))
    texts = [row["method"], f"{row['whose']} ×{seeds}" if seeds else row["whose"]]
    for entry in entries:
        texts += [_mean(entry), _number(entry["sd_over_seeds"])] if entry else ["", ""]
    return texts


def _mean(entry: dict[str, float | None]) -> str:
    published, ours = entry["plus_minus_as_published"], entry["half_width_95_over_episodes"]
    if published is not None:
        return f"{_number(entry['mean'])} ± {published:.2f}*"
    return f"{_number(entry['mean'])} ± {ours:.2f}" if ours is not None else _number(entry["mean"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def title(content: dict[str, Any]) -> str:
    """What the table is."""
    return (
        f"Table {content['table']}: 5-way test accuracy in %; published numbers are of {DATASETS[content['dataset']]}"
    )


def _markdown(content: dict[str, Any]) -> str:
    columns = header()
    lines = [f"# {title(content)}", "", _line(columns), _line(["---", "---", *["---:"] * (len(columns) - 2)])]
    lines += [_line(cells(row)) for row in content["rows"]]
    lines += ["", *(f"- {text.replace('*', chr(92) + '*')}" for text in content["sentences"])]
    lines += [f"- {name}: {cite}." for name, cite in content["sources"].items()]
    return "\n".join(lines) + "\n"


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(text.replace('*', chr(92) + '*') for text in texts)} |"


def _csv(content: dict[str, Any]) -> str:
    """A line for each row and number of shots, ended as RFC 4180 says: then whatever ends a line is quoted."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["method", "whose", "seeds", "shots", *MEASURES])
    for row in content["rows"]:
        for shots, entry in row["by_shots"].items():
            if entry:
                numbers = [entry[key] for key in MEASURES]
                names = [spreadsheet_safe(row[key]) for key in ("method", "whose")]
                writer.writerow([*names, entry["seeds"], shots, *numbers])
    return file.getvalue()
