"""`leokit report`: the page says what the artifacts say, runs nothing that they say, and works in a browser."""

import base64
import hashlib
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from leokit import manifest
from leokit.config import EvalConfig, MetaTrainConfig, ReportConfig, build
from leokit.errors import ArtifactError
from leokit.report.dotplot import draw
from leokit.report.model import Dot, DotPlot
from leokit.report.pictures import compact
from leokit.stages import evaluate, meta_train, report
from tests.e2e.browser import PROGRAM, open_browser
from tests.e2e.conftest import make_store

HOSTILE = "<script>alert(1)</script>\"' onload=x \n\x1b[31m\u202e | `a` & [b](javascript:c)"
BROKEN = HOSTILE + "\ud800"  # half a character, which JSON can say and UTF-8 cannot
METRICS = ("accuracy", "negative_log_likelihood", "brier_score", "a_measure_of_tomorrow")


def picture(colour):
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).ellipse((10, 10, 40, 30), fill=colour)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def make_artifact(folder, schema, files, *, facts=None, inputs=None):
    """A finished artifact with these files; JSON of what are no bytes."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    results = [name for name in files if name.endswith(".json")]
    extras = [name for name in files if name not in results]
    info = {"created": "2026-01-02T03:04:05+00:00", "seconds": 1.5, "command": ["/usr/bin/leokit", "x", HOSTILE]}
    manifest.finish(
        folder, schema, {"note": HOSTILE}, inputs or {}, results=results, extras=extras, facts=facts or {}, info=info
    )


def measured(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


UNCERTAINTY = {
    "ways": 5,
    "shots": 1,
    "episodes": 40,
    "split": "test",
    "interval": "95 % bootstrap over episodes",
    "run": {"variant": "leo", "seed": 0},
    "predictives": {
        "deterministic": {
            "temperature": 1.234,
            "raw": {name: measured(0.5) for name in METRICS},
            "tempered": {name: measured(0.25) for name in METRICS},
        },
        "class-mean": {"temperature": None, "raw": {"accuracy": measured(0.75)}, "tempered": None},
        BROKEN: {"raw": {"accuracy": {"value": float("nan")}, "brier_score": 10**400}},
    },
    "open_set": {
        "deterministic": {"entropy": {"auroc_per_episode": 0.71, "auroc_pooled": 0.7, "accepted_outside": 0.5}}
    },
    "sets": {"deterministic": [{"level": 0.8, "coverage": 0.775, "mean_size": 2.5, "quantile": None}]},
    "decomposition": [{"predictive": "sampled", "shots": 20, "noise": 0.2, "total": 1.5, "epistemic": 0.5}],
    "class_errors": {"deterministic": {BROKEN: 0.375, "test01": 0.125}},
}


def train(work, variant, seed):
    size = {"queries": 5, "val_episodes": 10, "val_queries": 5, "val_every": 5, "num_latents": 8, "meta_batch": 2}
    values = {"work": work, "variant": variant, "seed": seed, "steps": 10, **size}
    return meta_train.run(build(MetaTrainConfig, values)).folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A work folder as a user has it: features, three runs, of which two differ in nothing but the seed, and tests."""
    work = tmp_path_factory.mktemp("plain") / "work"
    make_store(work / "features", dim=16, trained_on=["train00", "test00"])
    for variant, seed in (("leo", 0), ("leo", 1), ("anchored", 0)):
        folder = train(work, variant, seed)
        evaluate.run(EvalConfig(run=folder, work=work, episodes=40, queries="5", workers=0))
    return work


@pytest.fixture(scope="module")
def strange(plain, tmp_path_factory):
    """The same with what others made, odd names, and artifacts that are not whole."""
    work = tmp_path_factory.mktemp("strange") / "work"
    shutil.copytree(plain, work)
    pictures = {"reliability.png": picture("#0072B2"), "odd.png": picture("#D55E00")}
    make_artifact(
        work / "uncertainty" / "leo-5way-1shot",
        "leokit/uncertainty@1",
        {"summary.json": UNCERTAINTY, **pictures},
        facts={"figures": {"reliability.png": f"Confidence against accuracy. {HOSTILE}"}},
    )
    summary = {"eigenvalues": {"codes": measured(3.5), "weights": measured(0.035)}, "rows": [{"a": 1, "b": BROKEN}]}
    make_artifact(work / "analysis", "leokit/analysis@1", {"summary.json": summary, "fig.png": picture("#009E73")})
    make_artifact(work / "search" / "bad", "leokit/search@1", {"fig.png": b"\x89PNG no picture", "summary.json": [1]})
    make_artifact(
        work / "eval" / "stale",
        "leokit/eval@1",
        {"summary.json": {}},
        inputs={"run": manifest.Input("0" * 64, "elsewhere/runs/leo-5way-1shot")},
    )
    (work / "runs" / "begun").mkdir()
    (work / "runs" / "begun" / "unfinished.json").write_text('{"schema": "leokit/run@1", "config": {}, "inputs": {}}')
    (work / "runs" / "broken").mkdir()
    (work / "runs" / "broken" / "manifest.json").write_text('{"schema": "leokit/run@1"')
    (work / "other" / "runs").mkdir(parents=True)
    altered = work / "runs" / "anchored-5way-1shot" / "curves.png"
    altered.write_bytes(altered.read_bytes() + b"x")
    return work


