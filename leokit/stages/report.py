"""`leokit report`: the artifacts of a work folder → one page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leokit import manifest
from leokit.config import ReportConfig
from leokit.errors import ArtifactError, UsageError
from leokit.report.assembly import assemble
from leokit.report.collecting import Collection, Trouble, collect
from leokit.report.html import MARK, figures_of, to_html
from leokit.report.markdown import to_markdown

Progress = Callable[[int, int, str], None]

_SUFFIXES = {"html": (".html", ".htm"), "markdown": (".md", ".markdown")}
_HEAD = 200  # bytes in which the mark of a report stands


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        path: of the file.
        bytes: its size.
        artifacts: names of those in it.
        figures: how many pictures it shows.
        troubles: what is not in it, and why.
        text: of the file.
    """

    path: Path
    bytes: int
    artifacts: tuple[str, ...]
    figures: int
    troubles: tuple[Trouble, ...]
    text: str


def default_out(config: ReportConfig) -> Path:
    """Where the report goes: `--out`, else its place in the work folder."""
    return config.out or config.work / f"report{_SUFFIXES[config.format][0]}"


def run(
    config: ReportConfig,
    *,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Report:
    """Write a page of whatever the work folder holds; the same artifacts give the same bytes.

    A report that is there is written anew. What is unfinished or damaged is named in the page.

    Args:
        config: of the report.
        on_progress: called with pictures done and wanted, and an empty text.
        on_message: called with what a user should know, a sentence each.

    Raises:
        UsageError: the name of the file promises another format.
        ArtifactError: the work folder holds no artifact, or a file that is no report lies where it shall go.
    """
    out = default_out(config)
    _check_place(out, config)
    found = _collect(config)
    page = assemble(found)
    if config.format == "html":
        text = to_html(page, on_progress and (lambda done, total: on_progress(done, total, "")))
    else:
        text = to_markdown(page, out.parent)
    data = text.encode()
    if out.exists() and out.read_bytes() == data:
        if on_message:
            on_message(f"Already done: {out} is the report of what is there.")
    else:
        with manifest.locked(out.parent):
            manifest.write_atomically(out, data)
            manifest.sweep(out.parent, [out.name])
    names = tuple(artifact.name for artifact in found.artifacts)
    return Report(out, len(data), names, len(figures_of(page)), tuple(found.troubles), text)


def dry_run(config: ReportConfig) -> dict[str, Any]:
    """What `run` would take, after the same checks."""
    out = default_out(config)
    _check_place(out, config)
    found = _collect(config)
    return {
        "out": str(out),
        "format": config.format,
        "artifacts": [artifact.name for artifact in found.artifacts],
        "not_shown": [trouble.name for trouble in found.troubles],
    }


def _collect(config: ReportConfig) -> Collection:
    found = collect(config.work)
    if not found.artifacts and not found.troubles:
        raise ArtifactError(
            f"{config.work} holds no artifact of leokit, so there is nothing to report: run `leokit extract IMAGES`, "
            "`leokit meta-train --shots 1` and `leokit eval --shots 1` first, or name another folder by --work."
        )
    return found


def _check_place(out: Path, config: ReportConfig) -> None:
    """Refuse a name that promises another format, and to replace what is no report.

    Raises:
        UsageError, ArtifactError: naming it.
    """
    if out.is_dir():
        raise ArtifactError(f"{out} is a folder: a report is one file, choose another --out.")
    if out.suffix and out.suffix.lower() not in _SUFFIXES[config.format]:
        raise UsageError(
            f"--out {out} with --format {config.format}: the name must end in {' or '.join(_SUFFIXES[config.format])}. "
            "A report is HTML, or Markdown by --format markdown; a browser prints the page as PDF."
        )
    if out.exists() and not config.overwrite:
        with out.open("rb") as file:
            head = file.read(_HEAD)
        if MARK.encode() not in head:
            raise ArtifactError(
                f"{out} was not written by leokit report: it is left alone. Choose another --out, or use --overwrite."
            )
