"""Draw docs/figures/episode.png: the first test episode of a run, its support images and what it says of some queries.

    leokit demo glyphs
    leokit extract glyphs --image-size 84
    leokit meta-train --preset own-images --shots 1
    python docs/figures/episode.py glyphs leokit-work/features leokit-work/runs/anchored-5way-1shot

No episode is chosen: it is number 0 of seed 0, which `leokit eval` begins with.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from leokit.engine.training import classifier
from leokit.episodes import EpisodeSampler, FeatureMatrix, types_of
from leokit.features import FeatureStore
from leokit.figures.style import BLACK, GREEN, ORANGE, written_figure
from leokit.leo.learners import make_learner
from leokit.runs import open_run

QUERIES = 7  # of each class


class Episode(NamedTuple):
    """A test episode with its answers: image paths, and for each query the class named and its probability."""

    classes: list[str]  # (N,)
    support: list[str]  # (N,)
    queries: list[list[str]]  # (N, Q)
    named: list[list[int]]  # (N, Q)
    probabilities: list[list[float]]  # (N, Q)


def first_episode(features: Path, run: Path) -> Episode:
    """Episode 0 of the test classes at one shot, and what a run says of its queries."""
    trained, store = open_run(run), FeatureStore.open(features)
    dtype, held = types_of(trained.config)
    plain = FeatureMatrix(store.load("test"), dtype=dtype, held=held)
    matrix = plain if trained.centre is None else plain.centred(trained.centre)
    sampler = EpisodeSampler(matrix.offsets, ways=5, seed=0, purpose="evaluation")
    rows = sampler.draw(range(1), shots=1, queries=QUERIES)
    weights = classifier(make_learner(trained.config, store.dim), trained.parameters)(
        matrix.take(rows.support), range(1)
    )
    with torch.inference_mode():
        probabilities, named = (matrix.take(rows.query[0]) @ weights[0].T).softmax(-1).max(-1)
    images = store.images("test")
    return Episode(
        [matrix.classes[number] for number in rows.classes[0]],
        [images[row] for row in rows.support[0, :, 0]],
        [[images[row] for row in of] for of in rows.query[0]],
        named.tolist(),
        probabilities.tolist(),
    )


def letter(name: str) -> str:
    """A class of the demo as a person calls it: its alphabet and letter."""
    words = name.split("_")
    return f"{words[0].capitalize()} {words[-1]}"


def draw(images: Path, episode: Episode, path: Path) -> None:
    """Draw the episode: a row for each class, its support image on the left and its queries beside."""
    title = (
        "One image of each letter is known (left), in alphabets that were in no training.\n"
        "Names given to new ones: green is right, orange wrong, with the probability."
    )
    with written_figure(path, 7.4, title, colours=128) as figure:
        ways = len(episode.classes)
        grid = figure.add_gridspec(ways, QUERIES + 2, width_ratios=[1.2, 0.2, *[1] * QUERIES])
        right = 0
        for row, name in enumerate(episode.classes):
            cells = [(0, episode.support[row], letter(name).replace(" ", "\n"), BLACK)]
            for column, image in enumerate(episode.queries[row]):
                given, share = episode.named[row][column], f"{episode.probabilities[row][column]:.0%}"
                right += given == row
                text = share if given == row else f"{letter(episode.classes[given]).split()[1]} {share}"
                cells.append((column + 2, image, text, GREEN if given == row else ORANGE))
            for place, image, text, colour in cells:
                axes = figure.add_subplot(grid[row, place])
                axes.imshow(Image.open(images / image))
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set(visible=True, color=colour, linewidth=3)
                axes.set_xlabel(text, color=colour, fontsize=11, fontweight="bold", labelpad=3)
    print(f"{right} of {ways * QUERIES} are right: {path}")


if __name__ == "__main__":
    images, features, run = map(Path, sys.argv[1:])
    draw(images, first_episode(features, run), Path(__file__).with_name("episode.png"))
