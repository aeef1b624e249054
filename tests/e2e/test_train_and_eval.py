"""`leokit meta-train` and `leokit eval`: results, resuming, and what bad input meets."""

import json
import re
import shutil
import signal
import subprocess
import time
from typing import get_args

import pyarrow.parquet as pq
import pytest

from leokit.config import Variant
from leokit.runs import load_state
from tests.e2e.conftest import COMMAND, make_store
from tests.processes import SIGNALS, interrupted

TRAIN = ("meta-train", "--steps", 30, "--val-every", 10, "--val-episodes", 20, "--val-queries", 5, "--queries", 5)
EVAL = ("eval", "--episodes", 60, "--queries", 5)


def last_state(folder):
    return (folder / "last/state.safetensors").read_bytes()


def test_defaults_fit_together(leokit_process, features, tmp_path):
    leokit = leokit_process
    trained = leokit(*TRAIN, "--shots", 1)
    assert "miniimagenet-1shot" in trained.stderr
    assert "Next: leokit eval --shots 1" in trained.stderr
    tested = leokit(*EVAL, "--shots", 1)
    assert "5-way 1-shot" in tested.stdout
    assert "run - method" in tested.stdout
    assert "cannot be told" in " ".join(tested.stdout.split())
    assert max(map(len, tested.stdout.splitlines())) <= 80
    table = pq.read_table(tmp_path / "leokit-work/eval/leo-5way-1shot/episodes.parquet")
    assert table.num_rows == 2 * 60
    assert table.column_names == ["method", "episode", "accuracy"]


def test_results_are_the_same_each_time_and_for_each_work_folder(leokit, features, tmp_path):
    first = json.loads(leokit(*TRAIN, "--json").stdout)
    second = json.loads(leokit(*TRAIN, "--json", "--work", "other", "--features", features.folder).stdout)
    assert first["id"] == second["id"]
    ours = json.loads(leokit(*EVAL, "--json").stdout)
    theirs = json.loads(leokit(*EVAL, "--json", "--work", "other", "--features", features.folder).stdout)
    assert ours["id"] == theirs["id"]
    assert leokit(*EVAL, "--json").stdout == leokit(*EVAL, "--json").stdout  # already done


def test_killed_and_restarted_equals_uninterrupted(leokit, features, tmp_path):
    whole = json.loads(leokit(*TRAIN, "--out", "whole", "--steps", 400, "--json").stdout)
    lines = (tmp_path / "whole/metrics.jsonl").read_text()
    for number in SIGNALS:
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        code = interrupted(tmp_path, [*TRAIN, "--steps", 400, "--out", "cut"], 4, number, stderr=said)
        if code == 0:
            pytest.skip("the machine was too fast to interrupt it")
        if number != signal.SIGKILL:
            assert code == 130, said.read_text()
            assert "goes on from there" in said.read_text()
    refused = leokit(*EVAL, "cut", code=4).stderr
    step = int(re.search(r"unfinished, at step (\d+)", refused).group(1))
    shutil.copytree(tmp_path / "cut", tmp_path / "ended")
    assert f"--steps {step}" in refused
    ended = json.loads(leokit(*TRAIN, "--out", "ended", "--steps", step, "--json").stdout)
    assert ended["steps"] == step < 400
    resumed = json.loads(leokit(*TRAIN, "--out", "cut", "--steps", 400, "--json").stdout)
    assert whole["best_step"] > 0  # else untrained weights would be compared
    assert resumed["id"] == whole["id"]
    assert last_state(tmp_path / "cut") == last_state(tmp_path / "whole")
    assert (tmp_path / "cut/metrics.jsonl").read_text() == lines


def test_training_longer_is_the_same_command_with_more_steps(leokit, features, tmp_path):
    leokit(*TRAIN, "--out", "short")
    short = json.loads(leokit(*TRAIN, "--json").stdout)
    longer = json.loads(leokit(*TRAIN, "--json", "--steps", 34).stdout)
    longer = json.loads(leokit(*TRAIN, "--json", "--steps", 50).stdout)
    at_once = json.loads(leokit(*TRAIN, "--json", "--steps", 50, "--out", "at-once").stdout)
    assert short["id"] != longer["id"] == at_once["id"]
    folders = [tmp_path / folder for folder in (longer["out"], "at-once")]
    assert last_state(folders[0]) == last_state(folders[1]) != last_state(tmp_path / "short")
    assert len({(folder / "metrics.jsonl").read_text() for folder in folders}) == 1
    refused = leokit(*TRAIN, "--steps", 40, code=4)
    assert "steps: 50 → 40" in refused.stderr


