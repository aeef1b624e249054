"""`leokit inspect` and `leokit verify` on every kind of artifact: whole, unfinished, altered, and wrong inside."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from leokit import manifest
from leokit.cli import app
from leokit.config import VerifyConfig
from leokit.stages import verify
from leokit.tables import read_table, write_table
from tests.e2e.conftest import make_store

FEATURES = "leokit-work/features"
RUN = "leokit-work/runs/leo-3way-1shot"
EVAL = "leokit-work/eval/leo-3way-1shot"
GLYPHS = "glyphs"
ALL = (GLYPHS, FEATURES, RUN, EVAL)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One artifact of each kind, made by commands in one folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_store(folder / FEATURES, classes=(4, 3, 3), images=8, dim=24)
        small = ("--ways", "3", "--queries", "3")
        train = ("--steps", "4", "--val-every", "2", "--val-episodes", "5", "--val-queries", "3", "--l2-weight", "1e-5")
        for command in (
            ("meta-train", *small, *train),
            ("eval", "--run", RUN, "--episodes", "9", *small),
            ("demo", GLYPHS, "--per-class", "1", "--size", "32"),
        ):
            result = CliRunner().invoke(app, list(command))
            assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def work(made, leokit, tmp_path):
    """A copy of them; commands run where it lies, so that its paths hold."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def faults_of(*folders):
    verdicts = verify.run(VerifyConfig(paths=tuple(map(Path, folders))))
    return [fault for verdict in verdicts for fault in verdict.faults]


def finished_again(folder, change, *, facts=None):
    """Change files of an artifact and make its manifest anew: hashes are right, contents are not."""
    found = manifest.read(folder)
    change(folder)
    manifest.finish(
        folder,
        found.schema,
        found.config,
        found.inputs,
        results=[name for name, entry in found.files.items() if entry.in_id],
        extras=[name for name, entry in found.files.items() if not entry.in_id],
        facts=found.facts | (facts or {}),
        info=found.info,
    )


def test_whole_artifacts_are_right(work, leokit):
    assert [line.split()[0] for line in leokit("verify", *ALL).stdout.splitlines() if "@1" in line] == ["right"] * 4
    found = json.loads(leokit("verify", *ALL, "--json").stdout)["artifacts"]
    assert [entry["schema"] for entry in found] == [f"leokit/{kind}@1" for kind in ("demo", "features", "run", "eval")]
    assert all(entry["ok"] and entry["faults"] == entry["notes"] == [] for entry in found)
    assert found[1]["files"] == 3


@pytest.mark.parametrize("folder", [FEATURES, RUN, EVAL])
def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(work, folder):
    for name in manifest.read(work / folder).files:
        path = work / folder / name
        data = path.read_bytes()
        for position in {0, 5, len(data) // 3, len(data) // 2, len(data) - 1}:
            altered = bytearray(data)
            altered[position] ^= 1 << position % 8
            path.write_bytes(altered)
            assert faults_of(folder) == [f"{folder}/{name}: was altered (its hash differs)"]
        path.write_bytes(data)
    assert faults_of(folder) == []


def test_a_flipped_bit_anywhere_in_a_manifest_is_found(work):
    path = work / EVAL / "manifest.json"
    data = path.read_bytes()
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        (fault,) = faults_of(EVAL)
        assert EVAL in fault
    path.write_bytes(data)


def test_a_flipped_bit_that_changes_no_value_is_found(work, leokit):
    path = work / RUN / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"1e-05", b"1E-05"))
    assert manifest.read(work / RUN).config["l2_weight"] == 1e-5
    done = leokit("verify", RUN, code=4)
    assert f"{RUN}/manifest.json: was altered (no value, but its bytes are not as they were written)" in done.stdout


