"""Every reader on files that no writer of ours made: a valid value or one line, never anything else."""

import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file

from leokit import manifest, runs
from leokit.backbones.weights import read_weights
from leokit.config import (
    COMMANDS,
    EvalConfig,
    ImportConfig,
    InspectConfig,
    MetaTrainConfig,
    build,
    identity,
    parse_share,
    read_numbers,
    read_toml,
)
from leokit.engine.logbook import cut_back
from leokit.engine.shards import _read_record
from leokit.engine.state import new_state, pack
from leokit.episodes import FeatureMatrix
from leokit.errors import LeokitError
from leokit.evaluations import open_evaluation
from leokit.features import FeatureStore, facts_of, find_source, store_faults
from leokit.features.layout import FOOTER_KEY, footer
from leokit.features.pickles import read_pickle
from leokit.features.store import SCHEMA
from leokit.images import archives
from leokit.images.preprocess import Preprocessing, UnreadableImage, load_image
from leokit.images.scan import scan
from leokit.leo.learners import make_learner
from leokit.splits import resolve
from leokit.splits.lists import read_class_list, read_image_lists
from leokit.stages import importing, inspect
from leokit.tables import read_table, write_table
from tests.robustness import tally
from tests.robustness.laws import examples, in_time, refused, sized, value_or_refusal

BYTES = st.binary(max_size=200)
TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)
WORDS = [
    "train",
    "val",
    "test",
    "a",
    "b",
    "../c",
    "/etc/passwd",
    "",
    "class_name",
    "split",
    "image",
    "label",
    '"',
    "x\0",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | TEXT, inner, max_size=4),
    max_leaves=12,
)
DEEP = b"[" * 100_000


