"""Finding images: layouts, order, odd names, links, and nothing left out without a word."""

import os
import shutil
import sys
import tarfile
from functools import partial

import pytest

from leokit.errors import DataError, UsageError
from leokit.images import kinds
from leokit.images.scan import images_under, scan
from leokit.splits.lists import ListedImage
from leokit.splits.resolving import find_images

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
HEIC = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic"


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_a_class_is_a_folder_of_images(tmp_path):
    touch(tmp_path, "b/2.JPG", "b/10.jpg", "a/1.png", "a/x.txt", ".DS_Store", "a/.hidden.jpg", "a/Thumbs.db", "0.jpg")
    touch(tmp_path, "empty/readme.md", ".git/1.jpg", "splits.csv")
    tree = scan(tmp_path)
    assert tree.classes == {"a": ("a/1.png",), "b": ("b/10.jpg", "b/2.JPG")}
    assert list(tree.classes) == ["a", "b"]
    assert tree.ignored == (".DS_Store", ".git/", "0.jpg", "a/.hidden.jpg", "a/Thumbs.db", "a/x.txt", "empty/readme.md")


def test_order_is_bytewise(tmp_path):
    touch(tmp_path, *(f"{name}/1.jpg" for name in ("é", "e", "f", "E", "日", "a b")))
    assert list(scan(tmp_path).classes) == ["E", "a b", "e", "f", "é", "日"]


def test_classes_may_lie_deeper(tmp_path):
    touch(tmp_path, "animals/cat/1.jpg", "animals/dog/1.jpg", "plants/trees/oak/1.jpg")
    assert list(scan(tmp_path).classes) == ["cat", "dog", "oak"]


def test_layout_of_ilsvrc(tmp_path):
    touch(tmp_path, "train/n1/a.JPEG", "train/n2/a.JPEG", "val/1.JPEG", "val/2.JPEG", "test/1.JPEG", ".DS_Store")
    tree = scan(tmp_path)
    assert tree.classes == {"n1": ("train/n1/a.JPEG",), "n2": ("train/n2/a.JPEG",)}
    assert tree.ignored == (".DS_Store", "test/1.JPEG", "val/1.JPEG", "val/2.JPEG")


def test_held_out_images_of_the_same_classes_are_left_alone(tmp_path):
    touch(tmp_path, "train/n1/a.JPEG", "train/n2/a.JPEG", "val/n1/b.JPEG", "val/n3/b.JPEG")
    tree = scan(tmp_path)
    assert list(tree.classes) == ["n1", "n2"]
    assert tree.ignored == ("val/n1/b.JPEG", "val/n3/b.JPEG")


def test_folders_of_splits_with_classes_of_their_own_are_all_taken(tmp_path):
    touch(tmp_path, "train/n1/a.JPEG", "val/n2/a.JPEG", "test/n3/a.JPEG")
    assert list(scan(tmp_path).classes) == ["n1", "n2", "n3"]


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/1.jpg", "car/1.jpg")
    assert list(scan(tmp_path).classes) == ["car", "train"]


def test_two_folders_of_one_name_are_named(tmp_path):
    touch(tmp_path, "x/cat/1.jpg", "y/cat/1.jpg")
    with pytest.raises(DataError, match=r"'cat': 'x/cat' and 'y/cat'"):
        scan(tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a file system that takes any bytes as a name")
def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    touch(tmp_path, f"{name}/a\\b\n.jpg")
    tree = scan(tmp_path)
    assert tree.classes == {"caf\\xe9": ("caf\\xe9/a\\\\b\n.jpg",)}
    assert tree.path("caf\\xe9/a\\\\b\n.jpg").exists()


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "elsewhere", "1.jpg")
    touch(tmp_path / "tree", "a/1.jpg")
    (tmp_path / "tree" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "a" / "up").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    tree = scan(tmp_path / "tree")
    assert tree.classes == {"a": ("a/1.jpg", "a/gone.jpg"), "b": ("b/1.jpg",)}
    assert tree.ignored == ("a/up/",)


