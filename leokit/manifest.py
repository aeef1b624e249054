"""`manifest.json`: what an artifact folder is, what it was made from, and whether it is whole.

A stage holds the folder by `locked`, calls `begin` before it writes anything, writes its files, and calls `finish`,
which writes the manifest last and atomically. A folder without a manifest is unfinished; `begin` leaves
`unfinished.json` in it, so that the same command can go on and another command is refused. The id of an artifact is the
SHA-256 of the canonical JSON of its schema, the configuration that can change results, the ids of its inputs and the
hashes of its result files; clocks, hosts, paths, logs and pictures are outside of it. A checksum over the rest of the
manifest finds a flipped bit in those parts too.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from leokit.errors import ArtifactError, disk_errors
from leokit.text import visible

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
SETS_OF_FILES = ("images", "source")  # roles of inputs that are no artifacts, though an image tree may lie in one
_Kind = TypeVar("_Kind")
_LOOKED_AT = 50  # folders, for a message
_MAKERS = {
    "leokit/backbone": "leokit pretrain",
    "leokit/features": "leokit extract` or `leokit import",
    "leokit/run": "leokit meta-train",
    "leokit/search": "leokit search",
    "leokit/eval": "leokit eval",
    "leokit/uncertainty": "leokit uncertainty",
    "leokit/analysis": "leokit analyze",
    "leokit/regression": "leokit regress train",
    "leokit/classifier": "leokit fit",
}


class Recorded(dict[str, Any]):
    """What a manifest records under names; to ask for one that is not there is an `ArtifactError`."""

    place = "the manifest"

    def __missing__(self, key: str) -> Any:
        raise ArtifactError(
            f"{self.place} records no {key!r}: it was altered, or made by another version of leokit. Make it again "
            "with --overwrite."
        )


@dataclass(frozen=True)
class Input:
    """An artifact (or a set of files) that another one was made from."""

    id: str
    path: str


@dataclass(frozen=True)
class FileRecord:
    """A file of an artifact; `in_id` tells whether its hash is part of the artifact's id."""

    sha256: str
    bytes: int
    in_id: bool


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
        schema: kind and version of the artifact, as `leokit/features@1`.
        id: SHA-256, see the module's docstring.
        config: the resolved configuration that can change results.
        inputs: what the artifact was made from, by role.
        files: every file of the artifact, by its path inside the folder.
        facts: what the next stage checks.
        info: outside the id: when, where, how long, with which versions.
    """

    schema: str
    id: str
    config: dict[str, Any]
    inputs: dict[str, Input]
    files: dict[str, FileRecord]
    facts: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Artifact:
    """A finished artifact that was opened; its kinds add what they hold.

    Attributes:
        folder: where it lies.
        manifest: what it is and was made from.
    """

    folder: Path
    manifest: Manifest

    def __repr__(self) -> str:
        """In a line; what it holds may be pages."""
        return f"<{type(self).__name__} {self.id[:12]} in {str(self.folder)!r}>"

    @property
    def id(self) -> str:
        """The artifact's id."""
        return self.manifest.id

    @property
    def facts(self) -> dict[str, Any]:
        """What later stages check."""
        return self.manifest.facts

    @property
    def input(self) -> Input:
        """The artifact as an input of another one."""
        return Input(self.id, str(self.folder))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(_encoded(text)).hexdigest()


def _encoded(text: str) -> bytes:
    """A text as UTF-8; what a path has for bytes that are no UTF-8 (lone surrogates) as JSON escapes it."""
    return text.encode("utf-8", "backslashreplace")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old contents or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a killed process of the same number, or a link that leads elsewhere
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file that takes long to write: yields where to write it, from which it goes to its place once it is whole.

    That is `.NAME.tmp` beside it, held by this process alone; one that a killed process has left is used again.

    Raises:
        ArtifactError: another living process is writing the same file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.is_symlink():  # which would lead elsewhere
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"Another process is writing to {path}: wait for it, or choose another name."
            ) from error
        if not temporary.exists() or not os.path.samestat(os.fstat(descriptor), temporary.stat()):
            raise ArtifactError(f"Another process has just written {path}: see what it is, or choose another name.")
        os.truncate(descriptor, 0)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def artifact_id(schema: str, config: Any, inputs: Mapping[str, Input], files: Mapping[str, FileRecord]) -> str:
    """The id of an artifact with these contents."""
    identity = {
        "schema": schema,
        "config": config,
        "inputs": {name: entry.id for name, entry in inputs.items()},
        "files": {name: entry.sha256 for name, entry in files.items() if entry.in_id},
    }
    return hash_text(canonical_json(identity))