def mutated(data, draw, most=6):
    """Bytes with some changed, cut off, or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "double"])):
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C]))
            case "cut":
                del data[place : place + draw(st.integers(1, 40))]
            case "insert":
                data[place:place] = draw(BYTES)
            case "double":
                data[place:place] = data[place : place + 30]
    return bytes(data)


def encoded(text):
    return text.encode("utf-8", "surrogatepass")


# Configuration


@examples(24, 5000)
def test_config_files(examples, tmp_path):
    path = tmp_path / "config.toml"
    whole = b"[meta-train]\nshots = 1\nsteps = 100\ninner-lr = 1.0\n[eval]\nepisodes = 60\nout = 'x'\n"
    kinds = {"meta-train": MetaTrainConfig, "eval": EvalConfig}
    keys = st.sampled_from([*MetaTrainConfig.__dataclass_fields__, *EvalConfig.__dataclass_fields__, "unknown"])
    values = st.sampled_from(
        ["1", "-1", "1e999", "nan", "inf", "'x'", "[]", "{}", "true", "9" * 30, "9" * 5000, "1979-05-27", '"\\u0000"']
    )
    written = st.lists(st.tuples(keys, values), max_size=4).map(
        lambda pairs: "".join(f"{key} = {value}\n" for key, value in pairs).encode()
    )

    @sized(examples)
    @given(st.data())
    def law(data):
        kind = data.draw(st.sampled_from(["mutated", "written", "bytes", "text"]))
        path.write_bytes(
            mutated(whole, data.draw)
            if kind == "mutated"
            else data.draw({"written": written, "bytes": BYTES, "text": TEXT.map(encoded)}[kind])
        )
        command = data.draw(st.sampled_from(list(kinds)))
        value_or_refusal("config", f"TOML, {kind}", lambda: build(kinds[command], read_toml(path, command)))

    law()


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "a." * 2000 + "b = 1", "a = " + "9" * 5000, "\xff\xfe", "[eval]" * 9]
)
def test_config_files_that_go_too_far(tmp_path, text):
    (tmp_path / "config.toml").write_bytes(text.encode("latin1"))
    refused("config", "TOML, too deep or too long", lambda: read_toml(tmp_path / "config.toml", "eval"))
    assert "eval" in COMMANDS


@examples(24, 3000)
def test_values_of_options(examples):
    texts = TEXT | st.sampled_from(
        ["1e999999999", "1e-999999999%", "nan%", "9" * 5000, "1_0", "٣", "-0", "100%", "1e400"]
    )

    @sized(examples)
    @given(texts)
    def law(text):
        value_or_refusal("config", "values of options", lambda: parse_share(text)(100))
        value_or_refusal("config", "values of options", lambda: read_numbers("--x", text, int, 1, 1000))
        value_or_refusal("config", "values of options", lambda: read_numbers("--x", text, float, 0, 1))
        value_or_refusal(
            "config", "values of options", lambda: resolve(f"random:{text}/1/1", Path(), {"a": ["a/1"], "b": []}, 0)
        )

    law()


# Lists

ROWS = st.lists(st.lists(st.sampled_from(WORDS) | TEXT, min_size=1, max_size=3), max_size=6).map(
    lambda rows: "\n".join(",".join(row) for row in rows)
)


@examples(24, 5000)
def test_lists_of_splits(examples, tmp_path):
    headers = ["class_name,split", "split,class_name", "filename,label", "class_name,image_name", "a,b", '"', ""]
    available = {"a": ["a/1.png", "a/2.png"], "b": ["b/1.png"], "c": ["c/1.png"]}
    whole = "a,train\nb,val\nc,test\n"

    @sized(examples)
    @given(st.data())
    def law(data):
        for name in ("splits", "train", "val", "test"):
            body = data.draw(ROWS | st.just(whole))
            text = encoded(f"{data.draw(st.sampled_from(headers))}\n{body}\n")
            (tmp_path / f"{name}.csv").write_bytes(data.draw(st.sampled_from([text, mutated(text, data.draw)])))
        value_or_refusal("lists", "class list", lambda: read_class_list(tmp_path / "splits.csv"))
        value_or_refusal("lists", "image lists", lambda: read_image_lists(tmp_path))
        for spec in (str(tmp_path / "splits.csv"), str(tmp_path)):
            made = value_or_refusal(
                "lists", "division of a tree", lambda spec=spec: resolve(spec, tmp_path, available, 0)
            )
            if not isinstance(made, LeokitError):
                there = {image for images in available.values() for image in images}
                assert {image for images in made.chosen.values() for image in images} <= there

    law()


LEADING_OUT = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../../etc/passwd",
    "..",
    "C:\\windows\\win.ini",
    "a/..",
    "\\\\host\\x",
]


@pytest.mark.parametrize("image", LEADING_OUT)
def test_no_list_leads_out_of_the_tree(tmp_path, image):
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.csv").write_text(f"filename,label\n{image},{name}\n")
    available = {name: [f"{name}/passwd", f"{name}/1.png"] for name in ("train", "val", "test")}
    error = refused("lists", "paths that lead out of the tree", lambda: resolve(str(tmp_path), tmp_path, available, 0))
    assert "leads out of the image tree" in str(error) or "not in the folder" in str(error)


# Manifests

CONFIG = {"rate": 0.1, "steps": 3}


def made(folder):
    """A small artifact."""
    manifest.begin(folder, "leokit/test@1", CONFIG, {})
    (folder / "result.txt").write_text("results")
    manifest.finish(folder, "leokit/test@1", CONFIG, {}, results=["result.txt"], facts={"dim": 3}, info={"seconds": 1})


def signed(value):
    """The bytes of a manifest whose checksum, and id where it has one, fit whatever else it says."""
    value = {key: entry for key, entry in value.items() if key != "checksum"}
    try:
        inputs = {name: entry["id"] for name, entry in value["inputs"].items()}
        files = {name: entry["sha256"] for name, entry in value["files"].items() if entry["in_id"]}
        identity = {"schema": value["schema"], "config": value["config"], "inputs": inputs, "files": files}
        value["id"] = manifest.hash_text(manifest.canonical_json(identity))
    except Exception:
        pass
    try:
        value["checksum"] = manifest.hash_text(manifest.canonical_json(value))
    except Exception:
        value["checksum"] = "none"
    return json.dumps(value).encode("utf-8", "surrogatepass")


def each_reader(folder, fault):
    """Everything that takes an artifact of any kind."""
    found = value_or_refusal("manifest", fault, lambda: manifest.read(folder))
    if isinstance(found, manifest.Manifest):
        value_or_refusal("manifest", fault, lambda: manifest.check_files(folder, found))
    value_or_refusal("manifest", fault, lambda: inspect.run(InspectConfig(path=folder)))
    for schema, config in (("leokit/test@1", CONFIG), ("leokit/other@1", {})):
        value_or_refusal("manifest", fault, lambda s=schema, c=config: manifest.begin(folder, s, c, {}))


@examples(32, 10_000)
def test_manifests(examples, tmp_path):
    made(tmp_path / "whole")
    whole = (tmp_path / "whole/manifest.json").read_bytes()
    parts = json.loads(whole)
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "result.txt").write_text("results")

    @sized(examples)
    @given(st.data())
    def law(data):
        kind = data.draw(st.sampled_from(["bytes changed", "values changed, checksum right", "any JSON"]))
        if kind == "bytes changed":
            content = mutated(whole, data.draw)
        elif kind == "any JSON":
            content = json.dumps(data.draw(JSON)).encode()
        else:
            value = json.loads(whole)
            key = data.draw(st.sampled_from(sorted(parts)))
            inner = value[key]
            if isinstance(inner, dict) and data.draw(st.booleans()):
                names = st.sampled_from([*inner, "../up", "/abs", "", ".", "a/../../b", "x\0y", "\ud800"])
                entry = {"sha256": "0" * 64, "bytes": 7, "in_id": True}
                inner[data.draw(names)] = data.draw(st.sampled_from([entry, {"id": "x", "path": "y"}]) | JSON)
            else:
                value[key] = data.draw(JSON)
            content = signed(value)
        for name in ("unfinished.json", "manifest.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / "manifest.json").write_bytes(content)
        each_reader(folder, kind)

    law()


@examples(16, 5000)
def test_unfinished(examples, tmp_path):
    whole = json.dumps({"schema": "leokit/test@1", "config": CONFIG, "inputs": {}}).encode()
    folder = tmp_path / "a"
    folder.mkdir()

    @sized(examples)
    @given(st.data())
    def law(data):
        keys = st.sampled_from(["schema", "config", "inputs", "more"])
        value = st.dictionaries(keys, JSON, max_size=4) | JSON
        (folder / "unfinished.json").write_bytes(
            data.draw(st.sampled_from([mutated(whole, data.draw), json.dumps(data.draw(value)).encode()]))
        )
        each_reader(folder, "unfinished.json changed")

    law()


@pytest.mark.parametrize("name", ["manifest.json", "unfinished.json"])
@pytest.mark.parametrize("kind", ["deep", "folder", "pipe", "dangling", "loop", "digits", "empty"])
def test_what_is_no_file_of_json(tmp_path, name, kind):
    path = tmp_path / name
    match kind:
        case "deep":
            path.write_bytes(b'{"schema":' + DEEP)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path)
        case "digits":
            path.write_bytes(b'{"schema": ' + b"9" * 5000 + b"}")
        case "empty":
            path.touch()
    each_reader(tmp_path, f"{kind} in place of {name}")
    refused("manifest", f"{kind} in place of {name}", lambda: manifest.begin(tmp_path, "leokit/test@1", CONFIG, {}))


# Runs and evaluations


def small_run(folder, **changed):
    """A run made by hand: its files, with a manifest that fits."""
    config = build(MetaTrainConfig, {"num_latents": 4, "steps": 1})
    identified = identity(config)
    tensors = make_learner(config, 3).initial(torch.float32)
    facts = {
        "dim": 3,
        "backbone": None,
        "trained_on": "unknown",
        "classes": {"train": 5, "val": 5},
        "meta_trained_on": ["train"],
        "steps": 1,
        "best_step": 1,
        "best_is_fallback": False,
        "centred": False,
        "val_accuracy": 0.5,
        "val_half_width": 0.1,
    }
    manifest.begin(folder, runs.SCHEMA, identified, {}, overwrite=True)
    (folder / runs.WEIGHTS).write_bytes(changed.get("weights", save(dict(changed.get("tensors", tensors)))))
    manifest.finish(
        folder, runs.SCHEMA, identified, {}, results=[runs.WEIGHTS], facts=changed.get("facts", facts), info={}
    )
    return tensors, facts


def test_a_run_whose_weights_are_not_those_of_its_configuration(tmp_path):
    tensors, facts = small_run(tmp_path / "a")
    assert runs.open_run(tmp_path / "a").parameters.keys() == tensors.keys()
    name = next(iter(tensors))
    wrong = {
        "one missing": {key: value for key, value in tensors.items() if key != name},
        "one too many": tensors | {"more": torch.zeros(100)},
        "another shape": tensors | {name: torch.zeros(7, 7)},
        "another type": tensors | {name: tensors[name].double()},
        "integers": tensors | {name: tensors[name].long()},
        "not finite": tensors | {name: torch.full_like(tensors[name], torch.nan)},
        "none": {"more": torch.zeros(1)},
    }
    for fault, given_tensors in wrong.items():
        small_run(tmp_path / "a", tensors=given_tensors)
        error = refused("weights", f"tensors: {fault}", lambda: runs.open_run(tmp_path / "a"))
        assert "weights.safetensors" in str(error)
    for key, value in {"dim": 10**12, "backbone": 3}.items():
        small_run(tmp_path / "a", facts=facts | {key: value})
        value_or_refusal("weights", "facts changed", lambda: runs.open_run(tmp_path / "a"))
    for dim in (0, -1, "3", None, 10**12, 1.5):
        small_run(tmp_path / "a", facts=facts | {"dim": dim})
        refused("weights", "width of the features changed", lambda: runs.open_run(tmp_path / "a"))
    small_run(tmp_path / "a", facts={})
    assert "records no 'dim'" in str(refused("weights", "no facts", lambda: runs.open_run(tmp_path / "a")))


def safetensors_bytes(header, data=b""):
    """A file whose header says this."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LYING = {
    "header longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "header of exabytes": struct.pack("<Q", 2**63 - 1) + b"{}",
    "header that is no JSON": safetensors_bytes(b"{{{{"),
    "header of deep lists": safetensors_bytes(b'{"a":' + b"[" * 50_000),
    "offsets beyond the file": safetensors_bytes({"a": entry(offsets=(0, 10**12))}, bytes(8)),
    "negative offsets": safetensors_bytes({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "offsets backwards": safetensors_bytes({"a": entry(offsets=(8, 0))}, bytes(8)),
    "overlapping tensors": safetensors_bytes({"a": entry(), "b": entry()}, bytes(8)),
    "tensors with a gap": safetensors_bytes({"a": entry(), "b": entry(offsets=(16, 24))}, bytes(24)),
    "a shape of terabytes": safetensors_bytes({"a": entry(shape=(10**6, 10**6))}, bytes(8)),
    "a shape that overflows": safetensors_bytes({"a": entry(shape=(2**33, 2**33))}, bytes(8)),
    "a negative shape": safetensors_bytes({"a": entry(shape=(-2,))}, bytes(8)),
    "an unknown type": safetensors_bytes({"a": entry("F99")}, bytes(8)),
    "a type of 6 bits": safetensors_bytes({"a": entry("F6_E2M3", (4,), (0, 3))}, bytes(3)),
    "metadata that is no text": safetensors_bytes({"__metadata__": {"record": 5}, "a": entry()}, bytes(8)),
    "nothing": b"",
    "a few bytes": b"\x05\x00",
}
WORKS_ANYWHERE = safetensors_bytes({"a": entry()}, bytes(8))


@pytest.mark.parametrize("fault", LYING)
def test_safetensors_that_lie(tmp_path, fault):
    path = tmp_path / "state.safetensors"
    path.write_bytes(LYING[fault])
    for read in (runs.load_state, runs.load_parameters, read_weights):
        refused("safetensors", fault, lambda read=read: read(path))


def packed():
    """A small state, and one that it must be like."""
    return pack(new_state(build(MetaTrainConfig, {"num_latents": 2}), 2, torch.device("cpu")))


@examples(24, 5000)
def test_states(examples, tmp_path):
    tensors, record = packed()
    path = tmp_path / "state.safetensors"
    runs.save_state(path, tensors, record)
    assert runs.load_state(path, like=(tensors, record))[1] == record
    whole = path.read_bytes()

    @sized(examples)
    @given(st.data())
    def law(data):
        match data.draw(st.sampled_from(["bytes", "record", "tensors"])):
            case "bytes":
                path.write_bytes(mutated(whole, data.draw))
            case "record":
                keys = st.sampled_from([*record, "more"])
                changed = data.draw(JSON | st.dictionaries(keys, JSON).map(lambda some: record | some))
                path.write_bytes(save(tensors, metadata={"record": json.dumps(changed)}))
            case "tensors":
                name = data.draw(st.sampled_from(sorted(tensors)))
                other = data.draw(st.sampled_from([torch.zeros(3), torch.zeros(1, dtype=torch.int64), None]))
                changed = {key: value for key, value in tensors.items() if key != name}
                runs.save_state(path, changed | ({} if other is None else {name: other}), record)
        found = value_or_refusal(
            "states", "a state that was changed", lambda: runs.load_state(path, like=(tensors, record))
        )
        if not isinstance(found, LeokitError):
            assert {name: value.shape for name, value in found[0].items()} == {
                name: value.shape for name, value in tensors.items()
            }

    law()


@examples(12, 2000)
def test_weights_in_files(examples, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(2, 2)}}, tmp_path / "whole.pth")
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "whole.safetensors")

    @sized(examples)
    @given(st.data())
    def law(data):
        suffix = data.draw(st.sampled_from([".pth", ".safetensors"]))
        path = tmp_path / f"changed{suffix}"
        path.write_bytes(mutated((tmp_path / f"whole{suffix}").read_bytes(), data.draw))
        value_or_refusal("weights", f"{suffix} changed", lambda: read_weights(path))

    law()


