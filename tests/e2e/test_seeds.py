"""`leokit meta-train --seeds`, and on several ranks: the runs that one process makes of each seed alone."""

import json
import os
import shlex
import signal
import socket

import numpy as np
import pytest
from safetensors.torch import load_file

import leokit as leokit_package
from leokit.config import MetaTrainConfig, build, with_preset
from leokit.errors import Interrupted, LeokitError, UsageError
from leokit.runs import load_state
from leokit.stages import meta_train
from tests.e2e.conftest import make_store
from tests.processes import HAS_PROC, ended, killed_after, start, workers_of_this_process

# In double precision and slowly: at high rates rounding grows tenfold every few steps, in one process too.
OPTIONS = {
    **{"steps": 12, "val_every": 4, "val_episodes": 12, "val_queries": 5, "queries": 5, "num_latents": 16},
    **{"dtype": "float64", "inner_lr": 0.1, "outer_lr": 1e-5},
}
RUNS = "leokit-work/runs/leo-5way-1shot"
STATE = "last/state.safetensors"


def folders(*seeds):
    return [f"{RUNS}-seed{seed}" if seed else RUNS for seed in seeds]


def command(**options):
    """The words of a command for `OPTIONS` and others."""
    named = {key.replace("_", "-"): value for key, value in {**OPTIONS, **options}.items()}
    return ["meta-train", *(word for key, value in named.items() for word in (f"--{key}", value))]


def config(**options):
    return build(MetaTrainConfig, with_preset({**OPTIONS, **options})[0])


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def lines(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def kept_step(folder):
    return load_state(folder / STATE)[1]["step"]


def assert_close(ours, theirs):
    """Two runs' last states are the same but for rounding."""
    ours, theirs = (load_file(folder / STATE) for folder in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name].numpy(), value.numpy(), rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("seeds") / "features", dim=32).folder


@pytest.fixture(scope="module")
def alone(store):
    """What seeds 0 and 1 come to alone."""
    runs = [meta_train.run(config(features=store, seed=seed, out=store.parent / f"alone{seed}")) for seed in (0, 1)]
    return {run.config.seed: run for run in runs}


def stopping_once(condition, stop):
    """A function for `on_progress` that stops the work once the condition holds."""
    stopped = []

    def progress(done, wanted, text):
        if not stopped and condition(done):
            stopped.append(done)
            stop()

    return progress


def test_seeds_in_processes_are_the_runs_of_each_alone(leokit, store, alone, tmp_path):
    done = leokit(*command(features=store, seeds=2, parallel="processes", jobs=2))
    for seed, folder in enumerate(folders(0, 1)):
        assert manifest_of(tmp_path / folder)["id"] == alone[seed].id
        expected = (alone[seed].folder / "metrics.jsonl").read_text()
        assert (tmp_path / folder / "metrics.jsonl").read_text() == expected
        assert alone[seed].id[:12] in done.stdout
    words = shlex.split(done.stderr[done.stderr.index("Next: ") + 6 :])
    assert words == ["leokit", "eval", *folders(0, 1), "--features", str(store)]
    tested = json.loads(leokit(*words[1:], "--episodes", 20, "--queries", 5, "--json").stdout)
    assert [group["seeds"] for group in tested["groups"]] == [[0, 1]]
    again = leokit(*command(features=store, seeds=2))
    assert again.stderr.count("Already done") == 2
    assert max(map(len, again.stdout.splitlines())) <= 80
    assert leokit(*command(features=store, seed=1)).stderr.count("Already done") == 1


@pytest.mark.skipif(not HAS_PROC, reason="needs /proc")
def test_stopped_and_killed_processes_keep_what_each_seed_has(store, alone, tmp_path):
    """In this process, whose workers are those of the test before."""
    options = {"features": store, "out": tmp_path / "run", "seeds": 2, "parallel": "processes", "jobs": 2}
    paths = [tmp_path / "run", tmp_path / "run-seed1"]

    def both_go_on(done):
        return all((path / STATE).exists() and kept_step(path) > before[path] for path in paths)

    before = dict.fromkeys(paths, 0)
    stop = stopping_once(both_go_on, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"at step \d+ \(seed 0\), \d+ \(seed 1\) of 3000: the same command"):
        meta_train.run_seeds(config(**{**options, "steps": 3000}), on_progress=stop)
    before = {path: kept_step(path) for path in paths}

    def kill_them():
        for process in workers_of_this_process():
            os.kill(process, signal.SIGKILL)

    with pytest.raises(LeokitError, match="was ended from outside"):
        meta_train.run_seeds(config(**{**options, "steps": 3000}), on_progress=stopping_once(both_go_on, kill_them))
    steps = max(map(kept_step, paths)) + 1
    given = config(**{**options, "steps": steps, "jobs": None, "parallel": "none"})
    for seed, run in enumerate(meta_train.run_seeds(given)):
        whole = meta_train.run(config(features=store, steps=steps, seed=seed, out=tmp_path / f"whole{seed}"))
        assert run.id == whole.id


def test_seeds_batched_are_those_of_each_alone_but_for_rounding(leokit, store, alone, tmp_path):
    given = command(features=store, parallel="batched")
    found = json.loads(leokit(*given, "--seeds", 2, "--json").stdout)["runs"]
    assert [(run["seed"], run["out"]) for run in found] == list(enumerate(folders(0, 1)))
    for run in found:
        assert run["best_step"] == alone[run["seed"]].facts["best_step"]
        assert_close(tmp_path / run["out"], alone[run["seed"]].folder)
        assert manifest_of(tmp_path / run["out"])["info"]["seeds_batched"] == [0, 1]
    longer = leokit(*given, "--seed", 1, "--seeds", 2, "--steps", 14)  # nothing of seed 2 is there yet
    assert "Seed 1: going on from step 12." in longer.stderr
    taken = [manifest_of(tmp_path / folder)["info"]["steps_taken"] for folder in folders(0, 1, 2)]
    assert taken == [12, 2, 14]


