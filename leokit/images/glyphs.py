"""Pictures of written characters, drawn on the spot: few-shot classes that need no download.

A class is one letter. Each of its pictures shows the letter in a font drawn at random (sans, mono and serif;
upright or slanted; regular or bold), turned, sheared, stretched, thickened and shifted, in ink on paper that is
never quite clean. The fonts are DejaVu and STIX, which matplotlib brings along. The split goes by writing
system, so that a model tested on Armenian and Georgian has seen no letter of either.

Letters fill their picture whatever their case, so O, o, О and Ο would be one shape under four names.
`ALPHABETS` therefore holds a choice of the letters of each alphabet, such that no two look alike in a quarter
of the fonts that they share.
"""

import importlib.util
import math
import os
import threading
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from leokit.errors import LeokitError, UsageError
from leokit.interrupts import without_ctrl_c

ALPHABETS: dict[str, dict[str, str]] = {
    "train": {
        "latin": "ABCDEFGHIJKLMNPQRSTUVWXYZabdefgkmnoqrtyÆæßøÞŒŊʒɔɠɦɬɮɹʁʂʇʎʐʔʞ",
        "cyrillic": "БДЖЗЙЛЦЧЩЪЫЬЭЮЯиЂЉЊЋђћџѢҐ",
    },
    "val": {"greek": "ΓΔΘΞΣΨΩαβεζιλμνξπςτωϒϞϟϠϡϰ"},
    "test": {
        "armenian": "ԲԴԵԶԷԸԹԻԽԾԿՀՁՃՄՅՆՇՊՋՎՐՒՓՔՖադըթիխճնշչպջվրփֆև",
        "georgian": "აბგდეთკლნოჟრსტუფქღყცჯჰჱჲჳჴჵჶ",
    },
}
"""The letters by split and writing system."""

_SLANTS = ("", "-Bold", "-Oblique", "-BoldOblique")
_DEJAVU = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, styles in (
        ("Sans", _SLANTS),
        ("SansMono", _SLANTS),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)
_STIX = tuple(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta"))
FONTS: dict[str, tuple[str, ...]] = {
    "latin": _DEJAVU + _STIX,
    "cyrillic": _DEJAVU + _STIX,
    "greek": _DEJAVU + _STIX,
    "armenian": _DEJAVU,
    "georgian": _DEJAVU,
}
"""The font files that draw every letter of a writing system; STIX has neither Armenian nor Georgian."""

MIN_SIZE = 32  # pixels; below it the bars of Ξ and the loops of ფ run together
MAX_PER_CLASS = 10_000  # file names have four digits
MIN_CONTRAST = 100.0  # between the luma of ink and of paper, of 255, before shading
JPEG_QUALITY = 92

_OVERSAMPLING = 2  # letters are drawn and laid on a canvas this much larger, then averaged down
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in JPEG

Plane = NDArray[np.float32]  # some quantity of each pixel


def class_name(character: str) -> str:
    """Returns the folder name of a character: its Unicode name, as `greek_small_letter_alpha`."""
    return unicodedata.name(character).lower().replace("-", "_").replace(" ", "_")


def glyph_classes() -> dict[str, str]:
    """Returns the split (`train`, `val` or `test`) of every class, in the order of the class names."""
    return dict(sorted((class_name(character), split) for character, split, _ in _letters()))


def draw_glyph(character: str, *, seed: int, index: int, size: int = 84) -> Image.Image:
    """Returns picture number `index` of a character.

    The picture depends on the arguments alone, not on what was drawn before.

    Args:
        character: a letter of `ALPHABETS`.
        seed: at least 0; another seed gives another set of pictures.
        index: at least 0, the number of the picture within its class.
        size: pixels along each side, at least `MIN_SIZE`.

    Returns:
        An RGB picture of `size` × `size` pixels.

    Raises:
        UsageError: if an argument is out of range.
        LeokitError: if matplotlib's fonts are missing.
    """
    _check_at_least("seed", seed, 0)
    _check_at_least("index", index, 0)
    _check_at_least("size", size, MIN_SIZE)
    fonts = FONTS[_writing_system(character)]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, ord(character), index])))
    coverage = _coverage(character, fonts[rng.integers(len(fonts))], size, rng)
    return _photograph(coverage, rng)


