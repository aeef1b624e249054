"""The page: which sections, in which order, and what stands above them."""

from leokit import __version__
from leokit.report.accuracy import accuracies, open_evaluations
from leokit.report.collecting import Collection
from leokit.report.generic import generic
from leokit.report.model import Cell, Column, Note, Page, Section, Table
from leokit.report.sources import features, provenance, seen_notes, stale_notes
from leokit.report.training import backbones, gain_notes, published, training
from leokit.report.uncertainty import uncertainty
from leokit.report.words import listed, plural

_READ = (
    "± is the 95 % interval over episodes on these classes. Each number is the highest of the methods tested on these "
    "very episodes: read off the test, not chosen on meta-val."
)
_NOTHING_TESTED = "No run has been tested yet: run leokit eval."
_NOUNS = {
    "backbone": "backbone",
    "classifier": "classifier",
    "demo": "image tree",
    "eval": "evaluation",
    "features": "feature store",
    "run": "run",
    "table": "table",
    "uncertainty": "uncertainty result",
}


def assemble(found: Collection) -> Page:
    """The page of what a work folder holds; troubles that appear on the way are added to the collection."""
    tested = accuracies(open_evaluations(found))
    sections = [
        *tested.sections,
        *uncertainty(found),
        *published(found),
        *training(found, tested.best_runs),
        *generic(found),
        *backbones(found),
        *features(found),
        *provenance(found),
    ]
    notes = [*tested.notes, *([] if tested.highlights else seen_notes(found))]
    notes += [*gain_notes(found), *stale_notes(found)]
    notes.append(Note("plain", _READ if tested.highlights else _NOTHING_TESTED))
    if found.troubles:
        sections.append(_troubles(found))
        names = list(dict.fromkeys(trouble.name for trouble in found.troubles))
        shown = listed(names) if len(names) <= 5 else plural(len(names), "artifact")
        notes.append(Note("warning", f"Not, or not wholly, in this report: {shown}. The reasons stand at the end."))
    return Page(
        title=found.work.resolve().name,
        lead=_lead(found),
        highlights=tested.highlights,
        notes=notes,
        sections=sections,
        footer=f"Written by leokit report, leokit {__version__}, from the artifacts named here and nothing else.",
    )


def _lead(found: Collection) -> str:
    """How much there is of what."""
    kinds = dict.fromkeys(artifact.kind for artifact in found.artifacts)
    held = [plural(len(found.of(kind)), _NOUNS.get(kind, f"{kind} result")) for kind in kinds]
    return f"{listed(held)}." if held else "Nothing finished yet."


def _troubles(found: Collection) -> Section:
    rows = [[Cell(trouble.name), Cell(trouble.text)] for trouble in found.troubles]
    table = Table("Artifacts of which nothing, or not all, is shown", [Column("artifact"), Column("why")], rows, False)
    return Section("troubles", "Not shown, and why", [table])
