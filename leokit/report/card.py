"""A run's model card in the format of the Hugging Face Hub, and the files that are published with it.

The text is of what manifests and summaries record, and of nothing else. Its sections are those of the report, on the
artifacts that belong to the run. `README.md` begins with metadata in YAML, written by its library.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from leokit import __version__, manifest
from leokit.evaluations import (
    Evaluation,
    gain_in_words,
    group_by_seed,
    setting_in_words,
    trained_in_words,
)
from leokit.report.accuracy import Accuracies, accuracies, open_evaluations
from leokit.report.collecting import Artifact, Collection
from leokit.report.html import MARK
from leokit.report.markdown import escape, in_markdown
from leokit.report.model import Block, Cell, Facts, Figure, Figures, Fold, Note, Part, Section, Text
from leokit.report.sources import features, overview, seen_notes, versions
from leokit.report.training import backbones, training
from leokit.report.uncertainty import uncertainty
from leokit.report.words import get, interval, is_number, listed, mapping, number, plural
from leokit.text import method_name, visible

README, CONFIG = "README.md", "config.json"
BACKBONE = "backbone"  # the folder of a backbone that leokit pretrain made
ELSEWHERE = "(elsewhere)"  # in place of paths of the machine that it was made on
_PUBLISHED = ("config.toml", "curves.png", "metrics.jsonl")  # of the files outside an artifact's id
_DATASETS = {"imagenet-1k": "imagenet-1k", "imagenet-21k": "imagenet-21k"}  # trained on, by the Hub's names
_OF_IMAGENET = ("miniimagenet", "tieredimagenet")  # lists of classes of imagenet-1k
_MEASURES = ("expected_calibration_error", "negative_log_likelihood", "brier_score")
_TAGS = ("few-shot-learning", "meta-learning", "latent-embedding-optimization", "image-classification")


@dataclass(frozen=True)
class Subject:
    """A run and what its work folder knows about it.

    Attributes:
        run: the run.
        features: those that it was trained on, where they are found.
        backbone: that `leokit pretrain` made for them, where it is found.
        own: the run, these two, and results of the run alone.
        work: all of the work folder.
    """

    run: Artifact
    features: Artifact | None
    backbone: Artifact | None
    own: Collection
    work: Collection

    @property
    def name(self) -> str:
        """The model's name: that of the run's folder."""
        return self.run.folder.resolve().name


@dataclass(frozen=True)
class File:
    """A file of a card's folder: the hash of its bytes, and how to get them."""

    sha256: str
    read: Callable[[], bytes]


def find_subject(found: Collection, run: Artifact) -> Subject:
    """What belongs to a run: its inputs, by id and at the recorded places too, and its evaluations and studies."""
    inputs = run.manifest.inputs
    of_run = _find(found, "features", inputs.get("features"))
    backbone = _find(found, "backbone", of_run.manifest.inputs.get("backbone")) if of_run else None
    results = [
        artifact
        for artifact in found.of("eval", "uncertainty")
        if (entry := artifact.manifest.inputs.get("run")) is not None and entry.id == run.manifest.id
    ]
    artifacts = [artifact for artifact in (backbone, of_run, run) if artifact is not None]
    return Subject(run, of_run, backbone, Collection(found.work, artifacts + results), found)


def _find(found: Collection, kind: str, entry: manifest.Input | None) -> Artifact | None:
    """An input of an artifact: in the work folder, or where it was then."""
    if entry is None:
        return None
    here = next((artifact for artifact in found.of(kind) if artifact.manifest.id == entry.id), None)
    if here is not None:
        return here
    state, there = manifest.look_up(kind, entry)
    if state != "there" or there is None:
        return None
    return Artifact(Path(entry.path).name, Path(entry.path), there)


