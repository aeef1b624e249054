"""`leokit search`: the same table however it is run, what it leaves, and what it never looks at."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from leokit.config import SearchConfig
from leokit.errors import UsageError
from leokit.stages import search
from tests.e2e.conftest import learnable_store
from tests.processes import HAS_PROC, dask_cluster, ended, killed_after, start, workers_of_this_process

SPACE = """
outer_lr = { log_uniform = [1e-4, 3e-2] }
dropout = { uniform = [0.0, 0.5] }
num_latents = { choice = [4, 8] }
queries = 5
meta_batch = 4
inner_steps = 2
finetuning_steps = 1
"""
TINY = {"steps": 60, "val_every": 10, "val_episodes": 20, "val_queries": 5, "fresh_episodes": 50, "device": "cpu"}
SIZES = [item for key, value in TINY.items() for item in (f"--{key.replace('_', '-')}", str(value))]
PROC = pytest.mark.skipif(not HAS_PROC, reason="needs /proc")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Features and a space."""
    folder = tmp_path_factory.mktemp("search")
    learnable_store(folder / "features")
    (folder / "space.toml").write_text(SPACE)
    return folder


@pytest.fixture
def run(place, tmp_path):
    """Search with 6 trials, or other options, one job in this process."""

    def call(name="out", **options):
        return search.run(config(place, tmp_path / name, **options))

    return call


def config(place, out, **options):
    given = {"features": place / "features", "space": str(place / "space.toml"), "out": out, "trials": 6, "jobs": 1}
    return SearchConfig(**{**TINY, **given, **options})


@pytest.fixture(scope="module")
def whole(place):
    """What a search without interruption gives."""
    return search.run(config(place, place / "whole"))


def table(folder):
    return pq.read_table(folder / "trials.parquet", partitioning=None).to_pylist()


def test_a_table_a_picture_and_options_for_meta_train(leokit, place, whole, tmp_path):
    options = ("--features", place / "features", "--space", place / "space.toml", "--trials", 6, "--jobs", 1)
    done = leokit("search", *options, *SIZES)
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(tmp_path) not in line)  # no path is broken
    text = " ".join(done.stdout.split())
    assert "The best of 6 trials" in text and "so it is too high" in text and "(preset)" in text
    assert "on 50 others of the same classes" in text.lower()
    folder = tmp_path / "leokit-work/search/leo-5way-1shot"
    assert json.loads((folder / "manifest.json").read_text())["id"] == whole.manifest.id
    assert "Already done" in leokit("search", *options, *SIZES).stderr
    rows = table(folder)
    best = max(rows, key=lambda row: row["val_accuracy"])
    assert best["val_accuracy"] > rows[0]["val_accuracy"]  # else this test says little
    assert rows[0]["outer_lr"] == 2.739071e-4
    leokit("report")
    assert "Search of hyper-parameters" in (tmp_path / "leokit-work/report.html").read_text()
    trained = leokit("meta-train", "--config", folder / "best.toml", "--features", place / "features", "--json")
    facts = json.loads(trained.stdout)
    assert facts["val_accuracy"] == best["val_accuracy"]
    assert facts["best_step"] == best["best_step"]
    assert "preset" not in trained.stderr
    # The file says how many steps; a flag that says it otherwise ranks before.
    again = leokit("meta-train", "--config", folder / "best.toml", "--features", place / "features", "--train-on-val",
                   "--steps-from", facts["out"], "--json")  # fmt: skip
    assert json.loads(again.stdout)["steps"] == best["best_step"]


def test_only_what_is_needed_is_kept(whole):
    names = {path.relative_to(whole.folder).as_posix() for path in whole.folder.rglob("*") if path.is_file()}
    outcomes = {f"trials/{index:05}/trial.json" for index in range(6)}
    weights = {f"trials/{index:05}/weights.safetensors" for index in {0, whole.summary["best_trial"]}}
    files = {"manifest.json", "trials.parquet", "best.toml", "summary.json", "search.png"}
    assert names == files | outcomes | weights
    assert set(whole.manifest.files) == names - {"manifest.json"}


