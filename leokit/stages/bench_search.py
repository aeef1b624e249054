"""`leokit bench search`: memory and time that trials take which share their features, made up in any size."""

import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed

from leokit import manifest, randomness
from leokit.config import BenchSearchConfig, MetaTrainConfig, build, nearest_preset, read_numbers, read_preset
from leokit.engine.mapped import MappedRows, close_files
from leokit.engine.scoring import one_thread
from leokit.engine.state import new_state
from leokit.engine.steps import make_steps
from leokit.episodes import FeatureMatrix, types_of
from leokit.features import SCHEMA, FeatureStore, ShardWriter, facts_of
from leokit.provenance import information

_SHARD_ROWS = 8192  # of a file, at least a class
_VAL_CLASSES = 20
_BLOCK = 65_536  # rows that are read at a time
_CPU = torch.device("cpu")


def run(config: BenchSearchConfig) -> dict[str, Any]:
    """Make features, the unit rows that trials share, and train numbers of trials at a time on them, for a while each.

    Files are deleted afterwards. Memory is the proportional set size (PSS), which counts a page that n processes share
    as 1/n in each, so that sums are what is really taken; None without /proc. What is each one's own is what a further
    trial takes; of the rows there is one copy, or as much of it as the system keeps.

    Returns:
        Sizes in bytes, seconds of each part and of the processor, and for each number of trials steps/s of one and
        memory of all. The best rate to a second of the processor says what a core does that has nothing else to do.
    """
    jobs = read_numbers("--jobs", config.jobs, int, 1, 1024)
    with tempfile.TemporaryDirectory(prefix="leokit-bench-", dir=config.folder) as name:
        folder = Path(name).resolve()  # as the system names mapped files
        trial = _trial(config)
        seconds, rows, path = _make(config, trial, folder)
        _forget(path)
        cold = _together(trial, rows, path, 1, config.seconds, folder / "cold", touch=False)[0]
        warm = {count: _together(trial, rows, path, count, config.seconds, folder / f"jobs-{count}") for count in jobs}
        size = {"store": 0 if config.zeros else _size(folder / "features"), "rows": path.stat().st_size}
    close_files()
    return {
        "rows": config.classes * config.per_class,
        "classes": config.classes,
        "dim": config.dim,
        "bytes_of_store": size["store"],
        "bytes_of_rows": size["rows"],
        "seconds": seconds,
        "cold": {"steps_per_second": cold.steps_per_second, "first_second": cold.first_second},
        "steps_per_processor_second": max(member.per_processor_second for each in warm.values() for member in each),
        "together": [_summary(count, members) for count, members in warm.items()],
    }


@dataclass(frozen=True)
class _Member:
    """What one of several trials at a time measured of itself."""

    steps_per_second: float
    per_processor_second: float
    first_second: int  # steps in the first second of training
    touched_seconds: float  # to read all rows once
    memory: "Memory | None"  # while all are there


@dataclass(frozen=True)
class _Zeros:
    """Rows of zeros, mapped from a file with holes."""

    path: Path
    config: BenchSearchConfig

    def matrix(self, split: str, device: torch.device) -> FeatureMatrix:
        """As that of `MappedRows`."""
        rows = torch.from_numpy(np.load(self.path, mmap_mode="c")).to(device)
        offsets = np.arange(self.config.classes + 1) * self.config.per_class
        return FeatureMatrix.of_rows(rows, [str(number) for number in range(self.config.classes)], offsets)


Rows = MappedRows | _Zeros


def _make(
    config: BenchSearchConfig, trial: MetaTrainConfig, folder: Path
) -> tuple[dict[str, tuple[float, float]], Rows, Path]:
    """Seconds of each part, the rows, and their file."""
    if config.zeros:
        path = folder / "zeros.npy"
        shape = (config.classes * config.per_class, config.dim)
        np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(config.dtype), shape=shape)
        return {}, _Zeros(path, config), path
    features = folder / "features"
    seconds = {"write": _timed(lambda: _make_store(config, features))}
    seconds["open"] = _timed(lambda: FeatureStore.open(features, ("train",)))
    rows = MappedRows(features, folder / "rows", types_of(trial))
    seconds["rows"] = _timed(lambda: rows.make("train"))
    return seconds, rows, rows.make("train")


def _trial(config: BenchSearchConfig) -> MetaTrainConfig:
    preset = read_preset(nearest_preset(config.shots))
    held = {"hold_as": "float16"} if config.dtype == "float16" else {}
    # Made-up features need not train well: a loss that is no number must not end the measurement.
    return build(MetaTrainConfig, {**preset, "shots": config.shots, "on_nan": "decay", **held})


