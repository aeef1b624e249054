"""A feature store whose hashes are right and whose contents are not: every fault is found and named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leokit import manifest
from leokit.features import FAILURES, SCHEMA, FeatureStore, facts_of, store_faults, write_store
from leokit.features.layout import FOOTER_KEY, arrow_schema, footer
from leokit.tables import write_table

DIM = 3
GOOD = {
    "train": {"a": ["a/1", "a/2", "a/3"], "b": ["b/1", "b/2"]},
    "val": {"c": ["c/1"]},
    "test": {"d": ["d/1", "d/\\xff"]},
}


def name_of(split):
    return f"{split}-00000-of-00001.parquet"


def group(name, images, *, labels=None, change=None):
    """A row group as a table."""
    values = np.arange(len(images) * DIM, dtype=np.float32).reshape(-1, DIM)
    if change:
        change(values)
    labels = labels or [name] * len(images)
    names = sorted(set(labels))
    schema = arrow_schema(DIM, "float32")
    columns = [
        pa.array(images, pa.string()),
        pa.DictionaryArray.from_arrays(pa.array([names.index(label) for label in labels], pa.int32()), names),
        pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=schema.field("embedding").type),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def write_file(path, groups, listed=None, **entry):
    """A feature file of these groups; `listed` are the classes in its footer, `entry` what else stands there."""
    listed = {name: table.num_rows for name, table in groups} if listed is None else listed
    split = path.name.partition("-")[0]
    written = json.loads(footer(split, {})) | {"classes": list(dict(listed).items())} | entry
    with pq.ParquetWriter(path, groups[0][1].schema, compression="none") as writer:
        for _, table in groups:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({FOOTER_KEY: json.dumps(written).encode()})


def store(folder, change=None, *, counts=None, failures=None, dim=DIM):
    """A finished store of `GOOD`; `change` rewrites files before the manifest is made."""
    manifest.begin(folder, SCHEMA, {}, {})
    for split, classes in GOOD.items():
        write_file(folder / name_of(split), [(name, group(name, images)) for name, images in classes.items()])
    if change:
        change(folder)
    results = [name_of(split) for split in GOOD]
    if failures is not None:
        write_table(folder / FAILURES, {"image": [], "reason": []}, {"image": "string", "reason": "string"})
        results.append(FAILURES)
    counts = counts or {split: {name: len(images) for name, images in of.items()} for split, of in GOOD.items()}
    facts = facts_of(counts, dim=dim, dtype="float32", failures=failures or 0)
    return manifest.finish(folder, SCHEMA, {}, {}, results=results, facts=facts, info={})


def rewritten(of, groups, **options):
    """A change that replaces a split's file; groups are (class, images) or (class, images, options of `group`)."""

    def change(folder):
        tables = [(name, group(name, images, **dict(*more))) for name, images, *more in groups]
        write_file(folder / name_of(of), tables, **options)

    return change


def test_right_stores_have_no_faults(tmp_path):
    assert store_faults(tmp_path / "a", store(tmp_path / "a", failures=0)) == []
    FeatureStore.open(tmp_path / "a")
    rng = np.random.default_rng(0)
    splits = {
        split: {
            f"{split}{number}": ([f"{split}{number}/{row}" for row in range(12)], rng.normal(size=(12, 5)))
            for number in range(11)
        }
        for split in ("train", "test")
    }
    for dtype in ("float16", "float32"):
        written = write_store(tmp_path / dtype, splits, dtype=dtype)
        files = []
        assert store_faults(written.folder, written.manifest, on_file=files.append) == []
        assert files == sorted(written.manifest.files)


def nan(values):
    values[1, 2] = np.nan


