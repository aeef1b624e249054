"""Search spaces, and the folders of trials."""

import json
import math
import shutil
from contextlib import chdir

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from leokit.cli import app
from leokit.config import MetaTrainConfig, build, read_space
from leokit.engine.trials import OUTCOME, Outcome, read_outcome
from leokit.errors import LeokitError
from leokit.runs import STATE, WEIGHTS
from leokit.space import Space
from tests.robustness import stages, tally
from tests.robustness.laws import examples, refused, sized, value_or_refusal
from tests.robustness.test_readers import BYTES, DEEP, JSON, TEXT, encoded, mutated

SPACE = b"outer_lr = { log_uniform = [1e-4, 1e-3] }\ndropout = { choice = [0.1, 0.2] }\nqueries = 2\n"


def a_space(path):
    """A space from a file, and what it draws."""
    space = Space.read(read_space(str(path)), "--space x")
    for trial in range(3):
        values = space.draw(0, trial)
        assert all(not isinstance(value, float) or math.isfinite(value) for value in values.values())
        build(MetaTrainConfig, values)
    return space


@examples(24, 5000)
def test_spaces(examples, tmp_path):
    path = tmp_path / "space.toml"
    numbers = [
        "1e-5",
        "0.5",
        "1",
        "-1",
        "0",
        "1e308",
        "-1e308",
        "1e999",
        "nan",
        "inf",
        "-inf",
        "9" * 400,
        "true",
        "'x'",
    ]
    numbers += ["1979-05-27", "[]", "{}"]
    keys = st.sampled_from([*MetaTrainConfig.__dataclass_fields__, "unknown"])
    kinds = st.sampled_from(["uniform", "log_uniform", "choice", "other"])
    ranges = st.tuples(keys, kinds, st.lists(st.sampled_from(numbers), max_size=3)).map(
        lambda parts: f"{parts[0]} = {{ {parts[1]} = [{', '.join(parts[2])}] }}\n"
    )
    written = st.lists(ranges, max_size=3).map(lambda lines: "".join(lines).encode())

    @sized(examples)
    @given(st.data())
    def law(data):
        kind = data.draw(st.sampled_from(["mutated", "written", "bytes", "text"]))
        path.write_bytes(
            mutated(SPACE, data.draw)
            if kind == "mutated"
            else data.draw({"written": written, "bytes": BYTES, "text": TEXT.map(encoded)}[kind])
        )
        value_or_refusal("search", f"space, {kind}", lambda: a_space(path))

    path.write_bytes(SPACE)
    assert set(a_space(path).ranges) == {"outer_lr", "dropout"}
    law()


@pytest.mark.parametrize("values", [f"[1, {'9' * 400}]", f"[-{'9' * 400}, 1]", "[-1e308, 1e308]", "[1, 1e400]"])
@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_ranges_beyond_all_numbers(tmp_path, kind, values):
    for option in ("outer_lr", "queries"):
        (tmp_path / "space.toml").write_text(f"{option} = {{ {kind} = {values} }}\n")
        refused("search", "space, numbers too large", lambda: a_space(tmp_path / "space.toml"))


@pytest.mark.parametrize("text", [b"a = " + DEEP[:5000], b"a = " + b"9" * 5000, b"\xff\xfe"])
def test_spaces_that_go_too_far(tmp_path, text):
    (tmp_path / "space.toml").write_bytes(text)
    refused("search", "space, too deep or too long", lambda: a_space(tmp_path / "space.toml"))


LINE = {"step": 2, "val_accuracy": 0.5, "val_half_width": 0.1}
WHOLE = {"index": 0, "steps": 2, "ended": True, "failure": None, "validations": [LINE], "best_step": 2}
WHOLE |= {"best_is_fallback": False, "best_is_centred": False, "seconds": 0.5}


@examples(24, 5000)
def test_outcomes_of_trials(examples, tmp_path):
    path = tmp_path / OUTCOME
    path.write_text(json.dumps(WHOLE))
    assert read_outcome(tmp_path) == Outcome(**WHOLE)
    some = st.sampled_from([None, True, -1, "x", [], {}, [1], [{}], [{"step": "1"}], [LINE | {"val_accuracy": None}]])

    @sized(examples)
    @given(st.data())
    def law(data):
        changed = WHOLE | {data.draw(st.sampled_from([*WHOLE, "more"])): data.draw(some | JSON)}
        path.write_bytes(
            data.draw(st.sampled_from([mutated(json.dumps(WHOLE).encode(), data.draw), json.dumps(changed).encode()]))
        )
        found = value_or_refusal("search", "trial.json changed", lambda: read_outcome(tmp_path))
        if not isinstance(found, LeokitError):
            accuracy, half_width = found.accuracy(found.steps)
            assert math.isfinite(accuracy + half_width + found.seconds) and found.reaches(found.steps)
            assert not found.fails_by(found.steps)

    law()


@pytest.mark.parametrize("content", [DEEP, b"", b"[]", b"null", None])
def test_what_is_no_outcome(tmp_path, content):
    (tmp_path / OUTCOME).mkdir() if content is None else (tmp_path / OUTCOME).write_bytes(content)
    refused("search", "trial.json, no record", lambda: read_outcome(tmp_path))


@pytest.mark.parametrize("name", [OUTCOME, WEIGHTS, STATE])
@pytest.mark.parametrize("content", [b"damaged", b'{"a": 1}', "whole"])
def test_files_of_trials_of_an_unfinished_search(made, tmp_path, name, content):
    """An error of one line that says what to delete; once that is done, the same command ends as ever."""
    out = shutil.copytree(made.folder / "whole/search", tmp_path / "out")
    found = json.loads((out / "manifest.json").read_bytes())
    inputs = {role: entry["id"] for role, entry in found["inputs"].items()}
    (out / "manifest.json").unlink()
    (out / "unfinished.json").write_text(
        json.dumps({key: found[key] for key in ("schema", "config")} | {"inputs": inputs})
    )
    trial = out / "trials/00000"
    if name == STATE:
        (trial / OUTCOME).unlink()
        (trial / "last").mkdir()
    whole = made.folder / "inputs/photo-run" / WEIGHTS  # of other tensors
    (trial / name).write_bytes(whole.read_bytes() if content == "whole" else content)
    tally.count("search", f"{name} of a trial damaged")
    arguments = made.arguments("search", out)
    with chdir(made.folder):
        done = CliRunner().invoke(app, arguments)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.exit_code == 4 and len(errors) == 1, (done.stderr, done.exception)
        assert str(trial) in errors[0]
        shutil.rmtree(trial)
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert stages.result(out) == made.results["search"]