def _make_store(config: BenchSearchConfig, folder: Path) -> None:
    """Classes about random means, a class at a time."""
    manifest.begin(folder, SCHEMA, {"made_up": True}, {})
    noise = randomness.generator(0, "bench").standard_normal((config.per_class, config.dim), np.float32)
    at_once = max(1, _SHARD_ROWS // config.per_class)
    counts: dict[str, dict[str, int]] = {}
    files = []
    for split, classes in (("train", config.classes), ("val", min(config.classes, _VAL_CLASSES))):
        names = [f"{split}{number:06}" for number in range(classes)]
        counts[split] = dict.fromkeys(names, config.per_class)
        parts = math.ceil(classes / at_once)
        for part in range(parts):
            files.append(f"{split}-{part:05}-of-{parts:05}.parquet")
            with ShardWriter(folder / files[-1], split, dim=config.dim, dtype="float16") as writer:
                for name in names[part * at_once : (part + 1) * at_once]:
                    mean = randomness.generator(0, f"bench/{name}").standard_normal(config.dim, np.float32)
                    images = [f"{name}/{image:06}.jpg" for image in range(config.per_class)]
                    writer.write_class(name, images, noise + mean)
    facts = facts_of(counts, dim=config.dim, dtype="float16")
    info = information(started=time.perf_counter())
    manifest.finish(folder, SCHEMA, {"made_up": True}, {}, results=files, facts=facts, info=info)


def _together(
    trial: MetaTrainConfig, rows: Rows, path: Path, count: int, seconds: float, folder: Path, *, touch: bool = True
) -> list[_Member]:
    folder.mkdir()
    members = (delayed(_member)(trial, rows, path, number, count, seconds, folder, touch) for number in range(count))
    done: list[_Member] = Parallel(count, backend="loky" if count > 1 else "sequential")(members)
    return done


def _member(
    trial: MetaTrainConfig, rows: Rows, path: Path, number: int, count: int, seconds: float, folder: Path, touch: bool
) -> _Member:
    """Train for a while beside the others, and measure the memory while all are there."""
    with one_thread():
        matrix = rows.matrix("train", _CPU)
        started = time.perf_counter()
        if touch:
            _read_all(matrix)
        touched = time.perf_counter() - started
        steps, state = make_steps(trial, matrix), new_state(trial, matrix.dim, _CPU)
        if touch:
            for _ in range(3):
                steps.take(state)
        _wait_for_all("ready", number, count, folder)
        first, begun, started, worked = 0, state.step, time.perf_counter(), time.thread_time()
        while (spent := time.perf_counter() - started) < seconds:
            steps.take(state)
            first += spent < 1
        rate, of_processor = ((state.step - begun) / each for each in (spent, time.thread_time() - worked))
        _wait_for_all("trained", number, count, folder)
        memory = proportional_memory(path)
        _wait_for_all("measured", number, count, folder)
    return _Member(rate, of_processor, first, touched, memory)


def _read_all(matrix: FeatureMatrix) -> None:
    for start in range(0, len(matrix.rows), _BLOCK):
        matrix.rows[start : start + _BLOCK, ::32].sum()  # a value or more of each page


def _wait_for_all(what: str, number: int, count: int, folder: Path) -> None:
    (folder / f"{what}-{number}").touch()
    while len(list(folder.glob(f"{what}-*"))) < count:
        time.sleep(0.01)


class Memory(NamedTuple):
    """What a process takes of memory, in bytes: a page that n processes share counts as 1/n (PSS)."""

    own: int  # all but
    rows: int  # the pages of the file of rows


def proportional_memory(rows: Path) -> Memory | None:
    """The memory of this process, with that of one file apart; None without /proc."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    sums, of_rows = {True: 0, False: 0}, False
    for line in lines:
        word = line.split()[0]
        if not word.endswith(":"):  # the line of the next mapping, which ends in its file
            of_rows = line.endswith(f" {rows}")
        elif word == "Pss:":
            sums[of_rows] += int(line.split()[1]) * 1024
    return Memory(sums[False], sums[True])


def _forget(path: Path) -> None:
    """Let the system drop a file's pages from memory, so that it is read from the disk again."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _summary(count: int, members: list[_Member]) -> dict[str, Any]:
    known = [member.memory for member in members if member.memory is not None]
    return {
        "trials": count,
        "own_memory_of_each": sum(memory.own for memory in known) / count if known else None,
        "rows_in_memory": sum(memory.rows for memory in known) if known else None,
        "steps_per_second_of_each": sum(member.steps_per_second for member in members) / count,
        "seconds_to_read_all": max(member.touched_seconds for member in members),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _timed(work: Any) -> tuple[float, float]:
    """Seconds of a piece of work, and those of the processor in it."""
    started, worked = time.perf_counter(), time.process_time()
    work()
    return round(time.perf_counter() - started, 2), round(time.process_time() - worked, 2)
