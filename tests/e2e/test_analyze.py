"""`leokit analyze`: runs side by side, each number from its table, and what it refuses."""

import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import silhouette_score
from typer.testing import CliRunner

from leokit import manifest
from leokit.cli import app
from tests.e2e.conftest import make_store

TRAIN = "meta-train --steps 4 --val-every 4 --val-episodes 5 --val-queries 3 --queries 3 --num-latents 8".split()
SIZES = ("--val-episodes", 12, "--test-episodes", 9, "--perplexity", 5)
RUNS = "leokit-work/runs"
LEO, SGD = f"{RUNS}/leo-5way-1shot", f"{RUNS}/meta-sgd-5way-1shot"
TUNED = f"{RUNS}/generator-finetuning-5way-1shot"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of three variants, and an analysis of them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_store(folder / "leokit-work/features", images=8, dim=24)
        for variant in ("leo", "meta-sgd", "generator-finetuning"):
            result = CliRunner().invoke(app, [*TRAIN, "--variant", variant])
            assert result.exit_code == 0, result.stderr
        result = CliRunner().invoke(app, [str(word) for word in ("analyze", LEO, TUNED, SGD, LEO, *SIZES, "--json")])
        assert result.exit_code == 0, result.stderr
    return folder, json.loads(result.stdout)


