"""Extraction as one trusts it with a million images: killed, divided among ranks, out of space, and never wrong."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from PIL import Image

from leokit import backbones, manifest
from leokit.config import ExtractConfig
from leokit.engine.models import Model
from leokit.errors import ArtifactError, DataError, UsageError
from leokit.features import FeatureStore, write_store
from leokit.images.preprocess import load_image
from leokit.stages import extract
from tests.conftest import REPOSITORY
from tests.e2e.test_extract import BACKBONE, CLASSES, failures, hashes, one_thread, run, tree, weights
from tests.kill_extraction import kill_and_compare

__all__ = ["one_thread", "run", "tree", "weights"]  # fixtures

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="of the kernel's own making")


@pytest.fixture(scope="module")
def large(tmp_path_factory, weights):
    """1,440 small images of twelve classes, in five files; and how to extract them in a process."""
    root = tmp_path_factory.mktemp("large") / "images"
    rng = np.random.default_rng(0)
    for number in range(12):
        (root / f"c{number:02}").mkdir(parents=True)
        for image in range(120):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(
                root / f"c{number:02}" / f"{image:03}.jpg"
            )
    lines = [f"c{number:02},{'train' if number < 8 else 'val' if number < 10 else 'test'}" for number in range(12)]
    (root / "splits.csv").write_text("\n".join(["class_name,split", *lines]) + "\n")
    return root


@pytest.fixture(scope="module")
def options(weights):
    return ["--backbone", BACKBONE, "--weights", weights, "--image-size", "32"]


@pytest.fixture(scope="module")
def whole(large, weights):
    """The features of the large tree, made without any interruption."""
    config = ExtractConfig(
        images=large, out=large.parent / "whole", backbone=BACKBONE, weights=weights, image_size=32, workers=0
    )
    return extract.run(config)


def torchrun(ranks, *arguments, folder, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.Popen(
        [*command, "-m", "leokit", *map(str, arguments)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def test_three_ranks_make_the_same_files_as_one(tmp_path, large, options, whole):
    with torchrun(3, "extract", large, *options, "--out", "out", "--workers", 0, "--json", folder=tmp_path) as job:
        stdout, stderr = job.communicate(timeout=400)
    assert job.returncode == 0, stderr
    assert json.loads(stdout)["id"] == whole.id  # one object: rank 0 alone speaks
    store = FeatureStore.open(tmp_path / "out")
    assert hashes(store) == hashes(whole)
    assert store.manifest.info["ranks"] == 3
    assert store.manifest.info["images_embedded"] == 1440


def test_the_script_for_clusters_without_one(tmp_path, large, options, whole):
    script = REPOSITORY / "pipelines" / "slurm" / "extract.sh"
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "RANKS": "2", "OMP_NUM_THREADS": "1", "LEOKIT_WORKERS": "0"}
    command = ["bash", str(script), str(large), *options, "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert FeatureStore.open(tmp_path / "out").id == whole.id


@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_the_batch_size_changes_nothing(tmp_path, large, weights, whole, batch_size):
    config = ExtractConfig(
        images=large, out=tmp_path / "out", backbone=BACKBONE, weights=weights, image_size=32, workers=2,
        batch_size=batch_size,
    )  # fmt: skip
    assert extract.run(config).id == whole.id


@LINUX
def test_a_killed_rank_loses_no_finished_file(tmp_path, large, options, whole):
    arguments = ["extract", large, *options, "--out", "out", "--workers", 0]
    with torchrun(2, *arguments, folder=tmp_path, start_new_session=True) as job:
        records = tmp_path / "out" / "finished"
        wait_for(lambda: list(records.glob("*.json")))
        rank = next(pid for pid in descendants(job.pid) if environment(pid).get("RANK") == "1")
        os.kill(rank, signal.SIGKILL)
        job.communicate(timeout=400)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    if (tmp_path / "out" / "manifest.json").exists():
        pytest.skip("the rank had finished before it was killed")
    assert job.returncode != 0
    assert kept
    with torchrun(2, *arguments, folder=tmp_path) as job:
        _, stderr = job.communicate(timeout=400)
    assert job.returncode == 0, stderr
    assert FeatureStore.open(tmp_path / "out").id == whole.id
    for name, written in kept.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == written or name == "failures.parquet"


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def descendants(process):
    """All processes below a process."""
    found = []
    for task in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{task}/children", encoding="ascii") as file:
            for child in map(int, file.read().split()):
                found += [child, *descendants(child)]
    return found


def environment(process):
    with open(f"/proc/{process}/environ", "rb") as file:
        return dict(entry.decode().split("=", 1) for entry in file.read().split(b"\0") if b"=" in entry)


def test_killed_at_random_moments(tmp_path, large, options):
    (tmp_path / "images").symlink_to(large)
    assert kill_and_compare(tmp_path, options, kills=3, seed=0, say=print)


def test_one_process_at_a_time(tmp_path, large, options, weights):
    command = [sys.executable, "-m", "leokit", "extract", large, *options, "--out", tmp_path / "out", "--workers", "0"]
    config = ExtractConfig(
        images=large, out=tmp_path / "out", backbone=BACKBONE, weights=weights, image_size=32, workers=0
    )
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: (tmp_path / "out" / "finished").exists())
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(ArtifactError, match="Another process is writing"):
            extract.run(config)
        first.kill()
    extract.run(config)  # no lock has gone stale


def test_changed_images_are_refused_by_name(tree, run):
    before = run("features")
    changed, new, gone = (tree / CLASSES[0] / name for name in ("00.png", "99.png", "11.png"))
    changed.write_bytes(changed.read_bytes() + b"more")
    shutil.copy(changed, new)
    gone.unlink()
    with pytest.raises(ArtifactError, match=r"1 gone, as class0/11.png, 1 new, as class0/99.png, 1 of another size"):
        run("features")
    assert FeatureStore.open(before.folder).id == before.id
    after = run("features", retry_failed=True)
    assert after.manifest.info["images_embedded"] == 36  # the file that holds them, and no other
    assert after.id == run("afresh").id


def test_failed_images_are_read_again_once_they_are_mended(tree, run):
    whole = run("whole")
    victim = tree / CLASSES[3] / "05.png"
    data = victim.read_bytes()
    victim.write_bytes(data[:-40])
    damaged = run("features", max_failures="1")
    assert list(failures(damaged)) == ["class3/05.png"]
    again = run("features", max_failures="1", retry_failed=True)
    assert again.id == damaged.id
    assert again.manifest.info["images_embedded"] == 24
    victim.write_bytes(data)
    mended = run("features", retry_failed=True)
    assert mended.manifest.info["images_embedded"] == 24
    assert mended.id == whole.id
    seen = []
    assert run("features", retry_failed=True, on_message=seen.append).id == whole.id
    assert "Already done" in seen[-1]


def test_another_plan_leaves_no_file_behind(tree, run, monkeypatch):
    monkeypatch.setattr("leokit.features.layout.SHARD_ROWS", (12, 8192))
    before = run("features")
    assert len([name for name in before.manifest.files if name.startswith("train")]) == 3
    shutil.rmtree(tree / CLASSES[2])
    (tree / "splits.csv").write_text((tree / "splits.csv").read_text().replace("class2,train\n", ""))
    after = run("features", overwrite=True)
    there = {str(path.relative_to(after.folder)) for path in after.folder.rglob("*") if path.is_file()}
    assert there == {*after.manifest.files, "manifest.json"}


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@LINUX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_stops_it_and_it_goes_on_once_there_is_space(tmp_path, large, options, whole, leokit_process):
    with small_disk(tmp_path / "disk", "300k") as disk:
        (disk / "ballast").write_bytes(b"x" * 100_000)
        arguments = ["extract", large, *options, "--out", disk / "features", "--workers", "0"]
        done = leokit_process(*arguments, code=1)
        assert "no space left on device" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not list((disk / "features").rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        leokit_process(*arguments)
        store = FeatureStore.open(disk / "features")
        assert store.id == whole.id
        assert store.manifest.info["images_embedded"] < 1440


def write_tar(path, folder, *, prefix=""):
    with tarfile.open(path, "w") as archive:
        for image in sorted(folder.iterdir()):
            archive.add(image, f"{prefix}{image.name}")


def test_archives_are_read_in_place(tree, run, tmp_path):
    unpacked = run("unpacked")
    packed = tmp_path / "packed" / "train"
    packed.mkdir(parents=True)
    for name in CLASSES:
        write_tar(packed / f"{name}.tar", tree / name)
    shutil.copy(tree / "splits.csv", packed.parent)
    for workers in (0, 2):
        store = run(f"packed{workers}", images=packed.parent, workers=workers)
        assert store.facts["counts"] == unpacked.facts["counts"]
        for split in store.splits:
            assert store.images(split) == [f"train/{name}".replace("/", ".tar/", 2).replace(".tar", "", 1)
                                           for name in unpacked.images(split)]  # fmt: skip
            np.testing.assert_array_equal(store.load(split).embeddings, unpacked.load(split).embeddings)
    assert {path.name for path in packed.iterdir()} == {f"{name}.tar" for name in CLASSES}


def test_lists_choose_from_archives_as_from_folders(tree, run, tmp_path):
    packed, lists = tmp_path / "packed", tmp_path / "lists"
    packed.mkdir()
    lists.mkdir()
    for split, name in zip(("train", "val", "test"), CLASSES[:3], strict=True):
        write_tar(packed / f"{name}.tar", tree / name)
        (lists / f"{split}.csv").write_text(f"class_name,image_name\n{name},{name}/05.png\n{name},01.png\n")
    store = run("features", images=packed, splits=str(lists))
    assert store.images("val") == ["class1.tar/01.png", "class1.tar/05.png"]


@pytest.mark.parametrize("cut", [0.5, 0.93, "end"])
def test_a_truncated_archive_is_refused(tree, run, cut):
    write_tar(tree / "class7.tar", tree / CLASSES[0])
    data = (tree / "class7.tar").read_bytes()
    with tarfile.open(tree / "class7.tar") as archive:
        members = archive.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    (tree / "class7.tar").write_bytes(data[: end if cut == "end" else int(end * cut)])
    with pytest.raises(DataError, match=r"class7.tar (is truncated|is no tar)"):
        run("features")


def test_a_damaged_image_in_an_archive_is_a_failure(tree, run):
    shutil.rmtree(tree / CLASSES[0])
    with tarfile.open(tree / f"{CLASSES[0]}.tar", "w") as archive:
        for name, data in {"a.png": (tree / CLASSES[1] / "00.png").read_bytes(), "b.png": b"", "c.txt": b"x"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    messages = []
    store = run("features", max_failures="1", on_message=messages.append)
    assert failures(store) == {"class0.tar/b.png": "empty file"}
    assert "class0.tar/c.txt" in messages[0]


@pytest.mark.parametrize(("views", "rows"), [("flip", 2), ("ten-crop", 10)])
def test_views_are_averaged(tree, run, weights, views, rows):
    store = run("views", views=views, dtype="float32", crop_pct=0.5)
    assert store.facts["backbone"]["views"] == views
    backbone = backbones.load(BACKBONE, weights, image_size=32, crop_pct=0.5)
    image = store.images("val")[3]
    with Image.open(tree / image) as file:
        picture = file.convert("RGB")
    short = 64
    width, height = (short, int(short * picture.height / picture.width))
    if picture.width > picture.height:
        width, height = int(short * picture.width / picture.height), short
    resized = np.asarray(
        picture.resize((width, height), Image.Resampling[backbone.preprocessing.interpolation.upper()])
    )
    corners = [(0, 0), (width - 32, 0), (0, height - 32), (width - 32, height - 32)] if rows == 10 else []
    crops = [
        resized[top : top + 32, left : left + 32]
        for left, top in [*corners, (round((width - 32) / 2), round((height - 32) / 2))]
    ]
    shown = torch.from_numpy(np.stack([view for crop in crops for view in (crop, crop[:, ::-1])]))
    assert len(shown) == rows
    expected = backbones.embed(backbone.module, shown, backbone.preprocessing).mean(0)
    np.testing.assert_allclose(store.load("val").embeddings[3], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer"), [("test_resnet", "layer3"), ("test_vit", "blocks.2"), ("test_efficientnet", "blocks.2")]
)
def test_an_inner_layer_is_the_average_of_its_output(name, layer):
    backbone = backbones.load(name, "random", layer=layer)
    size = backbone.preprocessing.image_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0).eval()
    caught = []
    model.get_submodule(layer).register_forward_hook(lambda module, given, output: caught.append(output))
    pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbones.embed(model, pixels, backbone.preprocessing)
    output = caught[0]
    expected = output.mean((2, 3)) if output.ndim == 4 else output[:, model.num_prefix_tokens :].mean(1)
    vectors = backbones.embed(backbone.module, pixels, backbone.preprocessing)
    assert vectors.shape == (2, backbone.dim)
    torch.testing.assert_close(vectors, expected)
    assert backbone.to_plain()["layer"] == layer


def test_an_unknown_layer_names_those_there_are():
    with pytest.raises(UsageError, match=r"layers of this model are pooled, .*layer4"):
        backbones.load("test_resnet", "random", layer="layer9")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_is_recorded_and_near(run, precision):
    exact, rounded = run("exact"), run("rounded", precision=precision)
    assert rounded.facts["backbone"]["precision"] == precision
    assert rounded.id != exact.id
    one, other = (store.load("val").embeddings.astype(np.float32) for store in (exact, rounded))
    assert not np.array_equal(one, other)
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > 0.999


def test_memory_that_does_not_suffice_halves_the_block():
    class Small(torch.nn.Module):
        def forward(self, images):
            if len(images) > 20:
                raise torch.OutOfMemoryError
            return images.mean((2, 3))

    backbone = backbones.load("test_resnet", "random", image_size=32)
    small = backbones.Backbone(
        Small(), "small", "random", "", backbone.preprocessing, 3, "unknown"
    )  # positional: what a backbone is
    model = Model(small, torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    rows = model.start(pixels)()
    assert model.block == 16
    mean = np.array(backbone.preprocessing.mean)
    std = np.array(backbone.preprocessing.std)
    np.testing.assert_allclose(rows, (pixels.mean((1, 2)) / 255 - mean) / std, atol=1e-4)


def test_decoding_on_a_gpu_needs_one(run):
    with pytest.raises(UsageError, match="needs a CUDA device"):
        run("features", decode="gpu", device="cpu")


def test_random_weights_are_no_features(run):
    with pytest.raises(UsageError, match="mean nothing"):
        run("features", weights="random")


def test_a_dry_run_estimates_and_writes_nothing(leokit, large, options, whole, tmp_path):
    data = json.loads(leokit("extract", large, *options, "--dry-run", "--json").stdout)
    assert data["counts"] == whole.facts["counts"]
    assert data["files"] == len([name for name in whole.manifest.files if re.match("train|val|test", name)])
    size = sum((whole.folder / name).stat().st_size for name in whole.manifest.files if name.endswith("parquet"))
    assert size * 0.5 < data["bytes"] < size * 1.5
    assert 0 < data["seconds"] < 600
    assert list(tmp_path.iterdir()) == []
    assert "images/s for the model" in " ".join(leokit("extract", large, *options, "--dry-run").stdout.split())


def test_bench_extract(leokit, large, tmp_path):
    arguments = [
        "bench",
        "extract",
        large,
        "--backbone",
        BACKBONE,
        "--image-size",
        32,
        "--seconds",
        0.1,
        "--workers",
        1,
    ]
    speed = json.loads(leokit(*arguments, "--json").stdout)
    assert speed["images"] == 1440
    parts = [speed[part] for part in ("decoding", "model", "writing")]
    assert speed["allowed"] == pytest.approx(1 / sum(1 / rate for rate in parts))
    assert speed["share"] == pytest.approx(speed["together"] / speed["allowed"])
    assert speed["memory"] > 1e7 < speed["worker_memory"]
    assert "of what the parts allow" in " ".join(leokit(*arguments).stdout.split())


def test_bench_read(leokit, tmp_path):
    speed = json.loads(leokit("bench", "read", "--rows", 3000, "--dim", 64, "--folder", tmp_path, "--json").stdout)
    assert speed["bytes"] == 3000 * 64 * 2
    assert speed["share"] == pytest.approx(speed["load"] / speed["plain"])
    assert list(tmp_path.iterdir()) == []


def test_features_open_in_other_readers(whole):
    table = whole.load("val")
    files = str(whole.folder / "val-*.parquet")
    pandas = pytest.importorskip("pandas")
    paths = sorted(whole.folder.glob("val-*.parquet"))
    frame = pandas.concat([pandas.read_parquet(path) for path in paths])
    np.testing.assert_array_equal(np.stack(frame["embedding"].to_list()), table.embeddings)
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.sql(f"SELECT embedding FROM '{files}' ORDER BY image").fetchall()
    np.testing.assert_array_equal(np.array([row[0] for row in rows], np.float16), table.embeddings)


def test_slow_parts_are_named(whole):
    info = whole.manifest.info
    assert info["slowest"] in info["seconds_in"]
    assert set(info["seconds_in"]) == {"reading", "decoding", "model", "writing"}
    assert manifest.read(whole.folder).files["finished/images.parquet"].in_id is False


@pytest.mark.parametrize("page", [{"data_page_size": 1000}, {"compression": "zstd"}, {"use_dictionary": True}])
def test_files_laid_out_otherwise_are_read_too(tmp_path, monkeypatch, page):
    """Several pages, compressed, or with a dictionary: slower, and the same."""
    rows = np.random.default_rng(0).normal(size=(2500, 16)).astype(np.float16)
    content = {"train": {"a": ([f"{number:04}" for number in range(2500)], rows), "b": (["x"], rows[:1])}}
    plain = write_store(tmp_path / "plain", content)
    writer = pyarrow.parquet.ParquetWriter
    monkeypatch.setattr(
        "leokit.features.writing.pq.ParquetWriter",
        lambda path, schema, **options: writer(path, schema, **{**options, **page}),
    )
    other = write_store(tmp_path / "other", content)
    assert other.id != plain.id
    np.testing.assert_array_equal(other.load("train").embeddings, plain.load("train").embeddings)
    np.testing.assert_array_equal(plain.load("train").embeddings[:2500], rows)


def test_jpeg_scaling_changes_large_jpegs_a_little_and_nothing_else(tmp_path):
    prep = backbones.load("test_resnet", "random", image_size=32).preprocessing
    scaled = replace(prep, jpeg_scaling=True)
    ramp = np.linspace(0, 255, 600 * 800).reshape(600, 800)
    pixels = np.stack([ramp, ramp[::-1], 128 + 100 * np.sin(np.arange(800) / 20)[None].repeat(600, 0)], 2)
    image = Image.fromarray(pixels.astype(np.uint8))
    for name, size, changed in [
        ("large.jpg", (800, 600), True),
        ("small.jpg", (90, 68), False),
        ("a.png", (800, 600), False),
    ]:
        image.resize(size).save(tmp_path / name)
        exact, quick = (load_image(tmp_path / name, one).astype(int) for one in (prep, scaled))
        assert (exact != quick).any() == changed
        assert np.abs(exact - quick).mean() < 2
    assert scaled.to_plain()["jpeg_scaling"] is True