def write(work, folder, **options):
    made = report.run(ReportConfig(work=work, out=folder / f"report.{options.get('format', 'html')}", **options))
    return made, made.path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def strange_page(strange, tmp_path_factory):
    """The report of what is strange: what was written, and its text."""
    return write(strange, tmp_path_factory.mktemp("report"))


class Outline(HTMLParser):
    """What a page is made of: elements with their attributes, text by element, and tables as rows of cells."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.texts, self._open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_numbers_are_those_of_the_episodes(plain, tmp_path):
    made, text = write(plain, tmp_path)
    page = Outline(text)
    names = [f"eval/{name}-5way-1shot" for name in ("anchored", "leo")] + ["eval/leo-5way-1shot-seed1"]
    shares = {}
    for name in names:
        table = pq.read_table(plain / name / "episodes.parquet").to_pydict()
        own = name.split("/")[1].split("-")[0]
        rows = zip(table["method"], table["accuracy"], strict=True)
        shares[name] = np.array([share for method, share in rows if method == own])
    leo = np.mean([shares[names[1]], shares[names[2]]], axis=0)
    spread = np.std([shares[names[1]].mean(), shares[names[2]].mean()], ddof=1)
    table = next(table for table in page.tables if table[0][:3] == ["method", "setting", "accuracy"])
    rows = {row[0]: row[2:] for row in table[1:]}
    assert rows.keys() == {"leo", "own-images", "class-mean"}
    half_width = 1.96 * leo.std(ddof=1) / np.sqrt(40)
    assert rows["leo"] == [f"{100 * leo.mean():.2f} ± {100 * half_width:.2f}", f"{100 * spread:.2f}", "2"]
    assert rows["own-images"][0].startswith(f"{100 * shares[names[0]].mean():.2f} ±")
    assert rows["class-mean"][1:] == ["–", "–"]
    means = [float(row[2].split()[0]) for row in table[1:]]
    assert means == sorted(means, reverse=True)
    assert f"{means[0]:.2f}" in re.search(r'<p class="big">([0-9.]+)', text)[1]
    assert "has seen 1 of the 6 test classes" in text
    assert made.figures == 3 and not made.troubles
    # Of three runs one has the best curves; those of the others are there, folded away.
    assert {image["alt"].split(", over ")[0] for image in page.of("img")} == {
        f"Learning curves of {name}" for name in ("leo, 5-way 1-shot, seed 0", "leo, 5-way 1-shot, seed 1")
    } | {"Learning curves of own-images, 5-way 1-shot, seed 0"}


def test_nothing_from_disk_becomes_markup(strange_page):
    text = strange_page[1]
    page = Outline(text)
    (script,), (style,) = ([data for tag, data in page.texts if tag == name] for name in ("script", "style"))
    (policy,) = (meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    for part, rule in ((script, "script-src"), (style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(page.of("script")) == 1 and "alert" not in script
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert all(image["alt"] and int(image["width"]) and int(image["height"]) for image in page.of("img"))
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", text)
    # The name is there all the same, as text: of a class, a predictive, a text in place of a picture.
    shown = HOSTILE.translate({10: "\\x0a", 27: "\\x1b", 0x202E: "\\u202e"})
    assert sum(shown in cell for table in page.tables for row in table for cell in row) >= 3
    assert any(shown in image["alt"] for image in page.of("img"))


def test_what_is_not_whole_is_named_and_the_rest_is_shown(strange, strange_page):
    made, text = strange_page
    troubles = {trouble.name: trouble.text for trouble in made.troubles}
    assert troubles.keys() == {
        "runs/begun",
        "runs/broken",
        "runs/anchored-5way-1shot",
        "eval/stale",
        "search/bad",
        "other",
    }
    assert "Unfinished" in troubles["runs/begun"]
    assert "damaged" in troubles["runs/broken"]
    assert "curves.png was altered" in troubles["runs/anchored-5way-1shot"]
    assert all(html.escape(name) in text for name in troubles)
    assert str(strange) not in text
    assert "eval/stale was made from another runs/leo-5way-1shot" in text
    assert made.figures == 2 + 2 + 1


def test_the_sections_of_an_uncertainty_result(strange_page):
    tables = Outline(strange_page[1]).tables
    calibration = next(table for table in tables if table[0][:2] == ["measure", "probabilities"])
    rows = {tuple(row[:2]): row[2:] for row in calibration[1:]}
    assert rows["temperature", ""] == ["1.234", "–", "–"]
    assert rows["accuracy, % ↑", "as it is"] == ["50.00 49.00 to 51.00", "75.00 74.00 to 76.00", "–"]
    assert rows["accuracy, % ↑", "with temperature"] == ["25.00 24.00 to 26.00", "–", "–"]
    assert rows["a measure of tomorrow", "as it is"][0] == "0.5000 0.4900 to 0.5100"
    firsts = [table[1] for table in tables if len(table) > 1]
    for row in (
        ["deterministic", "80", "77.5", "2.50", "–"],
        ["deterministic", "entropy", "0.7100", "0.7000", "50.0"],
        ["sampled", "20", "20", "1.5000", "–", "0.5000", "–"],
    ):
        assert row in firsts
    (classes,) = (table for table in tables if table[0] == ["class", "deterministic"])
    assert [row[1] for row in classes[1:]] == ["37.5", "12.5"]


def markdown_tables(text):
    """The tables of a Markdown text, cells as a reader sees them."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            cells = re.split(r"(?<!\\) \| ", line[2:-2])
            rows.append([html.unescape(re.sub(r"\\(.)", r"\1", cell)).strip() for cell in cells])
        elif rows:
            found.append([rows[0], *rows[2:]])
            rows = []
    return found


