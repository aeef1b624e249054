"""Numbers and names as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from leokit.report.model import Cell, Column

NOTHING = "–"  # where there is no number
_LARGEST = 1e300  # above it an integer of JSON fits no float; not less than NaN


def is_number(value: object) -> bool:
    """Whether a value from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def number(value: object, digits: int = 2, *, scale: float = 1.0, sign: bool = False) -> Cell:
    """A number with so many decimals as a cell that sorts by it; `–` for whatever is none."""
    if not isinstance(value, int | float) or not is_number(value):
        return Cell(NOTHING)
    scaled = value * scale
    return Cell(f"{scaled:{'+' if sign else ''},.{digits}f}".replace("-", "−"), value=float(scaled))


def interval(mean: object, half_width: object, digits: int = 2, *, scale: float = 1.0, sign: bool = False) -> Cell:
    """A mean with the half-width of its interval in small print."""
    cell, half = number(mean, digits, scale=scale, sign=sign), number(half_width, digits, scale=scale)
    return Cell(cell.text, "" if half.value is None else f"± {half.text}", cell.value)


def between(value: object, low: object, high: object, digits: int = 3, *, scale: float = 1.0) -> Cell:
    """A value with the ends of its interval in small print."""
    cell = number(value, digits, scale=scale)
    ends = [number(end, digits, scale=scale) for end in (low, high)]
    known = all(end.value is not None for end in ends)
    return Cell(cell.text, " to ".join(end.text for end in ends) if known else "", cell.value)


def count(value: object) -> Cell:
    """A whole number."""
    return number(value, 0)


def anything(value: object) -> Cell:
    """A value from JSON, whatever it is, on one line."""
    if value is None:
        return Cell(NOTHING)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int | float) and is_number(value):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
        return Cell(text.replace("-", "−"), value=float(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(anything(item).text for item in value[:8])
        return Cell(shown if len(value) <= 8 else f"{len(value)}: {shown}, …")
    return Cell(str(value))


def get(value: Any, *keys: str) -> Any:
    """What lies at the end of a path of keys; None where the path ends early."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A value from JSON if it is an object, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """The objects in a value from JSON that should be a list of them."""
    return [dict(item) for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def texts(*names: str) -> list[Column]:
    """Columns of text."""
    return [Column(name) for name in names]


def numbers(*names: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, numeric=True) for name in names]


def plural(number: int, noun: str) -> str:
    """As `1 run`, `2 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """As `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