def make_card(subject: Subject, *, license: str | None, base_model: str | None) -> dict[str, File]:
    """The files of a card's folder, by their names in it: the run as an artifact, README.md and pictures.

    The same artifacts give the same files. Paths and command lines of this machine are left out of the manifests, whose
    ids stay. What of the artifacts cannot be shown becomes a trouble of `subject.own`.

    Args:
        subject: the run.
        license: by the Hub's name for it; None: none is stated.
        base_model: the repository of the backbone's weights on the Hub, where they are from there.
    """
    places = {subject.run.folder: ""}
    if subject.backbone is not None:
        places[subject.backbone.folder] = f"{BACKBONE}/"
    for count, artifact in enumerate(subject.own.of("uncertainty")):
        places[artifact.folder] = f"uncertainty{f'-{count}' if count else ''}/"
    evaluations = open_evaluations(subject.own)
    tested = accuracies(evaluations)
    sections, pictures = _with_pictures_at(places, _sections(subject, evaluations, tested))
    metadata = _metadata(subject, evaluations, license, base_model)
    notes = tested.notes or seen_notes(subject.own)
    files = {name: _file(data) for name, data in pictures.items()}
    for copied in (subject.run, subject.backbone):
        if copied is not None:
            files |= _copies(subject.own, copied, places[copied.folder])
    run = subject.run.manifest
    config = {"library_name": "leokit", "run": run.id, "dim": run.facts["dim"], **run.config}
    files[CONFIG] = _file(manifest.canonical_json(config).encode())
    files[README] = _file(_readme(subject, evaluations, notes, sections, metadata).encode())
    return dict(sorted(files.items()))


def _file(data: bytes) -> File:
    return File(sha256(data).hexdigest(), lambda: data)


def _copies(own: Collection, artifact: Artifact, place: str) -> dict[str, File]:
    """The files of an artifact that are published, with a manifest that says nothing of this machine's folders.

    Raises:
        ArtifactError: a file that is part of its id is missing or altered.
    """
    whole = artifact.manifest
    manifest.check_files(artifact.folder, whole)
    kept = {name: entry for name, entry in whole.files.items() if entry.in_id or name in _PUBLISHED}
    for name, fault in manifest.file_faults(artifact.folder, replace(whole, files=kept)).items():
        own.trouble(artifact.name, f"{name} {fault}: it is left out.")
        del kept[name]
    public = replace(
        whole,
        files=kept,
        inputs={role: manifest.Input(entry.id, ELSEWHERE) for role, entry in whole.inputs.items()},
        info={key: value for key, value in whole.info.items() if key != "command"},
    )
    files = {
        f"{place}{name}": File(entry.sha256, partial(manifest.read_file, artifact.folder, whole, name))
        for name, entry in kept.items()
    }
    return files | {f"{place}{manifest.MANIFEST}": _file(manifest.to_bytes(public))}


def _with_pictures_at(places: dict[Path, str], sections: Sequence[Section]) -> tuple[list[Section], dict[str, bytes]]:
    """Sections whose pictures lie at places (by their folders) in the card's folder, and these pictures by name."""
    pictures: dict[str, bytes] = {}

    def moved(figure: Figure) -> Figure:
        name = f"{places[figure.path.parent]}{figure.path.name}"
        pictures[name] = figure.data
        return replace(figure, path=Path(name))

    def block(found: Block) -> Block:
        if isinstance(found, Figures):
            return replace(found, figures=[moved(figure) for figure in found.figures])
        if isinstance(found, Fold | Part):
            return replace(found, blocks=[block(inner) for inner in found.blocks])
        return found

    return [replace(section, blocks=[block(each) for each in section.blocks]) for section in sections], pictures


