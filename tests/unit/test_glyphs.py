"""The drawn data set: repeatable, legible, split by alphabet, and without two classes of one shape."""

import math
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from threadpoolctl import threadpool_limits

from leokit.errors import UsageError
from leokit.images import glyphs
from leokit.images.glyphs import ALPHABETS, FONTS, class_name, draw_glyph, glyph_classes, write_glyphs

FONT_NAMES = tuple(dict.fromkeys(name for names in FONTS.values() for name in names))
SYSTEMS = {system: letters for systems in ALPHABETS.values() for system, letters in systems.items()}
LETTERS = "".join(SYSTEMS.values())


def test_each_split_has_enough_classes() -> None:
    splits = list(glyph_classes().values())
    assert splits.count("train") >= 70
    assert splits.count("val") >= 25
    assert splits.count("test") >= 40


def test_each_letter_is_of_its_alphabet_and_each_alphabet_in_one_split() -> None:
    for system, letters in SYSTEMS.items():
        assert {unicodedata.name(letter).split()[0].lower() for letter in letters} == {system}
    assert len(SYSTEMS) == sum(len(systems) for systems in ALPHABETS.values())


def test_class_names_are_plain_sorted_and_unique() -> None:
    names = list(glyph_classes())
    assert names == sorted(names)
    assert len(names) == len(LETTERS)  # a dict: equal names would have fallen together
    assert all(name.isascii() and name.isidentifier() and name == name.lower() for name in names)
    assert class_name("α") == "greek_small_letter_alpha"


def test_the_module_is_light() -> None:
    heavy = "torch", "typer", "rich", "matplotlib"
    code = f"import sys, leokit.images.glyphs; sys.exit(', '.join({{*{heavy}}} & {{*sys.modules}}) or None)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- drawing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 84, 129])
def test_a_picture_has_the_asked_size_and_three_channels(size: int) -> None:
    picture = draw_glyph("Ж", seed=0, index=3, size=size)
    assert (picture.size, picture.mode) == ((size, size), "RGB")


