"""`leokit table`: our evaluations beside the paper's numbers."""

import csv
import json
import tomllib

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.conftest import make_store

TRAIN = ("meta-train", "--steps", 2, "--val-every", 2, "--val-episodes", 20, "--val-queries", 5, "--queries", 5)
EVAL = ("eval", "--episodes", 20, "--queries", 5, "--methods", "class-mean,ridge")


@pytest.fixture
def tested(leokit, features):
    """Two seeds of LEO at 1 shot, one at 5, a variant, and one on train+val: evaluations by their folders' names."""
    runs = [
        leokit(*TRAIN, *options, "--json").stdout
        for options in (
            (),
            ("--seed", 1),
            ("--shots", 5),
            ("--variant", "generator"),
            ("--train-on-val",),
        )
    ]
    folders = [json.loads(run)["out"] for run in runs]
    done = json.loads(leokit(*EVAL, *folders, "--json").stdout)
    return {entry["out"].rpartition("/")[2]: entry for entry in done["evaluations"]} | {"groups": done["groups"]}


def rows_of(table, method, whose="ours"):
    return [row for row in table["rows"] if (row["method"], row["whose"]) == (method, whose)]


def test_table_1_holds_our_means_by_what_they_are(leokit, tested, tmp_path):
    table = json.loads(leokit("table", 1, "--json").stdout)
    (leo,) = rows_of(table, "LEO")
    (group,) = (entry for entry in tested["groups"] if entry["seeds"] == [0, 1])
    ours = group["accuracy"]["leo"]
    found = leo["by_shots"]["1"]
    assert found["seeds"] == 2
    assert found["mean"] == pytest.approx(100 * ours["mean"])
    assert found["half_width_95_over_episodes"] == pytest.approx(100 * ours["half_width_95_over_episodes"])
    assert found["sd_over_seeds"] == pytest.approx(100 * ours["sd_over_seeds"])
    assert leo["by_shots"]["5"]["seeds"] == 1
    assert leo["by_shots"]["5"]["sd_over_seeds"] is None
    (merged,) = rows_of(table, "LEO, trained on train+val")
    assert merged["by_shots"]["5"] is None
    (ridge,) = rows_of(table, "ridge")
    assert ridge["by_shots"]["1"]["mean"] == pytest.approx(100 * tested["leo-5way-1shot"]["accuracy"]["ridge"]["mean"])
    assert not rows_of(table, "Conditional generator only")  # a row of Table 2
    paper = rows_of(table, "LEO", "paper")[0]["by_shots"]["5"]
    assert (paper["mean"], paper["sd_over_seeds"], paper["half_width_95_over_episodes"]) == (77.59, 0.12, None)


def test_table_2_sets_variants_beside_the_paper_and_the_files_say_the_same(leokit, tested, tmp_path):
    text = leokit("table", 2, "--dataset", "tieredimagenet").stdout
    assert max(map(len, text.splitlines())) <= 80
    folder = tmp_path / "leokit-work/tables/table2"
    table = json.loads((folder / "table2.json").read_text())
    assert len(rows_of(table, "Conditional generator only")) == 1
    assert rows_of(table, "LEO (deterministic)", "paper")[0]["by_shots"]["5"]["mean"] == 82.06
    with (folder / "table2.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(entry is not None for row in table["rows"] for entry in row["by_shots"].values())
    leo = rows_of(table, "LEO")[0]["by_shots"]["1"]
    assert float(lines[0]["sd_over_seeds"]) == leo["sd_over_seeds"]
    markdown = (folder / "table2.md").read_text()
    assert "1-shot ± 95 % over episodes | sd over seeds" in markdown
    assert f"{leo['mean']:.2f} ± {leo['half_width_95_over_episodes']:.2f} | {leo['sd_over_seeds']:.2f}" in markdown
    for words in ("WRN-28-10", "cannot be told", "train+val", "not recorded", "github.com/google-deepmind/leo"):
        assert words in markdown


def test_the_same_table_is_done_already_and_another_is_refused(leokit, tested):
    first = leokit("table", 1)
    again = leokit("table", 1)
    assert "Already done" in again.stderr
    assert again.stdout == first.stdout
    assert "dataset" in leokit("table", 1, "--dataset", "tieredimagenet", code=4).stderr
    leokit("table", 1, "leokit-work/eval/leo-5way-1shot", "--overwrite")


def test_what_does_not_belong_into_a_table(leokit, tested, features, tmp_path):
    plan = leokit("table", 1, "--dry-run", "--json")
    assert len(json.loads(plan.stdout)["evaluations"]) == 5
    run = "leokit-work/runs/leo-5way-1shot"
    leokit(*EVAL, "--run", run, "--ways", 3)
    leokit(*EVAL, "--run", run, "--shots", 5)
    leokit(*EVAL, "--run", run, "--split", "val")
    left_out = leokit("table", 1).stderr
    assert "is 3-way 1-shot" in left_out
    assert "of a run that was trained 5-way 1-shot" in left_out
    assert "of val classes" in left_out
    only = leokit("table", 1, "leokit-work/eval/leo-5way-1shot-val", "--out", "new", code=4).stderr
    assert "leokit eval" in only
    leokit(*EVAL, "--run", run, "--episodes", 30, "--out", "longer")
    refused = leokit("table", 1, "longer", "leokit-work/eval/leo-5way-5shot", "--out", "new", code=4).stderr
    assert "not tested alike (episodes: 30 → 20)" in refused
    assert "There is no artifact" in leokit("table", 1, "nowhere", code=4).stderr
    leokit("table", 3, code=2)
    assert not (tmp_path / "new").exists()


def test_nothing_tested_yet(leokit, tmp_path):
    assert "run `leokit eval` first" in leokit("table", 2, code=4).stderr


def test_the_table_names_the_backbone_and_the_classes_it_has_seen(leokit, tmp_path):
    backbone = {"name": "some_backbone", "weights_sha256": "0"}
    make_store(tmp_path / "leokit-work/features", backbone=backbone, trained_on=["test00", "test01"])
    leokit(*TRAIN)
    leokit(*EVAL)
    sentences = " ".join(json.loads(leokit("table", 1, "--json").stdout)["sentences"])
    assert "on features of some_backbone" in sentences
    assert "has seen 2 of the 6 test classes" in sentences


def test_published_numbers_are_those_of_our_notes(shared):
    """Every number in the file stands in the notes on the paper, in the row of its method and at its place."""
    notes = (shared / "docs/leo-paper.md").read_text()
    data = tomllib.loads((REPOSITORY / "leokit/published.toml").read_text())
    for row in data["rows"]:
        assert row["source"] in data["sources"]
        for dataset in ("miniimagenet", "tieredimagenet"):
            for numbers in row.get(dataset, {}).values():
                text = " ± ".join(f"{value:.2f}" for value in numbers) if len(numbers) == 2 else f"{numbers[0]}"
                assert text in notes, (row["method"], text)