def test_every_fault_has_its_line_and_every_artifact_its_turn(work, leokit):
    (work / FEATURES / "val-00000-of-00001.parquet").unlink()
    (work / FEATURES / "test-00000-of-00001.parquet").write_bytes(b"")
    (work / EVAL / "manifest.json").unlink()
    long = work / ("a-long-name-" * 12)
    shutil.move(work / GLYPHS, long)
    (next(long.glob("*/0000.jpg"))).unlink()
    done = leokit("verify", FEATURES, "nowhere", RUN, long.name, EVAL, code=4)
    lines = done.stdout.splitlines()
    assert f"{FEATURES}/val-00000-of-00001.parquet: is missing" in lines
    assert [line for line in lines if line.startswith(f"{FEATURES}/test-00000-of-00001.parquet: has 0 bytes instead")]
    assert [line for line in lines if line.startswith("There is no artifact at nowhere")]
    assert [line for line in lines if line.startswith(f"{long.name}/") and line.endswith("/0000.jpg: is missing")]
    assert [line for line in lines if line.startswith(f"{EVAL} ") and "has no manifest.json" in line]
    assert "Faults found: 5, in 4 of 5 artifacts." in done.stderr


def test_logs_may_go_and_files_may_come(work, leokit):
    (work / RUN / "metrics.jsonl").unlink()
    (work / RUN / "thesis.txt").write_text("mine")
    done = leokit("verify", RUN)
    assert f"note: {RUN}: metrics.jsonl is missing; it is no part of the result" in done.stdout
    assert f"note: {RUN}: 1 files in its folder are not of it: thesis.txt" in done.stdout


def with_tensors(change):
    def altered(folder):
        tensors = load_file(folder / "weights.safetensors")
        change(tensors)
        save_file(tensors, folder / "weights.safetensors")

    return altered


def with_line(line):
    def altered(folder):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(f"{line}\n")

    return altered


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            with_tensors(lambda tensors: tensors.update(encoder=torch.zeros(5, 64))),
            "weights.safetensors: encoder has the shape (5, 64) instead of (24, 64)",
        ),
        (with_tensors(lambda tensors: tensors["decoder"].fill_(torch.nan)), "decoder has values that are not finite"),
        (with_tensors(lambda tensors: tensors.pop("inner_lr")), "weights.safetensors: inner_lr is missing"),
        (with_tensors(lambda tensors: tensors.update(more=torch.zeros(1))), "more is nothing that the variant learns"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"no tensors"), "weights.safetensors: "),
        (lambda folder: (folder / "last/state.safetensors").write_bytes(b"no tensors"), "last/state.safetensors: "),
        (with_line('{"step": 7, "loss":'), "is no JSON object with a step"),
        (with_line("[]"), "is no JSON object with a step"),
        (with_line('{"step": 1}'), " goes back from step 4 to 1"),
        (lambda folder: (folder / "config.toml").write_text("ways = 3\n"), "config.toml: is not the configuration"),
        (lambda folder: (folder / "config.toml").write_text("ways = \n"), "is not that of a leokit/run@1 (UsageError"),
    ],
)
def test_a_run_that_is_wrong_inside(work, change, fault):
    finished_again(work / RUN, change)
    (found,) = faults_of(RUN)
    assert fault in found


def with_summary(change):
    def altered(folder):
        summary = json.loads((folder / "summary.json").read_bytes())
        change(summary)
        (folder / "summary.json").write_text(json.dumps(summary))

    return altered


def with_episodes(change):
    def altered(folder):
        columns = {name: values.to_pylist() for name, values in zip(*_columns(folder), strict=True)}
        change(columns)
        write_table(folder / "episodes.parquet", columns)

    return altered


