"""Support sets, lists of queries, classifiers, what is kept between commands, and features given to the estimator."""

import csv
import io
import json
import shutil
from contextlib import chdir, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from typer.testing import CliRunner

from leokit import LEOClassifier, classifiers, manifest
from leokit.classifiers import open_classifier
from leokit.cli import app
from leokit.config import FitConfig, PredictConfig, build
from leokit.engine import cache
from leokit.errors import DataError, LeokitError
from leokit.images.preprocess import UnreadableImage, read_file
from leokit.images.queries import find_images, in_blocks
from leokit.images.scan import image_path
from leokit.images.support import read_support
from leokit.runs import load_state, open_run, save_state
from leokit.stages import fit, predict
from tests.robustness import tally
from tests.robustness.laws import examples, in_bounds, in_time, refused, sized, value_or_refusal
from tests.robustness.test_names import HOSTILE, harmless
from tests.robustness.test_readers import BYTES, JSON, ROWS, encoded, mutated, signed

FEW = {"episodes": 20, "workers": 0, "device": "cpu"}


# Support sets


@examples(24, 5000)
def test_lists_of_support_images(examples, tmp_path):
    headers = ["image,label", "label,image", "image,label,image", "\ufeffimage,label", "a,b", '"', ""]
    whole = "a.png,a\nb.png,b\n"
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()

    @sized(examples)
    @given(st.data())
    def law(data):
        text = encoded(f"{data.draw(st.sampled_from(headers))}\n{data.draw(ROWS | st.just(whole))}\n")
        (tmp_path / "s.csv").write_bytes(data.draw(st.sampled_from([text, mutated(text, data.draw)])))
        tree = value_or_refusal("support", "CSV", lambda: read_support(tmp_path / "s.csv"))
        if not isinstance(tree, LeokitError):
            assert len(tree.classes) >= 2 and all(tree.classes.values())
            for images in tree.classes.values():
                for image in images:
                    assert tree.path(image).is_relative_to(tmp_path) or Path(image).is_absolute()
                    with suppress(UnreadableImage):
                        read_file(tree.path(image))

    law()


def test_a_list_may_name_images_anywhere(tmp_path):
    """It is the user's own: `..` and absolute paths are what it says, as seen from its folder."""
    tally.count("support", "CSV, paths that lead out of its folder")
    (tmp_path / "lists").mkdir()
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "lists/s.csv").write_text(f"image,label\n../a.png,a\n{tmp_path}/a.png,b\n")
    tree = read_support(tmp_path / "lists/s.csv")
    assert all(read_file(tree.path(image)) == b"a" for images in tree.classes.values() for image in images)


@pytest.mark.parametrize(
    "place", ["x" * 300, "a\0b", "me", "none", "/dev/null", "/dev/zero"], ids=lambda place: repr(place[:9])
)
def test_places_that_are_no_support_set(tmp_path, place):
    (tmp_path / "me").symlink_to("me")
    fault = f"{place[:9]!r} in its place"
    assert in_bounds("support", fault, read_support, tmp_path / place)


# Lists of queries


@examples(24, 5000)
def test_lists_of_queries(examples, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"a")
    lines = st.sampled_from([b"a", b"a/1.png", b"x\0y", b"x" * 300, b"-", b"\xff", b"..", b"/", b"/dev/zero"]) | BYTES
    lines = lines.filter(lambda line: (b"\n" not in line and line.strip(b"./\r\\ ")) or line == b"a")

    @sized(examples)
    @given(st.lists(lines, max_size=6))
    def law(given_lines):
        tally.count("queries", "lines of a list")
        with in_time(), chdir(tmp_path):
            found = list(find_images([Path("-")], io.BytesIO(b"\n".join(given_lines))))
            assert len(found) >= sum(bool(line.strip()) for line in given_lines)  # a blank line is none
            for image in found:
                try:
                    assert read_file(image_path(Path(), image)) == b"a"
                except UnreadableImage as error:
                    assert str(error)

    law()


class Endless(io.RawIOBase):
    """Zeros without end, as /dev/zero on standard input."""

    def readline(self, size=-1):
        assert size >= 0, "without a limit, for ever"
        return bytes(size)


def test_a_list_without_end():
    error = refused("queries", "a line without end", lambda: list(find_images([Path("-")], Endless())))
    assert isinstance(error, DataError) and "a path on each line" in str(error)
    refused("queries", "a line without end", lambda: list(in_blocks(find_images([Path("-")], Endless()), 64)))


