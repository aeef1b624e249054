"""Where results go: full and read-only disks, links, two processes at once, odd paths, and a clock that goes back."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leokit import manifest
from leokit.cli import app
from leokit.errors import ArtifactError
from leokit.features import FeatureStore
from leokit.runs import open_run
from tests.processes import ended, start
from tests.robustness import stages, tally


def some(names, often):
    """All of the names as parameters of a test, most of them for `-m slow`."""
    return [name if name in often else pytest.param(name, marks=pytest.mark.slow) for name in names]


ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def run(folder, *arguments, code=0):
    """Run `leokit ARGUMENTS` in this process and a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        os.chdir(before)
    assert done.exit_code == code, f"{arguments}: {done.exit_code}\n{done.stdout}\n{done.stderr}\n{done.exception!r}"
    if code:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        return errors[0]
    return done.stdout


# Disks


@contextmanager
def mounted(folder, *options):
    """A file system in memory at a folder."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a disk of its own: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(not ROOT, reason="only root may mount a small disk")
@pytest.mark.parametrize("name", some(stages.NAMES, ("extract", "meta-train", "report", "fit", "predict")))
def test_a_full_disk_is_one_line_and_the_command_goes_on(made, tmp_path, name):
    with mounted(tmp_path / "disk", "-o", "size=4k") as disk:
        tally.count("places", "a full disk")
        if name == "predict":  # whose table of a few images takes no more room than there is
            (disk / "filler").write_bytes(bytes(4096))
        arguments = made.arguments(name, disk / "out")
        error = run(made.folder, *arguments, code=1)
        assert "o space left on device" in error, error
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run(made.folder, *arguments)
        assert stages.result(disk / "out") == made.results[name]


@pytest.mark.skipif(not ROOT, reason="only root may mount a read-only disk")
def test_a_read_only_disk_is_one_line(made, tmp_path):
    with mounted(tmp_path / "disk") as disk:
        (disk / "empty").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in stages.NAMES:
            for place in ("out", "empty") if name in stages.FOLDERS else ("out",):
                tally.count("places", "a read-only disk")
                makes_folder = place == "out" and name in stages.FOLDERS
                error = run(made.folder, *made.arguments(name, disk / place), code=4 if makes_folder else 1)
                assert "ead-only file system" in error, error
        assert [path.name for path in disk.iterdir()] == ["empty"] and not any((disk / "empty").iterdir())


def test_files_that_may_not_grow(made, tmp_path):
    """What a quota does to a process, by its limit on the size of a file: SIGXFSZ is ignored, so it is an error."""
    tally.count("places", "files that may not grow")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from leokit.cli import main; sys.argv[0] = 'leokit'; main()"
    )
    command = [sys.executable, "-c", code, *map(str, made.arguments("import", tmp_path / "out"))]
    done = subprocess.run(command, cwd=made.folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "error: " in done.stderr.splitlines()[-1]
    run(made.folder, *made.arguments("import", tmp_path / "out"))
    assert stages.result(tmp_path / "out") == made.results["import"]


# Links


@pytest.mark.parametrize("name", some(stages.FOLDERS, ("extract", "meta-train", "eval")))
def test_a_link_in_place_of_an_output(made, tmp_path, name):
    """A link to an empty folder is the user's choice of a disk; one to a file, to nothing or to itself is refused."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "file").write_text("mine")
    targets = {
        "a folder": elsewhere,
        "a file": tmp_path / "file",
        "nothing": tmp_path / "none",
        "itself": tmp_path / "me",
    }
    for kind, target in targets.items():
        tally.count("places", f"a link to {kind} in place of an output")
        link = tmp_path / "me" if kind == "itself" else tmp_path / f"link to {kind}"
        link.symlink_to(target)
        run(made.folder, *made.arguments(name, link), code=0 if kind == "a folder" else 4)
    assert stages.result(elsewhere) == made.results[name]
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "none").exists()


def files_of(name, made):
    """The files that a command writes, and the folders that they lie in."""
    folder = made.folder / "whole" / name
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if path.name != manifest.MANIFEST]