TWICE = rewritten("val", [("c", ["c/1"]), ("d", ["d/2"])])


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (
            rewritten("train", [("a", ["a/1", "a/2", "a/3"], {"change": nan}), ("b", ["b/1", "b/2"])]),
            ["the embedding of 'a/2' (class 'a') has values that are not finite"],
        ),
        (
            rewritten("train", [("b", ["b/1", "b/2"]), ("a", ["a/1", "a/2", "a/3"])]),
            ["class 'a' comes after 'b': the classes of a split are in bytewise order"],
        ),
        (
            rewritten("train", [("a", ["a/1", "a/3", "a/2"]), ("b", ["b/2", "b/1"])]),
            [
                "image 'a/2' comes after 'a/3' in class 'a': images are in bytewise order",
                "image 'b/1' comes after 'b/2' in class 'b': images are in bytewise order",
            ],
        ),
        (
            rewritten("train", [("a", ["a/1", "a/1", "a/3"]), ("b", ["a/3", "b/1"])]),
            ["image 'a/1' (class 'a') is there twice", "image 'a/3' (class 'b') is there twice"],
        ),
        (
            rewritten("train", [("a", ["a/1", "a/2", "a/\\3"]), ("b", ["b/1", "b/2"])]),
            ["the image name in class 'a' does not lead back to a file: 'a/\\\\3' has a backslash"],
        ),
        (
            rewritten("train", [("a", ["a/1", "a/2", "a/3"], {"labels": ["a", "b", "a"]}), ("b", ["b/1", "b/2"])]),
            ["class 'a' has rows of 'b' in its row group"],
        ),
        (
            rewritten("train", [("a", ["a/1", "a/2", "a/3"]), ("b", ["b/1", "b/2"])], listed={"a": 2, "b": 3}),
            ["class 'a' has 3 rows, but its footer lists 2", "class 'b' has 2 rows, but its footer lists 3"],
        ),
        (
            rewritten("train", [("a", ["a/1", "a/2", "a/3"]), ("b", ["b/1", "b/2"])], listed={"a": 5}),
            ["its footer lists 1 classes, but it has 2 row groups"],
        ),
        (
            rewritten("train", [("a", ["a/1", "a/2", "a/3"]), ("b", ["b/1", "b/2"])], split="val"),
            ["its footer says 'leokit/features@1' and split 'val'"],
        ),
        (
            rewritten("train", [("a", ["a/1", "a/2", "a/3"]), ("b", ["b/1", "b/2"])], schema="leokit/features@9"),
            ["its footer says 'leokit/features@9' and split 'train'"],
        ),
        (
            lambda folder: write_table(folder / name_of("train"), {"image": ["a/1"]}),
            ["its columns are not image, class_name and embedding of 3 float32 values"],
        ),
        (
            lambda folder: pq.write_table(group("a", ["a/1"]), folder / name_of("train")),
            ["cannot be read as a file of features (KeyError(b'leokit'))"],
        ),
        (
            lambda folder: (folder / name_of("train")).write_bytes(b"PAR1 and no more"),
            ["cannot be read as a file of features (ArrowInvalid("],
        ),
    ],
)
def test_faults_of_a_file_are_all_named(tmp_path, change, faults):
    found = store_faults(tmp_path / "a", store(tmp_path / "a", change))
    assert len(found) == len(faults)
    for line, fault in zip(found, faults, strict=True):
        assert line.startswith(f"{name_of('train')}: {fault}")


def test_a_class_in_two_files_and_counts_that_differ(tmp_path):
    found = store_faults(tmp_path / "a", store(tmp_path / "a", TWICE))
    assert found == [f"{name_of('val')}: class 'd' is also in {name_of('test')}"]
    counts = {"train": {"a": 3, "b": 3}, "val": {"c": 1, "e": 4}, "test": {"d": 2}}
    assert store_faults(tmp_path / "b", store(tmp_path / "b", counts=counts)) == [
        "manifest.json: says that the class 'b' of train has 3 images, but its file has 2",
        "manifest.json: says that the class 'e' of val has 4 images, but its file has 0",
    ]
    assert store_faults(tmp_path / "c", store(tmp_path / "c", failures=2)) == [
        "failures.parquet: has 0 rows, but the manifest says 2 images could not be read"
    ]
    assert len(store_faults(tmp_path / "d", store(tmp_path / "d", dim=4))) == 3


def test_what_is_known_to_be_damaged_is_not_read(tmp_path):
    written = store(tmp_path / "a")
    (tmp_path / "a" / name_of("train")).unlink()
    assert store_faults(tmp_path / "a", written, damaged={name_of("train")}) == []