def _sections(subject: Subject, evaluations: Sequence[Evaluation], tested: Accuracies) -> list[Section]:
    """What was measured, how it was trained, and of what it was made."""
    run = subject.run
    options = [(key, Cell(json.dumps(value))) for key, value in run.manifest.config.items() if value is not None]
    made: list[Block] = [overview(subject.own), *versions(subject.own.artifacts)]
    ids = [Facts([(artifact.name, Cell(artifact.manifest.id)) for artifact in subject.own.artifacts])]
    measured = list(tested.sections) or [
        Section("accuracy", "Accuracy", [Text("The run has not been tested on classes that it was not trained on.")])
    ]
    measured[0] = replace(measured[0], blocks=[*measured[0].blocks, *_over_seeds(subject, evaluations)])
    return [
        *measured,
        *uncertainty(subject.own),
        *training(subject.own, {run.manifest.id}),
        Section("options", "Hyper-parameters", [Facts(options)]),
        *backbones(subject.own),
        *features(subject.own),
        Section("provenance", "Provenance", [*made, *ids]),
    ]


def _over_seeds(subject: Subject, evaluations: Sequence[Evaluation]) -> Iterator[Text]:
    """What runs that differ from this one in nothing but the seed gave on the same episodes, a sentence a setting."""
    ours = {entry.id for entry in evaluations}
    configs = [entry.manifest.config for entry in evaluations]
    alike = [artifact for artifact in subject.work.of("eval") if artifact.manifest.config in configs]
    for group in group_by_seed(open_evaluations(Collection(subject.work.work, alike))):
        if len(group.seeds) > 1 and ours & {entry.id for entry in group.evaluations}:
            summary = group.summary()
            entry = summary["accuracy"][group.first.variant]
            mean = interval(entry["mean"], entry["half_width_95_over_episodes"], scale=100)
            yield Text(
                f"{setting_in_words(summary)}: trained with the seeds {listed([str(seed) for seed in group.seeds])}, "
                f"such runs have a mean accuracy of {mean.text} {mean.note} %, with a standard deviation over seeds of "
                f"{number(entry['sd_over_seeds'], scale=100).text}."
            )


# The text


def _readme(
    subject: Subject,
    evaluations: Sequence[Evaluation],
    notes: Sequence[Note],
    sections: Sequence[Section],
    metadata: dict[str, Any],
) -> str:
    parts = [_front_matter(metadata), MARK, f"# {escape(subject.name)}", _lead(subject)]
    parts += in_markdown(notes, Path())
    parts += ["## Intended use and limits", _bullets(_limits(subject, evaluations))]
    parts += ["## How to use it", *_usage(subject)]
    for section in sections:
        parts += [f"## {escape(section.title)}", *in_markdown(section.blocks, Path())]
    parts += ["## Licence", _licence(metadata), "## Citation", _CITATION]
    parts.append(f"Written by leokit report --card, leokit {__version__}, from the artifacts named here.")
    return "\n\n".join(parts) + "\n"


_CITATION = """The method is that of

> A. A. Rusu, D. Rao, J. Sygnowski, O. Vinyals, R. Pascanu, S. Osindero and R. Hadsell: Meta-Learning with Latent
> Embedding Optimization. ICLR 2019. [arXiv:1807.05960](https://arxiv.org/abs/1807.05960)"""


def _front_matter(metadata: dict[str, Any]) -> str:
    import yaml  # type: ignore[import-untyped]

    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=100)
    missing = "" if "license" in metadata else "# license: none is stated; leokit report --card --license NAME does\n"
    return f"---\n{missing}{text}---"


def _licence(metadata: dict[str, Any]) -> str:
    if "license" in metadata:
        return f"`{metadata['license']}`"
    return "None is stated: ask who published this."


def _lead(subject: Subject) -> str:
    config, backbone = subject.run.manifest.config, mapping(subject.run.manifest.facts.get("backbone"))
    of = (
        f"features of the backbone {backbone['name']}"
        if backbone.get("name")
        else "embeddings whose backbone is not recorded"
    )
    return escape(
        f"A few-shot image classifier: from one or a few labelled images of each of some classes that it has never "
        f"seen, it makes a classifier of these. The method {method_name(config['variant'])} of Latent Embedding "
        f"Optimization, meta-trained with leokit on {of}."
    )