def test_a_pipe_is_no_image(tmp_path):
    touch(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a" / "2.jpg")
    assert scan(tmp_path).ignored == ("a/2.jpg",)


def test_no_images(tmp_path):
    with pytest.raises(DataError, match="no image folder"):
        scan(tmp_path / "missing")
    with pytest.raises(DataError, match=r"a class is a folder, or a \.tar, of images"):
        scan(tmp_path)
    touch(tmp_path, "1.jpg")
    with pytest.raises(DataError, match="in no folder that names their class"):
        scan(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "b").chmod(0)
    with pytest.raises(DataError, match=r"b cannot be read: Permission denied"):
        scan(tmp_path)
    (tmp_path / "b").chmod(0o755)


# Trees as people have them, with what becomes of them: the classes and how many images each has, and what is said


@pytest.mark.parametrize(
    ("paths", "classes", "said"),
    [
        pytest.param(
            ["train/n1/images/n1_0.JPEG", "train/n1/n1_boxes.txt", "train/n2/images/n2_0.JPEG", "val/images/0.JPEG"],
            {"n1": 1, "n2": 1},
            ["Left alone, being no images of a class: 2 (train/n1/n1_boxes.txt, val/images/0.JPEG)."],
            id="Tiny-ImageNet",
        ),
        pytest.param(
            ["tiny/train/n1/images/n1_0.JPEG", "tiny/train/n2/images/n2_0.JPEG", "tiny/val/n2/0.JPEG"],
            {"n1": 1, "n2": 1},
            ["Left alone, being no images of a class: 1 (tiny/val/n2/0.JPEG)."],
            id="Tiny-ImageNet, put into classes, in a folder",
        ),
        pytest.param(["a/images/1.jpg", "b/Images/1.jpg"], {"a": 1, "b": 1}, [], id="images"),
        pytest.param(
            ["Data/CLS-LOC/train/n1/a.JPEG", "Data/CLS-LOC/val/1.JPEG", "Annotations/val/1.xml"],
            {"n1": 1},
            ["Left alone, being no images of a class: 2 (Annotations/val/1.xml, Data/CLS-LOC/val/1.JPEG)."],
            id="ILSVRC",
        ),
        pytest.param(
            [
                "dog/1.jpg",
                "dog/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
                "cat/1.jpg",
                "__MACOSX/cat/._1.jpg",
                ".trash/1.jpg",
            ],
            {"cat": 1, "dog": 1},
            ["Left alone, being no images of a class: 3 (.trash/, __MACOSX/, dog/@eaDir/)."],
            id="NAS",
        ),
        pytest.param(
            ["cat/camera0/1.jpg", "dog/camera2/1.jpg", "dog/camera3/1.jpg"],
            {"camera0": 1, "camera2": 1, "camera3": 1},
            ["3 classes, the innermost folders, as cat/camera0; --class-level 1 would give 2 classes, as cat."],
            id="cameras",
        ),
        pytest.param(
            ["Fruit/Apple/Red/1.jpg", "Fruit/Pear/Green/1.jpg", "Milk/Oat/1.jpg"],
            {"Green": 1, "Oat": 1, "Red": 1},
            ["3 classes, the innermost folders, as Fruit/Apple/Red; --class-level 2 would give 3 classes, as Apple."],
            id="groceries",
        ),
        pytest.param(["all/photos/cat/1.jpg", "all/photos/dog/1.jpg"], {"cat": 1, "dog": 1}, [], id="passed through"),
        pytest.param(["train/a/1.jpg", "valid/b/1.jpg", "Test/c/1.jpg"], {"a": 1, "b": 1, "c": 1}, [], id="a division"),
    ],
)
def test_trees_as_people_have_them(tmp_path, paths, classes, said):
    touch(tmp_path, *paths)
    tree = scan(tmp_path)
    assert {name: len(images) for name, images in tree.classes.items()} == classes
    assert list(tree.said) == said


OMNIGLOT = ["background/Greek/character01/1.png", "background/Greek/character02/1.png"]
OMNIGLOT += ["evaluation/Oriya/character01/1.png", "evaluation/Oriya/character02/1.png"]


@pytest.mark.parametrize(
    ("paths", "level", "classes"),
    [
        (OMNIGLOT, "2", ["Greek", "Oriya"]),
        (OMNIGLOT[:2], "1", ["character01", "character02"]),
        (OMNIGLOT, "path", [path.rpartition("/")[0] for path in OMNIGLOT]),
        (["data/Greek/c1/1.png", "data/Oriya/c1/1.png"], "path", ["Greek/c1", "Oriya/c1"]),
        (["dog/a.jpg", "dog/more/b.jpg", "cat/a.jpg"], "1", ["cat", "dog"]),
        (["dog/a.jpg", "dog/more/b.jpg", "cat/a.jpg"], "2", ["cat", "dog", "more"]),
        (["dog/a.jpg", "dog/more/b.jpg", "cat/a.jpg"], "path", ["cat", "dog", "dog/more"]),
        (["train/Greek/c1/1.png", "val/Latin/c1/1.png", "test/Oriya/c1/1.png"], "1", ["Greek", "Latin", "Oriya"]),
        (
            ["train/Greek/c1/1.png", "val/Latin/c1/1.png", "test/Oriya/c1/1.png"],
            "path",
            ["Greek/c1", "Latin/c1", "Oriya/c1"],
        ),
    ],
)
def test_a_class_level_says_which_folders_are_classes(tmp_path, paths, level, classes):
    touch(tmp_path, *paths)
    tree = scan(tmp_path, level)
    assert list(tree.classes) == classes
    assert sorted(image for images in tree.classes.values() for image in images) == sorted(paths)


@pytest.mark.parametrize(
    ("paths", "words", "levels"),
    [
        (
            OMNIGLOT,
            "Two folders are called 'character01': 'background/Greek/character01' and 'evaluation/Oriya/character01'. "
            "--class-level 1 gives 2 classes, as background; --class-level 2 gives 2 classes, as Greek; "
            "--class-level path gives 4 classes, as background/Greek/character01.",
            {"1": 2, "2": 2, "path": 4},
        ),
        (
            ["dog/a.jpg", "dog/more/b.jpg", "cat/a.jpg"],
            "Both 'dog' and 'dog/more' inside of it hold images: that may be one class or two. "
            "--class-level 1 gives 2 classes, as dog; --class-level 2 gives 3 classes, as more; --class-level path "
            "gives 3 classes, as dog/more.",
            {"1": 2, "2": 3, "path": 3},
        ),
        (
            ["cat/camera0/1.jpg", "cat/camera1/1.jpg", "dog/camera0/1.jpg"],
            "--class-level 1 gives 2 classes, as cat; --class-level path gives 3 classes, as cat/camera0.",
            {"1": 2, "path": 3},
        ),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "train/b/x/1.jpg", "val/c/1.jpg"],
            "--class-level 1 gives 3 classes, as b; --class-level 2 gives 4 classes, as x; --class-level path gives 4 "
            "classes, as b/x.",
            {"1": 3, "2": 4, "path": 4},
        ),
        (
            ["train/a/1.jpg", "val/b/1.jpg", "test/b/1.jpg"],
            "Two folders are called 'b': 'test/b' and 'val/b'. Rename one, or move its images into the other.",
            {},
        ),
    ],
)
def test_what_cannot_be_told_is_refused_with_every_reading(tmp_path, paths, words, levels):
    touch(tmp_path, *paths)
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    assert words in str(caught.value)
    assert {level: len(scan(tmp_path, level).classes) for level in levels} == levels


