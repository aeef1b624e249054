"""What is said of mistakes: soon, and with advice that works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from leokit.cli import app
from leokit.config import MetaTrainConfig, build, with_preset
from leokit.stages import meta_train
from tests.e2e.conftest import make_store
from tests.e2e.test_extract import make_tree, write_splits
from tests.processes import ended, start_code

FEW = {"steps": 4, "val_every": 2, "val_episodes": 10, "val_queries": 4, "queries": 4, "num_latents": 4}
RUN = "leokit-work/runs/leo-5way-1shot"
EVAL = "eval --episodes 4 --queries 2 --workers 0"
UNCERTAINTY = "uncertainty --episodes 4 --samples 2 --curve-shots none --resamples 100 --workers 0 --queries 2"
EXTRACT = "extract images --backbone test_resnet --weights weights.safetensors --image-size 32 --workers 0 --out f"
TRAIN = "meta-train --preset miniimagenet-1shot " + " ".join(
    f"--{name.replace('_', '-')} {value}" for name, value in FEW.items()
)

BEFORE_TORCH = [
    # values
    ("extract images --device tpu", "Unknown device 'tpu'", 2),
    ("extract images --device mps", "There is no device 'mps' here", 2),
    ("extract images --max-failures many", "max_failures = 'many'", 2),
    ("extract images --weights random", "such features mean nothing", 2),
    ("extract images --weights nosuch.pt", "There is no weights file nosuch.pt", 4),
    ("extract images --weights bundled --backbone resnet18", "for tf_efficientnet_lite0 only", 2),
    ("extract images --trained-on cats", "imagenet-21k", 2),
    ("extract images --decode gpu --device cpu", "needs a CUDA device", 2),
    ("extract images --backbone resnet18 --backbone-run images", "both say which weights", 2),
    ("pretrain images --select supervised --holdout 0", "no images are held out", 2),
    ("pretrain images --batch-size 9999", "take fewer", 2),
    ("pretrain images --batch-size 8 --accumulate 3", "must be a multiple", 2),
    ("meta-train --train-on-val", "give --steps-from RUN", 2),
    ("meta-train --variant random-prior --no-sampling", "leave one of them out", 2),
    ("meta-train --device gpu", "Unknown device 'gpu'", 2),
    ("search --space nosuch", "neither a ready space", 2),
    ("search --only 4/4", "INDEX/COUNT", 2),
    ("search --scheduler tcp://a:1", "give it with --backend dask", 2),
    ("search --device gpu", "Unknown device 'gpu'", 2),
    ("eval --queries many", "--queries many", 2),
    ("eval --methods svm", "Unknown method 'svm'", 2),
    ("eval --device cuda:x", "Unknown device 'cuda:x'", 2),
    (f"eval {RUN} --run {RUN}", "Name runs by position or one by --run", 2),
    ("uncertainty --curve-shots a", "'a' is no number from 1 to 1000", 2),
    ("uncertainty --label-noise 2", "'2' is no number from 0 to 1", 2),
    (f"uncertainty {RUN} {RUN}", "A run is named twice", 2),
    ("uncertainty --device gpu", "Unknown device 'gpu'", 2),
    ("analyze --perplexity 1e9", "lower it, or raise --val-episodes", 2),
    ("analyze --highlight nosuch", "no class of the val split", 2),
    ("analyze --device gpu", "Unknown device 'gpu'", 2),
    ("predict images --support images --device gpu", "Unknown device 'gpu'", 2),
    ("predict images --support images --csv x.txt", "must end in .csv", 2),
    ("predict images --support images --classifier nosuch", "run `leokit fit` first", 4),
    ("fit --support images --method logistic --samples 5", "give --method leo", 2),
    ("fit --support images --device gpu", "Unknown device 'gpu'", 2),
    ("bench eval --queries many", "--queries many", 2),
    ("bench search --jobs 0", "no number from 1 to 1024", 2),
    ("bench extract images --device gpu", "Unknown device 'gpu'", 2),
    ("bench seeds --device gpu", "Unknown device 'gpu'", 2),
    # numbers of classes and images
    ("extract images --splits random:100/10/10", "needs 120 classes", 3),
    ("extract images --splits random:1/2", "random:TRAIN/VAL/TEST", 2),
    ("pretrain images --batch-size 4 --val-ways 100", "lower --val-ways", 3),
    ("pretrain images --splits random:1/3/3 --val-ways 2", "There is 1 class to train on", 3),
    ("meta-train --ways 100", "lower --ways", 3),
    ("meta-train --shots 100", "lower --shots or --queries", 3),
    ("search --ways 100", "lower --ways", 3),
    ("eval --ways 100", "lower --ways", 3),
    ("eval --shots 100", "lower --shots or --queries", 3),
    ("uncertainty --ways 100", "lower --ways", 3),
    ("analyze --ways 100", "lower --ways", 3),
    # what another stage makes
    ("extract images --splits nosuch", "no such list, file or folder", 2),
    ("extract images --backbone-run nosuch", "run `leokit pretrain` first", 4),
    ("import nosuch", "There is nothing at nosuch", 3),
    ("meta-train --work nosuch", "run `leokit extract` or `leokit import` first", 4),
    ("meta-train --steps-from nosuch", "run `leokit meta-train` first", 4),
    ("search --work nosuch", "run `leokit extract` or `leokit import` first", 4),
    ("eval --work nosuch", "run `leokit meta-train` first", 4),
    ("eval --features nosuch", "run `leokit extract` or `leokit import` first", 4),
    ("uncertainty --work nosuch", "run `leokit meta-train` first", 4),
    ("analyze --work nosuch", "run `leokit meta-train` first", 4),
    ("predict", "No image to predict", 2),
    ("predict nosuch --support images", "There is no image or folder at nosuch", 3),
    ("predict images --support nosuch", "There is no support set at nosuch", 3),
    ("predict images --support images --work nosuch", "run `leokit meta-train` first", 4),
    ("fit --support images --work nosuch", "run `leokit meta-train` first", 4),
    ("export", "run `leokit fit` first", 4),
    ("regress plot", "run `leokit regress train` first", 4),
    ("regress eval", "run `leokit regress train` first", 4),
    ("table 1", "run `leokit eval` first", 4),
    ("report --work nosuch", "there is nothing to report", 4),
]
_ALL = """
import json, sys
from typer.testing import CliRunner
from leokit.cli import app

