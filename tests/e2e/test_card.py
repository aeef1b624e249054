"""`leokit report --card`: the card says what the artifacts say, the Hub can read it, and the run in it works."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from leokit import manifest
from leokit.backbones import hub_repository
from leokit.config import EvalConfig, ReportConfig
from leokit.errors import LeokitError
from leokit.features import FeatureStore, write_store
from leokit.report.card import Subject
from leokit.report.collecting import Artifact, Collection
from leokit.stages import card, evaluate
from leokit.stages.card import _base_model
from tests.e2e.test_report import UNCERTAINTY, make_artifact, markdown_tables, picture, train

STRANGE = ("<script>alert(1)</script>", "---\n", ": {}", "!!python/object:os", "`a` | *b* [c](javascript:d)")
SHA = "5" * 64
BACKBONE = {"name": "resnet10t", "weights_sha256": SHA, "preprocessing": {"image_size": 64}, "layer": "pooled"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder of a backbone, features with strange class names, two seeds of a run, tests and uncertainty."""
    work = tmp_path_factory.mktemp("card") / "work"
    (work / "backbone").mkdir(parents=True)
    (work / "backbone" / "weights.safetensors").write_bytes(b"weights")
    (work / "backbone" / "curves.png").write_bytes(picture("#0072B2"))
    made = manifest.finish(
        work / "backbone",
        "leokit/backbone@1",
        {},
        {"images": manifest.Input("1" * 64, str(work / "images"))},
        results=["weights.safetensors"],
        extras=["curves.png"],
        facts={"model": "resnet10t", "trained_on": ["a"]},
        info={"command": ["/usr/bin/leokit"]},
    )
    rng, splits = np.random.default_rng(0), {}
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        names = [f"{split} {name}" for name in STRANGE] + [f"{split}{number}" for number in range(count - len(STRANGE))]
        rows = {name: rng.normal(size=(1, 16)) + 3 * rng.normal(size=(24, 16)) for name in names}
        splits[split] = {name: ([f"{name}/{n}" for n in range(24)], of.astype(np.float32)) for name, of in rows.items()}
    write_store(
        work / "features",
        splits,
        dtype="float32",
        inputs={"backbone": manifest.Input(made.id, str(work / "backbone"))},
        backbone=BACKBONE,
        trained_on="imagenet-1k",
        split_source=STRANGE[2],
    )
    for seed in (0, 1):
        folder = train(work, "leo", seed)
        evaluate.run(EvalConfig(run=folder, work=work, episodes=40, queries="5", workers=0))
    make_artifact(
        work / "uncertainty" / "leo-5way-1shot",
        "leokit/uncertainty@1",
        {"summary.json": {**UNCERTAINTY, "classes": 6, "queries": 5}, "reliability.png": picture("#D55E00")},
        inputs={"run": manifest.Input(manifest.read(work / "runs" / "leo-5way-1shot").id, "elsewhere")},
    )
    return work


def write(work, out, run="leo-5way-1shot", **options):
    return card.run(ReportConfig(card=True, run=work / "runs" / run, work=work, out=out, **options))