@examples(16, 5000)
def test_lines_of_metrics(examples, tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n'

    @sized(examples)
    @given(st.data())
    def law(data):
        path.write_bytes(mutated(whole, data.draw) + data.draw(st.sampled_from([b"", b"\xff\xfe\n", DEEP, b"\0" * 50])))
        tally.count("states", "metrics.jsonl changed")
        with in_time():
            kept = cut_back(path, lambda line: line["step"] <= 2)
        assert all(line["step"] <= 2 for line in kept)
        assert cut_back(path, lambda line: True) == kept  # what is left is whole

    law()


@examples(16, 5000)
def test_records_of_finished_shards(examples, tmp_path):
    (tmp_path / "finished").mkdir()
    (tmp_path / "a").write_bytes(b"shard")
    whole = {"name": "a", "plan": "p", "sha256": manifest.hash_file(tmp_path / "a"), "counts": {"c": 1}, "failures": []}

    @sized(examples)
    @given(st.data())
    def law(data):
        content = data.draw(
            st.sampled_from(
                [mutated(json.dumps(whole).encode(), data.draw), json.dumps(data.draw(JSON)).encode(), DEEP]
            )
        )
        (tmp_path / "finished/a.json").write_bytes(content)
        tally.count("states", "records of finished shards changed")
        with in_time():
            found = _read_record(tmp_path, "a", "p")
        assert found is None or found.sha256 == whole["sha256"]

    law()


@examples(16, 3000)
def test_evaluations(examples, tmp_path):
    """An evaluation whose summary, facts and rows say anything, its hashes right."""
    folder = tmp_path / "eval"
    interval = {"mean": 0.5, "half_width": 0.1}
    run = {"meta_trained_on": ["train"], "variant": "leo", "ways": 5, "shots": 1, "seed": 0}
    summary = {"ways": 5, "shots": 1, "queries": 15, "episodes": 2, "split": "test", "accuracy": {"leo": interval}}
    summary |= {
        "difference": {},
        "run": run,
        "backbone": None,
        "trained_on": "unknown",
        "classes": 5,
        "classes_seen": None,
    }
    facts = {"classes": ["a"], "episodes": 2, "run_config": {"variant": "leo", "seed": 0}, "run_features": "x"}
    columns = {"method": ["leo", "leo"], "episode": [0, 1], "accuracy": [0.5, 0.5]}

    def write(summary, facts):
        manifest.begin(folder, "leokit/eval@1", {}, {}, overwrite=True)
        (folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
        write_table(folder / "episodes.parquet", columns)
        results = ["summary.json", "episodes.parquet"]
        manifest.finish(folder, "leokit/eval@1", {}, {}, results=results, facts=facts, info={})

    write(summary, facts)
    assert open_evaluation(folder).accuracies()["leo"].tolist() == [0.5, 0.5]
    finite = st.sampled_from([None, True, 0, -1, "x", "\ud800", [], {}, {"leo": 1}, {"variant": []}, 10**30, ""])

    @sized(examples)
    @given(st.data())
    def law(data):
        told, said = dict(summary), dict(facts)
        for values in (told, said):
            for key in data.draw(st.lists(st.sampled_from(sorted(values)), max_size=2)):
                values[key] = data.draw(finite)
        write(data.draw(st.sampled_from([told, "[1]", "nonsense", '{"a": NaN}', "[" * 100_000])), said)
        found = value_or_refusal("evaluations", "summary or facts changed", lambda: open_evaluation(folder))
        if not isinstance(found, LeokitError):
            assert found.variant and found.seed >= -1 and found.meta_trained_on is not None

    law()


# Parquet


def store_with(folder, table, *, split="train", name="a", dim=3, rows=2, dtype="float32", entry=None):
    """A store of one file that holds `table`, whose manifest and hashes fit."""
    manifest.begin(folder, SCHEMA, {}, {}, overwrite=True)
    path = folder / f"{split}-00000-of-00001.parquet"
    with pq.ParquetWriter(path, table.schema, compression="none") as writer:
        if table.num_rows:
            writer.write_table(table)
        writer.add_key_value_metadata({FOOTER_KEY: footer(split, {name: rows}) if entry is None else entry})
    facts = facts_of({split: {name: rows}}, dim=dim, dtype=dtype)
    return manifest.finish(folder, SCHEMA, {}, {}, results=[path.name], facts=facts, info={})


def columns(rows=2, dim=3, kind=None, values=None, **changed):
    """The columns of a feature file, as Arrow arrays."""
    kind = kind or pa.float32()
    item = pa.field("item", kind, nullable=False)
    numbers = np.ones(rows * dim) if values is None else np.resize(values, rows * dim)
    arrays = {
        "image": pa.array([f"a/{row}" for row in range(rows)], pa.string()),
        "class_name": pa.array(["a"] * rows, pa.string()).dictionary_encode(),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(numbers).cast(kind, safe=False), type=pa.list_(item, dim)
        ),
    }
    arrays |= {key: value for key, value in changed.items() if value is not None}
    kept = {key: value for key, value in arrays.items() if key not in changed or changed[key] is not None}
    schema = pa.schema([pa.field(key, value.type, nullable=False) for key, value in kept.items()])
    return pa.Table.from_arrays(list(kept.values()), schema=schema)


def used(folder):
    """A store read as training reads it."""
    store = FeatureStore.open(folder)
    matrix = FeatureMatrix(store.load("train"))
    store.images("train")
    norms = matrix.rows.norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-3) or (norms == 0).any()
    return matrix


