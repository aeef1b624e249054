"""Splits: every way to name them, every way to get them wrong, and what a backbone has seen."""

from importlib.resources import files

import pytest

from leokit.errors import DataError, UsageError
from leokit.splits import BUILT_IN, SPLIT_NAMES, classes_seen, division_remarks, resolve
from leokit.splits.resolving import suggested_division

CLASSES = [f"c{number:02}" for number in range(20)]
TREE = {name: [f"{name}/{image}.jpg" for image in range(3)] for name in CLASSES}


def write_lists(folder, header="class_name,image_name", rows=None):
    rows = rows or {
        split: [(name, f"{image}.jpg") for image in (2, 0)]
        for split, name in zip(SPLIT_NAMES, CLASSES[:3], strict=True)
    }
    folder.mkdir(exist_ok=True)
    for split in SPLIT_NAMES:
        lines = [header, *(",".join(row) for row in rows.get(split, []))]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def class_list(path, text):
    path.write_text(text)
    return str(path)


def wrong(spec, images, match, tree=TREE, kind=DataError):
    with pytest.raises(kind, match=match) as caught:
        resolve(spec, images, tree, seed=0)
    assert caught.value.exit_code == kind.exit_code


def test_a_class_list_in_the_tree_is_the_default(tmp_path):
    class_list(tmp_path / "splits.csv", "split,class_name\ntest,c03\ntrain,c02\ntrain,c01\n\nval,c00\n")
    splits = resolve(None, tmp_path, TREE, seed=0)
    assert splits.classes == {"train": ("c01", "c02"), "val": ("c00",), "test": ("c03",)}
    assert splits.images(TREE)["train"]["c01"] == tuple(TREE["c01"])
    assert splits.note is None


def test_without_any_list_the_ways_are_named(tmp_path):
    wrong(None, tmp_path, r"miniimagenet, tieredimagenet, random:TRAIN/VAL/TEST")
    wrong("minimagenet", tmp_path, "no such list, file or folder", kind=UsageError)


def test_a_random_division_follows_the_seed_alone(tmp_path):
    one, same, other = (resolve("random:10/4/6", tmp_path, TREE, seed) for seed in (1, 1, 2))
    assert one == same
    assert one.classes != other.classes
    assert [len(names) for names in one.classes.values()] == [10, 4, 6]
    assert sorted(name for names in one.classes.values() for name in names) == CLASSES
    assert all(list(names) == sorted(names) for names in one.classes.values())


def test_a_random_division_is_the_same_in_every_version(tmp_path):
    splits = resolve("random:2/2/2", tmp_path, TREE, seed=0)
    assert splits.classes == {"train": ("c00", "c08"), "val": ("c09", "c19"), "test": ("c03", "c18")}


@pytest.mark.parametrize(
    "spec", ["random:10/4", "random:10/4/x", "random:10/0/4", "random:-1/2/3", "random:", "random:²/1/1"]
)
def test_a_random_division_needs_three_numbers(tmp_path, spec):
    wrong(spec, tmp_path, "three numbers of classes", kind=UsageError)


def test_too_few_classes_for_a_random_division(tmp_path):
    wrong("random:10/5/6", tmp_path, "needs 21 classes, but the image tree has 20. Try random:8/6/6: .* unknown")


