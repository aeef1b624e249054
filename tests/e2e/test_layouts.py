"""Trees of images as people have them, through `leokit extract`, `fit` and `predict`."""

import json
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from leokit.config import ExtractConfig, MetaTrainConfig, build
from leokit.features import FeatureStore
from leokit.images import kinds
from leokit.stages import extract, meta_train

OPTIONS = ("--method", "class-mean", "--episodes", 20, "--workers", 0)
BACKBONE = ("--backbone", "test_resnet", "--image-size", 32, "--workers", 0)


def draw(root, *paths):
    """Pictures at these paths, whatever their suffixes say; each folder has a colour of its own."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(list(path.rpartition("/")[0].encode()))
        pixels = rng.uniform(40, 215, 3) + np.random.default_rng(list(path.encode())).normal(0, 20, (32, 32, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / path, "PNG")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The weights of a small backbone, and a run on folders train, val and test; used by copies."""
    root = tmp_path_factory.mktemp("layouts")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet").state_dict(), root / "weights.safetensors")
    for split, count in (("train", 6), ("val", 6), ("test", 5)):
        draw(root / "images", *(f"{split}/{split}{name}/{image}.png" for name in range(count) for image in range(6)))
    few = {"steps": 2, "val_every": 1, "val_episodes": 10, "val_queries": 4, "queries": 4, "num_latents": 8}
    options = {"backbone": "test_resnet", "weights": str(root / "weights.safetensors"), "image_size": 32, "workers": 0}
    extract.run(build(ExtractConfig, {"images": root / "images", "work": root / "leokit-work", **options}))
    meta_train.run(build(MetaTrainConfig, {"work": root / "leokit-work", **few}))
    return root


@pytest.fixture
def there(leokit, made, tmp_path):
    """A folder with the run and its features."""
    shutil.copytree(made / "leokit-work", tmp_path / "leokit-work")
    return leokit


def in_one_line(text):
    return " ".join(text.split())


class Layout(NamedTuple):
    """A tree with what becomes of it.

    Attributes:
        paths: of its images.
        classes: of its images, by class.
        options: which say what the tree does not.
        divided: whether its folders are a division.
        said: about the tree, by each command.
        refused: what is said without the options, where that is an error.
    """

    paths: list[str]
    classes: dict[str, int]
    options: tuple[str, ...] = ()
    divided: bool = False
    said: str = ""
    refused: str = ""