def test_markdown_says_the_same(strange, strange_page, tmp_path):
    _, text = write(strange, tmp_path, format="markdown")
    page = Outline(strange_page[1])
    # Beside a number the one has brackets, the other small print; spelled out characters look alike to both.
    brackets = re.compile(r" \(([^()]* to [^()]*)\)$")

    def seen(table):
        return [[" ".join(brackets.sub(r" \1", cell).replace("\\", "").split()) for cell in row] for row in table]

    assert list(map(seen, markdown_tables(text))) == list(map(seen, page.tables))
    links = re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE)
    assert len(links) == len(page.of("img"))
    assert all((tmp_path / unquote(link)).is_file() for link in links)
    assert "<script" not in re.sub(r"^(```+)sh\n.*\n\1$", "", text, flags=re.MULTILINE)


def test_the_same_artifacts_give_the_same_bytes(strange, strange_page, tmp_path):
    first, messages = strange_page[0], []
    again = report.run(ReportConfig(work=strange, out=first.path), on_message=messages.append)
    assert again.text == first.text and "Already done" in messages[0]
    moved = tmp_path / "moved" / strange.name
    shutil.copytree(strange, moved)
    assert write(moved, tmp_path)[1] == first.text
    texts = [write(work, work.parent, format="markdown")[1] for work in (strange, moved)]
    assert texts[0] == texts[1]


def test_the_command(leokit, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "leokit-work")
    shutil.rmtree("leokit-work/runs")
    plan = json.loads(leokit("report", "--dry-run", "--json").stdout)
    assert "eval/leo-5way-1shot" in plan["artifacts"] and not Path(plan["out"]).exists()
    done = leokit("report")
    assert done.stdout.rstrip().endswith("In leokit-work/report.html")
    assert "Already done" in leokit("report").stderr
    data = json.loads(leokit("report", "--format", "markdown", "--json").stdout)
    assert data["out"] == "leokit-work/report.md" and data["bytes"] == Path(data["out"]).stat().st_size
    # Another artifact, another page; what is no report is left alone.
    shutil.rmtree("leokit-work/eval")
    leokit("report")
    assert "No run has been tested yet" in Path("leokit-work/report.html").read_text()
    Path("notes.html").write_text("mine")
    refused = leokit("report", "--out", "notes.html", code=4)
    assert "notes.html was not written by leokit report" in " ".join(refused.stderr.split())
    assert Path("notes.html").read_text() == "mine"
    leokit("report", "--out", "notes.html", "--overwrite")
    assert Path("notes.html").read_bytes() == Path("leokit-work/report.html").read_bytes()
    assert "holds no artifact" in leokit("report", "--work", "nowhere", code=4).stderr
    empty = " ".join(leokit("report", "--work", "nowhere", code=4).stderr.split())
    assert all(f"leokit {name}" in empty for name in ("extract", "meta-train", "eval"))
    assert "not a work folder" in " ".join(leokit("report", "--work", "leokit-work/features", code=4).stderr.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "x.pdf"), ".html or .htm"),
        (("--out", "x.md"), ".html or .htm"),
        (("--out", "x.html", "--format", "markdown"), ".md or .markdown"),
    ],
)
def test_a_name_that_promises_another_format_is_refused(plain, leokit, options, words):
    refused = leokit("report", "--work", plain, *options, code=2)
    assert words in refused.stderr and refused.stdout == ""
    assert not any(Path().iterdir())


