"""leokit: few-shot image classification by Latent Embedding Optimization, from raw images to predictions.

    from leokit import LEOClassifier, FeatureStore, extract, meta_train, evaluate

These are loaded when they are first used: importing leokit itself costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leokit.api import evaluate, extract, meta_train, meta_train_seeds
    from leokit.estimator import LEOClassifier
    from leokit.features import FeatureStore

__version__ = version("leokit")
__all__ = ["FeatureStore", "LEOClassifier", "__version__", "evaluate", "extract", "meta_train", "meta_train_seeds"]

_HOMES = {
    "FeatureStore": "leokit.features",
    "LEOClassifier": "leokit.estimator",
    "evaluate": "leokit.api",
    "extract": "leokit.api",
    "meta_train": "leokit.api",
    "meta_train_seeds": "leokit.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leokit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