# A classifier, and what is kept between commands


@pytest.fixture(scope="module")
def fitted(made, tmp_path_factory):
    """A classifier with evidence, in a folder of its own."""
    return shutil.copytree(made.folder / "whole/fit", tmp_path_factory.mktemp("fitted") / "classifier")


def answered(made, folder, **options):
    """What a classifier says of the images of a class."""
    with chdir(made.folder):
        config = {"classifier": folder, "queries": (Path("images/c5"),), "sets": 0.5, "top": 2, **FEW, **options}
        found = list(predict.run(build(PredictConfig, {**config, "work": folder / "work"})))
    for prediction in found:
        assert prediction.error is None and 0 <= prediction.probability <= 1 and prediction.entropy >= 0
        json.dumps(predict.to_plain(prediction), allow_nan=False)
    return found


@examples(24, 3000)
def test_classifiers_whose_facts_say_anything(examples, made, fitted, tmp_path):
    """With a checksum and hashes that fit: what is opened can be used."""
    assert len(answered(made, fitted)) == 4
    whole = json.loads((fitted / "manifest.json").read_bytes())
    folder = shutil.copytree(fitted, tmp_path / "changed")
    parts = ["", "evidence", "withheld", "weights_from", "backbone", "backbone/preprocessing"]
    kinds = [None, True, 0, -1, 1, 0.5, 10**30, "x", "float32", "\ud800", [], {}, [0.5] * 3, ["a", "b"], ["a", "a"]]

    @sized(examples)
    @given(st.data())
    def law(data):
        content = json.loads(json.dumps(whole))
        inner = content["facts"]
        for key in filter(None, data.draw(st.sampled_from(parts)).split("/")):
            inner = inner[key]
        key = data.draw(st.sampled_from(sorted(inner)))
        if data.draw(st.integers(0, 5)):
            inner[key] = data.draw(st.sampled_from(kinds) | JSON)
        else:
            del inner[key]
        (folder / "manifest.json").write_bytes(signed(content))
        value_or_refusal("classifiers", "facts changed, hashes right", lambda: answered(made, folder))

    law()


@pytest.mark.parametrize("key", ["precision", "views", "normalize", "interpolation"])
def test_a_backbone_that_is_recorded_with_a_value_that_is_none(made, fitted, tmp_path, key):
    content = json.loads((fitted / "manifest.json").read_bytes())
    recorded = content["facts"]["backbone"]
    (recorded if key in recorded else recorded["preprocessing"])[key] = "x"
    folder = shutil.copytree(fitted, tmp_path / "changed")
    (folder / "manifest.json").write_bytes(signed(content))
    error = refused("classifiers", f"{key} = x", lambda: answered(made, folder))
    assert key in str(error)


def test_classifiers_of_other_tensors(made, fitted, tmp_path):
    found, told = open_classifier(fitted)
    tensors = {"weights": found.weights, **{name: torch.from_numpy(getattr(found.evidence, name)) for name in ARRAYS}}
    tensors |= {} if found.centre is None else {"centre": found.centre}
    folder = shutil.copytree(fitted, tmp_path / "changed")

    def write(changed):
        manifest.begin(folder, classifiers.SCHEMA, told.config, told.inputs, overwrite=True)
        (folder / classifiers.WEIGHTS).write_bytes(save(changed))
        results = [classifiers.WEIGHTS]
        manifest.finish(
            folder, classifiers.SCHEMA, told.config, told.inputs, results=results, facts=told.facts, info={}
        )

    write(tensors)
    assert len(answered(made, folder)) == 4
    weights = tensors["weights"]
    wrong = {
        "none": {"x": torch.zeros(1)},
        "weights of integers": tensors | {"weights": weights.long()},
        "weights that are not finite": tensors | {"weights": weights * torch.nan},
        "another shape": tensors | {"weights": weights[:, :, :-1].contiguous()},
        "a centre of another width": tensors | {"centre": torch.zeros(3)},
        "a centre that is not finite": tensors | {"centre": torch.full((found.dim,), torch.inf)},
        "scores that are no numbers": tensors | {"conformal": tensors["conformal"] * torch.nan},
        "scores of two dimensions": tensors | {"conformal": torch.zeros(2, 2, dtype=torch.float64)},
        "scores in bfloat16": tensors | {"conformal": torch.zeros(2, dtype=torch.bfloat16)},
    }
    for fault, changed in wrong.items():
        write(changed)
        refused("classifiers", fault, lambda: open_classifier(folder))