@pytest.fixture
def work(made, leokit, tmp_path):
    """A copy of them, where commands run."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def rows(folder, name, **where):
    """Columns of a table, of the rows that have these values."""
    table = pq.read_table(folder / f"{name}.parquet")
    for key, value in where.items():
        table = table.filter(pc.equal(table[key], value))
    return table.to_pydict()


def test_the_summary_is_of_the_tables(made):
    folder, told = made
    out = folder / "leokit-work/analysis"
    leo, tuned, sgd = (path.rpartition("/")[2] for path in (LEO, TUNED, SGD))
    assert list(told["runs"]) == [leo, tuned, sgd]
    for name, entry in told["runs"].items():
        medians = {}
        for space in ("codes", "weights"):
            values = rows(out, "eigenvalues", run=name, point="start", space=space)["eigenvalue"]
            box = entry["curvature"]["start"][space]
            if name == sgd and space == "codes":
                assert values == [] and box is None
                continue
            assert len(values) == 9 * 20  # episodes times NK(N - 1)
            assert box["percentile_95"] == pytest.approx(np.percentile(values, 95))
            medians[space] = np.median(values)
        if name != sgd:
            ratio = entry["curvature"]["start"]["ratio_of_medians"]
            assert ratio == pytest.approx(medians["codes"] / medians["weights"])
            singular = rows(out, "singular_values", run=name)["singular_value"]
            assert (entry["singular_values"]["largest"], len(singular)) == (max(singular), 8)
        lengths = {
            loop: rows(out, "steps", run=name, loop=loop, space="weights")["length"] for loop in ("latent", "weights")
        }
        assert len(lengths["latent"]) == (9 * 5 if name == leo else 0)
        assert entry["steps"]["weights"]["weights"]["median"] == pytest.approx(np.median(lengths["weights"]))
    assert told["runs"][sgd]["singular_values"] is told["runs"][sgd]["codes"] is told["runs"][tuned]["codes"] is None
    (pair,) = told["compared_with_meta_sgd"]
    assert (pair["run"], pair["meta_sgd_run"]) == (leo, sgd)
    ours, theirs = (
        rows(out, "steps", run=name, loop=loop, space="weights")["length"]
        for name, loop in ((leo, "latent"), (sgd, "weights"))
    )
    assert pair["ratio_of_median_steps_in_weights"] == pytest.approx(np.median(ours) / np.median(theirs))


def test_silhouettes_are_of_the_codes_in_the_table(made):
    folder, told = made
    out, entry = folder / "leokit-work/analysis", told["runs"]["leo-5way-1shot"]["codes"]
    means = {}
    for stage in ("before", "after"):
        codes = rows(out, "codes", stage=stage)
        assert np.shape(codes["code"]) == (12 * 5, 8)
        means[stage] = silhouette_score(np.array(codes["code"]), codes["class_name"])
        assert entry["silhouette"][stage]["mean"] == pytest.approx(means[stage], abs=1e-6)
        assert entry["silhouette"][stage]["half_width_95_over_episodes"] > 0
    assert entry["silhouette"]["difference"]["mean"] == pytest.approx(means["after"] - means["before"], abs=1e-6)
    changes = {name: abs(value["difference"]["mean"]) for name, value in entry["silhouette_by_class"].items()}
    assert entry["highlighted"] == max(changes, key=changes.get)
    placed = rows(out, "positions", method="t-SNE")
    assert placed["episode"] == rows(out, "codes")["episode"]
    assert np.isfinite(placed["x"]).all()


def test_figures_are_named_with_words_and_are_no_part_of_the_id(made):
    folder = made[0] / "leokit-work/analysis"
    found = manifest.read(folder)
    figures = found.facts["figures"]
    assert set(figures) == {"curvature.png", "codes-leo-5way-1shot.png"}
    for name, words in figures.items():
        assert len(words) > 40
        assert not found.files[name].in_id
        with Image.open(folder / name) as picture:
            assert picture.width == 960
    assert {name for name, entry in found.files.items() if entry.in_id} == {
        "summary.json",
        "codes.parquet",
        "eigenvalues.parquet",
        "singular_values.parquet",
        "steps.parquet",
    }
    assert "positions.parquet" in found.files


def test_again_is_done_already_elsewhere_has_the_same_id_and_other_options_are_refused(made, work, leokit):
    done = leokit("analyze", LEO, TUNED, SGD, *SIZES, "--json")
    assert "Already done" in done.stderr
    assert json.loads(done.stdout) == made[1]
    small = ("--val-episodes", 4, "--test-episodes", 3, "--perplexity", 5, "--json")
    ids = {json.loads(leokit("analyze", LEO, SGD, *small, "--out", out).stdout)["id"] for out in ("a", "b")}
    assert len(ids) == 1
    assert (work / "a/positions.parquet").read_bytes() == (work / "b/positions.parquet").read_bytes()
    assert "runs: " in leokit("analyze", SGD, LEO, *small, "--out", "a", code=4).stderr
    refused = leokit("analyze", LEO, SGD, *small, "--seed", 3, "--out", "a", code=4).stderr
    assert "seed: 0 → 3" in refused
    assert "--overwrite" in refused


def test_a_run_without_codes_has_no_picture_of_them_and_tables_fit_80_columns(work, leokit):
    done = leokit("analyze", SGD, "--test-episodes", 3, "--out", "sgd")
    words = " ".join(done.stdout.split())
    assert "no picture of codes of meta-sgd-5way-1shot: it has none" in words
    assert "cannot be told" in words
    assert "leokit report" not in done.stderr  # it would not show what lies outside of the work folder
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert set(manifest.read(work / "sgd").facts["figures"]) == {"curvature.png"}
    assert "right" in leokit("verify", "sgd", "leokit-work/analysis").stdout


def test_what_does_not_go_is_refused_before_any_work(work, leokit):
    make_store(work / "other", images=8, dim=16)
    for arguments, code, words in (
        ((LEO, "--features", "other"), 4, "on those features only"),
        (("nowhere",), 4, "There is no artifact at nowhere"),
        ((LEO, "--highlight", "test00"), 2, "--highlight test00: it is no class of the val split"),
        ((LEO, "--val-episodes", 2, "--perplexity", 20), 2, "--perplexity 20: t-SNE of 20 codes"),
        ((SGD, "--ways", 3), 2, "a meta-sgd run, tested at its own 5 only"),
        ((LEO, "--shots", 9), 3, "has 8 images"),
    ):
        assert words in " ".join(leokit("analyze", *arguments, "--out", "new", code=code).stderr.split())
        assert not (work / "new").exists()
    plan = json.loads(leokit("analyze", "--dry-run", "--json").stdout)
    assert plan["runs"] == {"leo-5way-1shot": LEO}
    assert plan["out"] == "leokit-work/analysis"


def test_verify_finds_a_summary_that_its_rows_do_not_give(work, leokit):
    folder = work / "leokit-work/analysis"
    found, path = manifest.read(folder), folder / "summary.json"
    summary = json.loads(path.read_bytes())
    summary["runs"]["leo-5way-1shot"]["steps"]["latent"]["codes"]["median"] *= 1.01
    path.write_text(json.dumps(summary))
    names = {part: [name for name, entry in found.files.items() if entry.in_id == part] for part in (True, False)}
    manifest.finish(
        folder,
        found.schema,
        found.config,
        found.inputs,
        results=names[True],
        extras=names[False],
        facts=found.facts,
        info=found.info,
    )
    assert "the median of leo-5way-1shot steps latent codes" in " ".join(
        leokit("verify", folder, code=4).stdout.split()
    )