CHARACTERS = [f"{alphabet}/character0{number}" for alphabet in ("Greek", "Latin", "Oriya") for number in (1, 2)]
LAYOUTS = {
    "Tiny-ImageNet": Layout(
        [
            *(f"tiny/train/n{name}/images/n{name}_{image}.JPEG" for name in range(3) for image in range(2)),
            *(f"tiny/{split}/images/{split}_{image}.JPEG" for split in ("val", "test") for image in range(2)),
        ],
        {"n0": 2, "n1": 2, "n2": 2},
        said="Left alone, being no images of a class: 4 (tiny/test/images/test_0.JPEG,",
    ),
    "Omniglot": Layout(
        [f"{name}/{image}.png" for name in CHARACTERS for image in range(2)],
        dict.fromkeys(CHARACTERS, 2),
        options=("--class-level", "path"),
        refused="--class-level 1 gives 3 classes, as Greek; --class-level path gives 6 classes, as Greek/character01.",
    ),
    "Omniglot, by alphabet": Layout(
        [f"{name}/{image}.png" for name in CHARACTERS for image in range(2)],
        {"Greek": 4, "Latin": 4, "Oriya": 4},
        options=("--class-level", "1"),
        refused="'Greek/character01' and 'Latin/character01'",
    ),
    "ILSVRC": Layout(
        [
            *(f"Data/CLS-LOC/train/n{name}/n{name}_{image}.JPEG" for name in range(3) for image in range(2)),
            *(f"Data/CLS-LOC/val/ILSVRC_{image}.JPEG" for image in range(3)),
        ],
        {"n0": 2, "n1": 2, "n2": 2},
        said="Left alone, being no images of a class: 3 (Data/CLS-LOC/val/ILSVRC_0.JPEG,",
    ),
    "a NAS": Layout(
        [
            *(f"{name}/{image}.jpg" for name in ("cat", "dog", "fox") for image in range(2)),
            *(f"{name}/@eaDir/{image}.jpg/SYNOPHOTO_THUMB_M.jpg" for name in ("cat", "dog") for image in range(2)),
        ],
        {"cat": 2, "dog": 2, "fox": 2},
        said="Left alone, being no images of a class: 2 (cat/@eaDir/, dog/@eaDir/).",
    ),
    "train, val and test": Layout(
        [f"{place}/{image}.jpg" for place in ("train/a", "valid/b", "test/c") for image in range(2)],
        {"a": 2, "b": 2, "c": 2},
        divided=True,
    ),
    "cameras": Layout(
        ["cat/camera0/1.jpg", "dog/camera1/1.jpg", "fox/camera2/1.jpg", "fox/camera3/1.jpg"],
        {"camera0": 1, "camera1": 1, "camera2": 1, "camera3": 1},
        said="4 classes, the innermost folders, as cat/camera0; --class-level 1 would give 3 classes, as cat.",
    ),
    "two depths": Layout(
        ["cat/1.jpg", "dog/1.jpg", "dog/more/1.jpg", "fox/1.jpg"],
        {"cat": 1, "dog": 2, "fox": 1},
        options=("--class-level", "1"),
        refused="--class-level 1 gives 3 classes, as dog; --class-level 2 gives 4 classes, as more;",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tree_is_read_the_same_by_each_command(there, made, tmp_path, name):
    layout = LAYOUTS[name]
    draw(tmp_path / "tree", *layout.paths)
    splits = () if layout.divided else ("--splits", f"random:{len(layout.classes) - 2}/1/1")
    commands = {
        "extract": ("extract", "tree", "--out", "new", *BACKBONE, "--weights", made / "weights.safetensors", *splits),
        "fit": ("fit", "--support", "tree", *OPTIONS),
        "predict": ("predict", "tree", "--support", "tree", *OPTIONS),
    }
    for command, arguments in commands.items():
        if layout.refused:
            for more in ((), ("--dry-run",)):
                assert layout.refused in in_one_line(there(*arguments, *more, code=3).stderr), command
        done = there(*arguments, *layout.options)
        assert layout.said in in_one_line(done.stderr), command
    counts = FeatureStore.open(tmp_path / "new").facts["counts"]
    assert {name: images for of_split in counts.values() for name, images in of_split.items()} == layout.classes
    facts = json.loads((tmp_path / "leokit-work/classifier/manifest.json").read_text())["facts"]
    assert dict(zip(facts["classes"], facts["counts"], strict=True)) == layout.classes
    answered = there(*commands["predict"], *layout.options, "--json").stdout
    assert json.loads(answered)["classes"] == list(layout.classes)


def test_a_level_is_outside_of_the_id(there, made, tmp_path):
    """The same classes and images are the same artifact, however they were told."""
    draw(tmp_path / "tree", *(f"{name}/{image}.jpg" for name in "abc" for image in range(2)))
    shared = ("--splits", "random:1/1/1", *BACKBONE, "--weights", made / "weights.safetensors")
    there("extract", "tree", "--out", "new", *shared)
    for level in ("1", "path"):
        assert "Already done" in there("extract", "tree", "--out", "new", *shared, "--class-level", level).stderr
    fit = ("fit", "--support", "tree", *OPTIONS)
    there(*fit)
    assert "Already done" in there(*fit, "--class-level", "1").stderr


def test_folders_train_val_and_test_are_the_division_unless_told(there, made, tmp_path):
    counts = ((4, "training"), (3, "validation"), (2, "test"))
    draw(tmp_path / "tree", *(f"{name}/{name}{number}/1.jpg" for count, name in counts for number in range(count)))
    check = ("splits", "check", "tree")
    assert [len(of["present"]) for of in json.loads(there(*check, "--json").stdout).values()] == [4, 3, 2]
    mixed = there(*check, "--splits", "random:5/2/2").stderr
    assert "random:5/2/2 mixes the classes of the folders train, val and test, which share none." in in_one_line(mixed)
    (tmp_path / "tree" / "splits.csv").write_text("class_name,split\ntest0,train\ntest1,val\ntraining0,test\n")
    assert json.loads(there(*check, "--json").stdout)["train"]["present"] == ["test0"]
    (tmp_path / "tree" / "splits.csv").unlink()
    shutil.rmtree(tmp_path / "tree" / "validation")
    error = in_one_line(there("extract", "tree", *BACKBONE, code=3).stderr)
    assert "The image tree has 4 in its train folder and 2 in its test folder, but none for val" in error


# Queries and support images of all kinds


@pytest.fixture
def kinds_of_files(tmp_path, monkeypatch):
    """Two classes, and six queries of which only one is a JPEG by suffix and content."""
    monkeypatch.setattr(kinds, "missing_plugin", kinds.PLUGINS.get)  # as without pillow-heif
    draw(
        tmp_path,
        "known/a/1.jpg",
        "known/a/2.jpg",
        "known/b/1.jpg",
        "new/1.jpg",
        "new/2",
        "new/3.jpg_large",
        "new/4.jpg?w=640",
    )
    heic = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"
    for path in ("new/5.HEIC", "new/6.jpg", "known/b/2.HEIC", "known/b/3.HEIC"):
        (tmp_path / path).write_bytes(heic)
    (tmp_path / "new" / "notes.txt").write_text("What these are")
    return tmp_path


def test_every_query_has_a_line_and_every_other_file_is_counted(there, kinds_of_files):
    done = there("predict", "new", "--support", "known", *OPTIONS, code=3)
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == 6
    unread = [line for line in lines if line.startswith("-")]
    assert [line.partition("new/")[2] for line in unread] == [
        f"{name}: a HEIC image, which Pillow reads by a plugin: pip install pillow-heif" for name in ("5.HEIC", "6.jpg")
    ]
    said = in_one_line(done.stderr)
    assert "Left alone, being no images: 1 (new/notes.txt)." in said
    assert (
        "HEIC images left alone: 2 (b/2.HEIC, b/3.HEIC). Pillow reads them by a plugin: pip install pillow-heif."
        in said
    )
    assert "Support set: 2 classes, 1 to 2 images of each." in said


def test_a_folder_of_nothing_but_heic_is_no_empty_one(there, kinds_of_files, tmp_path):
    (tmp_path / "phone").mkdir()
    (tmp_path / "new/5.HEIC").rename(tmp_path / "phone/1.HEIC")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    done = there("predict", "phone", "empty", "--support", "known", *OPTIONS, code=3)
    phone, empty = done.stdout.splitlines()[1:]
    assert "phone/1.HEIC: a HEIC image" in phone
    assert empty.endswith("empty: a folder without images")
    assert "Left alone, being no images: 1 (empty/a.txt)." in in_one_line(done.stderr)
    error = in_one_line(there("fit", "--support", "phone", *OPTIONS, code=3).stderr)
    assert "HEIC images left alone: 1 (1.HEIC). Pillow reads them by a plugin: pip install pillow-heif." in error


# Lists of support images as people write them


LISTS = {
    "as leokit asks for it": "image,label\nknown/a/1.png,a\nknown/b/1.png,b\n",
    "from the working directory": "image,label\nlists/known/a/1.png,a\nlists/known/b/1.png,b\n",
    "of Windows": "\ufeffimage,label\r\nknown\\a\\1.png,a\r\nlists\\known\\b\\1.png,b\r\n",
    "with other columns": "image,width,label,source\nknown/a/1.png,32,a,me\nknown/b/1.png,32,b,me\n",
    "with other names": "filename,label\nknown/a/1.png,a\nknown/b/1.png,b\n",
    "with capitals": "Label,Image\na,known/a/1.png\nb,known/b/1.png\n",
    "with an empty last line": "image,label\nknown/a/1.png,a\nknown/b/1.png,b\n\n,\n  \n",
    "of a spreadsheet": "image;label;\nknown/a/1.png;a;\nknown/b/1.png;b;\n",
    "with spaces": "image, label\nknown/a/1.png, a\n known/b/1.png , b\n",
    "an answer of predict": "image,label,probability,entropy\nknown/a/1.png,a,0.9,0.1\nknown/b/1.png,b,0.8,0.2\n",
    "an image list": "class_name,image_name\na,known/a/1.png\nb,known/b/1.png\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_as_people_write_them(there, tmp_path, name):
    draw(tmp_path / "lists", "known/a/1.png", "known/b/1.png")
    (tmp_path / "lists" / "support.csv").write_bytes(LISTS[name].encode())
    there("fit", "--support", "lists/support.csv", *OPTIONS)
    expected = ("fit", "--support", "lists/known", "--out", "same", *OPTIONS)
    there(*expected)
    ids = [
        json.loads((tmp_path / place / "manifest.json").read_text())["id"]
        for place in ("leokit-work/classifier", "same")
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "image,label\na/1.png,a\nknown/b/1.png,b\n",
            "has no image that is there, as 'a/1.png': paths were looked for below",
        ),
        (
            "image,label\nC:\\photos\\1.png,a\nknown/b/1.png,b\n",
            "as 'C:\\\\photos\\\\1.png': paths were looked for below",
        ),
        ("file,path,label\nx,known/a/1.png,a\n", "header 'file,path,label': it must be image,label or filename,label"),
        ("known/a/1.png,a\nknown/b/1.png,b\n", "header 'known/a/1.png,a': it must be image,label"),
        ("image,label,source\nknown/a/1.png,a\n", "line 2: 2 fields, but the header has 3"),
    ],
)
def test_lists_that_cannot_be_understood(there, tmp_path, text, words):
    draw(tmp_path / "lists", "known/a/1.png", "known/b/1.png")
    (tmp_path / "lists" / "support.csv").write_text(text)
    error = in_one_line(there("fit", "--support", "lists/support.csv", *OPTIONS, code=3).stderr)
    assert words in error
    if "looked for" in words:
        assert f"below {tmp_path}/lists and {tmp_path}." in error


def test_a_list_some_of_whose_images_are_gone_says_where_it_looked(there, tmp_path):
    draw(tmp_path / "lists", "known/a/1.png", "known/b/1.png")
    (tmp_path / "lists/support.csv").write_text("image,label\nknown/a/1.png,a\nknown/b/1.png,b\nknown/b/2.png,b\n")
    said = in_one_line(there("fit", "--support", "lists/support.csv", *OPTIONS).stderr)
    assert "Images of lists/support.csv that are not there: 1, as 'known/b/2.png'; paths were looked for below" in said


@pytest.mark.parametrize(
    "command", ["extract tree", "pretrain tree", "splits check tree", "bench extract tree", "fit", "predict x"]
)
def test_a_wrong_level_is_told_at_once(leokit, tmp_path, command):
    (tmp_path / "tree").mkdir()
    support = ("--support", "tree") if command in ("fit", "predict x") else ()
    error = in_one_line(leokit(*command.split(), *support, "--class-level", "zero", code=2).stderr)
    assert "--class-level zero: it is a number from 1, as 1 for the outermost folders, or path." in error


def test_a_level_of_what_has_none(there, tmp_path):
    draw(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "s.csv").write_text("image,label\na/1.png,a\nb/1.png,b\n")
    assert "only a folder has levels" in in_one_line(
        there("fit", "--support", "s.csv", "--class-level", "1", code=2).stderr
    )
    there("fit", "--support", "s.csv", *OPTIONS)
    told = there("predict", "a", "--classifier", "leokit-work/classifier", "--class-level", "1", code=2).stderr
    assert "--class-level 1 and --classifier" in told