def _columns(folder):
    table = read_table(folder / "episodes.parquet")
    return table.column_names, table.columns


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            with_summary(lambda summary: summary["accuracy"]["leo"].update(mean=0.99)),
            "summary.json: the accuracy of 'leo' is 0.99, but its episodes give",
        ),
        (
            with_summary(lambda summary: summary.update(episodes=8)),
            "has 9 rows, which are not the 8 episodes of the summary",
        ),
        (with_summary(lambda summary: summary["accuracy"].pop("class-mean")), "'class-mean' has 9 rows"),
        (with_summary(dict.clear), "is not that of a leokit/eval@1 (KeyError"),
        (with_episodes(lambda columns: columns["accuracy"].__setitem__(0, 1.5)), "accuracies that are not from 0 to 1"),
        (with_episodes(lambda columns: columns["accuracy"].__setitem__(0, np.nan)), "accuracies that are not from 0"),
        (with_episodes(lambda columns: columns["episode"].__setitem__(0, 3)), "'leo' has 9 rows, which are not"),
        (lambda folder: (folder / "episodes.parquet").write_bytes(b"no table"), "(ArtifactError: The table"),
    ],
)
def test_an_evaluation_that_is_wrong_inside(work, change, fault):
    finished_again(work / EVAL, change)
    found = faults_of(EVAL)
    assert fault in found[0]


def test_features_and_demo_that_are_wrong_inside(work):
    def unlisted(folder):
        lines = (folder / "splits.csv").read_text().splitlines(keepends=True)
        (folder / "splits.csv").write_text("".join(lines[:-1]))

    last = (work / GLYPHS / "splits.csv").read_text().splitlines()[-1].split(",")[0]
    finished_again(work / GLYPHS, unlisted, facts={"images": 7})
    assert faults_of(GLYPHS) == [
        f"{GLYPHS}/splits.csv: the class {last!r} has images, but is not listed",
        f"{GLYPHS}/manifest.json: says 7 images, but there are 182",
    ]
    counts = manifest.read(work / FEATURES).facts["counts"]
    counts["val"]["val00"] += 1
    finished_again(work / FEATURES, lambda folder: None, facts={"counts": counts})
    assert faults_of(FEATURES) == [
        f"{FEATURES}/manifest.json: says that the class 'val00' of val has 9 images, but its file has 8"
    ]
    finished_again(work / FEATURES, lambda folder: None, facts={"counts": None})
    assert "is not that of a leokit/features@1 (TypeError" in faults_of(FEATURES)[0]


def test_the_chain_of_inputs(work, leokit):
    recorded = manifest.read(work / FEATURES).id
    shutil.rmtree(work / FEATURES)
    made = make_store(work / FEATURES, classes=(4, 3, 3), images=8, dim=24, seed=1)
    assert faults_of(EVAL) == [
        f"{EVAL}/manifest.json: its input {role} was {recorded[:12]}, but {FEATURES} has the id {made.id[:12]} now"
        for role in ("features", "run → features")
    ]
    (work / FEATURES / "manifest.json").unlink()
    (work / FEATURES / "unfinished.json").write_text("{}")
    assert faults_of(RUN) == [
        f"{RUN}/manifest.json: its input features was {recorded[:12]}, but {FEATURES} is unfinished or damaged now"
    ]
    shutil.rmtree(work / FEATURES)
    done = leokit("verify", EVAL)
    for role in ("features", "run → features"):
        assert f"note: {EVAL}: its input {role} ({recorded[:12]}) is not at {FEATURES}, seen from here" in done.stdout


def test_images_that_are_an_artifact_too_are_no_broken_link(work):
    inputs = {"images": manifest.Input("0" * 64, GLYPHS), "source": manifest.Input("1" * 64, str(work / "gone"))}
    manifest.begin(work / "new", "leokit/thing@1", {}, inputs)
    manifest.finish(work / "new", "leokit/thing@1", {}, inputs, results=[], facts={}, info={})
    (verdict,) = verify.run(VerifyConfig(paths=(work / "new",)))
    assert verdict.faults == ()
    assert [note.partition(": ")[2][:40] for note in verdict.notes] == [
        "beyond hashes and inputs there is no check for the kind 'leokit/thing@1'"[:40],
        "its input source (111111111111) is not at"[:40],
    ]


def test_progress_ends_at_its_total(work):
    seen = []
    verify.run(VerifyConfig(paths=(work / FEATURES, work / RUN)), on_progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, 3 + 3 + 5 + 1))
    assert {total for _, total, _ in seen} == {11}


