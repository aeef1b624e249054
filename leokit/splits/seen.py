"""How many classes of a task the weights of a backbone have seen: without it, a comparison says little."""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

IMAGENET_1K = "imagenet-1k"
IMAGENET_21K = "imagenet-21k"
WEB = "web"
UNKNOWN = "unknown"
TRAINED_ON = (IMAGENET_1K, IMAGENET_21K, WEB, UNKNOWN)

_WNID = re.compile(r"n\d{8}")


def classes_seen(trained_on: str | Sequence[str], class_names: Sequence[str]) -> int | None:
    """How many of `class_names` the weights were trained on; None where that cannot be told.

    Args:
        trained_on: one of `TRAINED_ON`, or the names of the classes that the weights were trained on.
        class_names: the classes of the task. Against ImageNet they can be looked up only where they are wnids.

    Returns:
        The number, or None: names that are no wnids, unknown or web data, and ImageNet-21k where one of the wnids
        is outside ImageNet-1k (all of ImageNet-1k is in it; of the others there is no list here).

    Raises:
        ValueError: `trained_on` is a word that is none of `TRAINED_ON`.
    """
    if not isinstance(trained_on, str):
        return len(set(trained_on) & set(class_names))
    if trained_on not in TRAINED_ON:
        raise ValueError(f"trained_on = {trained_on!r}: one of {', '.join(TRAINED_ON)}, or a list of classes")
    if trained_on in (WEB, UNKNOWN) or not all(_WNID.fullmatch(name) for name in class_names):
        return None
    seen = len(_imagenet_1k() & set(class_names))
    return seen if trained_on == IMAGENET_1K or seen == len(set(class_names)) else None


@cache
def _imagenet_1k() -> frozenset[str]:
    return frozenset((files("leokit.splits") / "imagenet-1k.txt").read_text(encoding="ascii").split())
