"""A trial of a search beside the run of the same options; shared rows; successive halving."""

import os
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from leokit.config import MetaTrainConfig
from leokit.engine.mapped import MappedRows, open_matrices
from leokit.engine.trials import OUTCOME, Outcome, Task, read_outcome, run_in_process, run_trials, rungs, survivors
from leokit.episodes import FeatureMatrix
from leokit.errors import ArtifactError, DataError
from leokit.features import FeatureStore, write_store
from leokit.runs import STATE
from leokit.stages import meta_train
from tests.e2e.conftest import learnable_store

CPU = torch.device("cpu")
CONFIG = MetaTrainConfig(
    steps=40,
    val_every=10,
    val_episodes=20,
    val_queries=5,
    queries=5,
    num_latents=8,
    outer_lr=0.01,
    meta_batch=4,
    inner_steps=2,
    finetuning_steps=1,
    device="cpu",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return learnable_store(tmp_path_factory.mktemp("store") / "features")


@pytest.fixture
def task(store, tmp_path):
    (tmp_path / "search").mkdir()
    folder = tmp_path / "search" / "trials" / "00000"
    return Task(0, CONFIG, 40, folder, store.folder, tmp_path / "rows", tmp_path / "search" / ".stop")


def run_trial(task, *stop):
    return run_trials([task], *stop)[0]


@pytest.mark.parametrize("held", [None, torch.float16])
@pytest.mark.parametrize("centred", [False, True])
def test_mapped_rows_are_those_of_a_run(store, tmp_path, held, centred):
    rows = MappedRows(store.folder, tmp_path, (torch.float32, held))
    training = FeatureMatrix(store.load("train"), held=held)
    for split in ("train", "val"):
        mapped, own = rows.matrix(split, CPU, centred=centred), FeatureMatrix(store.load(split), held=held)
        own = own.centred(training.mean()) if centred else own
        assert torch.equal(mapped.rows, own.rows)
        assert mapped.rows.dtype == own.rows.dtype
        assert torch.equal(mapped.offsets, own.offsets)
        assert (mapped.classes, mapped.dim, mapped.dtype) == (own.classes, own.dim, own.dtype)
    assert not list(tmp_path.glob("*-test-*"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_mapped_rows_are_pages_of_their_file_and_no_copy(store, tmp_path):
    matrix = MappedRows(store.folder, tmp_path, (torch.float32, None)).matrix("train", CPU)
    address = matrix.rows.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith(".npy"), line
            return
    pytest.fail("the rows lie nowhere")


def test_a_trial_is_the_run_of_the_same_options_to_the_bit(task, store, tmp_path):
    outcome = run_trial(task)
    run = meta_train.run(replace(CONFIG, features=store.folder, out=tmp_path / "run"))
    assert outcome.best_step == run.facts["best_step"] > 0
    assert outcome.accuracy(40) == (run.facts["val_accuracy"], run.facts["val_half_width"])
    weights = tmp_path / "run/weights.safetensors"
    assert (task.folder / "weights.safetensors").read_bytes() == weights.read_bytes()
    assert not (task.folder / STATE).exists()


def test_a_trial_that_is_stopped_goes_on_to_the_same(task, tmp_path):
    whole = run_trial(task)
    cut = replace(task, folder=tmp_path / "search" / "trials" / "00001")
    for stops_after in (7, 15):
        asked = iter([False] * stops_after + [True])
        assert run_trial(cut, lambda asked=asked: next(asked)) is None
        assert read_outcome(cut.folder) is None
    assert run_trial(cut) == whole
    weights = [(each.folder / "weights.safetensors").read_bytes() for each in (task, cut)]
    assert weights[0] == weights[1]


def test_what_another_search_left_at_its_place_is_not_taken(task, tmp_path):
    other = replace(task, of="other", config=replace(CONFIG, outer_lr=0.02))
    assert run_trial(other, iter([False] * 15 + [True]).__next__) is None  # a state
    place = replace(task, of="own")
    apart = replace(place, folder=tmp_path / "search" / "trials" / "00001")
    assert run_trial(place) == run_trial(apart)
    run_trial(replace(other, folder=apart.folder))  # an outcome
    assert read_outcome(apart.folder, "own") is None
    assert read_outcome(apart.folder, "other").of == "other"


def test_a_trial_whose_folder_was_replaced_writes_nothing_more(task):
    asked = 0

    def replaced_by_another_search():
        nonlocal asked
        asked += 1
        if asked == 15:
            shutil.rmtree(task.folder.parent)
            task.folder.mkdir(parents=True)
            time.sleep(0.6)  # it looks every half second
        return False

    assert run_trial(task, replaced_by_another_search) is None
    assert list(task.folder.iterdir()) == []


def test_a_worker_whose_parent_has_died_begins_no_trial(task):
    assert run_in_process([task], parent=os.getppid() + 1) == [None]
    assert not (task.folder / OUTCOME).exists()


def test_in_parts_as_at_once(task, tmp_path):
    whole = run_trial(task)
    parts = replace(task, folder=tmp_path / "search" / "trials" / "00001")
    first = run_trial(replace(parts, until=20))
    assert (first.steps, first.ended) == (20, False)
    assert first.accuracy(20) == whole.accuracy(20)
    assert (parts.folder / STATE).exists()
    assert run_trial(parts) == whole


def test_done_trials_are_not_done_again_and_a_file_stops_them(task):
    outcome = run_trial(task)
    written = (task.folder / OUTCOME).stat().st_mtime_ns
    assert run_trial(task) == outcome
    assert (task.folder / OUTCOME).stat().st_mtime_ns == written
    task.stop.touch()
    assert run_trial(replace(task, folder=task.folder.with_name("00001"))) is None


def test_a_trial_that_diverges_says_why_and_keeps_its_best(task):
    outcome = run_trial(replace(task, config=replace(CONFIG, outer_lr=1e30)))
    assert outcome.failure.startswith("The loss or a gradient of step")
    assert outcome.ended and outcome.steps < 40
    assert outcome.fails_by(40) and not outcome.fails_by(outcome.steps)
    assert outcome.accuracy(0)[0] > 0


def test_what_goes_through_a_scheduler_is_small_and_holds_no_array(task):
    data = pickle.dumps(task)
    assert len(data) < 4000
    assert not any(word in data for word in (b"numpy", b"torch", b"pyarrow"))


def test_a_worker_that_does_not_see_the_search_says_so(task):
    with pytest.raises(ArtifactError, match="on a file system that all share"):
        run_trial(replace(task, folder=task.folder.parents[2] / "elsewhere/trials/00000"))


def test_features_that_are_not_finite_are_found_when_rows_are_made(tmp_path):
    rows = np.ones((20, 4), np.float32)
    write_store(tmp_path / "features", {"train": {"a": ([f"{n:02}" for n in range(20)], rows)}}, dtype="float32")
    store = FeatureStore.open(tmp_path / "features")
    data = next(store.folder.glob("train-*"))
    import leokit.engine.mapped as mapped

    class Spoilt(FeatureStore):
        def each_class(self, split):
            yield np.full((20, 4), np.nan, np.float32)

    original, mapped.FeatureStore = mapped.FeatureStore, Spoilt
    try:
        with pytest.raises(DataError, match="Image 0 of class 'a'"):
            MappedRows(store.folder, tmp_path / "rows", (torch.float32, None)).make("train")
    finally:
        mapped.FeatureStore = original
    assert data.exists()
    assert not list((tmp_path / "rows").glob("*.npy"))


def test_a_store_can_be_opened_in_part(store, tmp_path):
    import shutil

    folder = tmp_path / "part"
    shutil.copytree(store.folder, folder)
    for path in folder.glob("test-*"):
        path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        FeatureStore.open(folder)
    part = FeatureStore.open(folder, ("train", "val"))
    assert (part.id, part.splits) == (store.id, ["train", "val"])
    classes = list(part.each_class("val"))
    assert np.array_equal(np.concatenate(classes), store.load("val").embeddings)
    with pytest.raises(DataError, match="no split 'test'"):
        part.load("test")


def test_two_layouts_of_matrices(store, tmp_path):
    plain = open_matrices(CONFIG, store.folder, tmp_path, CPU)
    assert plain.uncentred is None
    centred = open_matrices(replace(CONFIG, centring=True), store.folder, tmp_path, CPU)
    assert torch.equal(centred.uncentred.rows, plain.validation.rows)
    assert not torch.equal(centred.validation.rows, plain.validation.rows)


@pytest.mark.parametrize(
    ("steps", "val_every", "trials", "reduction", "expected"),
    [
        (900, 100, 27, 3, [100, 300, 900]),
        (2700, 100, 27, 3, [100, 300, 900, 2700]),
        (2700, 100, 5, 3, [900, 2700]),
        (1000, 100, 8, 2, [200, 300, 500, 1000]),
        (100, 100, 8, 2, [100]),
        (1000, 100, 1, 2, [1000]),
    ],
)
def test_rungs(steps, val_every, trials, reduction, expected):
    found = rungs(steps, val_every, trials, reduction)
    assert found == expected
    assert all(level % val_every == 0 for level in found[:-1])


def outcome(index, curve, failed_at=None):
    lines = [{"step": step, "val_accuracy": value, "val_half_width": 0.01} for step, value in curve]
    failure = None if failed_at is None else "It failed."
    steps = curve[-1][0] if failed_at is None else failed_at
    return Outcome(index, steps, failed_at is not None, failure, lines, 0, False, True, 0.0)


def test_the_best_go_on_and_the_preset_always():
    curves = {
        0: outcome(0, [(0, 0.2), (10, 0.2)]),
        1: outcome(1, [(0, 0.2), (10, 0.5), (20, 0.9)]),  # which has come further before
        2: outcome(2, [(0, 0.2), (10, 0.6)]),
        3: outcome(3, [(0, 0.2), (10, 0.6)]),
        4: outcome(4, [(0, 0.99)], failed_at=5),
        5: outcome(5, [(0, 0.2), (10, 0.7)], failed_at=15),
    }
    assert survivors(list(curves.values()), 10, 2) == [0, 2, 3, 5]
    assert survivors(list(curves.values()), 10, 3) == [0, 2, 5]
    assert survivors([curves[index] for index in (5, 0, 2)], 20, 2) == [0, 2]
    assert survivors([outcome(0, [(0, 0.2)], failed_at=3), curves[1]], 10, 2) == [1]
