"""`leokit uncertainty` on a small store: its numbers from its own rows, what it refuses, and that it repeats itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from leokit import calibration
from leokit.config import MetaTrainConfig, ReportConfig, UncertaintyConfig, build
from leokit.features import FeatureStore
from leokit.stages import meta_train, report, uncertainty
from tests.e2e.conftest import make_store

RUN, FEATURES = "leokit-work/runs/leo-5way-1shot", "leokit-work/features"
TRAIN = {"steps": 6, "val_every": 3, "val_episodes": 10, "val_queries": 4, "queries": 4, "num_latents": 8}
SMALL = ("--episodes", 24, "--calibration-episodes", 30, "--samples", 4, "--queries", 5, "--curve-shots", "1,4")
SMALL = (*SMALL, "--curve-episodes", 6, "--resamples", 100)
PNGS = {"reliability.png", "risk_coverage.png", "open_set.png", "shots.png"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with two runs on train, one on train+val, and a meta-sgd run."""
    root = tmp_path_factory.mktemp("uncertainty")
    work = root / "leokit-work"
    make_store(work / "features", classes=(8, 7, 7), dim=24)

    def train(**options):
        values = {"work": work, "val_every": 3, **TRAIN, **options}
        meta_train.run(build(MetaTrainConfig, values))

    train()
    train(seed=1)
    train(train_on_val=True)
    train(variant="meta-sgd")
    return root


@pytest.fixture(scope="module")
def studied(made):
    """A study of the first two runs, made once."""
    values = {"work": made / "leokit-work", "runs": (made / RUN, made / f"{RUN}-seed1"), "out": made / "study"}
    options = {str(key)[2:].replace("-", "_"): value for key, value in zip(SMALL[::2], SMALL[1::2], strict=True)}
    return uncertainty.run(build(UncertaintyConfig, values | options))


@pytest.fixture
def leokit_there(leokit, made, tmp_path):
    shutil.copytree(made / "leokit-work", tmp_path / "leokit-work")
    return leokit


@pytest.fixture
def study(studied):
    return studied.folder, studied.summary


class Rows(dict):
    """Columns of predictions.parquet by name."""

    def where(self, chosen):
        return Rows({name: values[chosen] for name, values in self.items()})


def rows_of(folder, predictive, *, inside=True):
    table = pq.read_table(folder / "predictions.parquet")
    names = [name for name in table.column_names if name != "probabilities"]
    rows = Rows({name: np.array(table[name].to_pylist()) for name in names})
    probabilities = np.array(table["probabilities"].to_pylist())
    rows["probabilities"] = probabilities / probabilities.sum(1, keepdims=True)  # stored as float32
    return rows.where((rows["predictive"] == predictive) & (rows["inside"] == inside))


def test_the_report_shows_the_errors_and_the_calibration_errors_of_each_class(study, tmp_path):
    """Each under its own name, the errors as the stored predictions have them."""
    folder, summary = study
    work = tmp_path / "work"
    shutil.copytree(folder, work / "uncertainty" / "study")
    page = report.run(ReportConfig(work=work, format="markdown")).text
    lines = page.splitlines()
    errors, calibration_errors = (
        {cells[0]: cells[1:] for cells in _table_below(lines, words)}
        for words in ("classified wrongly, in %", "Calibration error of the probability of a class with temperature")
    )
    names = list(summary["predictives"])
    assert errors["class"] == calibration_errors["class"] == names
    for place, name in enumerate(names):
        rows = rows_of(folder, name)
        wrong = rows["probabilities"].argmax(1) != rows["label"]
        for class_name in set(rows["class_name"]):
            share = wrong[rows["class_name"] == class_name].mean()
            assert errors[class_name][place] == f"{100 * share:.1f}"
            stored = summary["class_errors"][name][class_name]
            assert calibration_errors[class_name][place] == f"{100 * stored:.1f}"