@pytest.mark.parametrize(
    ("level", "kind", "words"),
    [
        ("0", UsageError, "a number from 1"),
        ("Path", UsageError, "or path"),
        ("-1", UsageError, "a number from 1"),
        ("³", UsageError, "a number from 1"),
        ("9" * 5000, DataError, "are 1 to 2"),
        ("3", DataError, "are 1 to 2"),
    ],
)
def test_wrong_class_levels(tmp_path, level, kind, words):
    touch(tmp_path, "a/b/1.jpg", "c/d/1.jpg")
    with pytest.raises(kind, match=words):
        scan(tmp_path, level)


def test_images_of_a_list_that_says_no_folder_are_only_taken_where_one_is_meant(tmp_path):
    """A class of several folders may have several images of one file name."""
    touch(tmp_path, "cat/x/1.jpg", "cat/y/1.jpg", "cat/y/2.jpg", "dog/z/1.jpg")
    images = scan(tmp_path, "1").classes["cat"]
    row = partial(ListedImage, "cat", split="train", where="train.csv, line 2")
    assert find_images([row("2.jpg"), row("y/1.jpg")], images) == {
        row("2.jpg"): "cat/y/2.jpg",
        row("y/1.jpg"): "cat/y/1.jpg",
    }
    with pytest.raises(DataError, match=r"line 2: '1\.jpg' may be 'cat/x/1\.jpg' or 'cat/y/1\.jpg'"):
        find_images([row("1.jpg")], images)