ARRAYS = ("conformal", "inside", "outside")


def pictures(folder, broken="z.png"):
    """A support set of two classes of two images, and one that is none."""
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (18, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "a" / broken).write_bytes(b"no image")
    return folder


def fit_of(made, support, work, out):
    options = {"run": Path("inputs/photo-run"), "features": Path("inputs/photos"), "support": support, **FEW}
    with chdir(made.folder):
        return fit.run(build(FitConfig, {**options, "work": work, "out": out, "method": "class-mean"})).classifier


def test_what_is_kept_of_images_knows_them_by_their_bytes(made, tmp_path):
    """The same images under other names, of which one is broken: what was kept of them serves, and drops it again."""
    tally.count("cache", "a support set under other names")
    work = tmp_path / "work"
    first = fit_of(made, pictures(tmp_path / "one"), work, tmp_path / "first")
    second = fit_of(made, pictures(tmp_path / "two", "y.png"), work, tmp_path / "second")
    assert first.counts == second.counts == (2, 2)
    assert torch.equal(first.weights, second.weights)


def test_what_is_kept_may_be_damaged(made, tmp_path):
    """Whatever a cache holds, the same classifier comes out."""
    support, work = pictures(tmp_path / "support"), tmp_path / "work"
    expected = fit_of(made, support, work, tmp_path / "expected")
    entries = {path: path.read_bytes() for path in (work / "cache").iterdir()}
    assert len(entries) == 2  # a study, and the vectors
    for fault, change in {
        "no tensors": lambda tensors, record: ({"x": torch.zeros(2)}, record),
        "tensors of other shapes": lambda tensors, record: ({key: torch.zeros(2) for key in tensors}, record),
        "tensors of other types": lambda tensors, record: ({key: tensors[key].bfloat16() for key in tensors}, record),
        "tensors that are not finite": lambda tensors, record: (
            {key: value * torch.nan for key, value in tensors.items()},
            record,
        ),
        "no record": lambda tensors, record: (tensors, {"key": record["key"]}),
        "a record of other kinds": lambda tensors, record: (
            tensors,
            {key: value if key == "key" else [value] for key, value in record.items()},
        ),
    }.items():
        for path, whole in entries.items():
            path.write_bytes(whole)
            save_state(path, *change(*load_state(path)))
        tally.count("cache", fault)
        found = fit_of(made, support, work, tmp_path / fault)
        assert torch.equal(found.weights, expected.weights) and found.counts == expected.counts, fault
        assert found.evidence.temperature == expected.evidence.temperature
        assert {path: path.read_bytes() for path in entries} == entries, fault
    for path in entries:
        path.unlink()
        path.mkdir()
    tally.count("cache", "folders in place of entries")
    assert torch.equal(fit_of(made, support, work, tmp_path / "last").weights, expected.weights)


@examples(16, 3000)
def test_entries_of_the_cache(examples, tmp_path):
    cache.keep(tmp_path, ["a"], {"x": np.ones(3)}, {"y": 1})
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    assert cache.look_up(tmp_path, ["a"])[1] == {"y": 1}

    @sized(examples)
    @given(st.data())
    def law(data):
        path.write_bytes(mutated(whole, data.draw))
        tally.count("cache", "bytes changed")
        with in_time():
            found = cache.look_up(tmp_path, ["a"])
        assert found is None or set(found[0]) <= {"x"} or len(found[0]) == 1

    law()


# Names on every way out of predict


def test_names_of_classes_and_images_in_predictions(made, tmp_path):
    """In the terminal, the CSV and the JSON: shown, never run."""
    names, rng = list(HOSTILE.values()), np.random.default_rng(0)
    support, queries = tmp_path / "support.csv", tmp_path / "queries"
    queries.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(rng.integers(0, 256, (18, 18, 3), np.uint8)).save(tmp_path / f"{number}.png")
        shutil.copy(tmp_path / f"{number}.png", queries / f"{name.replace('/', '-')}.png")
    (queries / "\x1b[31m=cmd().png").write_bytes(b"no image")
    with support.open("w", newline="") as file:
        rows = [[f"{number}.png", name] for number, name in enumerate(names)]
        csv.writer(file).writerows([["image", "label"], *rows])
    tally.count("names", "of classes and images, through predict", 3 * len(names))
    shared = "--run inputs/photo-run --features inputs/photos --method class-mean --episodes 20 --workers 0 --top 2"
    shared = [*shared.split(), "--support", support, "--work", tmp_path / "work"]
    with chdir(made.folder):
        lines, plain = (
            CliRunner().invoke(app, [str(word) for word in ["predict", queries, *shared, *more]])
            for more in (["--csv", tmp_path / "out.csv"], ["--json"])
        )
    for done in (lines, plain):
        assert done.exit_code == 3, (done.stdout, done.stderr, done.exception)
        assert harmless(done.stdout) and harmless(done.stderr)
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert len(lines.stdout.splitlines()) == 2 + len(names)  # a heading, and a line for each image
    found = json.loads(plain.stdout)
    assert sorted(found["classes"]) == sorted(names)  # a label is text, as the user gave it
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(tuple("=@\t\r"))]
    assert any(cell.startswith("'=") for cell in cells)


