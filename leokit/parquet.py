"""What a Parquet file says of itself, read without Arrow: footers, and how much memory a column takes.

Arrow makes room for what a page says that it decodes to, and a page of a few bytes can say 2 GB, be it compressed
zeros or a run of one value. The footer's sums are no help against that: whoever writes the file writes them too. So
the headers of the pages themselves are read here. So are footers: on some that are damaged pyarrow ends the whole
process (in `metadata.row_group(i).column(j)`), which no caller can catch. Both are in Thrift's compact form, with the
fields of Parquet's format (parquet.thrift).
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

BYTE_ARRAY = 6  # the physical type of texts
UNCOMPRESSED = 0  # codec
PLAIN_ENCODINGS = frozenset({0, 3})  # plain values, and runs (of levels)

_MAGIC = b"PAR1"
_LARGEST_FOOTER = 2**24  # bytes
_HEADER = 2**16  # bytes that the header of a page is shorter than; statistics can make it long
_MOST = 2**20  # pages of a column in a row group
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # kinds of pages
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}  # in which field of a header each kind has its own
_DEEP = 16  # structures inside of each other

_Kind = TypeVar("_Kind")


class Pages(NamedTuple):
    """What the pages of a column, in one row group, say of themselves.

    Attributes:
        values: in its data pages.
        largest: bytes of the largest page, unpacked.
        total: bytes of all pages, unpacked.
    """

    values: int
    largest: int
    total: int


@dataclass(frozen=True)
class Column:
    """A column in a row group, as the footer describes it.

    Attributes:
        path: names that lead to it, joined by dots.
        kind: its physical type.
        encodings: of its pages.
        codec: of its pages.
        values: how many there are.
        size: bytes of its pages with their headers.
        data_page: where its first data page begins.
        dictionary_page: where its dictionary begins, if it has one.
    """

    path: str
    kind: int
    encodings: frozenset[int]
    codec: int
    values: int
    size: int
    data_page: int
    dictionary_page: int | None


@dataclass(frozen=True)
class RowGroup:
    """A row group, as the footer describes it."""

    rows: int
    columns: tuple[Column, ...]


def read_footer(path: Path) -> tuple[RowGroup, ...]:
    """The row groups of a Parquet file.

    Raises:
        ValueError: no Parquet, or its footer is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 8))
        length, magic = struct.unpack("<I4s", file.read(8).rjust(8, b"\0"))
        if magic != _MAGIC or not 0 < length <= min(size - 8, _LARGEST_FOOTER):
            raise ValueError("it does not end as a Parquet file does")
        file.seek(size - 8 - length)
        footer = _Fields(_structure(file.read(length), 0, 0)[0])
    return tuple(_row_group(_Fields(fields)) for fields in footer.get(4, list))


def _row_group(fields: "_Fields") -> RowGroup:
    return RowGroup(fields.get(3, int), tuple(_column(_Fields(column)) for column in fields.get(1, list)))


def _column(fields: "_Fields") -> Column:
    described = _Fields(fields.get(3, dict))
    return Column(
        path=".".join(part.decode("utf-8", "replace") for part in described.items(3, bytes)),
        kind=described.get(1, int),
        encodings=frozenset(described.items(2, int)),
        codec=described.get(4, int),
        values=described.get(5, int),
        size=described.get(7, int),
        data_page=described.get(9, int),
        dictionary_page=described.get(11, int) if described.has(11) else None,
    )


def measure(path: Path, column: Column) -> Pages:
    """Read the headers of the pages of a column.

    Raises:
        ValueError: the headers are none, or say what cannot be.
        OSError: the file cannot be read.
    """
    if column.values == 0:  # of which Arrow reads no page
        return Pages(0, 0, 0)
    start = column.data_page
    if column.dictionary_page is not None and 0 < column.dictionary_page < start:
        start = column.dictionary_page
    values = largest = total = 0
    for kind, unpacked, number in _pages(path, start, column.size):
        largest, total = max(largest, unpacked), total + unpacked
        values += 0 if kind == _DICTIONARY else number
    return Pages(values, largest, total)