@pytest.mark.parametrize("count", [3, 4, 7, 11, 17, 18, 20, 34, 81, 100, 351, 1000])
def test_the_suggested_division_fits_and_has_as_many_val_as_test_classes(tmp_path, count):
    tree = {f"c{number:04}": ["x.jpg"] for number in range(count)}
    spec = suggested_division(count)
    splits = resolve(spec, tmp_path, tree, seed=0)
    sizes = {split: len(names) for split, names in splits.classes.items()}
    assert sum(sizes.values()) == count
    assert sizes["val"] == sizes["test"] <= max(sizes["train"], 6)
    assert sizes["val"] >= min(6, count // 3)  # 5-way episodes with a class left that can be unknown
    assert division_remarks(splits.source, splits.classes) == []


@pytest.mark.parametrize(("spec", "said"), [("random:10/4/6", True), ("random:12/1/2", True), ("random:8/6/6", False)])
def test_a_random_division_with_few_val_classes_says_what_depends_on_them(tmp_path, spec, said):
    splits = resolve(spec, tmp_path, TREE, seed=0)
    remarks = division_remarks(splits.source, splits.classes)
    assert len(remarks) == said
    for remark in remarks:
        assert "calibrated" in remark and "unknown" in remark and "random:" in remark


@pytest.mark.parametrize(
    "header", ["class_name,image_name", "image_name,class_name", "filename,label", "label,filename"]
)
def test_image_lists_choose_inside_the_classes(tmp_path, header):
    rows = {
        split: [(name, "2.jpg"), (name, f"{name}/0.jpg")] for split, name in zip(SPLIT_NAMES, CLASSES[:3], strict=True)
    }
    if header in ("image_name,class_name", "filename,label"):
        rows = {split: [row[::-1] for row in listed] for split, listed in rows.items()}
    splits = resolve(write_lists(tmp_path / "lists", header, rows), tmp_path, TREE, seed=0)
    assert splits.images(TREE) == {
        split: {name: (f"{name}/0.jpg", f"{name}/2.jpg")} for split, name in zip(SPLIT_NAMES, CLASSES[:3], strict=True)
    }
    assert "lists" not in splits.source or str(tmp_path) not in splits.source


def test_a_division_is_the_same_however_it_was_named(tmp_path):
    text = "class_name,split\nc00,train\nc01,val\nc02,test\n"
    inside = class_list(tmp_path / "splits.csv", text)
    (tmp_path / "elsewhere").mkdir()
    outside = class_list(tmp_path / "elsewhere" / "mine.csv", text)
    assert resolve(None, tmp_path, TREE, 0) == resolve(inside, tmp_path, TREE, 0) == resolve(outside, tmp_path, TREE, 5)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("class_name,split\nc00,train\nc01,val\nc02,test\nc00,test\n", "'c00' is in two splits, 'train' and 'test'"),
        ("class_name,split\nc00,train\nc01,val\nc02,test\nc00,train\n", "listed twice"),
        ("class_name,split\nc00,train\nc01,val\nnot,test\n", r"1 of the 3 classes .* as 'not'"),
        ("class_name,split\nc00,train\nc01,val\n", "'test' has no class"),
        ("class_name,split\nc00,novel\n", "line 2: split 'novel' is none of train, val, test"),
        ("class_name,split\nc00\n", "line 2: 1 fields"),
        ("wnid,superclass\nc00,x\n", "header 'wnid,superclass'; it must be class_name,split"),
        ("", "header ''"),
    ],
)
def test_a_wrong_class_list_is_refused(tmp_path, text, match):
    wrong(class_list(tmp_path / "mine.csv", text), tmp_path, match)


def test_a_list_must_be_text(tmp_path):
    (tmp_path / "mine.csv").write_bytes(b"class_name,split\n\xff,train\n")
    wrong(str(tmp_path / "mine.csv"), tmp_path, "no CSV in UTF-8")


@pytest.mark.parametrize("image", ["../c00/0.jpg", "/c00/0.jpg", "c00/../c00/0.jpg", "C:\\c00\\0.jpg"])
def test_a_list_cannot_lead_out_of_the_tree(tmp_path, image):
    rows = {"train": [("c00", image)], "val": [("c01", "0.jpg")], "test": [("c02", "0.jpg")]}
    wrong(write_lists(tmp_path / "lists", rows=rows), tmp_path, "leads out of the image tree")


@pytest.mark.parametrize(
    ("train", "match"),
    [
        ([("c00", "9.jpg")], r"1 listed image\(s\) are not .* '9.jpg'"),
        ([("c00", "c05/0.jpg")], "'c05/0.jpg'"),
        ([("c00", "0.jpg"), ("c00", "0.jpg")], "listed more than once"),
        ([("c01", "0.jpg")], "in two splits"),
        ([("c99", "0.jpg")], "'c99'"),
        ([], "'train' has no class"),
    ],
)
def test_wrong_image_lists_are_refused(tmp_path, train, match):
    rows = {"train": train, "val": [("c01", "0.jpg")], "test": [("c02", "0.jpg")]}
    wrong(write_lists(tmp_path / "lists", rows=rows), tmp_path, match)


