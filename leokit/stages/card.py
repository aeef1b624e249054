"""`leokit report --card`: a run → a folder with its model card, to publish as it is."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from leokit import manifest
from leokit.config import ReportConfig
from leokit.errors import ArtifactError, UsageError
from leokit.report.card import File, Subject, find_subject, make_card
from leokit.report.collecting import CARD, UNFINISHED_CARD, Artifact, Collection, Trouble, collect
from leokit.runs import only_run, read_run

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Card:
    """A written model card.

    Attributes:
        folder: where it lies.
        run: id of the run.
        files: size of each file but for the list of them, by its name.
        troubles: what of the run's artifacts is not in it, and why.
    """

    folder: Path
    run: str
    files: dict[str, int]
    troubles: tuple[Trouble, ...]


def default_out(config: ReportConfig) -> Path:
    """Where the card's folder goes: `--out`, else its place in the work folder."""
    return config.out or config.work / "card"


def run(config: ReportConfig, *, on_message: Callable[[str], None] = lambda text: None) -> Card:
    """Write a run as an artifact with its model card into a folder; the same artifacts give the same bytes.

    A card that is there is written anew, but for files that someone has changed since.

    Args:
        config: of the report.
        on_message: called with what a user should know, a sentence each.

    Raises:
        ArtifactError: no run, a damaged one, or the folder holds what is not of a card.
        UsageError: several runs and none named, or a licence that is no name.
    """
    out = default_out(config)
    subject, files = _prepare(config)
    _check_place(out, files, overwrite=config.overwrite)
    with manifest.locked(out):
        before, listing = _listed(out), {name: file.sha256 for name, file in files.items()}
        if before == listing and all(_hash(out / name) == digest for name, digest in listing.items()):
            on_message(f"Already done: {out} is the card of what is there.")
        else:
            _write(out, files, before or {}, listing)
    sizes = {name: (out / name).stat().st_size for name in files}
    return Card(out, subject.run.manifest.id, sizes, tuple(subject.own.troubles))


def dry_run(config: ReportConfig) -> dict[str, Any]:
    """What `run` would write, after the same checks."""
    out = default_out(config)
    subject, files = _prepare(config)
    _check_place(out, files, overwrite=config.overwrite)
    return {"out": str(out), "run": subject.run.name, "files": list(files)}


def _prepare(config: ReportConfig) -> tuple[Subject, dict[str, File]]:
    if config.license is not None and not _LICENSE.fullmatch(config.license):
        raise UsageError(
            f"--license {config.license}: it is the Hub's name for a licence, as apache-2.0, cc-by-4.0 or other."
        )
    found = collect(config.work)
    subject = find_subject(found, _find_run(config, found))
    files: dict[str, File] = {}
    with subject.own.guarded(subject.run):
        files = make_card(subject, license=config.license, base_model=_base_model(subject))
    if not files:
        raise ArtifactError(f"{subject.run.folder} cannot be published: {subject.own.troubles[-1].text}")
    return subject, files


def _find_run(config: ReportConfig, found: Collection) -> Artifact:
    """The run that is named, else the only one of the work folder."""
    folder = only_run(config.work, config.run)
    same = (artifact for artifact in found.of("run") if artifact.folder.resolve() == folder.resolve())
    return next(same, None) or Artifact(folder.resolve().name, folder, read_run(folder).manifest)


def _base_model(subject: Subject) -> str | None:
    """The repository on the Hub that timm took the weights of the run's backbone from, if it did."""
    name = (subject.run.manifest.facts.get("backbone") or {}).get("name")
    fetched = subject.features is not None and subject.features.manifest.info.get("weights") in ("auto", "pretrained")
    if subject.backbone is not None or not fetched or not isinstance(name, str) or "." not in name:
        return None
    from leokit.backbones import hub_repository  # timm, which takes seconds

    return hub_repository(name)


def _check_place(out: Path, files: Mapping[str, File], *, overwrite: bool) -> None:
    """Refuse to replace what is not of a card, or was changed since it was written.

    Raises:
        ArtifactError: naming it.
    """
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file: a card is a folder, choose another --out.")
    root, before = out.resolve(), _listed(out)
    for name in {*files, *(before or {}), CARD}:
        if not (out / name).resolve().is_relative_to(root) or (out / name).is_symlink():
            raise ArtifactError(f"{out / name} is a link: delete it, or choose another --out.")
    if overwrite or (out / UNFINISHED_CARD).exists() or not out.is_dir():
        return
    if before is None:
        if any(not path.name.startswith(".") for path in out.iterdir()):  # as .git and .gitattributes of a clone
            raise ArtifactError(
                f"{out} holds files, and no card that leokit wrote: it is left alone. Choose another --out, or use "
                "--overwrite."
            )
        return
    for name, file in files.items():
        if _hash(out / name) not in (None, file.sha256, before.get(name)):
            raise ArtifactError(
                f"{out / name} was changed since leokit wrote it: it is left alone. Choose another --out, or use "
                "--overwrite."
            )


def _write(out: Path, files: Mapping[str, File], before: Mapping[str, str], listing: Mapping[str, str]) -> None:
    (out / UNFINISHED_CARD).touch()
    for name, digest in before.items():
        if name not in files and _hash(out / name) == digest:
            (out / name).unlink()
            if (out / name).parent != out and not any((out / name).parent.iterdir()):
                (out / name).parent.rmdir()
    for name, file in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        if _hash(out / name) != file.sha256:
            manifest.write_atomically(out / name, file.read())
    manifest.write_atomically(out / CARD, json.dumps({"files": listing}, indent=1).encode())
    (out / UNFINISHED_CARD).unlink()


def _listed(out: Path) -> dict[str, str] | None:
    """The files of the card in a folder with their hashes; None where there is none."""
    try:
        found = json.loads((out / CARD).read_bytes())["files"]
        return {str(name): str(digest) for name, digest in found.items() if _is_inside(str(name))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _hash(path: Path) -> str | None:
    return manifest.hash_file(path) if path.is_file() else None