def test_a_picture_depends_on_seed_letter_and_index_alone() -> None:
    first = draw_glyph("Ω", seed=1, index=2)
    others = [draw_glyph("Ω", seed=2, index=2), draw_glyph("Ω", seed=1, index=3), draw_glyph("λ", seed=1, index=2)]
    assert draw_glyph("Ω", seed=1, index=2).tobytes() == first.tobytes()
    assert all(other.tobytes() != first.tobytes() for other in others)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"character": "O"}, "'O' is not one of"),  # left out: a twin of o
        ({"seed": -1}, "seed is -1"),
        ({"index": -1}, "index is -1"),
        ({"size": 31}, "size is 31"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    arguments = {"character": "A", "seed": 0, "index": 0, "size": 84} | wrong
    with pytest.raises(UsageError, match=message):
        draw_glyph(arguments.pop("character"), **arguments)  # type: ignore[arg-type]


def test_ink_stands_out_from_paper() -> None:
    """Paper is what the edge of a picture shows; ink is what is far from it."""
    for letter in LETTERS:
        for index in range(3):
            grey = np.asarray(draw_glyph(letter, seed=0, index=index).convert("L"), dtype=float)
            edge = np.concatenate([grey[:4].ravel(), grey[-4:].ravel(), grey[:, :4].ravel(), grey[:, -4:].ravel()])
            distance = np.abs(grey - np.median(edge))
            ink = distance > 45
            assert 0.03 < ink.mean() < 0.5, (letter, index)
            assert distance[ink].mean() > 60, (letter, index)
            assert np.median(np.abs(edge - np.median(edge))) < 25, (letter, index)


def test_no_letter_is_cut_by_the_edge_of_its_mask() -> None:
    for system, letters in SYSTEMS.items():
        for name in FONTS[system]:
            for letter in letters:
                ink = ink_of(letter, name)
                mask = glyphs._letter(letter, name, 160, 0)
                assert mask.getbbox() == (2, 2, mask.width - 2, mask.height - 2)
                # the same proportions as when drawn with room to spare, at another font size
                assert abs(math.log(ink.width / ink.height * (mask.height - 4) / (mask.width - 4))) < 0.1


# --- writing -------------------------------------------------------------------------------------------------


@pytest.fixture
def few_letters(monkeypatch: pytest.MonkeyPatch) -> str:
    """Few classes for this process; spawned ones know the whole table, but draw what they are told."""
    monkeypatch.setattr(
        glyphs, "ALPHABETS", {"train": {"latin": "Aq"}, "val": {"greek": "Ξ"}, "test": {"georgian": "ფ"}}
    )
    return "AqΞფ"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def test_files_do_not_depend_on_workers_nor_on_how_many_are_made(tmp_path: Path, few_letters: str) -> None:
    calls: list[tuple[int, int]] = []
    one = write_glyphs(tmp_path / "one", per_class=3, size=40, seed=5, workers=1)
    two = write_glyphs(
        tmp_path / "two", per_class=3, size=40, seed=5, workers=2, on_progress=lambda *call: calls.append(call)
    )
    write_glyphs(tmp_path / "fewer", per_class=2, size=40, seed=5, workers=1)
    files = contents(tmp_path / "one")
    assert one == two == sorted(files)
    assert contents(tmp_path / "two") == files
    assert contents(tmp_path / "fewer").items() < files.items()
    assert calls == [(3, 12), (6, 12), (9, 12), (12, 12)]


def test_another_seed_changes_every_file(tmp_path: Path, few_letters: str) -> None:
    for seed in (0, 1):
        write_glyphs(tmp_path / str(seed), per_class=2, size=40, seed=seed, workers=1)
    first, second = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_files_are_jpegs_in_folders_named_after_classes(tmp_path: Path, few_letters: str) -> None:
    paths = write_glyphs(tmp_path, per_class=2, size=40, seed=0, workers=1)
    assert paths == sorted(f"{class_name(letter)}/{index:04d}.jpg" for letter in few_letters for index in (0, 1))
    with Image.open(tmp_path / paths[0]) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (40, 40), "RGB")


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"per_class": 10_001}, {"size": 8}, {"seed": -1}, {"workers": 0}])
def test_options_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict[str, int]) -> None:
    options: dict[str, Any] = {"per_class": 1, "size": 40, "seed": 0, "workers": 1} | wrong
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
        write_glyphs(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# --- fonts ---------------------------------------------------------------------------------------------------


def test_every_font_of_a_system_has_every_letter_of_it() -> None:
    for system, letters in SYSTEMS.items():
        assert len(FONTS[system]) >= 6
        for name in FONTS[system]:
            missing = [letter for letter in letters if not glyph_exists(letter, name)]
            assert not missing, name


def test_no_letter_is_drawn_as_the_box_for_missing_ones() -> None:
    for system, letters in SYSTEMS.items():
        for name in FONTS[system]:
            box = ink_of("\ufdd0", name)  # a code point that never is a character
            assert all(ink_of(letter, name).tobytes() != box.tobytes() for letter in letters)


# --- twins ---------------------------------------------------------------------------------------------------
#
# Two letters are twins if the one, turned, sheared or stretched as pictures are, covers the other in a quarter of
# the fonts that both share. Both fill a square first, as case and weight would otherwise tell O from o.

SIDE = 48  # pixels of the square
REACH = 2  # pixels: ink this near to the other's ink is covered by it
DISTORTIONS = [(0.0, 0.0, 1.0), (12, 0, 1), (-12, 0, 1), (0, 0.2, 1), (0, -0.2, 1), (0, 0, 1.25), (0, 0, 0.8)]
TWINS = 0.93  # O and o reach 0.98; the likest of the table, a and Յ, 0.91

INKED = [0] * 101 + [255] * 155  # for Image.point: what counts as ink
Array = NDArray[np.float32]


def test_no_two_classes_look_alike() -> None:
    alike = {pair: likeness for pair, likeness in likenesses(LETTERS).items() if likeness > TWINS}
    assert not alike, f"twins: leave one of each pair out of ALPHABETS: {alike}"


@pytest.mark.parametrize("pair", ["oO", "Cc", "Ss", "Xχ", "AА", "AΑ", "nո", "gց", "UՍ", "Oօ", "LԼ", "ΦՓ", "кκ"])
def test_twins_are_recognised(pair: str) -> None:
    assert likenesses(pair)[pair] > TWINS


def likenesses(letters: str) -> dict[str, float]:
    """Returns how alike two letters are at the lower end of the likest quarter of their fonts, at most 1."""
    found: dict[str, list[float]] = {first + second: [] for first, second in combinations(letters, 2)}
    for name in FONT_NAMES:
        present = [letter for letter in letters if glyph_exists(letter, name)]
        with threadpool_limits(1):  # on a busy machine, threads waiting for each other take thrice as long
            table = likenesses_in_font(present, name)
        for (i, first), (j, second) in combinations(enumerate(present), 2):
            found[first + second].append(float(table[i, j]))
    return {pair: sorted(values, reverse=True)[len(values) // 4 - 1] for pair, values in found.items()}


def likenesses_in_font(letters: Sequence[str], name: str) -> Array:
    """Returns (n, n): overlap of the blurred letters (cosine) less the share of ink that the other leaves bare."""
    inks = [ink_of(letter, name) for letter in letters]
    plain, wide, soft = features(distorted(ink, *DISTORTIONS[0]) for ink in inks)
    best = np.full((len(letters), len(letters)), -1, dtype=np.float32)
    for distortion in DISTORTIONS:
        plain_2, wide_2, soft_2 = features(distorted(ink, *distortion) for ink in inks)
        bare = np.maximum(plain_2 @ (1 - wide).T / plain_2.sum(1)[:, None], (1 - wide_2) @ plain.T / plain.sum(1)[None])
        best = np.maximum(best, soft_2 @ soft.T - bare)
    return np.maximum(best, best.T)


def features(squares: Iterable[Image.Image]) -> tuple[Array, Array, Array]:
    """Returns the ink, the ink widened by `REACH` and the unit vector of the blurred ink, (n, pixels) each."""
    squares = list(squares)
    plain = stack(squares) > 127
    wide = plain
    for axis in (1, 2):  # every square has an empty rim of 2 pixels, so that nothing comes in at the other side
        wide = np.logical_or.reduce([np.roll(wide, shift, axis) for shift in range(-REACH, REACH + 1)])
    soft = flat(stack([square.filter(ImageFilter.GaussianBlur(1.5)) for square in squares]))
    return flat(plain), flat(wide), soft / np.linalg.norm(soft, axis=1, keepdims=True)


def stack(squares: Sequence[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(square) for square in squares])


def flat(squares: NDArray[Any]) -> Array:
    return squares.reshape(len(squares), -1).astype(np.float32)


def distorted(ink: Image.Image, degrees: float, shear: float, stretch: float) -> Image.Image:
    """Returns the letter turned, sheared and stretched, its longer side filling a square of `SIDE` pixels."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ [[stretch, shear], [0, 1]]
    inverse = np.linalg.inv(matrix)
    canvas = int(1.6 * max(ink.width * stretch, ink.height)) + 8
    offset = np.array([ink.width, ink.height]) / 2 - inverse @ [canvas / 2, canvas / 2]
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    turned = ink.transform((canvas, canvas), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    cut = turned.crop(turned.point(INKED).getbbox())
    return ImageOps.pad(cut, (SIDE - 4, SIDE - 4), Image.Resampling.BOX).crop((-2, -2, SIDE - 2, SIDE - 2))


_FONTS = {name: ImageFont.truetype(str(glyphs.font_path(name)), 72) for name in FONT_NAMES}
_CHARACTERS: dict[str, dict[int, str]] = {}  # of each font: the name of the glyph of each code point


def glyph_exists(letter: str, name: str) -> bool:
    if name not in _CHARACTERS:
        with TTFont(glyphs.font_path(name)) as font:
            _CHARACTERS[name] = font.getBestCmap() or {}
    return _CHARACTERS[name].get(ord(letter), ".notdef") != ".notdef"


def ink_of(letter: str, name: str) -> Image.Image:
    """Returns a letter in white on black, cut to its ink."""
    canvas = Image.new("L", (240, 200))
    ImageDraw.Draw(canvas).text((80, 50), letter, fill=255, font=_FONTS[name])
    return canvas.crop(canvas.getbbox())
