"""The feature store: what was written comes back, class by class and whole, and nothing damaged passes for good."""

import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leokit import manifest
from leokit.errors import ArtifactError, DataError
from leokit.features import FeatureStore, ShardWriter, plan_shards, write_store

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def contents(draw):
    """Splits of classes of images with embeddings, in any order, and a type to store them in."""
    dim, dtype = draw(st.integers(1, 5)), draw(st.sampled_from(["float16", "float32"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    splits = {}
    for name in names:
        images = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
        split = draw(st.sampled_from(["train", "val", "test"]))
        splits.setdefault(split, {})[name] = (images, rng.normal(size=(len(images), dim)).astype(dtype))
    return splits, dtype


@settings(max_examples=40, deadline=None)
@given(contents())
def test_what_is_written_comes_back(drawn):
    splits, dtype = drawn
    with tempfile.TemporaryDirectory() as folder:
        written = write_store(Path(folder) / "features", splits, dtype=dtype)
        store = FeatureStore.open(Path(folder) / "features")
        assert store.id == written.id
        assert store.splits == [split for split in ("train", "val", "test") if split in splits]
        for split, classes in splits.items():
            names = sorted(classes, key=str.encode)
            table = store.load(split)
            assert store.classes(split) == table.classes == names
            assert (
                store.counts(split).tolist() == np.diff(table.offsets).tolist() == [len(classes[n][0]) for n in names]
            )
            assert table.embeddings.dtype == store.dtype == dtype
            images = store.images(split)
            for number, name in enumerate(names):
                start, end = table.offsets[number], table.offsets[number + 1]
                given_images, given_rows = classes[name]
                order = sorted(range(len(given_images)), key=lambda row: given_images[row].encode())
                assert images[start:end] == [given_images[row] for row in order]
                np.testing.assert_array_equal(table.embeddings[start:end], given_rows[order])
                np.testing.assert_array_equal(store.read_class(split, name), given_rows[order])


def splits_of(classes=4, images=3, dim=2, split="train"):
    rng = np.random.default_rng(0)
    return {
        split: {
            f"c{number}": ([f"c{number}/{image}.jpg" for image in range(images)], rng.normal(size=(images, dim)))
            for number in range(classes)
        }
    }


def test_the_same_rows_make_the_same_bytes(tmp_path):
    one, two = (write_store(tmp_path / name, splits_of()) for name in ("one", "two"))
    assert one.id == two.id
    assert {n: f.sha256 for n, f in one.manifest.files.items()} == {n: f.sha256 for n, f in two.manifest.files.items()}
    assert write_store(tmp_path / "one", splits_of()).id == one.id
    assert write_store(tmp_path / "three", splits_of(), config={"by": "hand"}).id != one.id


@given(
    st.dictionaries(
        st.sampled_from(["train", "val", "test"]), st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1
    ),
    st.integers(1, 20),
)
def test_shards_are_whole_classes_in_order(counts, rows):
    splits = {
        split: {f"c{number:02}": tuple(map(str, range(count))) for number, count in enumerate(of_split)}
        for split, of_split in counts.items()
    }
    shards = plan_shards(splits, rows=rows)
    assert len({shard.name for shard in shards}) == len(shards)
    for split, classes in splits.items():
        own = [shard for shard in shards if shard.split == split]
        assert [item for shard in own for item in shard.classes.items()] == list(classes.items())
        assert all(shard.name == f"{split}-{i:05}-of-{len(own):05}.parquet" for i, shard in enumerate(own))
        for shard, following in pairwise(own):
            assert shard.rows <= rows or len(shard.classes) == 1
            assert shard.rows + len(next(iter(following.classes.values()))) > rows


def test_a_class_is_a_row_group_and_the_footer_lists_them(tmp_path):
    store = write_store(tmp_path / "features", splits_of())
    file = pyarrow.parquet.ParquetFile(store.folder / "train-00000-of-00001.parquet")
    listed = json.loads(file.metadata.metadata[b"leokit"])
    assert listed["classes"] == [[f"c{number}", 3] for number in range(4)]
    assert file.num_row_groups == 4
    for number in range(4):
        assert set(file.read_row_group(number)["class_name"].to_pylist()) == {f"c{number}"}
    column = file.metadata.row_group(0).column(2)
    assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_readers_can_read_it(tmp_path, dtype):
    store = write_store(tmp_path / "features", splits_of(), dtype=dtype)
    files = [str(path) for path in store.folder.glob("*.parquet")]
    table = pyarrow.dataset.dataset(files).to_table()
    assert table.column_names == ["image", "class_name", "embedding"]
    rows = np.array(table["embedding"].to_pylist(), dtype)
    np.testing.assert_array_equal(rows, store.load("train").embeddings)
    pandas = pytest.importorskip("pandas", reason="needs pandas, which leokit does not")
    assert list(pandas.read_parquet(files[0])["class_name"]) == table["class_name"].to_pylist()


def test_a_value_that_float16_cannot_hold_is_named(tmp_path):
    splits = splits_of()
    splits["train"]["c2"][1][1, 0] = 70000
    with pytest.raises(DataError, match=r"'c2/1.jpg' \(class 'c2'\) has the value 70000, which float16 .*float32"):
        write_store(tmp_path / "half", splits)
    assert write_store(tmp_path / "single", splits, dtype="float32").read_class("train", "c2")[1, 0] == 70000
    splits["train"]["c2"][1][1, 0] = np.nan
    with pytest.raises(DataError, match="value nan"):
        write_store(tmp_path / "nan", splits, dtype="float32")


def test_an_unfinished_or_altered_store_is_refused(tmp_path):
    store = write_store(tmp_path / "features", splits_of())
    path = store.folder / "train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="was altered") as caught:
        FeatureStore.open(store.folder)
    assert caught.value.exit_code == 4
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        FeatureStore.open(store.folder)
    (store.folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no artifact of leokit"):
        FeatureStore.open(store.folder)


def test_files_that_are_not_what_the_manifest_says_are_refused(tmp_path):
    """A manifest that is right in itself over files of another layout: made by hand, or by another version."""
    store = write_store(tmp_path / "features", splits_of())
    for facts in ({"dim": 3}, {"dtype": "float32"}, {"counts": {"train": {"c0": 3}}}, {"counts": {"other": {}}}):
        made = store.manifest
        results = list(made.files)
        manifest.finish(
            store.folder, made.schema, made.config, {}, results=results, facts={**made.facts, **facts}, info={}
        )
        with pytest.raises(ArtifactError, match="no feature store that can be read"):
            FeatureStore.open(store.folder)


def test_a_split_or_class_that_is_not_there(tmp_path):
    store = write_store(tmp_path / "features", splits_of())
    with pytest.raises(DataError, match="has no split 'test'; it has train"):
        store.load("test")
    with pytest.raises(DataError, match="has no class 'c9'"):
        store.read_class("train", "c9")


def test_a_file_appears_when_it_is_whole(tmp_path):
    with (
        pytest.raises(RuntimeError, match="interrupted"),
        ShardWriter(tmp_path / "a", "test", dim=2, dtype="float16") as w,
    ):
        w.write_class("c", ["1"], np.zeros((1, 2)))
        raise RuntimeError("interrupted")
    assert list(tmp_path.iterdir()) == []


def test_reading_a_class_touches_its_row_group_only(tmp_path):
    """The bytes of every other class are destroyed, and the class is read all the same."""
    store = write_store(tmp_path / "features", splits_of(images=50, dim=64))
    path = store.folder / "train-00000-of-00001.parquet"
    metadata = pyarrow.parquet.read_metadata(path)
    expected = store.read_class("train", "c1")
    data = bytearray(path.read_bytes())
    for group in (0, 2, 3):
        for column in range(3):
            chunk = metadata.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    copy = shutil.copytree(store.folder, tmp_path / "copy")
    (copy / path.name).write_bytes(data)
    np.testing.assert_array_equal(FeatureStore(copy, store.manifest).read_class("train", "c1"), expected)
