"""Artifacts are whole or not there: unfinished, altered and foreign folders are told apart."""

import json
import subprocess
import sys

import pytest

from leokit import manifest
from leokit.errors import ArtifactError
from leokit.manifest import Input

SCHEMA = "leokit/test@1"
CONFIG = {"steps": 3, "rate": 0.1}
INPUTS = {"features": Input("abc", "/somewhere")}


def make(folder, *, config=CONFIG, inputs=INPUTS, text="result", info=None, overwrite=False):
    found = manifest.begin(folder, SCHEMA, config, inputs, overwrite=overwrite)
    if found:
        return found
    (folder / "result.txt").write_text(text)
    (folder / "log.txt").write_text(str(info))
    return manifest.finish(
        folder, SCHEMA, config, inputs, results=["result.txt"], extras=["log.txt"], facts={"n": 1}, info=info or {}
    )


def test_what_is_written_is_read(tmp_path):
    written = make(tmp_path / "a", info={"seconds": 1.5})
    assert manifest.read(tmp_path / "a", SCHEMA) == written
    manifest.check_files(tmp_path / "a", written)


def test_id_ignores_clock_place_and_logs_but_no_result(tmp_path):
    first = make(tmp_path / "a", info={"seconds": 1})
    elsewhere = make(tmp_path / "b", info={"seconds": 2}, inputs={"features": Input("abc", "/elsewhere")})
    assert first.id == elsewhere.id
    assert make(tmp_path / "c", text="other").id != first.id
    assert make(tmp_path / "d", config={**CONFIG, "rate": 0.2}).id != first.id
    assert make(tmp_path / "e", inputs={"features": Input("abd", "/somewhere")}).id != first.id


def test_finished_work_is_recognised(tmp_path):
    first = make(tmp_path / "a")
    assert manifest.begin(tmp_path / "a", SCHEMA, CONFIG, INPUTS) == first


def test_other_work_is_refused_with_the_difference(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"config\.rate: 0\.1 → 0\.2.*--overwrite"):
        make(tmp_path / "a", config={**CONFIG, "rate": 0.2})
    assert (tmp_path / "a" / "result.txt").read_text() == "result"
    replaced = make(tmp_path / "a", config={**CONFIG, "rate": 0.2}, text="new", overwrite=True)
    assert manifest.read(tmp_path / "a") == replaced


def test_unfinished_work_goes_on_or_is_refused(tmp_path):
    folder = tmp_path / "a"
    assert manifest.begin(folder, SCHEMA, CONFIG, INPUTS) is None
    (folder / "part").write_text("kept")
    with pytest.raises(ArtifactError, match="unfinished"):
        manifest.read(folder)
    assert manifest.begin(folder, SCHEMA, CONFIG, INPUTS) is None
    assert (folder / "part").exists()
    with pytest.raises(ArtifactError, match="another result"):
        manifest.begin(folder, SCHEMA, {**CONFIG, "steps": 4}, INPUTS)


@pytest.mark.parametrize("keep", [False, True])
def test_going_on_from_a_finished_artifact_is_for_the_caller_to_decide(tmp_path, keep):
    finished = make(tmp_path / "a")
    more = {**CONFIG, "steps": 4}

    def reopen(found, wanted):
        return found["config"]["steps"] < wanted["config"]["steps"]

    for config in ({**CONFIG, "steps": 2}, {**CONFIG, "rate": 0.2}):
        with pytest.raises(ArtifactError, match="another result"):
            manifest.begin(tmp_path / "a", SCHEMA, config, INPUTS, reopen=reopen, keep=keep)
    assert manifest.begin(tmp_path / "a", SCHEMA, more, INPUTS, reopen=reopen, keep=keep) is None
    assert (tmp_path / "a" / "result.txt").exists()
    if keep:  # it can still be used, and the command that made it has nothing to do
        assert manifest.read(tmp_path / "a") == finished
        assert manifest.begin(tmp_path / "a", SCHEMA, CONFIG, INPUTS, reopen=reopen, keep=keep) == finished
    else:
        with pytest.raises(ArtifactError, match="unfinished"):
            manifest.read(tmp_path / "a")
    assert manifest.begin(tmp_path / "a", SCHEMA, more, INPUTS, reopen=reopen, keep=keep) is None
    assert (tmp_path / "a" / "result.txt").exists()