def test_a_place_that_is_a_folder(plain, tmp_path):
    with pytest.raises(ArtifactError, match="is a folder"):
        report.run(ReportConfig(work=plain, out=tmp_path))


@pytest.mark.parametrize("values", [(20.0,), (64.1, 64.12), (99.99, 20.0, 60.0), (0.0, 100.0)])
def test_dots_stand_where_the_axis_says(values):
    dots = [Dot(f"m{index}", value, 0.3, (value - 1, value + 1), True) for index, value in enumerate(values)]
    drawing = draw(DotPlot("5-way 1-shot", dots))
    places, labels = zip(*((x, float(label)) for x, label in drawing.ticks), strict=True)
    for dot, mark in zip(dots, drawing.marks, strict=True):
        for x, value in ((mark.x, dot.mean), (mark.low, dot.mean - 0.3), (mark.seeds[1], dot.mean + 1)):
            assert drawing.left <= x <= drawing.right
            assert np.interp(x, places, labels) == pytest.approx(value, abs=1e-6)
    assert 3 <= len(places) <= 8


def test_pictures_shrink_and_look_the_same(plain):
    data = (plain / "runs" / "leo-5way-1shot" / "curves.png").read_bytes()
    before, after = (Image.open(io.BytesIO(each)).convert("RGB") for each in (data, compact(data)))
    assert len(compact(data)) < 0.6 * len(data)
    assert np.abs(np.asarray(before, int) - np.asarray(after, int)).max() <= 16
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(noise, "PNG")
    assert compact(noise.getvalue()) == noise.getvalue()  # no palette holds it


CONTRAST = """
(() => {
  const parse = (text) => (text.match(/[0-9.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const found = [];
  for (const node of document.querySelectorAll("p,a,h1,h2,h3,li,th,td,small,summary,dt,dd,code,text")) {
    const style = getComputedStyle(node);
    const ink = parse(node instanceof SVGElement ? style.fill : style.color);
    const [high, low] = [light(ink), light(ground(node))].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), node.tagName + "." + node.getAttribute("class")]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
})()
"""
DECODED = """
(async () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  await Promise.all([...document.images].map((image) => image.decode()));
  return [...document.images].filter((image) => image.complete && image.naturalWidth > 0).length;
})()
"""


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_in_a_browser(strange_page, tmp_path):
    made = strange_page[0]
    with open_browser(tmp_path / "profile") as browser:
        browser.resize(1280, 900)
        browser.open(made.path)
        assert browser.evaluate(DECODED) == made.figures == browser.evaluate("document.images.length")
        rows = "document.querySelector('#accuracy tbody').rows"
        first, second = f"{rows}[0].cells", f"{rows}[{rows}.length - 1].cells"
        button = "document.querySelectorAll('#accuracy table thead th')[2].querySelector('button')"
        order = f"{button}.parentElement.getAttribute('aria-sort')"
        values = f"[Number({first}[2].dataset.value), Number({second}[2].dataset.value)]"
        assert browser.evaluate(order) == "none"
        high, low = browser.evaluate(values)
        for expected, ends in (("descending", [high, low]), ("ascending", [low, high]), ("none", [high, low])):
            browser.evaluate(f"{button}.click()")
            assert (browser.evaluate(order), browser.evaluate(values)) == (expected, ends)
        browser.evaluate(f"{button}.focus()")
        for expected in ("descending", "ascending"):
            browser.press("Enter", 13, "\r")
            assert browser.evaluate(order) == expected
        for scheme, dark in (("light", False), ("dark", True)):
            browser.prefer(scheme)
            ratio, what = browser.evaluate(CONTRAST)
            assert ratio >= 4.5, (scheme, what, ratio)
            corner = Image.open(io.BytesIO(browser.screenshot())).convert("L").getpixel((2, 2))
            assert (corner < 60) is dark
        browser.prefer("dark", media="print")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.evaluate(CONTRAST)[0] >= 4.5
        browser.prefer("light")
        browser.resize(390, 844, phone=True)
        browser.open(made.path)
        assert browser.evaluate("document.scrollingElement.scrollWidth") == 390
        assert browser.pdf().startswith(b"%PDF")
        assert browser.complaints == []
        assert {address.partition(":")[0] for address in browser.requests} == {"file", "data"}
