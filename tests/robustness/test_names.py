"""Names from disk in a terminal, a page and a spreadsheet: shown, never run."""

import csv
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from leokit import manifest
from leokit.cli import app
from leokit.cli.render import Common, Output, TableData
from leokit.config import ReportConfig, to_toml
from leokit.features import write_store
from leokit.figures.style import written_figure
from leokit.images.glyphs import glyph_classes
from leokit.images.scan import escape
from leokit.stages import paper_table, report
from leokit.tables import spreadsheet_safe
from leokit.text import pasteable, visible, visible_json
from tests.robustness import tally
from tests.robustness.laws import examples, sized

HOSTILE = {
    "markup": "<script>alert(1)</script>",
    "attribute": '" onload="alert(1)',
    "formula": "=cmd()|' /C calc'!A0",
    "function": "@SUM(1+1)*cmd|' /C calc'!A0",
    "sum": "+1+cmd|' /C calc'!A0",
    "difference": "-2+3+cmd|' /C calc'!A0",
    "colour": "\x1b[31mred",
    "title of the window": "\x1b]0;title\x07",
    "clipboard": "\x1b]52;c;Zm9v\x07",
    "C1 control": "\x9b31m\x90\x9c",
    "direction": "cat\u202egpj.exe",
    "isolate": "\u2066a\u2069",
    "two lines": "a\nerror: b",
    "carriage return": "good\rbad",
    "line separator": "a\u2028b",
    "tag characters": "a\U000e0041",
    "markup of rich": "[red]a[/red] [/] [link=file:///etc/passwd]x[/link]",
    "braces": "{0} {task.total}",
    "mathtext": "$\\frac{",
    "markdown": "](javascript:alert(1)) `x` | y",
}
NAMES = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
SEEN = "\x1b\x07\x9b\x90\x9c\u202e\u2066\u2028\r\U000e0041"  # none of which a terminal may be given


