"""Text that anything may be in, names of folders and messages of libraries among it, made safe to show."""

import json
import shlex
import unicodedata
from pathlib import Path
from typing import Any

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of characters that no reader sees as themselves


def visible(text: str, keep: str = "") -> str:
    r"""A text in which control, direction and other unseen characters are spelled out, as `\x0a` or `\u202e`.

    Args:
        text: as it was found; bytes of a file name that are no UTF-8 are the surrogates that Python reads them as.
        keep: characters that stay, as a line's end.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character in keep or unicodedata.category(character) not in _HIDDEN else _spelled(character)
        for character in text
    )


def _spelled(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible_json(value: Any) -> str:
    """A value as one line of JSON in which unseen characters are escaped: what a program reads from it is the same."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(
        json.dumps(character)[1:-1] if unicodedata.category(character) in _HIDDEN else character for character in text
    )


def in_short(value: Any) -> str:
    """A value of an option in few characters, as `1e-5`, `false` or `none`."""
    if isinstance(value, str):
        return value
    return f"{value:.3g}".replace("e-0", "e-") if isinstance(value, float) else str(value).lower()


def method_name(variant: str) -> str:
    """What a variant is called wherever it is shown: `anchored`, which is ours, by the preset that trains it."""
    return "own-images" if variant == "anchored" else variant


def pasteable(path: Path) -> str:
    """A path as a word of a command line that can be pasted, and is never taken for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