def test_the_best_is_measured_again_beside_the_preset_on_the_same_episodes(whole):
    fresh = whole.summary["on_fresh_episodes"]
    difference = fresh["best"]["mean"] - fresh["preset"]["mean"]
    assert fresh["difference"]["mean"] == pytest.approx(difference, abs=1e-12)
    assert whole.summary["optimism"] == pytest.approx(
        whole.summary["best_on_the_episodes_that_chose"]["mean"] - fresh["best"]["mean"]
    )
    assert fresh["best"]["mean"] != whole.summary["best_on_the_episodes_that_chose"]["mean"]  # other episodes


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"poison")], ids=["missing", "poisoned"])
def test_the_test_part_is_never_looked_at(run, place, whole, tmp_path, spoil):
    shutil.copytree(place / "features", tmp_path / "features")
    spoilt = list((tmp_path / "features").glob("test-*"))
    assert spoilt
    for path in spoilt:
        spoil(path)
    assert run(features=tmp_path / "features").manifest.id == whole.manifest.id


@PROC
def test_two_jobs_of_which_one_is_killed_give_the_same_table(run, whole, tmp_path):
    before = set(workers_of_this_process())
    killer = Killer(tmp_path / "out", lambda: next(iter(set(workers_of_this_process()) - before), None))
    with killer:
        assert run(jobs=2).manifest.id == whole.manifest.id
    assert killer.killed


def test_dask_gives_the_same_table_and_a_lost_worker_costs_its_trial_only(run, whole, tmp_path):
    pytest.importorskip("distributed")
    with dask_cluster(tmp_path / "dask", 2) as (address, workers):
        options = {"backend": "dask", "scheduler": address, "jobs": None}
        assert run("all", **options).manifest.id == whole.manifest.id
        killer = Killer(tmp_path / "lost", lambda: workers[0].pid)
        with killer:
            assert run("lost", **options).manifest.id == whole.manifest.id
        assert killer.killed
        assert [worker.is_alive() for worker in workers] == [False, True]


class Killer:
    """Kills a process once trials are under way, of which one is not finished."""

    def __init__(self, folder, choose):
        self.folder, self.choose, self.killed, self.over = folder, choose, None, False
        self.thread = threading.Thread(target=self.watch)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *error):
        self.over = True
        self.thread.join()

    def watch(self):
        while not self.over and not self.killed:
            time.sleep(0.002)
            begun = {path.parents[1] for path in self.folder.glob("trials/*/last/state.safetensors")}
            if any(not (folder / "trial.json").exists() for folder in begun) and (process := self.choose()):
                os.kill(process, signal.SIGKILL)
                self.killed = process


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_ctrl_c_in_a_terminal_reaches_all_processes_and_stops_the_search_alone(place, tmp_path, backend):
    arguments = ["search", "--features", place / "features", "--space", place / "space.toml", "--trials", 6, *SIZES]
    arguments += ["--steps", 3000, "--val-every", 10, "--jobs", 2, "--backend", backend, "--out", tmp_path / "out"]
    with open(tmp_path / "said", "w") as said:
        command = [sys.executable, "-m", "leokit", "--no-progress", *map(str, arguments)]
        process = subprocess.Popen(command, start_new_session=True, cwd=tmp_path, stderr=said, stdout=said)
    try:
        deadline = time.monotonic() + 100
        while not list(tmp_path.glob("out/trials/*/last/state.safetensors")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
        assert process.wait(60) == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    text = (tmp_path / "said").read_text()
    assert text.startswith("Stopped with ") and len(text.splitlines()) == 1


def test_shares_that_are_gathered_give_the_same_table(place, whole, tmp_path):
    first = search.run_share(config(place, tmp_path / "out", only="0/2"))
    assert (first.trials, first.trained, first.of) == (3, 3, 6)
    second = search.run_share(config(place, tmp_path / "out", only="1/2"))
    assert second.trained == 6
    written = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("trials/*/trial.json"))]
    assert search.run(config(place, tmp_path / "out")).manifest.id == whole.manifest.id
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("trials/*/trial.json"))] == written


def test_a_search_goes_on_with_more_trials(run, whole, tmp_path):
    run(trials=4)
    written = (tmp_path / "out/trials/00003/trial.json").stat().st_mtime_ns
    assert run().manifest.id == whole.manifest.id
    assert (tmp_path / "out/trials/00003/trial.json").stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def batched(place):
    """What a search gives whose trials train as one, up to three at a time."""
    return search.run(config(place, place / "batched", batched=3))