def _intent(schema: str, config: Any, inputs: Mapping[str, Input]) -> dict[str, Any]:
    """What a command is about to make, before there are results; in the form that JSON gives back."""
    ids = {name: entry.id for name, entry in inputs.items()}
    return json.loads(canonical_json({"schema": schema, "config": config, "inputs": ids}))  # type: ignore[no-any-return]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Each value in which two nested mappings differ, as `key: old → new`."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{visible(prefix + key)}: {_short(before)} → {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = visible(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 60 else f"{text[:57]}…"


def begin(
    folder: Path,
    schema: str,
    config: Any,
    inputs: Mapping[str, Input],
    *,
    overwrite: bool = False,
    reopen: Callable[[dict[str, Any], dict[str, Any]], bool] | None = None,
    keep: bool = False,
    explain: Mapping[str, Callable[[], str]] | None = None,
    option: str = "--out",
) -> Manifest | None:
    """Make `folder` ready for an artifact, or find that it holds this very artifact already.

    Args:
        folder: where the artifact shall lie; created where it is missing.
        schema: kind and version of the artifact.
        config: the configuration that can change results; plain data.
        inputs: what it will be made from.
        overwrite: delete what another configuration made there.
        reopen: given what the artifact there is (schema, config and ids of inputs) and what is wanted, whether to go
            on from it, with all its files in place.
        keep: whether a finished artifact that is gone on from can be used until the new one is finished; not where its
            result files are replaced one by one.
        explain: for differences that values do not explain, as of hashes, by key: what to say in their place.
        option: by which another folder is named, for messages.

    Returns:
        The manifest of the finished artifact if the same command has finished there; None if there is work to do,
        with whatever the same command left unfinished still in place.

    Raises:
        ArtifactError: the folder holds another artifact, or files that are none of leokit's.
    """
    wanted = _intent(schema, config, inputs)
    finished, unfinished = _intents(folder)
    if finished is None and unfinished is None:
        for rest in folder.glob(f".{UNFINISHED}.*.tmp"):  # of a process that was killed before it had written it
            rest.unlink()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ArtifactError(
                f"{folder} exists and is no artifact of leokit: it is left alone. "
                f"Choose another {option}, or an empty folder."
            )
    found = unfinished or finished or wanted
    if found["schema"] != schema:
        raise ArtifactError(f"{folder} holds a {found['schema']}, not a {schema}: choose another {option}.")
    if reopen and reopen(found, wanted):
        _refuse_links(folder, option)
        _write_json(folder / UNFINISHED, wanted)
        if not keep:
            (folder / MANIFEST).unlink(missing_ok=True)
        return None
    if finished == wanted and not overwrite:
        manifest = read(folder, schema)
        check_files(folder, manifest)
        return manifest
    if found != wanted and not overwrite:
        changes = "; ".join(_explained(line, explain or {}) for line in differences(found, wanted))
        raise ArtifactError(
            f"{folder} holds another result than this command would make ({changes}). "
            f"Use --overwrite to replace it, or another {option} to write elsewhere."
        )
    if overwrite and (found != wanted or finished == wanted):
        for entry in inputs.values():
            if Path(entry.path).resolve().is_relative_to(folder.resolve()):
                raise ArtifactError(f"{folder} holds what this command reads ({entry.path}): choose another {option}.")
        _refuse_links(folder, option, folders=True)
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_links(folder, option)
    _write_json(folder / UNFINISHED, wanted)
    return None


def _refuse_links(folder: Path, option: str, *, folders: bool = False) -> None:
    """Refuse to write where a link in an artifact's folder would lead a file out of it.

    Args:
        folder: of the artifact.
        option: by which another one is named.
        folders: look at links to folders only, where files are about to be deleted, which spares what links name.

    Raises:
        ArtifactError: naming the link.
    """
    for path in folder.rglob("*"):
        if path.is_symlink() and (path.is_dir() or not folders):
            raise ArtifactError(
                f"{path} is a link, and this command writes into its folder: delete the link, or choose another "
                f"{option}."
            )


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, _json_text(value))


