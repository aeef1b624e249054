"""Small files that ask for gigabytes, each read in a process that has not so many."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from leokit import manifest
from leokit.backbones.weights import read_weights
from leokit.features import FeatureStore, facts_of, find_source, store_faults
from leokit.features.layout import FOOTER_KEY, footer
from leokit.features.pickles import read_pickle
from leokit.features.store import SCHEMA
from leokit.parquet import BYTE_ARRAY, PLAIN_ENCODINGS, UNCOMPRESSED, measure, read_footer
from leokit.tables import read_table
from tests.robustness.laws import in_bounds

MANY = 400_000_000  # values of a bomb: 1.6 GB as float32


# What the processes do: functions of this module, which they import.


def load_store(folder):
    FeatureStore.open(folder).load("train")


def load_images(folder):
    FeatureStore.open(folder).images("train")


def verify_store(folder):
    assert store_faults(folder, manifest.read(folder))
    load_store(folder)


def load_source(path):
    find_source(path).read("")


def features(folder, rows, dim, column, images=None, **options):
    """A store of a class whose columns are these, written by Arrow."""
    manifest.begin(folder, SCHEMA, {}, {})
    path = folder / "train-00000-of-00001.parquet"
    images = pa.array([f"{row}" for row in range(rows)]) if images is None else images
    classes = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["a"]))
    kinds = {"image": pa.string(), "class_name": classes.type, "embedding": column.type}
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
    with pq.ParquetWriter(path, schema, **options) as writer:
        writer.write_table(pa.Table.from_arrays([images, classes, column], schema=schema), row_group_size=rows)
        writer.add_key_value_metadata({FOOTER_KEY: footer("train", {"a": rows})})
    facts = facts_of({"train": {"a": rows}}, dim=dim, dtype="float32")
    manifest.finish(folder, SCHEMA, {}, {}, results=[path.name], facts=facts, info={})
    return path


def embeddings(values, dim):
    item = pa.field("item", pa.float32(), nullable=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type=pa.list_(item, dim))


def patched_header(path, column, change):
    """Rewrite the header of the first data page of a column, in the same number of bytes."""
    data, start = bytearray(path.read_bytes()), read_footer(path)[0].columns[column].data_page
    data[start : start + 40] = change(bytes(data[start : start + 40]))
    path.write_bytes(data)


def number(value):
    """A number as Thrift writes it: zigzag, seven bits at a time."""
    value, parts = value << 1, []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def resign(folder):
    """Make the manifest of a store fit its files again."""
    found = manifest.read(folder)
    results = list(found.files)
    manifest.finish(folder, found.schema, found.config, {}, results=results, facts=found.facts, info={})


def test_a_page_that_says_it_unpacks_to_more(tmp_path):
    """Only the header of the page lies: the footer, the manifest and all hashes agree with the columns."""
    values = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    folder = tmp_path / "store"
    path = features(folder, 600, 500, embeddings(values, 500), compression="zstd", use_dictionary=False)
    size = number(measure(path, read_footer(path)[0].columns[2]).largest)
    assert in_bounds("bombs", "Parquet, as it was written", load_store, folder) is None

    def lie(header):
        assert header[:3] == b"\x15\x00\x15" and header[3 : 3 + len(size)] == size
        most = number(2**27 - 1)  # 134 MB in place of 1.2
        assert len(most) == len(size)
        return header[:3] + most + header[3 + len(size) :]

    patched_header(path, 2, lie)
    resign(folder)
    said = in_bounds("bombs", "Parquet, a page that lies about its size", load_store, folder)
    assert said and "would unpack" in said


def bomb_file(path, values, dim, *, dictionary):
    """A file of features of one class, all zeros, written a part at a time into one row group."""
    rows = values // dim
    column = embeddings(np.zeros(values, np.float32), dim)
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x"])).cast(pa.string())
    return features(path, rows, dim, column, images, compression="zstd", use_dictionary=dictionary)


def test_zeros_by_the_gigabyte(tmp_path):
    """A store that says what it is: so many rows of zeros, in a file that is a thousandth of them."""
    for dictionary in (["embedding.list.element", "embedding.list.item", "class_name"], ["class_name"]):
        name = "runs of one value" if len(dictionary) > 1 else "compressed zeros"
        folder = tmp_path / name
        path = bomb_file(folder, 100_000_000, 100_000, dictionary=dictionary)
        assert path.stat().st_size < 2_000_000
        said = in_bounds("bombs", f"Parquet, {name}", load_store, folder)
        assert said and "values in" in said
        assert in_bounds("bombs", f"Parquet, {name}, by verify", verify_store, folder)


def test_one_long_name_again_and_again(tmp_path):
    """A dictionary of one text of 10 MB, which every row names."""
    rows = 1000
    text = pa.array(["x" * 10_000_000])
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), text)
    folder = tmp_path / "store"
    folder.mkdir()
    path = folder / "train-00000-of-00001.parquet"
    item = pa.field("item", pa.float32(), nullable=False)
    schema = pa.schema(
        [
            pa.field("image", images.type, nullable=False),
            pa.field("class_name", images.type, nullable=False),
            pa.field("embedding", pa.list_(item, 2), nullable=False),
        ]
    )
    classes = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["a"]))
    table = pa.Table.from_arrays([images, classes, embeddings(np.ones(2 * rows, np.float32), 2)], schema=schema)
    file = io.BytesIO()
    with pq.ParquetWriter(file, schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
    path.write_bytes(file.getvalue())
    assert path.stat().st_size < 100_000
    said = in_bounds("bombs", "Parquet, one long text", read_table, path)
    assert said and "GB" in said


def test_a_table_of_zeros(tmp_path):
    path = tmp_path / "episodes.parquet"
    with pq.ParquetWriter(path, pa.schema([("accuracy", pa.float64())]), compression="zstd") as writer:
        part = pa.table({"accuracy": np.zeros(2**24)})
        for _ in range(10):
            writer.write_table(part)
    assert path.stat().st_size < 1_000_000
    said = in_bounds("bombs", "Parquet, a table of zeros", read_table, path)
    assert said and "would take" in said


def npy_header(shape, dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_a_zip_of_zeros(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            member.write(npy_header((MANY // 4, 1)))
            for _ in range(MANY // 2**22):
                member.write(bytes(2**22))
        archive.writestr("labels.npy", npy_header((1,), "<U1") + b"a\0\0\0")
    assert path.stat().st_size < MANY // 100
    said = in_bounds("bombs", ".npz, compressed zeros", load_source, path)
    assert said and "would unpack to" in said


@pytest.mark.parametrize("shape", [(10**13, 1), (2**40, 2**40), (10**9, 1), (1, 2**31)])
def test_arrays_that_say_they_are_large(tmp_path, shape):
    np.save(tmp_path / "x.labels.npy", np.array(["a"]))
    for name, content in {
        "x.npy": npy_header(shape) + bytes(16),
        "y.npz": None,
    }.items():
        path = tmp_path / name
        if content is None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("embeddings.npy", npy_header(shape) + bytes(16))
                archive.writestr("labels.npy", npy_header((1,), "<U1") + b"a\0\0\0")
        else:
            path.write_bytes(content)
        assert in_bounds("bombs", f"{path.suffix}, a shape that lies", load_source, path)


def text_of(size):
    return b"X" + struct.pack("<I", size) + b"1-a-" + b"x" * (size - 4)


def scalar_again(times):
    """A program that makes a string of 999,999 bytes from the same bytes, again and again."""
    kind = b"cnumpy\ndtype\n(X\x07\x00\x00\x00S999999tR"
    return (
        b"\x80\x02(" + b"B" + struct.pack("<I", 999_999) + b"x" * 999_999 + b"q\x00" + kind + b"q\x01"
        b"cnumpy.core.multiarray\nscalar\nq\x02" + b"h\x02h\x01h\x00\x86R" * times + b"l."
    )


def keys_again(times):
    """A dict whose keys are the same string of a million letters, again and again."""
    rows = pickle.dumps(np.ones((times, 1), np.float16), 2)[2:-1]
    return (
        b"\x80\x02}(X\x0a\x00\x00\x00embeddings"
        + rows
        + b"X\x04\x00\x00\x00keys("
        + text_of(1_000_000)
        + b"r\xff\xff\x00\x00"
        + b"j\xff\xff\x00\x00" * (times - 1)
        + b"lu."
    )


def encode_again(times):
    return (
        b"\x80\x02("
        + text_of(1_000_000)
        + b"q\x00X\x06\x00\x00\x00latin1q\x01c_codecs\nencode\nq\x02"
        + b"h\x02h\x00h\x01\x86R" * times
        + b"l."
    )


def doubled(end):
    """Tuples in tuples, each twice the one before: sixty of them have 2^60 leaves."""
    return b"\x80\x02}K\x01" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)) + end


PICKLES = {
    "strings from the same bytes": scalar_again(5000),
    "the same key again and again": keys_again(5000),
    "bytes from the same string": encode_again(5000),
    "tuples that double, as a key": doubled(b"K\x01s."),
    "tuples that double, as a shape": b"\x80\x02}(X\x0a\x00\x00\x00embeddingscnumpy.core.multiarray\n_frombuffer\n("
    + b"NN"
    + doubled(b"")[3:]
    + b"tRX\x04\x00\x00\x00keys]u.",
    "tuples that double, in a set": b"\x80\x04\x8f(" + doubled(b"")[3:] + b"\x90.",
    "a number of 5,000 digits": pickle.dumps({"embeddings": np.ones((1, 1)), "keys": [10**5000]}, 2),
    "a frame of exabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "bytes of gigabytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"N.",
    "a far place in the memo": b"\x80\x02Nr\xff\xff\xff\x7f0.",
}


@pytest.mark.parametrize("fault", PICKLES)
def test_pickles_that_grow(tmp_path, fault):
    path = tmp_path / "train_embeddings.pkl"
    path.write_bytes(PICKLES[fault])
    assert path.stat().st_size < 10_000_000
    assert in_bounds("bombs", f"pickle, {fault}", read_pickle, path)


# Weights


def torch_zip(path, program, *, compression=zipfile.ZIP_STORED, data=bytes(64)):
    """A torch file whose program, a pickle, is this."""
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", data)
        archive.writestr("archive/version", b"3\n")


def tensor_of(size, stride, rebuild=b"_rebuild_tensor_v2"):
    """A program that makes a tensor of 16 numbers on disk, and says that it has this size."""

    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
    rest = b"K\x00" + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n" + rebuild + b"\n" + storage + rest + b"Rs."


def encode_once_more(times):
    """A text of a million letters, turned to bytes again and again by what torch calls functions with."""
    again = b"h\x02h\x03h\x04h\x00h\x01\x86}tR"
    names = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x02c_codecs\nencode\nq\x03cbuiltins\nbytes\nq\x04"
    latin = b"q\x00X\x06\x00\x00\x00latin1q\x01"
    return b"\x80\x02(" + text_of(1_000_000) + latin + names + (b"(" + again) * times + b"l."


PROGRAMS = {
    "a tensor of terabytes": tensor_of((10**6, 10**6), (0, 0)),
    "a tensor far beyond its numbers": tensor_of((2**40,), (1,)),
    "a tensor on no device": tensor_of((10**6, 10**6), (0, 0), b"_rebuild_meta_tensor_no_storage"),
    "bytes from the same string": encode_again(5000),
    "bytes from the same string, by another call": encode_once_more(5000),
    "an array of bytes": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + struct.pack("<q", 2**36)[:5] + b"\x85R.",
    "a tensor of a class": b"\x80\x02ctorch\nFloatTensor\n\x8a\x05" + struct.pack("<q", 2**36)[:5] + b"\x85R.",
    "tuples that double, as a key": doubled(b"K\x01s."),
    "tuples that double, in a set": b"\x80\x02cbuiltins\nset\n(" + doubled(b"")[3:] + b"l\x85R.",
    "tuples that double, in an ordered dict": b"\x80\x02ccollections\nOrderedDict\n(("
    + doubled(b"")[3:]
    + b"K\x01ll\x85R.",
    "a call of the system": b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch pwned\x85R.",
    "a call of eval": b"\x80\x02cbuiltins\neval\nX\x05\x00\x00\x001 / 0\x85R.",
    "nothing": b"",
}


@pytest.mark.parametrize("form", ["zip", pytest.param("plain", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", PROGRAMS)
def test_programs_in_files_of_weights(tmp_path, monkeypatch, fault, form):
    monkeypatch.chdir(tmp_path)
    path, program = tmp_path / "weights.pth", PROGRAMS[fault]
    if form == "zip":
        torch_zip(path, program)
    else:  # as torch wrote them before: what it is, the tensors, and the names of their numbers
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path.write_bytes(b"".join([*head, program, pickle.dumps(["0"], 2)]) + struct.pack("<q", 16) + bytes(64))
    assert in_bounds("bombs", f".pth, {fault}", read_weights, path)
    assert not (tmp_path / "pwned").exists()


def test_a_file_of_weights_that_unpacks_to_more(tmp_path):
    path = tmp_path / "weights.pth"
    torch_zip(path, tensor_of((MANY // 16,), (1,)), compression=zipfile.ZIP_DEFLATED, data=bytes(MANY // 4))
    assert path.stat().st_size < MANY // 100
    said = in_bounds("bombs", ".pth, compressed zeros", read_weights, path)
    assert said and "would unpack to" in said


def test_weights_as_torch_saves_them_are_read(tmp_path):
    """In each of torch's forms, with what training scripts put beside them."""
    layer = torch.nn.BatchNorm1d(3)
    optimiser = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    more = {"epoch": 3, "optimizer": optimiser.state_dict(), "names": {"a", "b"}, "raw": b"x", "key": {(1, "a"): 2.0}}
    whole = layer.state_dict()
    half = {name: value.half() if value.is_floating_point() else value for name, value in whole.items()}
    parameters = {name: torch.nn.Parameter(value) for name, value in whole.items() if value.is_floating_point()}
    for number, content in enumerate((whole, {"state_dict": whole, **more}, {"model": half}, parameters)):
        for zipped in (True, False):
            path = tmp_path / f"{number}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            theirs = torch.load(path, weights_only=True)
            theirs = theirs.get("state_dict", theirs.get("model", theirs))
            ours = read_weights(path)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pages_are_what_arrow_says(tmp_path):
    """The headers of pages, read by leokit, against what Arrow read and wrote."""
    rng = np.random.default_rng(0)
    table = pa.table({"number": rng.normal(size=5000), "text": [f"{row % 7}" for row in range(5000)]})
    for options in (
        {},
        {"data_page_version": "2.0"},
        {"compression": "zstd"},
        {"use_dictionary": False},
        {"data_page_size": 1000},
    ):
        pq.write_table(table, tmp_path / "a.parquet", **options)
        metadata = pq.read_metadata(tmp_path / "a.parquet")
        (group,) = read_footer(tmp_path / "a.parquet")
        assert group.rows == metadata.num_rows
        for index, column in enumerate(group.columns):
            told = metadata.row_group(0).column(index)
            assert (column.path, column.values, column.size) == (
                told.path_in_schema,
                told.num_values,
                told.total_compressed_size,
            )
            assert (column.data_page, column.dictionary_page) == (told.data_page_offset, told.dictionary_page_offset)
            assert (column.kind == BYTE_ARRAY) == (told.physical_type == "BYTE_ARRAY")
            assert (column.codec == UNCOMPRESSED) == (told.compression == "UNCOMPRESSED")
            assert (column.encodings <= PLAIN_ENCODINGS) == (set(told.encodings) <= {"PLAIN", "RLE"})
            pages = measure(tmp_path / "a.parquet", column)
            assert pages.values == told.num_values == 5000
            # The footer's sum is of pages with their headers.
            assert 0 <= told.total_uncompressed_size - pages.total < 4000
