"""What is imported does not depend on the order of its rows, and every row comes back."""

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leokit.config import ImportConfig
from leokit.stages import importing

KEYS = st.lists(
    st.tuples(st.integers(0, 5), st.text(st.characters(exclude_characters="-"), min_size=1, max_size=6)),
    min_size=3,
    max_size=30,
    unique=True,
)


def write(folder, rows, embeddings, order):
    """Rows as three pickles, a third of the classes in each."""
    folder.mkdir()
    for number, split in enumerate(("train", "val", "test")):
        chosen = [row for row in order if rows[row][0] % 3 == number]
        keys = [f"x-{rows[row][0]}-{rows[row][1]}" for row in chosen]
        value = {"embeddings": embeddings[chosen], "keys": keys}
        (folder / f"{split}_embeddings.pkl").write_bytes(pickle.dumps(value, 4))
    return importing.run(ImportConfig(source=folder, out=folder / "out"))


@settings(max_examples=25)
@given(KEYS, st.randoms(use_true_random=False))
def test_every_row_comes_back_and_their_order_changes_nothing(tmp_path_factory, drawn, random):
    rows = [(0, "a"), (1, "a"), (2, "a"), *((name, f"b{image}") for name, image in drawn)]
    embeddings = np.random.default_rng(0).normal(size=(len(rows), 3)).astype(np.float32)
    folder = tmp_path_factory.mktemp("import")
    order = list(range(len(rows)))
    first = write(folder / "a", rows, embeddings, order)
    random.shuffle(order)
    second = write(folder / "b", rows, embeddings, order)
    assert {name: entry.sha256 for name, entry in first.manifest.files.items()} == {
        name: entry.sha256 for name, entry in second.manifest.files.items()
    }
    found = {
        (name, embedding.tobytes())
        for split in first.splits
        for name in first.classes(split)
        for embedding in first.read_class(split, name)
    }
    assert found == {(str(name), embeddings[row].tobytes()) for row, (name, _) in enumerate(rows)}