def _json_text(value: Any) -> bytes:
    return _encoded(json.dumps(value, indent=1, ensure_ascii=False))


def already_done(folder: Path) -> str:
    """What to tell a user whose command has nothing to do."""
    return f"Already done: {folder} holds the result of these inputs and options."


def _clear(folder: Path) -> None:
    """Delete an artifact: what its manifest lists, or everything where it is unfinished. Files of others stay."""
    if (folder / MANIFEST).exists():
        for name in read(folder).files:
            if not (folder / name).is_dir():
                (folder / name).unlink(missing_ok=True)
        for name in (MANIFEST, UNFINISHED):
            (folder / name).unlink(missing_ok=True)
        for place in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            if not any(place.iterdir()):
                place.rmdir()
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(folder: Path, option: str = "--out") -> Iterator[None]:
    """Hold an artifact's folder, created where it is missing, for this process alone.

    The lock is the kernel's (flock on the folder): it ends with the process, however it ends, so none goes stale.

    Args:
        folder: of the artifact.
        option: by which another one is named, for messages.

    Raises:
        ArtifactError: another living process holds the folder, or it cannot be made.
        LeokitError: while it is held, what is written finds the disk full or the folder not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(
            f"The folder {os.path.abspath(folder)} cannot be made ({error.strerror}): choose another {option}."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ArtifactError(
            f"Another process is writing to {folder}: wait for it, or choose another {option}."
        ) from error
    try:
        with disk_errors(folder, option):
            yield
    finally:
        os.close(descriptor)


def _explained(difference: str, explain: Mapping[str, Callable[[], str]]) -> str:
    key = difference.partition(": ")[0]
    return f"{key}: {explain[key]()}" if key in explain else difference


def _intents(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What the finished artifact in `folder` was meant to be, and what the unfinished one; None where there is none.

    There are both while a finished artifact is carried on: until that ends, the finished one can be used.
    """
    finished = unfinished = None
    if _there(folder / MANIFEST):
        manifest = read(folder)
        finished = _intent(manifest.schema, manifest.config, manifest.inputs)
    if _there(folder / UNFINISHED):
        unfinished = _parse_intent(folder / UNFINISHED)
    return finished, unfinished


def begun(folder: Path) -> dict[str, Any] | None:
    """What `begin` has made a folder ready for, finished or not: schema, config, ids of inputs; None if for nothing.

    Raises:
        ArtifactError: what says so is damaged.
    """
    finished, unfinished = _intents(folder)
    return unfinished or finished


def finish(
    folder: Path,
    schema: str,
    config: Any,
    inputs: Mapping[str, Input],
    *,
    results: Iterable[str],
    extras: Iterable[str] = (),
    facts: Mapping[str, Any],
    info: Mapping[str, Any],
) -> Manifest:
    """Hash the files and write the manifest: from now on the folder is a finished artifact.

    Args:
        folder: the artifact's folder.
        schema: kind and version, as given to `begin`.
        config: as given to `begin`.
        inputs: as given to `begin`.
        results: files whose contents are the result; their hashes are in the id.
        extras: further files (logs, pictures), recorded but outside the id.
        facts: what the next stage checks.
        info: when, where, how long.
    """
    files = {name: _record(folder / name, in_id=True) for name in sorted(results)}
    files |= {name: _record(folder / name, in_id=False) for name in sorted(extras)}
    identifier = artifact_id(schema, config, inputs, files)
    manifest = Manifest(schema, identifier, dict(config), dict(inputs), files, dict(facts), dict(info))
    write_atomically(folder / MANIFEST, to_bytes(manifest))
    (folder / UNFINISHED).unlink(missing_ok=True)
    sweep(folder, [*files, MANIFEST, UNFINISHED])
    return manifest


def to_bytes(manifest: Manifest) -> bytes:
    """A manifest with its checksum, as `finish` writes it."""
    data = json.loads(canonical_json(asdict(manifest)))  # what a reader will see: tuples are lists
    return _json_text(data | {"checksum": hash_text(canonical_json(data))})


def sweep(folder: Path, files: Iterable[str]) -> None:
    """Delete what killed processes had begun to write of some files: `.NAME.tmp` or `.NAME.PROCESS.tmp` beside them.

    Args:
        folder: that this process holds by `locked`.
        files: by their paths inside it.
    """
    names = {Path(name) for name in files}
    for place in {name.parent for name in names}:
        for path in (folder / place).glob(".*.tmp"):
            name = path.name[1:].removesuffix(".tmp")
            if {place / name, place / name.rpartition(".")[0]} & names:
                path.unlink()