def test_image_lists_need_all_three_files_and_a_known_header(tmp_path):
    lists = write_lists(tmp_path / "lists", header="a,b")
    wrong(lists, tmp_path, "header 'a,b'; it must be filename,label or class_name,image_name")
    (tmp_path / "lists" / "val.csv").unlink()
    wrong(lists, tmp_path, "has no val.csv")


def test_the_lists_of_the_package():
    sizes = {}
    for name in BUILT_IN:
        rows = (files("leokit.splits") / f"{name}.csv").read_text().split()[1:]
        classes = [row.split(",")[0] for row in rows]
        assert len(set(classes)) == len(classes) == classes_seen("imagenet-1k", classes)
        sizes[name] = [sum(row.endswith(f",{split}") for row in rows) for split in SPLIT_NAMES]
    assert sizes == {"miniimagenet": [64, 16, 20], "tieredimagenet": [351, 97, 160]}


def test_the_lists_of_the_package_are_those_of_the_authors(shared, tmp_path):
    tree = built_in_tree("miniimagenet", 600)
    splits = resolve("miniimagenet", tmp_path, tree, 0)
    for split, names in splits.classes.items():
        rows = (shared / "splits" / "miniimagenet_ravi" / f"{split}.csv").read_text().split()[1:]
        assert set(names) == {row.split(",")[1] for row in rows}
    tiered = resolve("tieredimagenet", tmp_path, built_in_tree("tieredimagenet", 2), 0)
    for split, names in tiered.classes.items():
        rows = (shared / "splits" / "tieredimagenet" / f"{split}.csv").read_text().split()
        assert set(names) == {row.split(",")[0] for row in rows}


def test_image_lists_as_users_hold_them(shared, tmp_path):
    for folder, column in (("miniimagenet_ravi", 0), ("miniimagenet_ilsvrc_names", 1)):
        tree = {}
        for split in SPLIT_NAMES:
            for row in (shared / "splits" / folder / f"{split}.csv").read_text().split()[1:]:
                fields = row.split(",")
                name, image = fields[1 - column], fields[column]
                tree.setdefault(name, [f"train/{name}/another.JPEG"]).append(f"train/{name}/{image}")
        splits = resolve(str(shared / "splits" / folder), tmp_path, tree, 0)
        counts = [len(images) for classes in splits.images(tree).values() for images in classes.values()]
        assert counts == [600] * 100


def built_in_tree(name, images):
    rows = (files("leokit.splits") / f"{name}.csv").read_text().split()[1:]
    return {row.split(",")[0]: [f"{row.split(',')[0]}/{i:04}.jpg" for i in range(images)] for row in rows}


def test_a_built_in_list_says_when_the_images_are_not_those_of_the_data_set(tmp_path):
    exact, full = built_in_tree("miniimagenet", 600), built_in_tree("miniimagenet", 601)
    assert resolve("miniimagenet", tmp_path, exact, 0).note is None
    note = resolve("miniimagenet", tmp_path, full, 0).note
    assert "All 60100 images" in note and "601 to 601 of each" in note
    wrong("miniimagenet", tmp_path, "100 of the 100 classes of miniimagenet")
    wrong(
        "tieredimagenet", tmp_path, r"of the 608 classes of tieredimagenet .* as 'n\d{8}', 'n\d{8}', 'n\d{8}', …", exact
    )


def test_classes_seen():
    seen, other = ["n01440764", "n01443537"], "n99999999"
    assert classes_seen("imagenet-1k", [*seen, other]) == 2
    assert classes_seen("imagenet-21k", seen) == 2
    assert classes_seen("imagenet-21k", [*seen, other]) is None
    assert classes_seen("imagenet-1k", ["tench", *seen]) is None
    assert classes_seen("web", seen) is None
    assert classes_seen("unknown", seen) is None
    assert classes_seen(["tench", "n01440764"], [*seen, "tench"]) == 2
    assert classes_seen([], ["a"]) == 0
    with pytest.raises(ValueError, match="imagenet-1k"):
        classes_seen("imagenet", seen)