for command in json.load(sys.stdin):
    result = CliRunner().invoke(app, command)
    print(json.dumps([result.exit_code, result.output, "torch" in sys.modules]), flush=True)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, features and a run; used by copies, or where nothing is written."""
    root = tmp_path_factory.mktemp("mistakes")
    write_splits(make_tree(root / "images"))
    with chdir(root):
        make_store(Path("leokit-work/features"), images=24)
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet").state_dict(), "weights.safetensors")
        meta_train.run(build(MetaTrainConfig, with_preset({"preset": "miniimagenet-1shot", **FEW})[0]))
    return root


@pytest.fixture(scope="module")
def told(made):
    """Exit code, output, and whether torch was imported by then, of each command: in one process, one by one."""
    commands = [shlex.split(command) for command, _, _ in BEFORE_TORCH]
    done = subprocess.run(
        [sys.executable, "-c", _ALL],
        cwd=made,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    return dict(
        zip([command for command, _, _ in BEFORE_TORCH], map(json.loads, done.stdout.splitlines()), strict=True)
    )


@pytest.mark.parametrize(("command", "words", "code"), BEFORE_TORCH, ids=[command for command, _, _ in BEFORE_TORCH])
def test_a_mistake_is_told_before_torch_is_imported(told, command, words, code):
    found, output, torch_was_imported = told[command]
    assert words in output
    assert (found, torch_was_imported) == (code, False)


def test_nothing_is_begun_by_a_mistake(told, made):
    """Else the right command would find the folder taken by the wrong one."""
    assert sorted(path.name for path in (made / "leokit-work").iterdir()) == ["features", "runs"]


@pytest.fixture
def there(leokit, made, tmp_path):
    """A copy of what was made, and the command line in it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return lambda command, code=0: leokit(*shlex.split(command), code=code)


