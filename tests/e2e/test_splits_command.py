"""`leokit splits`: which classes a list has, and which of them are in a tree."""

import json

import pytest

from leokit.splits import SPLIT_NAMES, coverage


def make_tree(folder, names, images=3):
    for name in names:
        (folder / name).mkdir(parents=True)
        for image in range(images):
            (folder / name / f"{image}.jpg").write_bytes(b"")


@pytest.fixture
def tree(tmp_path):
    make_tree(tmp_path / "images", "abcdef")
    (tmp_path / "images/splits.csv").write_text("class_name,split\na,train\nb,train\nc,val\nd,test\n")
    return tmp_path / "images"


def test_list(leokit):
    assert "tieredimagenet" in leokit("splits", "list").stdout
    assert json.loads(leokit("splits", "list", "--json").stdout)["splits"] == {
        "miniimagenet": {"train": 64, "val": 16, "test": 20},
        "tieredimagenet": {"train": 351, "val": 97, "test": 160},
    }


def test_show(leokit, tree):
    done = leokit("splits", "show", "miniimagenet")
    assert "train 64, val 16, test 20." in done.stdout
    assert ["n01532829", "train"] in [line.split() for line in done.stdout.splitlines()]
    mine = json.loads(leokit("splits", "show", tree / "splits.csv", "--json").stdout)
    assert mine["classes"] == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert "no such list" in leokit("splits", "show", "minimagenet", code=2).stderr


def test_check_of_a_whole_tree(leokit, tree):
    done = leokit("splits", "check", tree)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["train", "2", "2", "0", "6"] in rows
    assert ["test", "1", "1", "0", "3"] in rows
    data = json.loads(leokit("splits", "check", tree, "--splits", "random:3/1/2", "--json").stdout)
    assert [(len(data[split]["present"]), data[split]["images"]) for split in SPLIT_NAMES] == [(3, 9), (1, 3), (2, 6)]


def test_check_names_what_is_missing(leokit, tree, tmp_path):
    (tmp_path / "more.csv").write_text("class_name,split\na,train\nx,train\ny,val\nd,test\n")
    done = leokit("splits", "check", tree, "--splits", "more.csv", code=3)
    assert ["train", "2", "1", "1", "3"] in [line.split() for line in done.stdout.splitlines()]
    assert "Missing from train: x." in done.stdout
    assert "Missing from val: y." in done.stdout
    assert "2 of the classes and 0 of the listed images" in done.stderr
    data = json.loads(leokit("splits", "check", tree, "--splits", "more.csv", "--json", code=3).stdout)
    assert data["val"] == {"present": [], "missing": ["y"], "images": 0, "missing_images": []}
    assert "100 of the classes" in leokit("splits", "check", tree, LEOKIT_SPLITS="miniimagenet", code=3).stderr


def test_check_of_image_lists(leokit, tree, tmp_path):
    (tmp_path / "lists").mkdir()
    for split, name in zip(SPLIT_NAMES, "acx", strict=True):
        rows = f"0.jpg,{name}\n7.jpg,{name}\n"
        (tmp_path / f"lists/{split}.csv").write_text(f"filename,label\n{rows}")
    data = json.loads(leokit("splits", "check", tree, "--splits", "lists", "--json", code=3).stdout)
    assert data["train"] == {"present": ["a"], "missing": [], "images": 1, "missing_images": ["7.jpg"]}
    assert data["test"] == {"present": [], "missing": ["x"], "images": 0, "missing_images": []}


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (None, "Nothing says which classes"),
        ("random:5/5/5", "needs 15 classes"),
        ("twice.csv", "in two splits"),
        ("lists", "listed more than once"),
    ],
)
def test_what_extract_refuses_check_refuses_too(leokit, tree, tmp_path, splits, words):
    (tree / "splits.csv").unlink()
    (tmp_path / "twice.csv").write_text("class_name,split\na,train\na,val\nb,test\n")
    (tmp_path / "lists").mkdir()
    for split, name in zip(SPLIT_NAMES, "abc", strict=True):
        (tmp_path / f"lists/{split}.csv").write_text(f"filename,label\n0.jpg,{name}\n0.jpg,{name}\n")
    arguments = ("--splits", splits) if splits else ()
    assert words in leokit("splits", "check", tree, *arguments, code=3).stderr
    assert words in leokit("extract", tree, *arguments, code=3).stderr


def test_no_images_and_no_subcommand(leokit, tmp_path):
    assert "no image folder" in leokit("splits", "check", "nowhere", code=3).stderr
    assert "check" in leokit("splits", "--help").stdout


def test_coverage_adds_up(tmp_path):
    available = {name: [f"{name}/{image}.jpg" for image in range(ord(name) % 5 + 1)] for name in "abcdefgh"}
    (tmp_path / "some.csv").write_text(
        "class_name,split\n" + "".join(f"{n},train\n" for n in "abxy") + "c,val\nz,test\n"
    )
    covered = coverage(str(tmp_path / "some.csv"), tmp_path, available)
    assert covered["train"].present == ("a", "b") and covered["train"].missing == ("x", "y")
    assert covered["train"].images == len(available["a"]) + len(available["b"])
    assert covered["test"].present == () and covered["test"].images == 0