def _record(path: Path, *, in_id: bool) -> FileRecord:
    return FileRecord(hash_file(path), path.stat().st_size, in_id)


def read(folder: Path, schema: str | None = None) -> Manifest:
    """Read the manifest of a finished artifact and check that it agrees with its own id.

    Raises:
        ArtifactError: no such folder, unfinished, of another kind than `schema`, or altered.
    """
    path = folder / MANIFEST
    if not os.path.isdir(folder):
        raise ArtifactError(f"There is no artifact at {folder}{_needed(schema)}{_beside(folder, schema)}")
    if not _there(path):
        unfinished = _there(folder / UNFINISHED)
        raise ArtifactError(
            f"{folder} is unfinished: the command that makes it, run again, finishes it."
            if unfinished
            else f"{folder} has no {MANIFEST}: it is no artifact of leokit{_needed(schema)}"
        )
    data = _parse(path)
    checksum = data.pop("checksum", None)
    try:
        if checksum != hash_text(canonical_json(data)):
            raise ArtifactError(
                f"{path} was altered: its checksum does not fit. Delete its folder and make the artifact again."
            )
        manifest = Manifest(
            schema=_of(str, data["schema"]),
            id=_of(str, data["id"]),
            config=_recorded(path, data["config"]),
            inputs=_recorded(path, {name: _input(entry) for name, entry in data["inputs"].items()}),
            files={name: _file_record(entry) for name, entry in data["files"].items()},
            facts=_recorded(path, data["facts"]),
            info=_of(dict, data["info"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r}): delete its folder and make the artifact again.") from error
    for name in manifest.files:
        if not _is_inside(name):
            raise ArtifactError(f"{path} names the file {name!r}, which is outside of its folder: do not use it.")
    if schema is not None and manifest.schema != schema:
        raise ArtifactError(f"{folder} is of kind {manifest.schema!r}, but {schema!r} is needed.")
    if artifact_id(manifest.schema, manifest.config, manifest.inputs, manifest.files) != manifest.id:
        raise ArtifactError(
            f"{path} was altered: its contents do not give its id. Delete its folder and make the artifact again."
        )
    return manifest


def _needed(schema: str | None) -> str:
    """The end of a message: what was looked for, and which command makes it."""
    maker = _MAKERS.get((schema or "").split("@")[0])
    made = f": run `{maker}` first, or name another folder" if maker else ""
    return "." if schema is None else f" (needed: {schema}){made}."


def _beside(folder: Path, schema: str | None) -> str:
    """Which finished artifacts of that kind lie where one was looked for."""
    found = []
    for path in sorted(folder.parent.glob(f"*/{MANIFEST}"))[:_LOOKED_AT]:
        try:
            kind = json.loads(path.read_bytes())["schema"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if kind == schema:
            found.append(path.parent.name)
    if not found:
        return ""
    names = ", ".join(found[:5]) + ", …" * (len(found) > 5)
    return f" In {folder.parent} there {'is' if len(found) == 1 else 'are'} {names}."


def _of(kind: type[_Kind], value: Any) -> _Kind:
    """A value of a kind.

    Raises:
        TypeError: it is of another.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.60} where there should be a {kind.__name__}")
    return value


def _recorded(path: Path, values: Any) -> Recorded:
    found = Recorded(_of(dict, values))
    found.place = str(path)
    return found


def _input(entry: Any) -> Input:
    return Input(_of(str, entry["id"]), _of(str, entry["path"]))


def _file_record(entry: Any) -> FileRecord:
    return FileRecord(_of(str, entry["sha256"]), _of(int, entry["bytes"]), _of(bool, entry["in_id"]))


def _is_inside(name: str) -> bool:
    """Whether the name of a file stays in its folder."""
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts and "\0" not in name


def _there(path: Path) -> bool:
    """Whether anything is at a path, be it a link that leads nowhere."""
    return os.path.lexists(path)


def _parse(path: Path) -> dict[str, Any]:
    if not path.is_file():  # as a named pipe, which would be waited for
        raise ArtifactError(f"{path} is damaged (no regular file): delete its folder and make the artifact again.")
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): make it readable.") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): delete its folder and make the artifact again.") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} is damaged (no JSON object): delete its folder and make the artifact again.")
    return data


def _parse_intent(path: Path) -> dict[str, Any]:
    """What `begin` has written about an artifact that is not finished."""
    data = _parse(path)
    try:
        _of(str, data["schema"]), _of(dict, data["config"])
        for identifier in _of(dict, data["inputs"]).values():
            _of(str, identifier)
        canonical_json(data)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r}): delete its folder and make the artifact again.") from error
    return data


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check every file of the artifact that is in its id against the recorded size and hash.

    Raises:
        ArtifactError: naming the first file that is missing or altered.
    """
    records = [(name, entry) for name, entry in manifest.files.items() if entry.in_id]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        faults = pool.map(lambda item: _fault(folder / item[0], item[1]), records)
        for (name, _), fault in zip(records, faults, strict=True):
            if fault:
                raise ArtifactError(
                    f"{folder / name} {fault}: the artifact is damaged, make it again with --overwrite."
                )


def read_file(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The bytes of one file of an artifact, compared with its recorded hash.

    Raises:
        ArtifactError: the artifact has no such file, or it is missing or altered.
    """
    if name not in manifest.files:
        raise ArtifactError(f"{folder} has no {name} among its files: it was made by another version of leokit.")
    if not (folder / name).is_file():
        raise ArtifactError(f"{folder / name} is missing: make the artifact again with --overwrite.")
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{folder / name} cannot be read ({error.strerror}): make the artifact again with --overwrite."
        ) from error
    if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
        raise ArtifactError(
            f"{folder / name} was altered (its hash differs): the artifact is damaged, make it again with --overwrite."
        )
    return data


def read_json(folder: Path, manifest: Manifest, name: str) -> Any:
    """What a JSON file of an artifact holds, its bytes compared with their recorded hash.

    Raises:
        ArtifactError: the artifact has no such file, or it is missing, altered or no JSON.
    """
    try:
        return json.loads(read_file(folder, manifest, name))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{folder / name} is damaged ({error}): make the artifact again with --overwrite."
        ) from error


def file_faults(folder: Path, manifest: Manifest, on_file: Callable[[str], None] | None = None) -> dict[str, str]:
    """What is wrong with the files of an artifact, those outside of its id too, by their names.

    Args:
        folder: of the artifact.
        manifest: of the artifact.
        on_file: called with the name of each file that was checked.
    """
    faults = {}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda item: _fault(folder / item[0], item[1]), manifest.files.items())
        for name, fault in zip(manifest.files, found, strict=True):
            if fault:
                faults[name] = fault
            if on_file:
                on_file(name)
    return faults


def is_verbatim(folder: Path) -> bool:
    """Whether a manifest that can be read is, byte for byte, as it was written.

    The checksum is over values: 1e-05 and 1E-05, one bit apart, are the same to it.
    """
    data = (folder / MANIFEST).read_bytes()
    return data == _json_text(json.loads(data))


def read_unfinished(folder: Path) -> dict[str, Any] | None:
    """What an artifact that is not finished will be: its schema, config and the ids of its inputs; None if it is none.

    Raises:
        ArtifactError: what says so is damaged.
    """
    there = _there(folder / UNFINISHED) and not _there(folder / MANIFEST)
    return _parse_intent(folder / UNFINISHED) if there else None


def look_up(role: str, entry: Input) -> tuple[Literal["there", "changed", "missing", "files"], Manifest | None]:
    """Whether what an artifact was made from is still at its recorded path.

    Returns:
        `there`, with the manifest, or `changed` where another artifact, an unfinished or a damaged one is there;
        `files` where the input is no artifact, so that its id cannot be compared; `missing` where nothing is there.
    """
    path = Path(entry.path)
    if not os.path.exists(path):
        return "missing", None
    if role in SETS_OF_FILES or not any(os.path.exists(path / name) for name in (MANIFEST, UNFINISHED)):
        return "files", None
    try:
        found = read(path)
    except ArtifactError:
        return "changed", None
    return ("there" if found.id == entry.id else "changed"), found


def _fault(path: Path, entry: FileRecord) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"has {size} bytes instead of {entry.bytes}"
    try:
        return None if hash_file(path) == entry.sha256 else "was altered (its hash differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