def damage(path):
    def change(leokit):
        data = bytearray(Path(path).read_bytes())
        data[len(data) // 2] ^= 1
        Path(path).write_bytes(data)

    return change


def first(*commands):
    return lambda leokit: [leokit(command) for command in commands]


def both(*steps):
    return lambda leokit: [step(leokit) for step in steps]


def remove(path):
    return lambda leokit: shutil.rmtree(path)


def copy(source, target):
    return lambda leokit: shutil.copytree(source, target)


def write(path, text):
    return lambda leokit: Path(path).write_text(text)


def leave_unfinished(leokit):
    """The run as if it had been stopped at its fourth step of eight."""
    found = json.loads(Path(RUN, "manifest.json").read_bytes())
    inputs = {role: entry["id"] for role, entry in found["inputs"].items()}
    intent = {"schema": found["schema"], "config": found["config"] | {"steps": 8}, "inputs": inputs}
    Path(RUN, "unfinished.json").write_text(json.dumps(intent))
    Path(RUN, "manifest.json").unlink()


def mend(name):
    return lambda leokit: shutil.copy("images/class0/00.png", name)


def embeddings(leokit):
    rng = np.random.default_rng(0)
    np.savez("e.npz", embeddings=rng.normal(size=(12, 8)).astype("f4"), labels=np.repeat(list("abcdef"), 2))


NONE = both()
STATE = f"{RUN}/last/state.safetensors"
SEVERAL = copy(RUN, "leokit-work/runs/other")
# What comes before, the mistake, the advice, and what it says to do, each a way of its own.
ADVICE = [
    (NONE, f"{EVAL} --ways 100", "lower --ways", [first(f"{EVAL} --ways 3")]),
    (NONE, f"{EVAL} --shots 100", "lower --shots or --queries", [first(f"{EVAL} --shots 2")]),
    (NONE, f"{EVAL} --queries many", "a number from 1 up, rest600 or all", [first(EVAL + " --queries all")]),
    (NONE, f"{TRAIN} --val-queries 99", "lower --val-queries", [first(f"{TRAIN} --out x --val-queries 9")]),
    (
        first(EVAL),
        f"{EVAL} --episodes 6",
        "--overwrite to replace it, or another --out",
        [first(f"{EVAL} --episodes 6 --out e"), first(f"{EVAL} --episodes 6 --overwrite")],
    ),
    (
        both(first(EVAL), damage("leokit-work/eval/leo-5way-1shot/summary.json")),
        EVAL,
        "make it again with --overwrite",
        [first(f"{EVAL} --overwrite", EVAL)],
    ),
    (
        both(first(EVAL), write("leokit-work/eval/leo-5way-1shot/manifest.json", "{")),
        EVAL,
        "delete its folder and make the artifact again",
        [both(remove("leokit-work/eval/leo-5way-1shot"), first(EVAL))],
    ),
    (
        damage(f"{RUN}/weights.safetensors"),
        EVAL,
        "make it again with --overwrite",
        [first(f"{TRAIN} --overwrite", EVAL)],
    ),
    (
        both(leave_unfinished),
        EVAL,
        "run again, goes on from there; with --steps 4 it ends there",
        [first(f"{TRAIN} --steps 4", EVAL), first(f"{TRAIN} --steps 8", f"{EVAL} --out e")],
    ),
    (
        both(leave_unfinished, damage(STATE), write(STATE, "")),
        f"{TRAIN} --steps 8",
        "make it again with --no-resume --overwrite",
        [first(f"{TRAIN} --steps 8 --no-resume --overwrite")],
    ),
    (NONE, f"{TRAIN} --train-on-val --steps-from {RUN} --steps 2", "give one", [first(f"{TRAIN} --train-on-val")]),
    (SEVERAL, f"{EVAL} --shots 2", "name one by --run", [first(f"{EVAL} --shots 2 --run {RUN}")]),
    (SEVERAL, f"{UNCERTAINTY} --shots 2", "name one by position", [first(f"{UNCERTAINTY} {RUN} --shots 2")]),
    (SEVERAL, "report --card", "name one by --run", [first(f"report --card --run {RUN}")]),
    (
        first(f"{TRAIN} --train-on-val --steps 2"),
        f"{UNCERTAINTY} {RUN}-trainval",
        "take a run on train alone. Give --calibration-episodes 0",
        [first(f"{UNCERTAINTY} {RUN}-trainval --calibration-episodes 0"), first(f"{UNCERTAINTY} {RUN}")],
    ),
    (
        damage("images/class0/01.png"),
        f"{EXTRACT} --max-failures 0",
        "mend the images and add --retry-failed, or allow more by --max-failures",
        [first(f"{EXTRACT} --max-failures 1"), both(mend("images/class0/01.png"), first(f"{EXTRACT} --retry-failed"))],
    ),
    (
        both(*(write(f"images/class3/{number:02}.png", "") for number in range(12))),
        f"{EXTRACT} --max-failures 100%",
        "mend its images and add --retry-failed, or leave it out of the splits and add --overwrite",
        [
            both(mend("images/class3/01.png"), first(f"{EXTRACT} --retry-failed --max-failures 100%")),
            first(f"{EXTRACT} --splits random:2/1/1 --seed 3 --overwrite --max-failures 100%"),
        ],
    ),
    (NONE, f"{EXTRACT} --splits random:9/1/1", "Try random:", ["suggested"]),
    (NONE, f"{EXTRACT} --splits nosuch", "random:TRAIN/VAL/TEST", [first(f"{EXTRACT} --splits random:4/2/1")]),
    (NONE, "splits show nosuch", "a CSV file class_name,split", [first("splits show images/splits.csv")]),
    (NONE, f"{EXTRACT} --weights random", "`leokit bench extract` takes them", []),
    (
        NONE,
        "pretrain images --batch-size 4 --select supervised --holdout 0 --dry-run",
        "Give --select last, or a --holdout above 0",
        [
            first("pretrain images --batch-size 4 --select last --holdout 0 --dry-run"),
            first("pretrain images --batch-size 4 --select supervised --holdout 0.1 --val-queries 5 --dry-run"),
        ],
    ),
    (NONE, "demo images --per-class 1 --size 32", "another folder, or an empty folder", [first("demo new --dry-run")]),
    (embeddings, "import e.npz --out i", "say by --splits", [first("import e.npz --out i --splits random:4/1/1")]),
    (NONE, "report --work leokit-work/features", "the work folder that it belongs to", [first("report")]),
    (
        write("r.html", "mine"),
        "report --out r.html",
        "Choose another --out, or use --overwrite",
        [first("report --out s.html"), first("report --out r.html --overwrite")],
    ),
    (NONE, "table 1", "run `leokit eval` first", [first(EVAL, "table 1")]),
    (
        NONE,
        "search --only 0/2 --halving --dry-run",
        "Leave one of them out",
        [first("search --only 0/2 --dry-run"), first("search --halving --dry-run")],
    ),
    (
        write("c.toml", "shots = 1\n[eval]\nepisodes = 4\n"),
        "eval --config c.toml",
        "put it into [eval]",
        [both(write("c.toml", "[eval]\nshots = 1\nepisodes = 4\n"), first("eval --config c.toml --workers 0"))],
    ),
]


@pytest.mark.parametrize(("before", "command", "words", "ways"), ADVICE, ids=[words for _, _, words, _ in ADVICE])
def test_advice_works(there, before, command, words, ways):
    before(there)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code in (1, 2, 3, 4), result.output
    assert words in result.stderr
    for way in ways:
        if way == "suggested":
            way = first(f"{EXTRACT} --splits {re.search('Try (random:[0-9/]+)', result.stderr)[1]}")
        way(there)


def test_the_only_run_is_taken(there):
    """As by predict; where there are several, the one that the defaults of meta-train name."""
    there(f"{EVAL} --shots 2")
    Path(RUN).rename("leokit-work/runs/mine")
    for command, kind in ((EVAL, "eval"), (UNCERTAINTY, "uncertainty")):
        there(command)
        assert Path("leokit-work", kind, "mine", "manifest.json").exists()
    shutil.copytree("leokit-work/runs/mine", RUN)
    there(EVAL)
    assert Path("leokit-work/eval/leo-5way-1shot/manifest.json").exists()


WITHOUT_CAPABILITIES = """
import ctypes, sys
from leokit.cli import main

if sys.platform == "linux":  # so that root, too, heeds permissions
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
sys.argv = ["leokit", *{command!r}]
main()
"""


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (f"{EVAL} --out locked", "--out"),
        (f"{TRAIN} --out locked", "--out"),
        ("report --out locked/r.html", "--out"),
        ("demo locked --per-class 1 --size 32", "folder"),
        (f"{EVAL} --out locked/new", "--out"),
        ("table 1 --out locked", "--out"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(there, tmp_path, command, option):
    there(EVAL)  # for the table
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    process = start_code(WITHOUT_CAPABILITIES.format(command=shlex.split(command)), tmp_path, stderr=tmp_path / "said")
    assert ended(process) in (1, 4)
    said = (tmp_path / "said").read_text().splitlines()[-1]
    assert said.startswith("error: ") and str(locked) in said and "ermission denied" in said
    assert said.endswith(f"choose another {option}.") and "space" not in said