def harmless(text):
    """Whether a text has nothing but characters that show themselves, spaces, and ends of lines."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return all(character == "\n" or unicodedata.category(character) not in hidden for character in text)


def printed(capsys, work):
    work()
    shown = capsys.readouterr()
    return shown.out, shown.err


@NAMES
def test_all_that_is_printed_is_harmless(capsys, name):
    tally.count("names", "in the terminal")
    output = Output(Common())
    table = TableData(name, ["class", "note"], [[name, "1"], ["other", name]])

    def work():
        output.result({}, [table], [name, f"In {name}."])
        output.line(name)
        output.text(f"key = {name}\n")
        output.note(name)
        output.error(name)
        output.next_command(name)
        with output.progress(name) as move:
            move(1, 2, name)

    out, err = printed(capsys, work)
    assert harmless(out) and harmless(err)
    assert len(err.splitlines()) == 3  # a note, an error, a command: a line each
    if name.isprintable():
        assert "".join(name.split()) in "".join((out + err).split())


@NAMES
def test_a_bar_of_progress_takes_any_name(monkeypatch, capsys, name):
    tally.count("names", "in a bar of progress")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with Output(Common())._bar("Verifying") as move:
        move(1, 2, name)
        move(2, 2, name)
    written = capsys.readouterr().err
    assert "\x07" not in written and "\u202e" not in written and "\x1b[31mred" not in written


@NAMES
def test_json_is_harmless_and_says_the_same(capsys, name):
    tally.count("names", "in JSON")
    value = {"out": name, name: [name]}
    out, _ = printed(capsys, lambda: Output(Common(), json=True).result(value, [], []))
    assert harmless(out) and len(out.splitlines()) == 1
    assert json.loads(out) == value


@NAMES
def test_toml_is_harmless_and_says_the_same(name):
    tally.count("names", "in TOML")
    text = to_toml({"out": name})
    assert harmless(text)
    assert tomllib.loads(text) == {"out": name}


TEXTS = st.text(st.characters(exclude_categories=[]), max_size=30) | st.sampled_from(sorted(HOSTILE.values()))


@examples(40, 5000)
def test_any_text(examples):
    @sized(examples)
    @given(TEXTS)
    def law(text):
        tally.count("names", "any text")
        assert harmless(visible(text)) and "\n" not in visible(text)
        assert visible(visible(text)) == visible(text)
        assert harmless(visible_json([text])) and json.loads(visible_json([text])) == [text]
        if not any("\ud800" <= character <= "\udfff" for character in text):
            assert tomllib.loads(to_toml({"key": text})) == {"key": text}
            assert not spreadsheet_safe(text).startswith(tuple("=@\t\r\n"))
        assert shlex.split(pasteable(Path(text.replace("\0", "") or "."))) == [
            f"./{path}" if (path := str(Path(text.replace("\0", "") or "."))).startswith("-") else path
        ]

    law()


NUMBERS = ["1", "-1", "+1", "-0.25", "1e-05", "-1.5E+10", "12.", "0"]


def test_cells_of_a_csv_file():
    for name in HOSTILE.values():
        tally.count("names", "in a CSV file")
        safe = spreadsheet_safe(name)
        assert safe in (name, f"'{name}")
        assert (safe == name) == (name[0] not in "=+-@")
    for text in ("\tx", "\rx", "=1", "-x", "+x", "-", "@x", "＝1", "-1+1", "+1\n=2"):
        assert spreadsheet_safe(text) == f"'{text}"
    for text in [*NUMBERS, "", "a", "'=1", " =1", "a=1"]:
        assert spreadsheet_safe(text) == text
    for name in glyph_classes():  # which are read again as they are written
        assert spreadsheet_safe(name) == name


def test_the_table_of_the_paper_has_no_formula():
    entry = {**dict.fromkeys(paper_table.MEASURES), "mean": -1.5, "seeds": None}
    rows = [{"method": name, "whose": "=ours", "by_shots": {"1": entry}} for name in HOSTILE.values()]
    lines = list(csv.reader(io.StringIO(paper_table._csv({"rows": rows}))))[1:]
    assert [line[0] for line in lines] == [spreadsheet_safe(name) for name in HOSTILE.values()]
    assert {line[1] for line in lines} == {"'=ours"} and {line[4] for line in lines} == {"-1.5"}


def store_of(folder, names):
    """A store whose train classes have these names."""
    rows = np.ones((2, 3), np.float32)
    names = [escape(name.encode()) for name in names]
    splits = {
        "train": {name: ([f"{name}/0", f"{name}/1"], rows) for name in names},
        "test": {"t": (["t/0"], rows[:1])},
    }
    return write_store(folder, splits, dtype="float32", split_source="list")


def test_names_of_classes_on_every_way_out(tmp_path, monkeypatch):
    """A store with all of the names through inspect, verify and report."""
    monkeypatch.chdir(tmp_path)
    store_of(tmp_path / "leokit-work/features", HOSTILE.values())
    for command in (["inspect", "leokit-work/features", "--classes"], ["verify", "leokit-work/features"], ["report"]):
        tally.count("names", "of classes, through a command", len(HOSTILE))
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.stderr
        assert harmless(done.stdout) and harmless(done.stderr)
    page = Path("leokit-work/report.html").read_text()
    assert "<script>alert" not in page and 'onload="alert' not in page
    assert not set(SEEN) & set(page)
    markdown = report.run(ReportConfig(work=tmp_path / "leokit-work", format="markdown")).text
    assert "<script>" not in markdown and not set(SEEN) & set(markdown)
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)


@pytest.mark.parametrize("kind", ["difference", "colour", "two lines"])
def test_folders_of_any_name(tmp_path, monkeypatch, kind):
    """The names of folders and files are in messages as well."""
    monkeypatch.chdir(tmp_path)
    name = HOSTILE[kind]
    folder = name.replace("/", "∕")
    tally.count("names", "of a work folder")
    store_of(tmp_path / folder / "features", ["a"])
    for command, code in (
        (["report", f"--work={folder}"], 0),
        (["verify", f"{folder}/features"] if not folder.startswith("-") else ["verify", f"./{folder}/features"], 0),
        (["meta-train", f"--work={folder}"], 3),
        (["eval", f"--work={folder}"], 4),
        (["extract", f"./{folder}"], 3),
        (["meta-train", f"--config={folder}"], 2),
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == code, (command, done.stdout, done.stderr)
        assert harmless(done.stdout) and harmless(done.stderr)
        if code:
            assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_bytes_that_are_no_text(tmp_path, monkeypatch):
    """A path whose bytes are no UTF-8 goes through manifests and comes back."""
    monkeypatch.chdir(tmp_path)
    folder = Path(b"caf\xe9 \xff".decode("utf-8", "surrogateescape"))
    tally.count("names", "of a work folder")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this disk takes no such name: {error}")
    inputs = {"source": manifest.Input("abc", str(folder.absolute()))}
    for _ in range(2):  # made, and done already
        store = write_store(folder / "features", {"train": {"a": (["a/0"], np.ones((1, 2)))}}, inputs=inputs)
        assert store.manifest.inputs["source"].path == str(folder.absolute())
    json.loads((folder / "features/manifest.json").read_text(encoding="utf-8"))
    for command in (
        ["report", f"--work={folder}"],
        ["inspect", f"{folder}/features"],
        ["verify", f"{folder}/features"],
    ):
        for options in ([], ["--json"]):
            done = CliRunner().invoke(app, [*command, *options])
            assert done.exit_code == 0, (command, done.stderr, done.exception)
            assert harmless(done.stdout)


@NAMES
def test_titles_of_figures(tmp_path, name):
    tally.count("names", "in a figure")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about letters that the font has not
        with written_figure(tmp_path / "a.png", 1.0, visible(name)) as figure:
            figure.subplots().set_title(visible(name))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 960


def test_a_reader_that_has_seen_enough(tmp_path):
    """As `leokit splits show tieredimagenet | true`."""
    tally.count("names", "standard output closed early")
    command = [sys.executable, "-m", "leokit", "splits", "show", "tieredimagenet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1 and said == ""