@pytest.fixture(scope="module")
def written(work, tmp_path_factory):
    """The card of the first seed's run."""
    folder = tmp_path_factory.mktemp("written") / "a card"
    assert not write(work, folder, license="apache-2.0").troubles
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_hub_reads_the_metadata(work, written):
    text = (written / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    data = yaml.safe_load(text[4 : text.index("\n---\n", 4)])
    parsed = ModelCard(text)
    assert parsed.data.to_dict()["library_name"] == data["library_name"] == "leokit"
    assert data["pipeline_tag"] == "image-classification" and data["license"] == "apache-2.0"
    assert data["datasets"] == ["imagenet-1k"] and "base_model" not in data
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "leo-5way-1shot" and {result.dataset_split for result in results} == {"test"}
    table = pq.read_table(work / "eval" / "leo-5way-1shot" / "episodes.parquet").to_pydict()
    rows = zip(table["method"], table["accuracy"], strict=True)
    shares = np.array([share for method, share in rows if method == "leo"])
    found = {result.metric_type: result for result in results}
    assert found["accuracy"].metric_value == pytest.approx(shares.mean(), rel=1e-12)
    half_width = 1.96 * shares.std(ddof=1) / 40**0.5
    assert found["accuracy"].metric_args["half_width_of_95_percent_interval_over_episodes"] == pytest.approx(half_width)
    assert found["negative_log_likelihood"].metric_value == 0.5
    assert set(data["metrics"]) == set(found) and "expected_calibration_error" not in found  # it was not measured
    assert [result.dataset_name for result in parsed.data.eval_results] == [result.dataset_name for result in results]
    assert STRANGE[2] in results[0].dataset_name


def test_names_from_disk_are_text(written):
    text = (written / "README.md").read_text(encoding="utf-8")
    assert text.count("\n---\n") == 1
    body = text[text.index("\n---\n", 4) + 5 :]
    assert "<script" not in body and not re.search(r"(?<!\\)\]\(javascript", body)
    classes = next(table for table in markdown_tables(body) if table[0][:2] == ["class", "split"])
    shown = {row[0] for row in classes[1:]}
    assert {f"train {name}".strip() for name in STRANGE if "|" not in name} <= shown


@pytest.mark.parametrize("name", ["---\nlicense: mit\n---", ": {} # `x`", "<b>'\"&amp;\\"])
def test_the_name_of_a_run_is_text(work, tmp_path, name):
    shutil.copytree(work / "runs" / "leo-5way-1shot", tmp_path / name)
    card.run(ReportConfig(card=True, run=tmp_path / name, work=work, out=tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    data = yaml.safe_load(text[4 : text.index("\n---\n", 4)])
    assert data["model-index"][0]["name"] == name.replace("\n", "\\x0a") and "license" not in data
    heading = re.search(r"^# (.*)$", text[text.index("<!-- leokit") :], re.MULTILINE)[1]
    assert html.unescape(re.sub(r"\\(.)", r"\1", heading)) == name.replace("\n", "\\x0a")


def test_the_text_says_what_was_measured(work, written):
    text = (written / "README.md").read_text(encoding="utf-8")
    tables = markdown_tables(text)
    summaries = [
        json.loads((work / "eval" / f"leo-5way-1shot{seed}" / "summary.json").read_text()) for seed in ("", "-seed1")
    ]
    own, other = (summary["accuracy"]["leo"]["mean"] for summary in summaries)
    accuracy = next(table for table in tables if "accuracy" in table[0])
    assert {row[0]: row[2].split()[0] for row in accuracy[1:]} == {
        name: f"{100 * entry['mean']:.2f}" for name, entry in summaries[0]["accuracy"].items()
    }
    assert f"mean accuracy of {50 * (own + other):.2f}" in text and "trained with the seeds 0 and 1" in text
    assert ("class-mean was more accurate" in text) == (summaries[0]["accuracy"]["class-mean"]["mean"] > own)
    assert f"num\\_latents: {8}" in text and SHA in text
    links = re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE)
    assert sorted(links) == ["backbone/curves.png", "curves.png", "uncertainty/reliability.png"]
    assert all((written / link).is_file() for link in links)


def test_what_is_published_works_and_tells_no_paths(work, written, leokit, tmp_path):
    shutil.copytree(written, "model")
    # Another one's features at the place where those of the run were do not matter.
    shutil.copytree(work / "runs" / "leo-5way-1shot-seed1", "leokit-work/features")
    (verdict,) = json.loads(leokit("verify", "model", "--json").stdout)["artifacts"]
    assert verdict["id"] == manifest.read(work / "runs" / "leo-5way-1shot").id and not verdict["faults"]
    backbone = manifest.read(Path("model/backbone"))
    assert backbone.id == manifest.read(work / "backbone").id
    assert not manifest.file_faults(Path("model/backbone"), backbone)
    options = ("--episodes", 40, "--queries", 5, "--out", "tested")
    result = json.loads(leokit("eval", "--run", "model", "--features", work / "features", *options, "--json").stdout)
    expected = json.loads((work / "eval" / "leo-5way-1shot" / "summary.json").read_text())
    assert result["accuracy"] == expected["accuracy"]
    for name, data in contents(written).items():
        assert str(work.parent).encode() not in data and b"/usr/bin" not in data, name


def test_the_python_of_the_card_runs(work, written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", (written / "README.md").read_text(), re.DOTALL)[1]
    store = FeatureStore.open(work / "features")
    rows = np.concatenate([store.read_class("test", name)[:8] for name in store.classes("test")])
    labels = np.repeat(np.arange(len(store.classes("test"))), 8)
    names = {"rows": rows, "labels": labels, "others": rows}
    exec(f"{block}\nfound = classifier.predict(others)", names)
    assert (names["found"] == labels).mean() > 2 / len(store.classes("test"))


def test_the_same_artifacts_give_the_same_bytes(work, written, tmp_path):
    shutil.copytree(work, tmp_path / "moved")
    write(tmp_path / "moved", tmp_path / "again", license="apache-2.0")
    assert contents(tmp_path / "again") == contents(written)
    before = {name: (written / name).stat().st_mtime_ns for name in contents(written)}
    messages = []
    config = ReportConfig(card=True, run=work / "runs" / "leo-5way-1shot", work=work, out=written, license="apache-2.0")
    card.run(config, on_message=messages.append)
    assert "Already done" in messages[0]
    assert {name: (written / name).stat().st_mtime_ns for name in before} == before


def test_what_is_not_the_cards_is_left_alone(work, tmp_path):
    out = tmp_path / "out"
    (out / ".git").mkdir(parents=True)  # as in a clone of a repository
    write(work, out)
    own = (out / "README.md").read_text() + "My words.\n"
    (out / "README.md").write_text(own)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(LeokitError, match=r"README\.md was changed"):
        write(work, out)
    assert (out / "README.md").read_text() == own
    write(work, out, run="leo-5way-1shot-seed1", overwrite=True)
    # That run has no result of `leokit uncertainty`: its pictures are gone, other files stay.
    assert not (out / "uncertainty").exists() and (out / "mine.txt").exists()
    assert manifest.read(out).id == manifest.read(work / "runs" / "leo-5way-1shot-seed1").id
    (out / "card.json").unlink()
    with pytest.raises(LeokitError, match="no card that leokit wrote"):
        write(work, out)
    with pytest.raises(LeokitError, match="is a file"):
        write(work, out / "mine.txt")


def test_a_link_or_a_list_leads_nowhere_else(work, tmp_path):
    write(work, tmp_path / "out")
    (tmp_path / "mine.txt").write_text("mine")
    listed = json.loads((tmp_path / "out" / "card.json").read_text())
    listed["files"]["../mine.txt"] = manifest.hash_file(tmp_path / "mine.txt")
    (tmp_path / "out" / "card.json").write_text(json.dumps(listed))
    write(work, tmp_path / "out")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    (tmp_path / "out" / "README.md").unlink()
    (tmp_path / "out" / "README.md").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(LeokitError, match="is a link"):
        write(work, tmp_path / "out", overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("writes", [1, 4])
def test_after_a_crash_the_same_command_goes_on(work, written, tmp_path, monkeypatch, writes):
    original, count = manifest.write_atomically, iter(range(writes))

    def crash(path, data):
        if next(count, None) is None:
            raise KeyboardInterrupt
        original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            write(work, tmp_path / "out", license="apache-2.0")
    assert (tmp_path / "out" / "weights.safetensors").exists() < (writes < 9)
    write(work, tmp_path / "out", license="apache-2.0")
    assert contents(tmp_path / "out") == contents(written)


def test_a_damaged_file(work, tmp_path):
    shutil.copytree(work, tmp_path / "work")
    place = tmp_path / "work" / "runs" / "leo-5way-1shot"
    (place / "metrics.jsonl").unlink()
    made = write(tmp_path / "work", tmp_path / "out")
    assert [trouble.text for trouble in made.troubles] == ["metrics.jsonl is missing: it is left out."]
    assert "metrics.jsonl" not in made.files and manifest.read(tmp_path / "out").id == made.run
    data = (place / "weights.safetensors").read_bytes()
    (place / "weights.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(LeokitError, match=r"weights\.safetensors was altered"):
        write(tmp_path / "work", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_command(leokit, work, tmp_path):
    shutil.copytree(work, "leokit-work")
    said = " ".join(leokit("report", "--card", code=2).stderr.split())
    assert "There are 2 runs" in said and "leo-5way-1shot-seed1" in said and "--run" in said
    shutil.rmtree("leokit-work/runs/leo-5way-1shot-seed1")
    shutil.rmtree("leokit-work/eval")
    plan = json.loads(leokit("report", "--card", "--dry-run", "--json").stdout)
    assert plan["out"] == "leokit-work/card" and not Path(plan["out"]).exists()
    done = leokit("report", "--card")
    assert "states no licence" in done.stderr and "hf upload USER/NAME leokit-work/card" in done.stderr
    assert set(contents(tmp_path / "leokit-work" / "card")) == {*plan["files"], "card.json"}
    text = Path("leokit-work/card/README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text[4 : text.index("\n---\n", 4)])
    assert "license" not in head and "# license:" in text and "has not been tested" in text
    assert "Already done" in leokit("report", "--card").stderr
    # The card is a copy: neither a second run nor part of the page.
    assert "leokit-work/card" not in json.loads(leokit("report", "--dry-run", "--json").stdout)["artifacts"]
    assert "card" not in json.loads(leokit("report", "--dry-run", "--json").stdout)["artifacts"]
    assert "Hub's name" in leokit("report", "--card", "--license", "my own: {}", code=2).stderr
    assert "is of a --card" in leokit("report", "--run", "x", "--dry-run", code=0).stderr
    shutil.rmtree("leokit-work/runs")
    assert "There is no run in" in leokit("report", "--card", code=4).stderr


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet50.a1_in1k", "pretrained", "timm/resnet50.a1_in1k"),
        ("resnet50.a1_in1k", "weights.pt", None),
        ("resnet50.no_such_tag", "auto", None),
        ("tf_efficientnet_lite0", "auto", None),  # the bundled weights are not from the Hub
    ],
)
def test_the_model_that_timm_fetched_is_named(tmp_path, name, weights, expected):
    def artifact(facts, info):
        return Artifact("x", tmp_path, manifest.Manifest("leokit/x@1", "0", {}, {}, {}, facts, info))

    own = Collection(tmp_path)
    run, features = artifact({"backbone": {"name": name}}, {}), artifact({}, {"weights": weights})
    assert _base_model(Subject(run, features, None, own, own)) == expected
    assert (hub_repository(name) is None) == ("." not in name or "no_such" in name)
