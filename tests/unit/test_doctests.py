"""The examples of docstrings run, with a tiny work folder, and the public package has some."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import leokit
from leokit import meta_train
from tests.e2e.conftest import make_store
from tests.e2e.test_extract import make_tree

TRAIN = {"steps": 4, "val_every": 2, "val_episodes": 10, "val_queries": 4, "queries": 4, "num_latents": 8}
WITHOUT = ("leokit.__main__", "leokit.cli", "leokit.images.gpu")  # scripts, and what needs CUDA


def examples():
    names = [name for _, name, _ in pkgutil.walk_packages(leokit.__path__, "leokit.")]
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in ["leokit", *(name for name in names if not name.startswith(WITHOUT))]:
        module = importlib.import_module(name)
        yield from (test for test in finder.find(module, name) if test.examples)


FOUND = list(examples())


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the examples may use without making it."""
    root = tmp_path_factory.mktemp("doctests")
    make_store(root / "work" / "features", classes=(8, 7, 7), dim=24)
    meta_train(work=root / "work", **TRAIN)
    make_tree(root / "images", classes=[f"class{number}" for number in range(10)], per_class=2)
    save_file(timm.create_model("test_resnet").state_dict(), root / "weights.safetensors")
    tiny = {"backbone": "test_resnet", "weights": str(root / "weights.safetensors"), "image_size": 32}
    given = {"work": root / "work", "new_work": root / "new", "images": root / "images", "tiny_backbone": tiny}
    return {"np": np, "torch": torch, "Path": Path, **given}


@pytest.mark.parametrize("example", FOUND, ids=[example.name for example in FOUND])
def test_the_example_prints_what_it_says(example, names):
    example.globs.update(names)
    failures, tried = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert tried and not failures


def test_the_public_package_has_examples():
    public = {f"leokit.{home}" for home in ("api.extract", "api.meta_train", "api.meta_train_seeds", "api.evaluate")}
    public |= {"leokit.estimator.LEOClassifier", "leokit.features.store.FeatureStore"}
    assert public <= {example.name for example in FOUND}
    assert set(leokit.__all__) <= set(dir(leokit))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        leokit.nothing  # noqa: B018