def _bullets(sentences: Iterator[str]) -> str:
    return "\n".join(f"- {escape(sentence)}" for sentence in sentences)


def _limits(subject: Subject, evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """What it is for, what it is not for, and what was not measured."""
    config, facts = subject.run.manifest.config, subject.run.manifest.facts
    yield (
        "For images of new classes with labelled examples of each, embedded by the same backbone with the same "
        "preprocessing. It knows no classes of its own."
    )
    shots = plural(config["shots"], "example")
    sizes = f"It was meta-trained on episodes of {config['ways']} classes with {shots} each"
    if config["variant"] == "meta-sgd":
        yield f"{sizes}, and takes no other number of classes."
    else:
        yield f"{sizes}. Other numbers work; what was measured stands under Accuracy."
    if "val" in facts["meta_trained_on"]:
        yield "It was trained on the classes of meta-val too, so no step of it was selected there."
    if words := gain_in_words(facts):
        yield words
    for entry in evaluations:
        if better := _better(entry):
            yield better
    yield (
        "Intervals cover the sampling of episodes on these test classes: not other classes, other images, or training "
        "it again."
    )
    if subject.own.of("uncertainty"):
        yield "How far its probabilities can be trusted stands under Uncertainty."
    else:
        yield "Whether its probabilities are calibrated was not measured."
    yield "How accuracy differs between kinds of images, or between people in them, was not measured."


def _better(entry: Evaluation) -> str | None:
    """That another method had a higher mean on the same episodes, if one had."""
    own = entry.summary["accuracy"][entry.variant]["mean"]
    name, best = max(entry.summary["accuracy"].items(), key=lambda item: float(item[1]["mean"]))
    if best["mean"] <= own:
        return None
    ours, theirs = (number(value, scale=100).text for value in (own, best["mean"]))
    return (
        f"{setting_in_words(entry.summary)}: {name} was more accurate on the same episodes, {theirs} against {ours} %."
    )


def _usage(subject: Subject) -> Iterator[str]:
    facts = subject.run.manifest.facts
    backbone = mapping(facts.get("backbone"))
    embeds = "preprocessing" in backbone
    yield (
        f"Install leokit {__version__} or later, and take this repository to a folder, here `model` "
        "(`hf download USER/NAME --local-dir model`)."
    )
    commands = ["leokit verify model", "leokit eval --run model --features features"]
    if embeds:
        weights = f" --weights model/{BACKBONE}" if subject.backbone else ""
        commands.insert(1, f"leokit predict photos --run model --support support{weights}")
    yield _fenced("sh", commands)
    if embeds:
        yield "`support` holds a folder for each class with one image or more, `photos` the images to classify."
    yield (
        "`features` is what `leokit extract` or `leokit import` made by the run's backbone, which is compared. In "
        "Python, with rows of features and their labels:"
    )
    yield _fenced(
        "python",
        [
            "from leokit import LEOClassifier",
            "",
            f'classifier = LEOClassifier("model").fit(rows, labels)  # (n, {int(facts["dim"])}) and (n,)',
            "classifier.predict_proba(others)",
        ],
    )
    yield _weights(subject, backbone)


def _weights(subject: Subject, backbone: dict[str, Any]) -> str:
    """Where the backbone's weights are."""
    if "weights_sha256" not in backbone:
        return escape("Which backbone made the embeddings is not recorded, so leokit cannot embed further images.")
    what = f"The backbone is {backbone['name']}; its weights have the SHA-256 {backbone['weights_sha256']}"
    if subject.backbone is not None:
        return escape(f"{what}, and are in the folder {BACKBONE}.")
    said = subject.features.manifest.info.get("weights") if subject.features else None
    if said in ("auto", "bundled") and "." not in str(backbone["name"]):
        return escape(f"{what}, and come with leokit's extra 'demo'.")
    if said in ("auto", "pretrained"):
        return escape(f"{what}; timm fetches them from a hub.")
    return escape(f"{what}. They are not in this repository: name their file by --weights.")


def _fenced(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


# Metadata


def _metadata(
    subject: Subject, evaluations: Sequence[Evaluation], license: str | None, base_model: str | None
) -> dict[str, Any]:
    """What the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    run = subject.run.manifest
    results = _results(subject, evaluations)
    metrics = list(dict.fromkeys(metric["type"] for result in results for metric in result["metrics"]))
    datasets = _datasets(subject)
    found: dict[str, Any] = {
        "license": license,
        "library_name": "leokit",
        "pipeline_tag": "image-classification",
        "tags": list(dict.fromkeys([*_TAGS, visible(str(run.config["variant"]))])),
        "base_model": base_model and visible(base_model),
        "datasets": datasets,
        "metrics": metrics,
        "model-index": [{"name": visible(subject.name), "results": results}] if results else None,
    }
    return {key: value for key, value in found.items() if value}


def _datasets(subject: Subject) -> list[str]:
    """The data sets, by the Hub's names, that weights were trained on as far as that is recorded."""
    trained_on = subject.run.manifest.facts.get("trained_on")
    source = _split_source(subject)
    known = [_DATASETS[trained_on]] if isinstance(trained_on, str) and trained_on in _DATASETS else []
    return list(dict.fromkeys([*known, *(["imagenet-1k"] if source in _OF_IMAGENET else [])]))


def _split_source(subject: Subject) -> str | None:
    source = subject.features.manifest.facts.get("split_source") if subject.features else None
    return source if isinstance(source, str) else None


def _results(subject: Subject, evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Accuracies on classes that the run was not trained on, and what `leokit uncertainty` measured, by data set."""
    results: dict[str, dict[str, Any]] = {}

    def add(summary: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        dataset = _dataset(subject, summary)
        task = {"type": "image-classification", "name": "Few-shot image classification"}
        entry = results.setdefault(manifest.canonical_json(dataset), {"task": task, "dataset": dataset, "metrics": []})
        entry["metrics"] += metrics

    for evaluation in evaluations:
        summary = evaluation.summary
        if not trained_in_words(summary).startswith("Warning"):
            add(summary, [_accuracy(summary, evaluation.variant)])
    for artifact in subject.own.of("uncertainty"):
        with subject.own.guarded(artifact):
            summary = artifact.summary()
            measured = mapping(get(summary, "predictives", "deterministic", "raw"))
            values = {name: get(measured, name, "value") for name in _MEASURES}
            metrics = [_metric(summary, name, value) for name, value in values.items() if is_number(value)]
            if metrics:
                add(summary, metrics)
    return list(results.values())


def _dataset(subject: Subject, summary: dict[str, Any]) -> dict[str, Any]:
    """Of which images the classes of a test are, as far as that is recorded."""
    source, split = _split_source(subject), visible(str(summary["split"]))
    known = source if source in _OF_IMAGENET else None
    divided = f", {visible(source)}" if source and not known else ""
    name = f"{known or 'images'}, {int(summary['classes'])} {split} classes{divided}"
    return {"name": name, "type": known or "imagefolder", "split": split}


def _accuracy(summary: dict[str, Any], variant: str) -> dict[str, Any]:
    entry = summary["accuracy"][variant]
    found = _metric(summary, "accuracy", entry["mean"])
    found["args"] |= {"half_width_of_95_percent_interval_over_episodes": entry["half_width"]}
    return found


def _metric(summary: dict[str, Any], kind: str, value: float) -> dict[str, Any]:
    sizes = {key: summary[key] for key in ("ways", "shots", "queries", "episodes")}
    words = kind.replace("_", " ")
    return {
        "type": kind,
        "value": value,
        "name": f"{words}, {setting_in_words(summary)}",
        "args": {key: value if isinstance(value, int) else visible(str(value)) for key, value in sizes.items()},
    }