def checked(folder, found):
    """The faults that `leokit verify` sees."""
    with in_time():
        return store_faults(folder, found)


WRONG = {
    "no column of images": {"image": None},
    "no column of classes": {"class_name": None},
    "no embeddings": {"embedding": None},
    "one more column": {"more": pa.array([1, 2])},
    "another width": {"dim": 4},
    "another type": {"kind": pa.float64()},
    "integers": {"kind": pa.int32()},
    "lists of any length": {"embedding": pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))},
    "embeddings as text": {"embedding": pa.array(["1", "2"])},
    "classes as numbers": {"class_name": pa.array([1, 2])},
    "images as numbers": {"image": pa.array([1, 2])},
    "more rows": {"rows": 5},
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_columns(tmp_path, fault):
    table = columns(**WRONG[fault])
    found = store_with(tmp_path, table)
    refused("features", fault, lambda: used(tmp_path))
    assert checked(tmp_path, found)


def test_values_that_are_no_features(tmp_path):
    for fault, value in {"NaN": np.nan, "infinite": np.inf, "minus infinite": -np.inf, "huge": 3e38}.items():
        found = store_with(tmp_path, columns(values=[1.0, value, 1.0]))
        refused("features", fault, lambda: used(tmp_path))
        assert bool(checked(tmp_path, found)) == (fault != "huge")
    store_with(tmp_path, columns(values=[0.0]))
    tally.count("features", "zeros")
    assert not used(tmp_path).rows.any()
    store_with(tmp_path, columns(values=[1e-38]))
    tally.count("features", "tiny")
    used(tmp_path)