def _pages(path: Path, start: int, length: int) -> Iterator[tuple[int, int, int]]:
    """For each page its kind, its bytes unpacked and its number of values."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 <= start <= start + length <= size:
            raise ValueError("a column outside of the file")
        end = start + length
        for _ in range(_MOST):
            if start >= end:
                return
            found, taken = _structure(os.pread(file.fileno(), min(_HEADER, end - start), start), 0, 0)
            header = _Fields(found)
            kind, unpacked, stored = (header.get(field, int) for field in (1, 2, 3))
            number = _Fields(header.get(_DETAILS[kind], dict)).get(1, int) if kind in _DETAILS else 0
            if min(unpacked, stored, number) < 0:
                raise ValueError("a page of less than nothing")
            yield kind, unpacked, number
            start += taken + stored
        raise ValueError(f"more than {_MOST} pages in a row group")


class _Fields:
    """The fields of a structure, by number."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, dict):
            raise ValueError("no structure where one should be")
        self._values = values

    def has(self, number: int) -> bool:
        return number in self._values

    def get(self, number: int, kind: type[_Kind]) -> _Kind:
        value = self._values.get(number)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"field {number} is missing or of another kind")
        return value

    def items(self, number: int, kind: type[_Kind]) -> list[_Kind]:
        values = self.get(number, list)
        if not all(isinstance(value, kind) for value in values):
            raise ValueError(f"field {number} lists what is of another kind")
        return values


class _Small(NamedTuple):
    """An integer of fewer bits than the fields read here have: Arrow skips a field whose type is not its own."""

    value: int


def _structure(data: bytes, position: int, depth: int) -> tuple[dict[int, Any], int]:
    """A structure in Thrift's compact form, its fields by number, and where it ends."""
    if depth > _DEEP:
        raise ValueError("structures inside of each other")
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head, position = _byte(data, position)
        if head & 15 == 0:
            return fields, position
        if head >> 4:
            number += head >> 4
        else:
            number, position = _signed(data, position)
        if number in fields:
            raise ValueError(f"field {number} is there twice")
        fields[number], position = _value(data, position, head & 15, depth)


def _value(data: bytes, position: int, kind: int, depth: int) -> tuple[Any, int]:
    """A value of a kind: numbers, bytes, lists and structures as such; others are passed over."""
    match kind:
        case 1 | 2:
            return kind == 1, position
        case 3:
            return None, position + 1
        case 4:
            number, position = _signed(data, position)
            return _Small(number), position
        case 5 | 6:
            return _signed(data, position)
        case 7:
            return None, position + 8
        case 8:
            length, position = _number(data, position)
            if length > len(data) - position:
                raise ValueError("a text ends too late")
            return data[position : position + length], position + length
        case 9 | 10:
            return _list(data, position, depth)
        case 12:
            return _structure(data, position, depth + 1)
        case _:  # maps, of which Parquet has none
            raise ValueError(f"a value of kind {kind}")


def _list(data: bytes, position: int, depth: int) -> tuple[list[Any], int]:
    head, position = _byte(data, position)
    length, kind = head >> 4, head & 15
    if length == 15:
        length, position = _number(data, position)
    if length > len(data) - position:
        raise ValueError("a list ends too late")
    items = []
    for _ in range(length):
        if kind in (1, 2):
            position += 1
            continue
        item, position = _value(data, position, kind, depth + 1)
        items.append(item)
    return items, position


def _signed(data: bytes, position: int) -> tuple[int, int]:
    number, position = _number(data, position)
    return (number >> 1) ^ -(number & 1), position


def _number(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte, position = _byte(data, position)
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, position
        if shift > 63:
            raise ValueError("a number that is too long")


def _byte(data: bytes, position: int) -> tuple[int, int]:
    if position >= len(data):
        raise ValueError("it ends too early")
    return data[position], position + 1