def test_a_stopped_batch_goes_on_as_if_it_had_not_been(store, tmp_path):
    options = {"features": store, "seeds": 2, "parallel": "batched"}
    whole = leokit_package.meta_train_seeds(2, features=store, parallel="batched", out=tmp_path / "whole", **OPTIONS)
    stop = stopping_once(lambda done: done >= 14, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(
        Interrupted, match=r"Stopped at step 8 \(seed 0\), 8 \(seed 1\) of 12: the same command goes on"
    ):
        meta_train.run_seeds(config(**options, out=tmp_path / "run"), on_progress=stop)
    for run, expected in zip(meta_train.run_seeds(config(**options, out=tmp_path / "run")), whole, strict=True):
        assert run.id == expected.id
        for name in (STATE, "metrics.jsonl"):
            assert (run.folder / name).read_bytes() == (expected.folder / name).read_bytes(), (run.folder, name)


def test_seeds_are_planned_and_contradictions_refused(leokit, store):
    given = command(features=store, seeds=2, out="mine/run")
    plan = json.loads(leokit(*given, "--dry-run", "--json").stdout)
    assert plan["out"] == ["mine/run", "mine/run-seed1"]
    assert "mine/run, mine/run-seed1" in leokit(*given, "--dry-run").stdout
    for options, words in {
        ("--seeds", 0): "seeds = 0: it must be a whole number from 1 to 1000.",
        ("--seeds", 2, "--seed", 2**63 - 1): "the last seed is at most",
        ("--parallel", "batched", "--jobs", 2): "--jobs 2 with --parallel batched",
    }.items():
        assert words in " ".join(leokit(*given, *options, code=2).stderr.split())
    with pytest.raises(UsageError, match=r"seeds = 2: this makes one run. leokit.meta_train_seeds\(2, ...\)"):
        leokit_package.meta_train(features=store, seeds=2)
    two = {"RANK": "0", "WORLD_SIZE": "2"}
    assert "--parallel batched on 2 ranks" in leokit(*given, "--parallel", "batched", code=2, **two).stderr
    assert "meta_batch = 1 on 2 ranks" in leokit(*given, "--meta-batch", 1, "--dry-run", code=2, **two).stderr


@pytest.fixture
def on_ranks(tmp_path):
    """Start a command on several ranks, as torchrun does; gives their processes."""

    def begin(size, *arguments, said):
        with socket.socket() as link:
            link.bind(("127.0.0.1", 0))
            port = str(link.getsockname()[1])
        place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [start(tmp_path, *arguments, stderr=said, RANK=str(rank), **place) for rank in range(size)]

    return begin


def trained_on(begin, size, said, *arguments):
    processes = begin(size, *arguments, said=said)
    assert [ended(process) for process in processes] == [0] * size, said.read_text()


@pytest.fixture(scope="module")
def fifty(store):
    """50 steps of 12 episodes by one process, and the words of the command."""
    options = {"features": store, "steps": 50, "val_every": 20, "meta_batch": 12}
    run = meta_train.run(config(**options, out=store.parent / "fifty"))
    return run.folder, command(**options)


def test_two_ranks_train_as_one_and_resumed_too(fifty, tmp_path, on_ranks):
    one, given = fifty
    said = tmp_path / "said"
    trained_on(on_ranks, 2, said, *given, "--out", "two")
    assert_close(tmp_path / "two", one)
    metrics, expected = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path / "two", one))
    assert [json.loads(line)["step"] for line in metrics] == [json.loads(line)["step"] for line in expected]
    assert manifest_of(tmp_path / "two")["info"]["ranks"] == 2
    for steps in (25, 50):
        trained_on(on_ranks, 2, said, *given, "--steps", steps, "--out", "resumed")
    assert said.read_text().count("Going on from step 25.") == 1  # rank 0 alone says it
    assert (tmp_path / "resumed" / STATE).read_bytes() == (tmp_path / "two" / STATE).read_bytes()


@pytest.mark.slow
def test_episodes_that_ranks_do_not_divide_evenly_and_seeds_on_ranks(fifty, tmp_path, on_ranks):
    one, given = fifty
    trained_on(on_ranks, 5, tmp_path / "said", *given, "--out", "five", "--seeds", 2)
    assert_close(tmp_path / "five", one)
    assert manifest_of(tmp_path / "five-seed1")["config"]["seed"] == 1


def test_ranks_stop_together_and_a_lost_one_ends_the_job(store, tmp_path, on_ranks):
    given = command(features=store, steps=100_000, out="run")
    said, run = tmp_path / "said", tmp_path / "run"
    first, second = on_ranks(2, *given, said=said)
    assert killed_after(second, signal.SIGTERM, lambda: lines(run) > 2) == 130, said.read_text()
    assert ended(first) == 130, said.read_text()
    step = kept_step(run)
    assert f"Stopped at step {step} of 100000: the same command goes on from there" in said.read_text()
    first, second = on_ranks(2, *given, said=said)
    counted = lines(run)
    assert killed_after(second, signal.SIGKILL, lambda: lines(run) > counted + 1) == -signal.SIGKILL
    assert ended(first) == 1, said.read_text()
    assert "error: Another rank of the job has ended before its time" in said.read_text()
    assert "The last state that was kept is whole" in said.read_text()
    assert kept_step(run) > step
    assert all(bool(value.isfinite().all()) for value in load_file(run / STATE).values())