def write_glyphs(
    out: Path,
    *,
    per_class: int,
    size: int,
    seed: int,
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Draws every class into a folder of its own, as `OUT/greek_small_letter_alpha/0000.jpg`.

    Files of the same names are overwritten, others are left alone. With several workers the processes are
    spawned, so a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
        out: the folder to write into; made if it is missing.
        per_class: pictures of each class, 1 to `MAX_PER_CLASS`.
        size: pixels along each side, at least `MIN_SIZE`.
        seed: at least 0.
        workers: processes; their number does not change the files.
        on_progress: called as `(pictures written, pictures in all)` after each class.

    Returns:
        The paths of the files relative to `out`, sorted.

    Raises:
        UsageError: if an argument is out of range.
        LeokitError: if matplotlib's fonts are missing.
    """
    _check_at_least("per_class", per_class, 1)
    if per_class > MAX_PER_CLASS:
        raise UsageError(f"per_class is {per_class}, but at most {MAX_PER_CLASS} are allowed")
    _check_at_least("size", size, MIN_SIZE)
    _check_at_least("seed", seed, 0)
    _check_at_least("workers", workers, 1)
    characters = [character for character, _, _ in _letters()]
    tasks = [(out, character, per_class, size, seed) for character in characters]
    written: list[str] = []
    for names in _run(tasks, workers):
        written += names
        if on_progress is not None:
            on_progress(len(written), per_class * len(characters))
    return sorted(written)


_Task = tuple[Path, str, int, int, int]


def _run(tasks: list[_Task], workers: int) -> Iterator[list[str]]:
    if workers == 1:
        yield from map(_write_class, tasks)
        return
    # spawn: a forked process would inherit the threads' locks of a parent that has used torch
    count = min(workers, len(tasks))
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_become_worker) as pool:
        try:
            with without_ctrl_c():
                futures = [pool.submit(_write_class, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
        finally:  # after an error or Ctrl-C, do not draw the rest first
            pool.shutdown(wait=True, cancel_futures=True)


def _become_worker() -> None:
    """End when the parent does, however it ends."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _write_class(task: _Task) -> list[str]:
    out, character, per_class, size, seed = task
    name = class_name(character)
    (out / name).mkdir(parents=True, exist_ok=True)
    paths = [f"{name}/{index:04d}.jpg" for index in range(per_class)]
    for index, path in enumerate(paths):
        picture = draw_glyph(character, seed=seed, index=index, size=size)
        picture.save(out / path, format="JPEG", quality=JPEG_QUALITY)
    return paths


def _letters() -> Iterator[tuple[str, str, str]]:
    """Yields (character, split, writing system)."""
    for split, systems in ALPHABETS.items():
        for system, characters in systems.items():
            for character in characters:
                yield character, split, system


def _writing_system(character: str) -> str:
    for letter, _, system in _letters():
        if letter == character:
            return system
    raise UsageError(f"{character!r} is not one of the letters of ALPHABETS")


def _check_at_least(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise UsageError(f"{name} is {value}, but must be at least {lowest}")


def font_path(file_name: str) -> Path:
    """Returns where matplotlib keeps a font, without importing matplotlib.

    Raises:
        LeokitError: if it is not there.
    """
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise LeokitError("the letters are drawn in fonts that come with matplotlib, which is not installed")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / file_name
    if not path.is_file():  # Pillow would go on to look for a namesake among the system's fonts
        raise LeokitError(f"this matplotlib came without its font {path}; reinstall it from PyPI or conda-forge")
    return path


@lru_cache(maxsize=len(_DEJAVU + _STIX))
def _font(file_name: str, pixels: int) -> ImageFont.FreeTypeFont:
    # The basic layout is in every Pillow; the other one (Raqm) in some only.
    return ImageFont.truetype(str(font_path(file_name)), pixels, layout_engine=ImageFont.Layout.BASIC)


def _coverage(character: str, font_name: str, size: int, rng: np.random.Generator) -> Plane:
    """Returns how much of each pixel is inked, (size, size) in 0..1."""
    canvas = size * _OVERSAMPLING
    # Thickened bold letters would lose their counters.
    thickening = 0 if "Bol" in font_name else round(rng.uniform(0, 0.025) * canvas)
    letter = _letter(character, font_name, canvas, thickening)
    matrix, shift = _placement(letter.width, letter.height, canvas, rng)
    inverse = np.linalg.inv(matrix)  # Pillow asks where a pixel of the canvas comes from
    offset = np.array([letter.width, letter.height]) / 2 - inverse @ (canvas / 2 + shift)
    (a, b), (d, e) = inverse.tolist()
    c, f = offset.tolist()
    laid = letter.transform((canvas, canvas), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)
    return np.asarray(laid.reduce(_OVERSAMPLING), dtype=np.float32) / np.float32(255)


@lru_cache(maxsize=128)  # a class of 84-pixel pictures has at most 8 × 5 + 8 of them
def _letter(character: str, font_name: str, pixels: int, thickening: int) -> Image.Image:
    """Returns the letter in white on black, cut to its ink but for a black rim."""
    font = _font(font_name, pixels)
    left, top, right, bottom = font.getbbox(character, stroke_width=thickening)
    letter = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(letter).text((-left, -top), character, fill=255, font=font, stroke_width=thickening)
    # Pillow's box spans the advance of the letter as well, which is wider than its ink.
    return ImageOps.expand(letter.crop(letter.getbbox()), border=2)  # the rim makes turned edges smooth


def _placement(
    width: int, height: int, canvas: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draws how a letter is laid on its canvas: a matrix (2, 2) about the centre, then a shift (2,)."""
    angle = math.radians(rng.uniform(-15, 15))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1.0, rng.uniform(-0.2, 0.2)], [0.0, 1.0]])
    stretch = np.diag([math.exp(rng.uniform(-0.12, 0.12)), 1.0])
    matrix = turn @ shear @ stretch
    half = np.abs(matrix) @ (np.array([width, height]) / 2)  # half the sides of the box round the turned box
    matrix *= rng.uniform(0.60, 0.88) * canvas / (2 * half.max())
    half = np.abs(matrix) @ (np.array([width, height]) / 2)
    room = np.clip(canvas / 2 - half, 0, 0.12 * canvas)
    return matrix, rng.uniform(-1, 1, size=2) * room


def _photograph(coverage: Plane, rng: np.random.Generator) -> Image.Image:
    """Returns the letter in ink on paper, shaded, blurred and with noise."""
    size = len(coverage)
    paper, ink = _colours(rng)
    density = coverage * (1 - rng.uniform(0, 0.15) * np.abs(_blotches(size, rng)))
    surface = paper + _texture(size, rng)[..., None]
    picture = surface + density[..., None] * (ink - surface)  # (size, size, 3)
    picture *= _shade(size, rng)[..., None]
    image = Image.fromarray(_to_bytes(picture)).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9) * size / 84))
    noise = rng.uniform(0, 9) * rng.standard_normal((size, size, 3), dtype=np.float32)
    return Image.fromarray(_to_bytes(np.asarray(image, dtype=np.float32) + noise))


def _colours(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Draws the colours of paper and ink, (3,) each in 0..255, at least `MIN_CONTRAST` apart in luma."""
    if rng.random() < 0.8:
        paper = rng.uniform(150, 245)
        ink = rng.uniform(10, paper - MIN_CONTRAST)
    else:  # chalk on a board
        paper = rng.uniform(20, 100)
        ink = rng.uniform(paper + MIN_CONTRAST, 245)
    return _tint(paper, rng), _tint(ink, rng)


def _tint(luma: float, rng: np.random.Generator) -> Plane:
    """Draws a colour of the given luma, (3,) in 0..255."""
    direction = rng.standard_normal(3)
    direction -= direction @ _LUMA  # the weights sum to 1, so this leaves a direction without luma
    room = np.where(direction > 0, 255 - luma, luma) / np.maximum(np.abs(direction), 1e-9)
    return np.asarray(luma + rng.uniform(0, 0.5) * room.min() * direction, dtype=np.float32)


def _texture(size: int, rng: np.random.Generator) -> Plane:
    """Draws what is uneven about a paper, (size, size) round 0: clouds, grain and sometimes ruled lines."""
    clouds = rng.uniform(0, 10) * _blotches(size, rng)
    grain = rng.uniform(0, 7) * rng.standard_normal((size, size), dtype=np.float32)
    texture = clouds + grain
    if rng.random() < 0.25:
        step = int(rng.integers(size // 8, size // 4))
        texture[int(rng.integers(step)) :: step] -= rng.uniform(8, 25)
    return texture.astype(np.float32)


def _blotches(size: int, rng: np.random.Generator) -> Plane:
    """Draws smooth noise, (size, size) round 0, seldom beyond ±2."""
    cells = int(rng.integers(3, 10))
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _shade(size: int, rng: np.random.Generator) -> Plane:
    """Draws light falling from one side, (size, size) in 0.75..1."""
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    return np.asarray(1 - rng.uniform(0, 0.25) * ramp, dtype=np.float32)


def _to_bytes(picture: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(picture), 0, 255), dtype=np.uint8)