def test_rows_that_are_no_store(tmp_path):
    found = store_with(tmp_path, columns(rows=0), rows=0)
    value_or_refusal("features", "zero rows", lambda: used(tmp_path))
    assert checked(tmp_path, found)
    twice = columns(image=pa.array(["a/0", "a/0"]))
    found = store_with(tmp_path, twice)
    value_or_refusal("features", "an image twice", lambda: used(tmp_path))
    assert any("twice" in fault for fault in checked(tmp_path, found))
    store_with(tmp_path, columns())
    value_or_refusal("features", "one class", lambda: used(tmp_path))


@examples(24, 5000)
def test_features_changed_under_right_hashes(examples, tmp_path):
    """Bytes of a file are changed and all hashes made to fit: then only Parquet's own checks are left."""
    whole = store_with(tmp_path / "whole", columns(rows=4), rows=4)
    (name,) = whole.files
    bytes_of = (tmp_path / "whole" / name).read_bytes()
    folder = tmp_path / "changed"

    @sized(examples)
    @given(st.data())
    def law(data):
        manifest.begin(folder, SCHEMA, {}, {}, overwrite=True)
        (folder / name).write_bytes(mutated(bytes_of, data.draw, 3))
        found = manifest.finish(folder, SCHEMA, {}, {}, results=[name], facts=whole.facts, info={})
        value_or_refusal("features", "bytes changed, hashes right", lambda: used(folder))
        checked(folder, found)

    law()