# Features as arrays


class Odd:
    """A label that cannot be sorted."""


LABELS = {
    "objects": [Odd(), Odd(), Odd(), Odd()],
    "mixed": [1, "a", None, 2.0],
    "None": [None, None, "a", "a"],
    "NaN": [np.nan, 1.0, 1.0, 2.0],
    "fractions": [0.5, 1.5, 0.5, 1.5],
    "two columns": [[1, 0], [0, 1], [1, 0], [0, 1]],
    "too few": [1, 2],
    "one class": ["a"] * 4,
    "none": [],
    "bytes": [b"a", b"b", b"a", b"b"],
    "hostile": list(HOSTILE.values())[:4],
    "booleans": [True, False, True, False],
    "huge numbers": [10**30, 2, 10**30, 2],
}
ROWS_OF = {
    "NaN": lambda rows: np.where(np.eye(4, rows.shape[1], dtype=bool), np.nan, rows),
    "infinite": lambda rows: rows * np.inf,
    "a column less": lambda rows: rows[:, 1:],
    "one dimension": lambda rows: rows[0],
    "three dimensions": lambda rows: rows[None],
    "no rows": lambda rows: rows[:0],
    "no columns": lambda rows: rows[:, :0],
    "text": lambda rows: np.full(rows.shape, "x"),
    "objects": lambda rows: np.full(rows.shape, Odd()),
    "complex": lambda rows: rows * 1j,
    "huge": lambda rows: rows * 1e300,
    "tiny": lambda rows: rows * 1e-300,
    "zeros": lambda rows: rows * 0,
    "integers": lambda rows: (rows * 100).astype(np.int64),
    "float16": lambda rows: rows.astype(np.float16),
    "sparse": lambda rows: __import__("scipy.sparse").sparse.csr_matrix(rows),
    "lists": lambda rows: rows.tolist(),
}


def tried(classifier, X, y, queries):
    """Fit and predict: labels and probabilities, or what was raised, of one line or scikit-learn's own."""
    try:
        shares = classifier.fit(X, y).predict_proba(queries)
    except (ValueError, TypeError, LeokitError) as error:
        assert str(error).strip()
        return error
    assert np.isfinite(shares).all() and np.allclose(shares.sum(1), 1)
    return shares


def test_features_and_labels_of_any_kind(made):
    run = open_run(made.folder / "inputs/run")
    rows = np.random.default_rng(0).normal(size=(4, run.facts["dim"]))
    y = ["a", "b", "a", "b"]
    taken = {"float16", "integers", "lists", "tiny", "zeros"}
    with np.errstate(all="ignore"):
        for fault, change in ROWS_OF.items():
            tally.count("estimator", f"features: {fault}", 2)
            fitted = tried(LEOClassifier(run), change(rows), y, rows)
            assert isinstance(fitted, np.ndarray) == (fault in taken), (fault, fitted)
            asked = tried(LEOClassifier(run), rows, y, change(rows))
            assert fault == "no rows" or isinstance(asked, np.ndarray) == (fault in taken), (fault, asked)
    for fault, labels in LABELS.items():
        tally.count("estimator", f"labels: {fault}")
        found = tried(LEOClassifier(run), rows, labels, rows)
        assert isinstance(found, np.ndarray) == (fault in ("hostile", "booleans")), (fault, found)
    for options in (
        {"temperature": np.nan},
        {"temperature": np.inf},
        {"samples": -1},
        {"samples": 0.5},
        {"method": []},
        {"device": "x"},
    ):
        tally.count("estimator", "options")
        assert not isinstance(tried(LEOClassifier(run, **options), rows, y, rows), np.ndarray), options
