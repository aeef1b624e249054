"""Finding images: layouts, order, odd names, links, and nothing left out without a word."""

import os
import sys

import pytest

from leokit.errors import DataError
from leokit.images.scan import scan


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
    touch(tmp_path, "animals/cat/1.jpg", "animals/dog/1.jpg", "animals/dog/puppies/1.jpg")
    assert list(scan(tmp_path).classes) == ["cat", "dog", "puppies"]


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