@pytest.mark.parametrize("name", some(stages.FOLDERS, ("extract", "meta-train", "eval")))
def test_links_in_the_folder_of_an_output(made, tmp_path, name):
    """An unfinished artifact from elsewhere whose files are links: nothing is written or deleted where they lead."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine.txt").write_text("mine")
    inside = files_of(name, made)
    chosen = sorted(
        {inside[0], inside[-1], Path("manifest.json"), *(path.parent for path in inside if path.parent.name)}
    )
    for number, path in enumerate(chosen[:4]):
        for kind, target in (("folder", victim), ("file", victim / "mine.txt"), ("dangling", victim / "new.txt")):
            tally.count(
                "places", f"a link to a {kind} inside an output" if kind != "dangling" else "a dangling link inside"
            )
            out = tmp_path / f"{number}-{kind}"
            shutil.copytree(made.folder / "whole" / name, out)
            unfinished = {"schema": manifest.read(out).schema, "config": manifest.read(out).config}
            unfinished["inputs"] = {role: entry.id for role, entry in manifest.read(out).inputs.items()}
            (out / manifest.MANIFEST).unlink()
            (out / manifest.UNFINISHED).write_text(json.dumps(unfinished))
            place = out / path
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            place.symlink_to(target)
            error = run(made.folder, *made.arguments(name, out), code=4)
            assert path.name in error
            run(made.folder, *made.arguments(name, out), "--overwrite", code=4)
            assert [entry.name for entry in victim.iterdir()] == ["mine.txt"]
            assert (victim / "mine.txt").read_text() == "mine"


def test_a_planted_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    tally.count("places", "a link in place of a temporary file")
    (tmp_path / f".new.{os.getpid()}.tmp").symlink_to(tmp_path / "mine.txt")
    manifest.write_atomically(tmp_path / "new", b"new")
    assert (tmp_path / "mine.txt").read_text() == "mine" and (tmp_path / "new").read_bytes() == b"new"


def test_a_file_that_takes_long_to_write(tmp_path):
    """It is held by one process, follows no link, takes over what a killed one left, and is there when it is whole."""
    place, mine = tmp_path / "x.csv", tmp_path / "mine.txt"
    mine.write_text("mine")
    tally.count("places", "a link in place of a temporary file")
    tally.count("places", "what a killed process left")
    for before in ("link", "left", "nothing"):
        place.unlink(missing_ok=True)
        if before == "link":
            (tmp_path / ".x.csv.tmp").symlink_to(mine)
        elif before == "left":
            (tmp_path / ".x.csv.tmp").write_text("half of a longer one")
        with manifest.replacing(place) as temporary:
            temporary.write_text("whole")
            assert not place.exists()
            with pytest.raises(ArtifactError, match="Another process is writing"), manifest.replacing(place):
                pass
        assert place.read_text() == "whole" and mine.read_text() == "mine"
        assert {path.name for path in tmp_path.iterdir()} == {"x.csv", "mine.txt"}
    with pytest.raises(KeyError), manifest.replacing(place):
        raise KeyError
    assert place.read_text() == "whole" and {path.name for path in tmp_path.iterdir()} == {"x.csv", "mine.txt"}


def test_overwriting_with_a_link_to_a_folder_inside(made, tmp_path):
    """A finished artifact into which a user has put a link: what it leads to is not touched."""
    victim = tmp_path / "victim"
    victim.mkdir()
    out = shutil.copytree(made.folder / "whole/eval", tmp_path / "out")
    (out / "link").symlink_to(victim)
    tally.count("places", "a link in a finished output")
    error = run(made.folder, *made.arguments("eval", out), "--seed", 1, "--overwrite", code=4)
    assert "link" in error
    assert manifest.read(out).id == made.results["eval"]["id"]
    run(made.folder, *made.arguments("eval", out))  # done already: nothing is written


# Two at once


@pytest.mark.parametrize(
    "name",
    some(("import", "eval", "meta-train", "table", "fit", "predict", "search"), ("meta-train", "fit", "predict")),
)
def test_two_processes_at_once(made, tmp_path, name):
    """One of them makes it; the other is refused, or finds it done."""
    arguments = made.arguments(name, tmp_path / "out")
    both = [start(made.folder, *arguments, stderr=tmp_path / f"said{number}") for number in range(2)]
    codes = sorted(ended(process) for process in both)
    tally.count("places", "two processes at once")
    said = "".join((tmp_path / f"said{number}").read_text() for number in range(2))
    assert codes in ([0, 0], [0, 4]), said
    assert "Traceback" not in said
    if codes == [0, 4]:
        assert "Another process" in said or (name == "predict" and "is there already" in said)
    assert stages.result(tmp_path / "out") == made.results[name]


def test_many_threads_write_one_file(tmp_path):
    path = tmp_path / "a.json"
    manifest.write_atomically(path, b"0" * 1000)
    stop = time.monotonic() + 0.3
    seen = set()

    def read():
        while time.monotonic() < stop:
            seen.add(path.read_bytes()[:1] if len(path.read_bytes()) == 1000 else b"torn")

    reader = threading.Thread(target=read)
    reader.start()
    count = 0
    while time.monotonic() < stop:
        count += 1
        manifest.write_atomically(path, bytes([48 + count % 2]) * 1000)
    reader.join()
    tally.count("places", "reading a file while it is replaced", count)
    assert seen <= {b"0", b"1"}


# Paths

ODD = {
    "spaces": "my work folder",
    "quotes": 'it\'s "mine"',
    "newline": "two\nlines",
    "200 characters": "x" * 200,
    "leading dash": "-rf",
    "dollar and backquote": "$(touch pwned)`touch pwned`",
    "star": "*?[a]",
    "backslash": "a\\b",
    "not UTF-8": b"caf\xe9".decode("utf-8", "surrogateescape"),
    "umlauts": "Größe 図",
    "escape sequence": "\x1b[31mred",
    "percent and braces": "100% {0}",
}


@pytest.mark.parametrize("kind", some(ODD, ("newline", "not UTF-8")))
def test_odd_paths_give_the_same_results(made, tmp_path, kind):
    """A work folder of an odd name: import, meta-train, eval, table, report in it."""
    try:
        (tmp_path / ODD[kind]).mkdir()
    except OSError as error:
        pytest.skip(f"this disk takes no such name: {error}")
    tally.count("places", f"odd paths: {kind}")
    work = f"./{ODD[kind]}"
    os.symlink(made.folder / "arrays", tmp_path / "arrays")
    run(tmp_path, "import", "arrays", f"--work={work}", "--backbone-name=x")
    run(tmp_path, "meta-train", *stages.TRAINING, f"--work={work}")
    run(tmp_path, "eval", *stages.TESTING, f"--work={work}")
    run(tmp_path, "table", "1", f"--work={work}")
    run(tmp_path, "report", f"--work={work}")
    run(
        tmp_path, "verify", *(f"{work}/{place}" for place in ("features", "runs/leo-5way-1shot", "eval/leo-5way-1shot"))
    )
    assert FeatureStore.open(tmp_path / ODD[kind] / "features").id == made.results["import"]["id"]
    assert open_run(tmp_path / ODD[kind] / "runs/leo-5way-1shot").id == made.results["meta-train"]["id"]
    assert manifest.read(tmp_path / ODD[kind] / "eval/leo-5way-1shot").id == made.results["eval"]["id"]
    assert not list(tmp_path.rglob("pwned"))
    assert {path.name for path in tmp_path.iterdir()} == {ODD[kind], "arrays"}


# The clock


def test_a_clock_that_goes_back(made, tmp_path, monkeypatch):
    """Each look at the clock is an hour before the last one, and every input is of the year 2100."""
    tally.count("places", "a clock that goes back", 2)
    now = iter(range(4_102_444_800, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    inputs = [path for path in (made.folder / "arrays").iterdir()]
    for path in inputs:
        os.utime(path, (4_102_444_800,) * 2)
    for name in ("import", "meta-train", "eval", "table"):
        run(made.folder, *made.arguments(name, tmp_path / name))
        assert stages.result(tmp_path / name) == made.results[name]
        run(made.folder, *made.arguments(name, tmp_path / name))  # done already


# Outside

OFTEN = ("extract", "meta-train", "eval", "report", "fit", "predict")


@pytest.mark.parametrize("names", some((OFTEN, stages.NAMES), (OFTEN,)), ids=["some", "all"])
def test_nothing_is_written_outside_of_the_output(made, tmp_path, names):
    """Of commands, run in a folder that holds nothing but links to their inputs."""
    here = tmp_path / "here"
    here.mkdir()
    for path in made.folder.iterdir():
        if path.name != "whole":
            (here / path.name).symlink_to(path)
    before = snapshot(made.folder)
    for name in names:
        tally.count("places", "writing outside of the output")
        run(here, *made.arguments(name, tmp_path / "out" / name))
    assert snapshot(made.folder) == before
    assert not [path for path in here.iterdir() if not path.is_symlink()]
    works = {f"{name}.work" for name in ("fit", "predict")}
    written = {path.name.removesuffix(".csv") for path in (tmp_path / "out").iterdir()}
    assert written == {*names, *works}


def snapshot(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", stages.FOLDERS)
def test_every_kind_of_artifact_can_be_looked_into(made, name):
    for command in ("inspect", "verify"):
        for form in ((), ("--json",)):
            done = CliRunner().invoke(app, [command, str(made.folder / "whole" / name), *form])
            assert done.exit_code == 0, (done.stderr, done.exception)
            assert "Traceback" not in done.output
