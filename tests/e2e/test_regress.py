"""`leokit regress`: training that resumes to the bit, the figure and the numbers, as a user meets them."""

import json

import numpy as np
import pytest
import torch

from leokit import manifest
from leokit.config import RegressEvalConfig, RegressPlotConfig, RegressTrainConfig, VerifyConfig
from leokit.engine import regression
from leokit.engine.steps import Diverged
from leokit.errors import ArtifactError, Interrupted
from leokit.regression.models import open_regression
from leokit.runs import METRICS, STATE, WEIGHTS, load_state
from leokit.stages import verify
from leokit.stages.regress import evaluate, plot, train
from leokit.tables import read_table

SIZE = {"steps": 10, "meta_batch": 2, "samples": 2, "queries": 4, "inner_steps": 1}


@pytest.fixture(autouse=True, scope="module")
def often():
    """Report and keep after few steps, so that few suffice."""
    patch = pytest.MonkeyPatch()
    patch.setattr(regression, "REPORT_EVERY", 2)
    patch.setattr(regression, "KEEP_EVERY", 4)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder with a small model, its figure and its evaluation."""
    folder = tmp_path_factory.mktemp("regress")
    train.run(RegressTrainConfig(work=folder, **SIZE))
    plot.run(RegressPlotConfig(work=folder, tasks=64, samples=5))
    evaluate.run(RegressEvalConfig(work=folder, tasks=6, ambiguous=2, samples=8, queries=5))
    return folder


def test_a_killed_training_goes_on_to_the_bit(work, tmp_path):
    def die(done, total, text):
        if done == 7:  # the last state that was kept is of step 4, the last line of step 6
            raise RuntimeError("killed")

    config = RegressTrainConfig(out=tmp_path / "model", **SIZE)
    with pytest.raises(RuntimeError, match="killed"):
        train.run(config, on_progress=die)
    assert load_state(tmp_path / "model" / STATE)[1]["step"] == 4
    said = []
    again, whole = train.run(config, on_message=said.append), open_regression(work / "regression")
    assert said == ["Going on from step 4."]
    for name in (WEIGHTS, STATE, METRICS):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert again.id == whole.id
    lines = (again.folder / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8, 10]


def test_an_interrupted_training_keeps_its_step(tmp_path, monkeypatch):
    from contextlib import nullcontext

    calls = iter([False, False, True])
    monkeypatch.setattr(train, "stop_requests", lambda: nullcontext(lambda: next(calls)))
    with pytest.raises(Interrupted, match="step 3 of 10"):
        train.run(RegressTrainConfig(out=tmp_path, **SIZE))
    assert load_state(tmp_path / STATE)[1]["step"] == 3


def test_a_loss_that_is_no_number_stops_with_the_last_good_state(tmp_path):
    config = RegressTrainConfig(out=tmp_path, **{**SIZE, "outer_lr": 1e4})
    with pytest.raises(Diverged, match=r"not finite.*lower --outer-lr"):
        train.run(config)
    tensors, record = load_state(tmp_path / STATE)
    assert 0 < record["step"] < 10
    assert all(value.isfinite().all() for value in tensors.values())


def test_training_lowers_the_loss(tmp_path):
    config = RegressTrainConfig(steps=60, meta_batch=4, samples=2, inner_steps=1, outer_lr=3e-3)
    state, lines = regression.new_state(config), []
    torch.manual_seed(0)  # which must not matter
    regression.train(config, state, keep=lambda kept: None, report=lines.append)
    losses = [line["query_loss"] for line in lines]
    assert np.median(losses[-5:]) < 0.7 * np.median(losses[:5])


def test_all_three_verify_and_name_their_figures(work):
    folders = [work / name for name in ("regression", "regression-plot", "regression-eval")]
    for verdict in verify.run(VerifyConfig(paths=tuple(folders))):
        assert verdict.faults == () == verdict.notes
    for folder in folders:
        for name, text in manifest.read(folder).facts["figures"].items():
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
            assert text.endswith(".")


def test_verify_finds_what_does_not_fit(work, tmp_path):
    from shutil import copytree

    folder = tmp_path / "regression-eval"
    copytree(work / "regression-eval", folder)
    found = manifest.read(folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary["predictives"]["leo"]["spread"]["mean"] += 0.1
    (folder / "summary.json").write_text(json.dumps(summary))
    manifest.finish(
        folder,
        found.schema,
        found.config,
        found.inputs,
        results=["summary.json", "tasks.parquet"],
        facts=found.facts,
        info={},
    )
    (verdict,) = verify.run(VerifyConfig(paths=(folder,)))
    assert len(verdict.faults) == 1
    assert "spread of 'leo'" in verdict.faults[0]


def rows_of(folder, **chosen):
    rows = read_table(folder / "tasks.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in chosen.items())]


def test_the_evaluation_is_of_the_tasks_it_names(work):
    folder = work / "regression-eval"
    leo, exact = (rows_of(folder, chosen="drawn", predictive=name) for name in ("leo", "exact posterior"))
    assert [row["task"] for row in leo] == [row["task"] for row in exact] == list(range(6))
    unclear = rows_of(folder, chosen="ambiguous")
    assert len(unclear) == 2 * 2
    assert all(0.1 <= row["exact_probability_of_sine"] <= 0.9 for row in unclear)
    # The exact posterior is better than a model of ten steps by all that is a proper score.
    for name in ("negative_log_likelihood", "continuous_ranked_probability_score"):
        assert np.mean([row[name] for row in exact]) < np.mean([row[name] for row in leo])


def test_more_tasks_leave_the_first_as_they_were(work, tmp_path):
    evaluate.run(RegressEvalConfig(work=work, out=tmp_path, tasks=8, ambiguous=2, samples=8, queries=5))
    for predictive in ("leo", "exact posterior"):
        few, more = (
            [row["spread"] for row in rows_of(folder, chosen="drawn", predictive=predictive)]
            for folder in (work / "regression-eval", tmp_path)
        )
        np.testing.assert_allclose(more[:6], few, rtol=1e-4)
        assert len(more) == 8


def test_the_panels_are_chosen_by_the_points(work):
    panels = json.loads((work / "regression-plot" / "panels.json").read_text())
    assert [panel["family"] for panel in panels[:2]] == ["sine", "line"]
    assert panels[0]["exact_probability_of_sine"] > 0.99
    assert panels[1]["exact_probability_of_sine"] < 0.01
    assert len({panel["task"] for panel in panels}) == 4
    tasks = regression.test_tasks(list(range(64)), seed=0, shots=5, queries=0)
    near = sorted(abs(probability - 0.5) for probability in regression.sine_probabilities(tasks))
    assert [abs(panel["exact_probability_of_sine"] - 0.5) for panel in panels[2:]] == pytest.approx(near[:2])


def test_the_command_line(leokit, work):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZE.items()]
    done = leokit("regress", "train", "--work", work, *sizes)
    assert "Already done" in done.stderr
    assert "Next: leokit regress plot" in done.stderr
    refused = leokit("regress", "train", "--work", work, *sizes, "--kl-weight", "1", code=4)
    assert "kl_weight: 0.01 → 1.0" in refused.stderr
    assert "--overwrite" in refused.stderr
    shown = leokit("regress", "eval", "--work", work, "--tasks=6", "--ambiguous=2", "--samples=8", "--queries=5")
    for word in ("negative log-likelihood", "CRPS", "in the 95 % interval", "ambiguous", "exact posterior"):
        assert word in " ".join(shown.stdout.split())
    result = json.loads(leokit("regress", "plot", "--work", work, "--tasks=64", "--samples=5", "--json").stdout)
    assert [panel["samples"] for panel in result["panels"]] == [5] * 4
    plan = json.loads(leokit("regress", "train", "--work", "elsewhere", "--dry-run", "--json").stdout)
    assert plan["generated_weights"] == 1761
    assert "leokit regress train" in leokit("regress", "plot", "--work", "elsewhere", code=4).stderr
    assert "outer_lr = -1.0" in leokit("regress", "train", "--outer-lr=-1", code=2).stderr


def test_a_model_that_was_altered_is_refused(work, tmp_path):
    from shutil import copytree

    copytree(work / "regression", tmp_path / "regression")
    path = tmp_path / "regression" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="altered"):
        plot.run(RegressPlotConfig(work=tmp_path))