def test_a_finished_run_can_be_used_while_it_trains_longer(leokit, features, tmp_path):
    leokit(*TRAIN)
    trained = leokit(*EVAL, "--json").stdout
    process = subprocess.Popen(
        [*COMMAND, *map(str, TRAIN), "--steps", "100000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "Going on from step 30" in line:
            break
    time.sleep(1)
    process.kill()
    process.communicate()
    assert leokit(*EVAL, "--json").stdout == trained
    assert "Already done" in leokit(*TRAIN).stderr
    state = load_state(tmp_path / "leokit-work/runs/leo-5way-1shot/last/state.safetensors")[1]["step"]
    leokit(*TRAIN, "--steps", state + 20)  # fewer than were asked for, more than were done


def test_no_resume_does_not_throw_a_finished_run_away(leokit, features):
    leokit(*TRAIN)
    assert "--overwrite" in leokit(*TRAIN, "--steps", 60, "--no-resume", code=4).stderr
    assert "30 of them now" not in leokit(*TRAIN, "--steps", 60, "--no-resume", "--overwrite").stdout


def test_overwriting_spares_inputs_other_kinds_and_files_of_the_user(leokit, features, tmp_path):
    leokit(*TRAIN)
    run = tmp_path / "leokit-work/runs/leo-5way-1shot"
    assert "holds a leokit/features@1" in leokit(*TRAIN, "--out", features.folder, "--overwrite", code=4).stderr
    assert "holds a leokit/run@1" in leokit(*EVAL, "--out", run, "--overwrite", code=4).stderr
    (run / "notes.txt").write_text("mine")
    leokit(*TRAIN, "--seed", 1, "--out", run, "--overwrite")
    assert (run / "notes.txt").read_text() == "mine"


def test_what_cannot_be_written_is_one_line(leokit, features, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in leokit(*TRAIN, "--out", "file/run", code=4).stderr


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_variant_trains_and_is_tested(leokit, features, variant):
    trained = json.loads(leokit(*TRAIN, "--variant", variant, "--json").stdout)
    tested = json.loads(leokit(*EVAL, "--run", trained["out"], "--json").stdout)
    assert set(tested["accuracy"]) == {variant, "class-mean"}
    assert 0.1 < tested["accuracy"][variant]["mean"] < 1


@pytest.mark.parametrize("steps", [("--inner-steps", 0), ("--finetuning-steps", 0)])
def test_loops_may_be_left_out(leokit, features, steps):
    leokit(*TRAIN, *steps)


def test_other_hyper_parameters_are_refused_and_overwritten_on_request(leokit, features):
    leokit(*TRAIN)
    refused = leokit(*TRAIN, "--outer-lr", 0.001, code=4)
    assert "outer_lr: 0.0002739071 → 0.001" in refused.stderr
    assert "--overwrite" in refused.stderr
    leokit(*TRAIN, "--outer-lr", 0.001, "--overwrite")


def test_other_ways_shots_and_all_queries(leokit, features):
    leokit(*TRAIN)
    leokit(*EVAL, "--run", "leokit-work/runs/leo-5way-1shot", "--ways", 6, "--shots", 3, "--queries", "all")
    both = leokit(*EVAL, "leokit-work/runs/leo-5way-1shot", "leokit-work/runs/leo-5way-1shot", "--json")
    assert "--run" in leokit(*EVAL, "a", "--run", "b", code=2).stderr
    assert "--out" in leokit(*EVAL, "a", "b", "--out", "c", code=2).stderr
    assert len(json.loads(both.stdout)["evaluations"]) == 2


def test_rank_of_flag_variable_file_and_preset(leokit, features, tmp_path):
    (tmp_path / "my.toml").write_text("[meta-train]\nsteps = 11\nshots = 5\nouter_lr = 0.25\n")

    def resolved(*arguments, **environment):
        text = leokit("meta-train", "--print-config", "--config", "my.toml", *arguments, **environment).stdout
        return dict(line.split(" = ") for line in text.splitlines())

    config = resolved()
    assert (config["steps"], config["outer_lr"]) == ("11", "0.25")  # the file's
    assert config["kl_weight"] == "0.466387"  # the preset's, for the file's 5 shots
    assert config["num_latents"] == "64"  # the default
    assert resolved(LEOKIT_STEPS="12")["steps"] == "12"
    assert resolved("--steps", 13, LEOKIT_STEPS="12")["steps"] == "13"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("meta-train", "--shots", "0"), 2, "shots = 0"),
        (("meta-train", "--no-such-option"), 2, "No such option"),
        (("meta-train", "--preset", "imagenet"), 2, "miniimagenet-1shot"),
        (("meta-train", "--device", "tpu"), 2, "Unknown device"),
        (("meta-train", "--config", "bad.toml"), 2, "Unknown key 'stepz'"),
        (("meta-train", "--config", "loose.toml"), 2, "'shots' stands outside of the tables"),
        (("meta-train", "--config", "table.toml"), 2, "unknown table [meta_train]"),
        (("meta-train", "--config", "missing.toml"), 2, "cannot be read"),
        (("meta-train", "--shots", "20"), 3, "'train00' of the train split has 24 images, but 20 shots + 15 queries"),
        (("meta-train", "--ways", "7"), 3, "The val split has 6 classes"),
        (("meta-train", "--features", "nowhere"), 4, "There is no artifact at nowhere"),
        (("eval",), 4, "run `leokit meta-train` first"),
    ],
)
def test_bad_input_is_one_line_with_its_exit_code(leokit, features, tmp_path, arguments, code, words):
    (tmp_path / "bad.toml").write_text("stepz = 5\n")
    (tmp_path / "loose.toml").write_text("shots = 5\n[eval]\nepisodes = 9\n")
    (tmp_path / "table.toml").write_text("[meta_train]\nsteps = 9\n")
    done = leokit(*arguments, code=code)
    assert words in done.stderr
    assert not (tmp_path / "leokit-work/runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--queries", "rest600"), 3, "has 24 images, but 1 shots + 599 queries need 600"),
        (("--queries", "some"), 2, "a number from 1 up, rest600 or all"),
        (("--run", "leokit-work/runs/leo-5way-1shot", "--ways", "9"), 3, "has 6 classes"),
    ],
)
def test_bad_input_to_eval(leokit, features, arguments, code, words):
    leokit(*TRAIN)
    assert words in leokit("eval", *arguments, code=code).stderr