@pytest.mark.parametrize("damage", [lambda data: data[:-9] + bytes(9), lambda data: b"", lambda data: None])
def test_damaged_predictions_are_told_and_the_rest_is_shown(study, tmp_path, damage):
    work = tmp_path / "work"
    shutil.copytree(study[0], work / "uncertainty" / "study")
    path = work / "uncertainty/study/predictions.parquet"
    data = damage(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    made = report.run(ReportConfig(work=work, format="markdown"))
    assert [trouble.name for trouble in made.troubles] == ["uncertainty/study"]
    assert "Calibration and selective prediction" in made.text
    assert "classified wrongly" not in made.text


def _table_below(lines, words):
    """The cells of the rows of a Markdown table, its head first, whose caption has these words."""
    start = next(number for number, line in enumerate(lines) if words in line)
    while not lines[start].startswith("|"):
        start += 1
    rows = []
    while lines[start].startswith("|"):
        rows.append([cell.strip() for cell in lines[start].strip("|").split("|")])
        start += 1
    return [rows[0], *rows[2:]]


def test_outside_queries_of_few_classes_are_told(made, tmp_path):
    said = []
    options = {"episodes": 4, "calibration_episodes": 0, "samples": 2, "queries": 3, "curve_shots": "none"}
    for ways in (3, 2, 7):
        values = {"work": made / "leokit-work", "runs": (made / RUN,), "out": tmp_path / str(ways), "resamples": 100}
        config = build(UncertaintyConfig, {**values, **options, "ways": ways})
        said.append([])
        uncertainty.run(config, on_message=said[-1].append)
    assert "Telling outside queries rests on 4 spare test classes in an episode: others may differ." in said[0]
    assert "Telling outside queries rests on 5 spare test classes in an episode: others may differ." in said[1]
    assert not any("spare" in sentence for sentence in said[2])


def test_the_summary_follows_from_the_rows(study):
    folder, summary = study
    assert list(summary["predictives"]) == ["deterministic", "sampled", "ensemble", "class-mean", "logistic"]
    for name, entry in summary["predictives"].items():
        rows = rows_of(folder, name)
        probabilities, labels = rows["probabilities"], rows["label"]
        assert probabilities.shape == (24 * 25, 5)
        raw = {key: value["value"] for key, value in entry["raw"].items()}
        assert raw["accuracy"] == pytest.approx((probabilities.argmax(1) == labels).mean())
        assert raw["negative_log_likelihood"] == pytest.approx(
            log_loss(labels, probabilities, labels=range(5)), rel=1e-4
        )
        for measure in entry["raw"].values():
            assert measure["low"] <= measure["high"]
        expected = raw["brier_score"] - summary["predictives"]["deterministic"]["raw"]["brier_score"]["value"]
        assert entry["difference"]["brier_score"]["value"] == pytest.approx(expected)
        tempered = calibration.tempered(probabilities, entry["temperature"])
        assert entry["tempered"]["negative_log_likelihood"]["value"] == pytest.approx(
            calibration.nll_of(tempered, labels).mean(), rel=1e-3
        )
        assert entry["tempered"]["accuracy"]["value"] == pytest.approx(raw["accuracy"], abs=2e-3)
        outside = rows_of(folder, name, inside=False)
        highest = [part["probabilities"].max(1) for part in (rows, outside)]
        truth = np.repeat([1, 0], [len(part) for part in highest])
        found = summary["open_set"][name]["maximum_probability"]
        assert found["auroc_pooled"] == pytest.approx(roc_auc_score(truth, np.concatenate(highest)), abs=1e-5)
        each = [
            roc_auc_score(np.repeat([1, 0], 25), np.concatenate([part[index : index + 25] for part in highest]))
            for index in range(0, len(labels), 25)
        ]
        assert found["auroc_per_episode"] == pytest.approx(np.mean(each), abs=1e-5)


def test_rows_name_images_and_classes_and_outside_ones_are_of_other_classes(study):
    folder, _ = study
    inside, outside = (rows_of(folder, "sampled", inside=side) for side in (True, False))
    for rows in (inside, outside):
        assert all(image.startswith(f"{name}/") for image, name in zip(rows["image"], rows["class_name"], strict=True))
    for episode in range(24):
        ours, others = (rows.where(rows["episode"] == episode) for rows in (inside, outside))
        names = [set(ours["class_name"][ours["label"] == place]) for place in range(5)]
        assert [len(found) for found in names] == [1] * 5
        assert not set().union(*names) & set(others["class_name"])
    assert (outside["label"] == -1).all()
    assert (inside["aleatoric_entropy"] <= inside["entropy"] + 1e-5).all()
    single = rows_of(folder, "deterministic")
    np.testing.assert_allclose(single["aleatoric_entropy"], single["entropy"], atol=1e-4)


def test_temperatures_are_of_meta_val(study):
    _, summary = study
    assert summary["predictives"]["sampled"]["temperature"] != summary["predictives"]["deterministic"]["temperature"]
    assert summary["calibration_episodes"] == 30
    assert summary["val_classes"] == 7


def test_parts_of_uncertainty_add_up_at_each_label_noise(study):
    _, summary = study
    points = {(p["predictive"], p["shots"], p["noise"]): p for p in summary["decomposition"]}
    assert set(points) == {(n, k, s) for n in ("sampled", "ensemble") for k in (1, 4) for s in (0, 0.2, 0.4)} - {
        (n, 1, 0.2)
        for n in ("sampled", "ensemble")  # one image cannot be interchanged alone
    }
    for point in points.values():
        assert point["total"] == pytest.approx(point["aleatoric"] + point["epistemic"])
        assert point["epistemic"] >= -1e-6
    assert len({points["sampled", 4, noise]["total"] for noise in (0, 0.2, 0.4)}) == 3


def test_it_repeats_itself_and_other_workers_change_nothing(leokit_there, studied):
    folder = Path("leokit-work/uncertainty/leo-5way-1shot-ensemble")
    shutil.copytree(studied.folder, folder, dirs_exist_ok=True)
    again = leokit_there("uncertainty", RUN, f"{RUN}-seed1", *SMALL)
    assert "lready done" in again.stderr
    options = ("--workers", 0, "--out", "elsewhere", "--json")
    other = leokit_there("uncertainty", RUN, f"{RUN}-seed1", *SMALL, *options).stdout
    assert json.loads(other)["id"] == studied.id
    assert {path.name for path in folder.glob("*.png")} == PNGS
    figures = json.loads((folder / "manifest.json").read_text())["facts"]["figures"]
    assert set(figures) == PNGS
    assert all(len(text) > 40 for text in figures.values())
    changed = leokit_there("uncertainty", RUN, f"{RUN}-seed1", *SMALL, "--bins", 4, code=4).stderr
    assert "bins" in changed
    assert "--overwrite" in changed


def test_the_same_episodes_and_class_mean_as_eval(leokit_there, study):
    folder, _ = study
    leokit_there("eval", RUN, "--episodes", 24, "--queries", 5, "--methods", "class-mean,logistic")
    table = pq.read_table("leokit-work/eval/leo-5way-1shot/episodes.parquet").to_pydict()
    for method, predictive in (("leo", "deterministic"), ("class-mean", "class-mean"), ("logistic", "logistic")):
        rows = rows_of(folder, predictive)
        right = (rows["probabilities"].argmax(1) == rows["label"]).reshape(24, 25).mean(1)
        pairs = zip(table["method"], table["accuracy"], strict=True)
        np.testing.assert_allclose(right, [accuracy for name, accuracy in pairs if name == method])


def test_val_is_left_alone_where_it_was_trained_on(leokit_there):
    run = f"{RUN}-trainval"
    refused = leokit_there("uncertainty", run, *SMALL, code=4).stderr
    assert "trained on val" in refused
    assert "--calibration-episodes 0" in refused
    result = json.loads(leokit_there("uncertainty", run, *SMALL, "--calibration-episodes", 0, "--json").stdout)
    assert result["sets"] is None
    assert all(entry["tempered"] is None for entry in result["predictives"].values())


def test_val_is_left_alone_where_the_backbone_was_trained_on_it(leokit_there, made, tmp_path):
    store = FeatureStore.open(made / FEATURES)
    val = store.classes("val")
    manifest = tmp_path / FEATURES / "manifest.json"
    shutil.rmtree(manifest.parent)
    make_store(manifest.parent, classes=(8, 7, 7), dim=24, trained_on=val[:3])
    leokit_there(
        "meta-train", *(item for k, v in TRAIN.items() for item in (f"--{k.replace('_', '-')}", v)), "--out", "new"
    )
    refused = leokit_there("uncertainty", "new", *SMALL, code=4).stderr
    assert "has seen 3 of the val classes, but 0 of the 7 test classes" in refused


def test_a_run_without_samples_leaves_them_out(leokit_there):
    done = leokit_there("uncertainty", "leokit-work/runs/meta-sgd-5way-1shot", *SMALL)
    assert "trained without samples" in done.stderr
    assert "sampled" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--ways", 9), 3, "7 classes"),
        (("--queries", 30), 3, "24 images"),
        (("--curve-shots", "1,x"), 2, "'x' is no number from 1 to 1000"),
        (("--label-noise", "0.2,1.5"), 2, "'1.5' is no number from 0 to 1"),
        (("--samples", 1), 2, "samples = 1: it must be a whole number of 2 or more."),
    ],
)
def test_what_it_cannot_do_is_said_before_any_work(leokit_there, options, code, words):
    error = leokit_there("uncertainty", RUN, *options, code=code).stderr
    assert words in error
    assert not Path("leokit-work/uncertainty").exists()


def test_a_run_named_twice_is_no_ensemble(leokit_there):
    assert "named twice" in leokit_there("uncertainty", RUN, RUN, code=2).stderr


def test_a_dry_run_says_what_it_would_do(leokit_there):
    told = leokit_there("uncertainty", RUN, "--curve-shots", "1", "--dry-run").stdout
    assert "deterministic, sampled, class-mean, logistic" in told