@examples(16, 5000)
def test_facts_changed_under_right_hashes(examples, tmp_path):
    whole = store_with(tmp_path / "whole", columns())
    (name,) = whole.files
    folder = tmp_path / "changed"
    folder.mkdir()
    values = JSON | st.sampled_from(
        [10**12, 2**31, -1, "float16", {"train": {"a": 10**9}}, {"train": {"a": 2.0}}, True]
    )

    @sized(examples)
    @given(st.data())
    def law(data):
        facts = dict(whole.facts)
        for key in data.draw(st.lists(st.sampled_from(sorted(facts)), min_size=1, max_size=2)):
            facts[key] = data.draw(values)
        content = json.loads((tmp_path / "whole/manifest.json").read_bytes()) | {"facts": facts}
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        (folder / "manifest.json").write_bytes(signed(content))
        value_or_refusal("features", "facts changed, hashes right", lambda: used(folder))

    law()


def test_a_flipped_bit_anywhere_in_a_tables_footer(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, {"method": ["a", "a", "b"], "accuracy": [0.1, 0.2, 0.3]})
    whole = path.read_bytes()
    for place in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole)):
        for bit in (0, place % 7 + 1):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            value_or_refusal("tables", "a bit of the footer flipped", lambda: read_table(path).to_pylist())