def test_overwriting_spares_another_kind_and_the_input(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="holds a leokit/test@1, not a leokit/run@1"):
        manifest.begin(tmp_path / "a", "leokit/run@1", CONFIG, INPUTS, overwrite=True)
    own = {"features": Input("abc", str(tmp_path / "a" / "inside"))}
    with pytest.raises(ArtifactError, match="holds what this command reads"):
        manifest.begin(tmp_path / "a", SCHEMA, {}, own, overwrite=True)
    assert (tmp_path / "a" / "result.txt").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_the_users_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="left alone"):
        make(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_any_flipped_bit_is_found(tmp_path):
    make(tmp_path, info={"seconds": 1})
    whole = {name: (tmp_path / name).read_bytes() for name in ("manifest.json", "result.txt")}
    for name, data in whole.items():
        for position in range(0, len(data), 7):
            altered = bytearray(data)
            altered[position] ^= 4
            (tmp_path / name).write_bytes(altered)
            try:
                found = manifest.read(tmp_path, SCHEMA)
                manifest.check_files(tmp_path, found)
            except ArtifactError:
                continue
            # White space between JSON's tokens is the one thing that carries nothing.
            assert name == "manifest.json"
            assert json.loads(altered) == json.loads(data)
        (tmp_path / name).write_bytes(data)


@pytest.mark.parametrize("change", ["missing", "shorter"])
def test_missing_and_cut_files_are_named(tmp_path, change):
    made = make(tmp_path)
    if change == "missing":
        (tmp_path / "result.txt").unlink()
    else:
        (tmp_path / "result.txt").write_text("res")
    with pytest.raises(ArtifactError, match=r"result\.txt"):
        manifest.check_files(tmp_path, made)


def test_wrong_kind_and_no_folder(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="of kind 'leokit/test@1', but 'leokit/run@1' is needed"):
        manifest.read(tmp_path / "a", "leokit/run@1")
    with pytest.raises(ArtifactError, match="There is no artifact"):
        manifest.read(tmp_path / "b", SCHEMA)


def test_one_process_at_a_time_and_no_stale_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from leokit.manifest import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ArtifactError, match="Another process is writing"), manifest.locked(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with manifest.locked(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_overwriting_deletes_what_the_manifest_lists_and_nothing_else(tmp_path):
    make(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "log.txt").write_text("changed")
    make(tmp_path, config={**CONFIG, "rate": 0.2}, text="new", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "result.txt").read_text() == "new"


def test_a_manifest_that_names_files_outside_is_refused(tmp_path):
    (tmp_path / "victim.txt").write_text("mine")
    make(tmp_path / "a")
    data = json.loads((tmp_path / "a" / "manifest.json").read_text())
    data.pop("checksum")
    data["files"]["../victim.txt"] = data["files"]["result.txt"] | {"in_id": False}
    data["checksum"] = manifest.hash_text(manifest.canonical_json(data))
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="outside of its folder"):
        make(tmp_path / "a", config={}, overwrite=True)
    assert (tmp_path / "victim.txt").read_text() == "mine"


def test_a_process_killed_while_it_begins_leaves_a_place_that_can_be_used(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".unfinished.json.4711.tmp").write_bytes(b'{"schema"')
    assert manifest.begin(folder, "leokit/run@1", {}, {}) is None
    assert [path.name for path in folder.iterdir()] == ["unfinished.json"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.tmp").write_text("mine")
    with pytest.raises(ArtifactError, match="left alone"):
        manifest.begin(other, "leokit/run@1", {}, {})


@pytest.mark.parametrize("value", ["\x85", "\u2028", "\x1b[2J", "a\nb"])
def test_a_difference_is_told_in_one_line(tmp_path, value):
    make(tmp_path / "a", config={**CONFIG, "rate": value, value: 1})
    with pytest.raises(ArtifactError, match=r"config\.rate") as refused:
        make(tmp_path / "a")
    assert len(str(refused.value).splitlines()) == 1 and str(refused.value).isprintable()