def test_trials_as_one_are_those_alone_to_rounding_and_another_search(run, place, whole, batched):
    assert batched.manifest.config == whole.manifest.config | {"batched": 3}
    for ours, theirs in zip(table(batched.folder), table(whole.folder), strict=True):
        same = {key for key in ours if key not in ("val_accuracy", "val_half_width", "best_step")}
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
        assert ours["val_accuracy"] == pytest.approx(theirs["val_accuracy"], abs=0.02)  # 20 episodes of 25 queries
    with pytest.raises(Exception, match="batched: null → 3"):
        search.run(config(place, whole.folder, batched=3))


def test_batches_in_two_processes_give_the_same_table(run, batched):
    assert run(batched=3, jobs=2).manifest.id == batched.manifest.id


@PROC
@pytest.mark.slow
def test_batches_of_which_one_is_killed_give_the_same_table(run, batched, tmp_path):
    killer = Killer(tmp_path / "out", lambda: next(iter(workers_of_this_process()), None))
    with killer:
        assert table(run(batched=3, jobs=2).folder) == table(batched.folder)
    assert killer.killed


def test_batches_that_are_shared_out_are_gathered_as_what_they_are(place, batched, tmp_path):
    for number, trained in ((0, 3), (1, 6)):
        share = search.run_share(config(place, tmp_path / "out", only=f"{number}/2", batched=3 if not number else None))
        assert share.trained >= trained
    assert search.run(config(place, tmp_path / "out")).manifest.id == batched.manifest.id


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_are_of_one_structure_and_hold_each_trial_once(place, tmp_path, size):
    plan = search._open(config(place, tmp_path / "out", trials=12, batched=size))
    alive = [0, 1, 3, 4, 5, 8, 10, 11]
    batches = plan.batches(alive)
    assert sorted(index for batch in batches for index in batch) == alive
    assert max(map(len, batches)) == min(size, 4)  # most of one structure
    for batch in batches:
        assert len({plan.trials[index].num_latents for index in batch}) == 1
    if size == 1:
        assert batches == [[index] for index in alive]


def test_rows_may_lie_elsewhere_and_stay_there(run, whole, tmp_path):
    assert run(rows=tmp_path / "local").manifest.id == whole.manifest.id
    assert {path.suffix for path in (tmp_path / "local").iterdir()} == {".npy", ".json", ".lock"}


def test_halving_stops_the_worse_ones_and_is_the_same_after_a_kill(place, tmp_path):
    options = {"trials": 9, "halving": True, "steps": 90}
    once = search.run(config(place, tmp_path / "once", **options))
    assert once.summary["rungs"] == [10, 30, 90]
    rows = table(once.folder)
    by_steps = [sum(row["steps"] >= steps for row in rows) for steps in (10, 30, 90)]
    assert by_steps[0] == 9 and 3 <= by_steps[1] <= 4 and 1 <= by_steps[2] <= 3
    assert rows[0]["status"] == "finished"
    assert once.summary["steps_saved"] == 1 - sum(row["steps"] for row in rows) / 810 > 0.5
    assert once.summary["best_on_the_episodes_that_chose"]["mean"] == max(row["val_accuracy"] for row in rows)
    arguments = ["search", "--features", place / "features", "--space", place / "space.toml", "--jobs", 1, *SIZES]
    arguments += ["--steps", 90, "--trials", 9, "--halving", "--out", tmp_path / "cut"]
    codes = []
    for number, trained in ((signal.SIGTERM, 2), (signal.SIGKILL, 6), (signal.SIGTERM, 9)):
        process = start(tmp_path, *arguments, stderr=tmp_path / "said")
        codes.append(
            killed_after(process, number, lambda n=trained: len(list(tmp_path.glob("cut/trials/*/trial.json"))) >= n)
        )
    if 0 in codes:
        pytest.skip("the machine was too fast to interrupt it")
    assert codes == [130, -signal.SIGKILL, 130]
    assert "the same command goes on from there" in (tmp_path / "said").read_text()
    assert ended(start(tmp_path, *arguments)) == 0
    assert json.loads((tmp_path / "cut/manifest.json").read_text())["id"] == once.manifest.id