def test_train_val_and_test_with_classes_of_their_own_are_a_division(tmp_path):
    touch(tmp_path, "training/b/1.jpg", "training/a/1.jpg", "validation/c/1.jpg", "test/d/1.jpg")
    assert scan(tmp_path).division == {"train": ("a", "b"), "val": ("c",), "test": ("d",)}
    touch(tmp_path, "test/a/1.jpg", "test/a/more/1.jpg")
    tree = scan(tmp_path)
    assert tree.division == {} and list(tree.classes) == ["a", "b"]


# Files whose suffix says nothing, or what Pillow needs a plugin for

FILES = {
    "1.jpg": b"",
    "2.HEIC": HEIC,
    "3.jxl": b"\xff\x0a",
    "4": PNG,
    "5.jpg_large": b"\xff\xd8\xff\xe0",
    "6.jpg?w=640": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "7.jpg~": PNG,
    "8.jpg.part": PNG,
    "9.CR2": b"II*\x00",
    "10.txt": b"BM is a brand of cars",
    "11": HEIC,
}


@pytest.fixture
def without_plugins(monkeypatch):
    monkeypatch.setattr(kinds, "missing_plugin", kinds.PLUGINS.get)


def files_of_all_kinds(folder):
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def test_files_of_all_kinds_in_a_tree(tmp_path, without_plugins):
    files_of_all_kinds(tmp_path / "a")
    tree = scan(tmp_path)
    assert tree.classes == {"a": ("a/1.jpg", "a/4", "a/5.jpg_large", "a/6.jpg?w=640")}
    assert tree.said == (
        "Left alone, being no images of a class: 7 (a/10.txt, a/11, a/2.HEIC, a/3.jxl, a/7.jpg~, …).",
        "HEIC images left alone: 2 (a/11, a/2.HEIC). Pillow reads them by a plugin: pip install pillow-heif.",
        "JPEG-XL images left alone: 1 (a/3.jxl). Pillow reads them by a plugin: pip install pillow-jxl-plugin.",
        "Images by their content, though not by their suffix: 3 (a/4, a/5.jpg_large, a/6.jpg?w=640).",
    )


def test_with_their_plugins_they_are_images_as_all_others(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "missing_plugin", lambda kind: None)
    files_of_all_kinds(tmp_path / "a")
    names = ["1.jpg", "11", "2.HEIC", "3.jxl", "4", "5.jpg_large", "6.jpg?w=640"]
    assert scan(tmp_path).classes == {"a": tuple(f"a/{name}" for name in names)}


def test_a_tree_of_nothing_but_heic_says_what_is_missing(tmp_path, without_plugins):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.HEIC").write_bytes(HEIC)
    with pytest.raises(
        DataError, match=r"has no images in folders.*HEIC images left alone: 1 .*pip install pillow-heif"
    ):
        scan(tmp_path)


def test_files_of_all_kinds_as_queries(tmp_path):
    """Those that need a plugin are named, by their lines, when they are read."""
    files_of_all_kinds(tmp_path / "a")
    touch(tmp_path, "a/@eaDir/1.jpg/thumb.jpg", "a/.hidden/1.jpg")
    left = []
    names = [path.rpartition("/")[2] for path in images_under(tmp_path / "a", left.append)]
    assert names == ["1.jpg", "11", "2.HEIC", "3.jxl", "4", "5.jpg_large", "6.jpg?w=640"]
    assert sorted(path.removeprefix(f"{tmp_path}/a/") for path in left) == [
        ".hidden/",
        "10.txt",
        "7.jpg~",
        "8.jpg.part",
        "9.CR2",
        "@eaDir/",
    ]


def test_archives_are_looked_into_as_folders_are(tmp_path):
    files_of_all_kinds(tmp_path / "a")
    touch(tmp_path, "a/__MACOSX/1.jpg")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "a", "a")
    shutil.rmtree(tmp_path / "a")
    images = scan(tmp_path).classes["b"]
    assert {"b.tar/a/4", "b.tar/a/5.jpg_large"} <= set(images) and "b.tar/a/__MACOSX/1.jpg" not in images