def test_inspect_tells_counts_and_loads_nothing(work, leokit):
    for path in (work / FEATURES).glob("*.parquet"):
        path.unlink()
    done = leokit("inspect", FEATURES)
    for words in ("leokit/features@1", "float32", "Classes and images of each split"):
        assert words in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["train", "4", "32", "8", "8", "8"] in rows
    assert "train00" not in done.stdout
    listed = [line.split() for line in leokit("inspect", FEATURES, "--classes").stdout.splitlines()]
    places = [listed.index(row) for row in (["Classes", "of", "train"], ["Classes", "of", "val"], ["val02", "8"])]
    assert places == sorted(places) and places[-1] < listed.index(["Classes", "of", "test"])
    data = json.loads(leokit("inspect", FEATURES, "--json", "--classes").stdout)
    assert data["counts"]["test"] == {"test00": 8, "test01": 8, "test02": 8}
    assert data["summary"]["train"] == {"classes": 4, "images": 32, "min": 8, "median": 8, "max": 8}
    assert (data["finished"], data["id"]) == (True, manifest.read(work / FEATURES).id)
    assert "counts" not in json.loads(leokit("inspect", FEATURES, "--json").stdout)


def test_inspect_every_other_kind(work, leokit):
    data = json.loads(leokit("inspect", RUN, "--json").stdout)
    assert data["inputs"]["features"]["state"] == "there"
    assert data["config"]["ways"] == 3 and data["facts"]["steps"] == 4
    assert "still there" in leokit("inspect", RUN).stdout
    shutil.rmtree(work / FEATURES)
    states = json.loads(leokit("inspect", EVAL, "--json").stdout)["inputs"]
    assert {role: entry["state"] for role, entry in states.items()} == {"features": "missing", "run": "there"}
    assert "gone" in leokit("inspect", EVAL).stdout.split()
    summary = json.loads(leokit("inspect", GLYPHS, "--json").stdout)["summary"]
    assert summary["test"] == {"classes": 71, "images": 71, "min": 1, "median": 1, "max": 1}
    assert list(summary) == ["train", "val", "test"]


@pytest.mark.parametrize("folder", [FEATURES, RUN, EVAL, GLYPHS])
def test_inspect_says_a_thing_once(work, leokit, folder):
    """No key with its value stands in two tables, and every id and hash is short but the artifact's own."""
    found = manifest.read(work / folder)
    out = leokit("inspect", folder).stdout
    rows = [tuple(line.split()) for line in out.splitlines() if len(line.split()) == 2]
    assert len(rows) == len(set(rows)) > 10
    assert re.findall("[0-9a-f]{64}", out) == [found.id]
    assert not any(text in " ".join(out.split()) for text in found.facts.get("figures", {}).values())


def test_inspect_what_is_not_finished_or_no_artifact(work, leokit):
    manifest.begin(work / "new", "leokit/features@1", {"dtype": "float16"}, {"images": manifest.Input("ab" * 32, "x")})
    (work / "new/part").write_bytes(bytes(2048))
    done = leokit("inspect", "new")
    for words in ("leokit/features@1", "unfinished", "1 (2 KiB)", "abababababab", "run again, finishes it"):
        assert words in done.stdout
    assert json.loads(leokit("inspect", "new", "--json").stdout)["finished"] is False
    assert "new is unfinished" in leokit("verify", "new", code=4).stdout
    assert "There is no artifact at nowhere" in leokit("inspect", "nowhere", code=4).stderr
    assert "has no manifest.json" in leokit("inspect", "leokit-work", code=4).stderr
    path = work / RUN / "manifest.json"
    path.write_bytes(path.read_bytes()[:-9])
    assert "is damaged" in leokit("inspect", RUN, code=4).stderr


def test_a_verdict_is_plain_data(work):
    (verdict,) = verify.run(VerifyConfig(paths=(work / FEATURES,)))
    assert set(asdict(verdict)) == {"folder", "schema", "id", "files", "faults", "notes"}