def test_a_trial_that_diverges_is_a_row_with_its_reason(place, tmp_path):
    (tmp_path / "wild.toml").write_text("outer_lr = { choice = [1e-3, 1e30] }\nqueries = 5\nmeta_batch = 4\n")
    said = []
    wild = config(place, tmp_path / "wild", space=str(tmp_path / "wild.toml"), steps=20)
    done = search.run(wild, on_message=said.append)
    rows = table(done.folder)
    failed = [row for row in rows if row["outer_lr"] == 1e30]
    assert failed and all(row["status"] == "failed" and "is not finite" in row["failure"] for row in failed)
    assert all(row["status"] == "finished" and row["failure"] is None for row in rows if row not in failed)
    assert done.summary["failed"] == len(failed) == sum("failed" in text for text in said)
    assert done.summary["best_trial"] not in [row["trial"] for row in failed]


def test_a_preset_of_ours_centres_and_searches_its_own_space(place, tmp_path):
    done = search.run(config(place, tmp_path / "out", preset="own-images", space=None, trials=2, steps=20))
    assert done.summary["variant"] == "anchored"
    assert {"anchor_gate", "sampling"} <= set(done.summary["drawn"])
    assert done.manifest.config["base"]["centring"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--only", "2/2"), 2, "INDEX/COUNT"),
        (("--only", "0/2", "--halving"), 2, "known only when all have come to a rung"),
        (("--scheduler", "tcp://127.0.0.1:1"), 2, "for --backend dask"),
        (("--space", "nowhere"), 2, "published, own-images"),
        (("--shots", "20"), 3, "20 shots"),
        (("--features", "nowhere"), 4, "There is no artifact at nowhere"),
        (("--trials", "0"), 2, "trials = 0"),
        (("--space", "seed.toml"), 2, "give --seed"),
    ],
)
def test_bad_input_is_one_line(leokit, place, tmp_path, options, code, words):
    shutil.copytree(place / "features", tmp_path / "leokit-work/features")
    (tmp_path / "seed.toml").write_text("seed = 7\ndropout = { uniform = [0.0, 0.5] }\n")
    done = leokit("search", *SIZES, *options, code=code)
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "leokit-work/search").exists()


def test_an_option_that_the_preset_leaves_open_is_drawn_and_shots_of_a_space_choose_the_preset(place, tmp_path):
    text = "shots = 5\nhold_as = { choice = ['float16'] }\ndropout = { uniform = [0.0, 0.5] }\nqueries = 5\n"
    (tmp_path / "space.toml").write_text(text)
    given = {"space": str(tmp_path / "space.toml"), "trials": 2, "steps": 10, "preset": None}
    done = search.run(config(place, tmp_path / "out", **given))
    assert (done.folder / "search.png").exists()
    assert done.summary["preset"] == "miniimagenet-5shot" and done.summary["shots"] == 5


def test_another_search_at_the_same_place_is_refused(run, whole, place):
    again = {"out": whole.folder, "place": place}
    with pytest.raises(Exception, match="seed: 0 → 1"):
        search.run(config(**again, seed=1))
    with pytest.raises(Exception, match="trials: 6 → 5"):
        search.run(config(**again, trials=5))


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(leokit, place, tmp_path):
    arguments = ("search", "--features", place / "features", "--trials", 9, "--halving", "--dry-run", "--json")
    plan = json.loads(leokit(*arguments, "--steps", 900, "--val-every", 100).stdout)
    assert plan["rungs"] == [100, 300, 900]
    assert plan["steps"] == 9 * 100 + 4 * 200 + 3 * 600
    assert plan["rows_bytes"] == (20 + 6) * 24 * 96 * 4
    assert not (tmp_path / "leokit-work").exists()


def test_dask_that_is_not_there_is_said(place, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UsageError, match=r"leokit\[dask\]"):
        search.run(config(place, tmp_path / "out", backend="dask"))


def test_bench_measures_rows_that_trials_share(leokit, tmp_path):
    size = ("--classes", 8, "--per-class", 20, "--dim", 16, "--seconds", 0.2, "--folder", tmp_path)
    found = json.loads(leokit("bench", "search", *size, "--jobs", 1, "--json").stdout)
    assert found["rows"] == 160
    assert found["bytes_of_rows"] == 160 * 16 * 4 + 128  # the header of a .npy file
    assert found["together"][0]["steps_per_second_of_each"] > 0
    if HAS_PROC:
        assert 0 < found["together"][0]["rows_in_memory"] < 20_000 < found["together"][0]["own_memory_of_each"]
    assert list(tmp_path.iterdir()) == []
    assert "0.00 GB of disk for 160 rows" in leokit("bench", "search", *size, "--dry-run").stdout