@examples(12, 3000)
def test_tables(examples, tmp_path):
    write_table(
        tmp_path / "whole.parquet", {"method": ["a", "a", "b"], "episode": [0, 1, 2], "accuracy": [0.1, 0.2, 0.3]}
    )
    whole = (tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "changed.parquet"
    assert read_table(tmp_path / "whole.parquet")["method"].to_pylist() == ["a", "a", "b"]

    @sized(examples)
    @given(st.data())
    def law(data):
        path.write_bytes(mutated(whole, data.draw, 3))
        value_or_refusal("tables", "bytes changed", lambda: read_table(path).to_pylist())

    law()


# Embeddings of others

DTYPES = ["f2", "f4", "f8", ">f4", "i4", "u1", "c8", "S3", "U3", "?", "M8[s]", "O", "V4", "g"]


def an_array(draw):
    shape = draw(st.sampled_from([(), (0,), (3,), (2, 3), (3, 2), (0, 3), (3, 0), (2, 2, 2), (1, 1)]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    content = np.zeros(shape, dtype)
    if dtype.kind in "fc" and content.size and draw(st.booleans()):
        content.flat[0] = draw(st.sampled_from([np.nan, np.inf, 1e4, 1.0]))
    if dtype.kind in "SU" and content.size:
        content[...] = draw(st.sampled_from(["a", "", "a/b", "..", "=1"]))
    return content


def imported(path):
    """What `leokit import` would make of a file."""
    rows, _ = find_source(path).read("")
    assert np.isfinite(rows.embeddings).all() and rows.embeddings.ndim == 2
    assert len(rows.classes) == len(rows.images) == len(rows.embeddings) == len(set(rows.images))
    return rows


@examples(32, 5000)
def test_arrays_of_numpy(examples, tmp_path):
    whole = io.BytesIO()
    np.savez(whole, embeddings=np.ones((3, 2), np.float32), labels=np.array(["a", "a", "b"]))

    @sized(examples)
    @given(st.data())
    def law(data):
        kind = data.draw(st.sampled_from([".npz", ".npy", ".npz, bytes changed"]))
        for beside in tmp_path.iterdir():
            beside.unlink()
        path = tmp_path / f"x{kind[:4]}"
        if kind == ".npz":
            keys = st.sampled_from(["embeddings", "features", "labels", "images", "more"])
            np.savez(path, **{key: an_array(data.draw) for key in data.draw(st.sets(keys, max_size=4))})
        elif kind == ".npy":
            np.save(path, an_array(data.draw))
            suffix = data.draw(st.sampled_from([".npy", ".csv", ".txt"]))
            if suffix == ".npy":
                np.save(tmp_path / "x.labels.npy", an_array(data.draw))
            else:
                header = data.draw(st.sampled_from(["class_name\n", "label,image\n", "image,image,label\n", ""]))
                (tmp_path / f"x.labels{suffix}").write_bytes(encoded(header + data.draw(ROWS)))
        else:
            path.write_bytes(mutated(whole.getvalue(), data.draw))
        value_or_refusal("import", kind, lambda: imported(path))

    law()


def test_characters_that_are_none(tmp_path):
    labels = np.array(["a", "b"])
    labels.view(np.uint32)[0] = 0x110000
    np.savez(tmp_path / "x.npz", embeddings=np.ones((2, 2), np.float32), labels=labels)
    error = refused("import", ".npz, characters that are none", lambda: imported(tmp_path / "x.npz"))
    assert "labels" in str(error)


@examples(32, 10_000)
def test_pickles(examples, tmp_path):
    keys = ["1-a-x", "1-a-y", "1-b-z"]
    rows = np.ones((3, 2), np.float32)
    wholes = [
        pickle.dumps({"embeddings": rows, "keys": form}, protocol)
        for protocol in (0, 2, 4, 5)
        for form in (keys, np.array(keys), np.array(keys, "S"), list(np.array(keys)))
    ]
    path = tmp_path / "train_embeddings.pkl"
    assert len(list(map(len, wholes))) == 16

    @sized(examples)
    @given(st.data())
    def law(data):
        path.write_bytes(mutated(data.draw(st.sampled_from(wholes)), data.draw))
        value_or_refusal("import", "pickle, bytes changed", lambda: read_pickle(path))

    law()


def test_huge_values_and_one_class_through_an_import(tmp_path):
    """What `leokit import` says to values that no type holds, one class, and an image twice."""
    path = tmp_path / "x.npz"
    options = {"source": path, "work": tmp_path, "splits": "random:1/1/1", "overwrite": True}
    labels = np.repeat(["a", "b", "c"], 2)
    for fault, arrays in {
        "huge values": {"embeddings": np.full((6, 2), 1e300), "labels": labels},
        "one class": {"embeddings": np.ones((6, 2)), "labels": np.repeat("a", 6)},
        "an image twice": {"embeddings": np.ones((6, 2)), "labels": labels, "images": np.repeat("a/x", 6)},
        "no rows": {"embeddings": np.ones((0, 2)), "labels": labels[:0]},
        "no columns": {"embeddings": np.ones((6, 0)), "labels": labels},
    }.items():
        np.savez(path, **arrays)
        refused("import", f"the command: {fault}", lambda: importing.run(build(ImportConfig, options)))
        assert not (tmp_path / "features/manifest.json").exists()


# Images and archives


def small_tar(**members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@examples(24, 5000)
def test_archives(examples, tmp_path):
    whole = small_tar(**{"a.png": b"x" * 600, "b.png": b"y" * 10, "../../c.png": b"z"})
    folder = tmp_path / "images"
    folder.mkdir()
    path = folder / "cat.tar"

    @sized(examples)
    @given(st.data())
    def law(data):
        path.write_bytes(mutated(whole, data.draw))
        value_or_refusal("archives", "tar, bytes changed", lambda: archives.index(path))
        tree = value_or_refusal("archives", "tar, bytes changed", lambda: scan(folder))
        if not isinstance(tree, LeokitError):
            assert all(".." not in Path(image).parts for images in tree.classes.values() for image in images)

    law()


@examples(16, 5000)
def test_images(examples, tmp_path):
    wholes = {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (200, 10, 10)).save(file, kind)
        wholes[kind] = file.getvalue()
    preprocessing = Preprocessing(16, 1.0, "center", (0.5,) * 3, (0.5,) * 3, "bilinear")

    @sized(examples)
    @given(st.data())
    def law(data):
        kind = data.draw(st.sampled_from(sorted(wholes)))
        (tmp_path / "image").write_bytes(mutated(wholes[kind], data.draw))
        tally.count("images", f"{kind}, bytes changed")
        with in_time():
            try:
                assert load_image(tmp_path / "image", preprocessing).shape == (16, 16, 3)
            except UnreadableImage as error:
                assert str(error)

    law()


def test_folders_without_end(tmp_path):
    """Links that lead to one folder in ever more ways, and folders inside of each other."""
    for level in range(30):
        (tmp_path / f"ways/{level}").mkdir(parents=True)
        for name in ("left", "right"):
            (tmp_path / f"ways/{level}/{name}").symlink_to(f"../{level + 1}")
    (tmp_path / "ways/30").mkdir()
    (tmp_path / "ways/30/a.png").touch()
    error = refused("images", "links that multiply", lambda: scan(tmp_path / "ways"))
    assert "ways" in str(error)
    deep = tmp_path / "deep"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        here, old = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(old)
    os.close(here)
    error = refused("images", "folders 1,100 deep", lambda: scan(deep))
    assert "deep" in str(error)
    subprocess.run(["rm", "-r", str(deep)], check=True)  # which shutil.rmtree of older Pythons cannot