def test_features_from_another_backbone_are_refused_with_both_ids(leokit, features, tmp_path):
    leokit(*TRAIN)
    other = make_store(tmp_path / "other", backbone={"name": "another", "weights_sha256": "0"})
    done = leokit(*EVAL, "--features", "other", code=4)
    assert other.id[:12] in done.stderr
    assert "another" in done.stderr


def test_unfinished_and_altered_artifacts_are_refused(leokit, features, tmp_path):
    leokit(*TRAIN)
    weights = tmp_path / "leokit-work/runs/leo-5way-1shot/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "weights.safetensors was altered" in leokit(*EVAL, code=4).stderr
    shard = next(features.folder.glob("train-*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert shard.name in leokit(*TRAIN, "--out", "new", code=4).stderr
    (features.folder / "manifest.json").unlink()
    assert "manifest.json" in leokit(*TRAIN, "--out", "new", code=4).stderr


def test_a_finished_run_needs_no_state_and_a_damaged_state_is_named(leokit, features, tmp_path):
    leokit(*TRAIN)
    shutil.rmtree(tmp_path / "leokit-work/runs/leo-5way-1shot/last")
    leokit(*TRAIN)
    leokit(*TRAIN, "--out", "cut")
    (tmp_path / "cut/last/state.safetensors").write_bytes(b"not tensors")
    done = leokit(*TRAIN, "--out", "cut", "--steps", 40, code=4)
    assert "--no-resume" in done.stderr
    leokit(*TRAIN, "--out", "cut", "--steps", 40, "--no-resume", "--overwrite")


def test_dry_runs_write_nothing(leokit, features, tmp_path):
    assert "parameters" in leokit("meta-train", "--dry-run").stdout
    plan = json.loads(leokit("meta-train", "--dry-run", "--json").stdout)
    assert plan["parameters"] == 96 * 64 + 3 * 128 * 128 + 64 * 192 + 64 + 96
    assert not (tmp_path / "leokit-work/runs").exists()


@pytest.mark.parametrize("arguments", [("--quiet", *TRAIN), (*TRAIN, "--quiet"), ("-q", *TRAIN, "-q")])
def test_quiet_prints_results_alone(leokit, features, arguments):
    done = leokit(*arguments)
    assert done.stderr == ""
    assert "leo, 5-way 1-shot" in done.stdout


@pytest.mark.parametrize("place", [0, None])
def test_no_progress_and_verbose_before_a_command_and_after_it(leokit, features, monkeypatch, place):
    def call(option, *arguments, code=0):
        words = [option, *arguments] if place == 0 else [*arguments, option]
        return leokit(*words, code=code)

    monkeypatch.setattr("leokit.cli.render.PLAIN_SECONDS", 0.0)
    assert "Meta-training: " in leokit(*TRAIN, "--out", "one").stderr
    assert "Meta-training: " not in call("--no-progress", *TRAIN, "--out", "two").stderr
    assert "Traceback" in call("--verbose", "eval", "--run", "nowhere", code=4).stderr
    assert "no-progress" not in call("--no-progress", "regress", "train", "--dry-run").stderr


def test_all_methods_on_the_same_episodes(leokit, features):
    leokit(*TRAIN)
    every = "class-mean,centred-class-mean,ridge,logistic"
    result = json.loads(leokit(*EVAL, "--methods", every, "--out", "all", "--json").stdout)
    assert list(result["accuracy"]) == ["leo", *every.split(",")]
    alone = json.loads(leokit(*EVAL, "--json").stdout)
    assert all(result["accuracy"][name] == value for name, value in alone["accuracy"].items())
    assert "there are class-mean" in leokit(*EVAL, "--methods", "svm", "--out", "new", code=2).stderr
