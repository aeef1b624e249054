"""Small Parquet tables: written whole and atomically, equal tables as equal bytes; and what goes into CSV files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leokit.errors import ArtifactError
from leokit.manifest import write_atomically
from leokit.parquet import BYTE_ARRAY, measure, read_footer

_ROOM, _RATIO, _WORD = 2**28, 200, 8  # bytes that a table may take: so many, and so many for each byte of its file
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # how a cell begins that a spreadsheet runs; OWASP, "CSV injection"


class Categories(NamedTuple):
    """A column of few different texts."""

    codes: NDArray[np.integer[Any]]  # (rows,), places in `names`
    names: Sequence[str]


def write_table(path: Path, columns: Mapping[str, Sequence[Any] | Any], types: Mapping[str, str] | None = None) -> None:
    """Write a table.

    Args:
        path: of the Parquet file.
        columns: for each column its values, (rows,): a sequence, a NumPy or Arrow array, or categories; a NumPy array
            (rows, n) becomes lists of n values each.
        types: for each column the name of its Arrow type, as `string`; without it types follow from the values, which
            an empty column does not have.
    """
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()]) if types else None
    sink = pa.BufferOutputStream()
    arrays = {name: _column(values) for name, values in columns.items()}
    pq.write_table(pa.table(arrays, schema=schema), sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def _column(values: Any) -> Any:
    if isinstance(values, Categories):
        return pa.DictionaryArray.from_arrays(pa.array(values.codes), pa.array(values.names, pa.string()))
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return values


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table.

    Args:
        path: of the Parquet file.
        columns: those to read; None: all.

    Raises:
        ArtifactError: missing, no Parquet, or it would take far more memory than a file of its size can mean.
    """
    if not path.is_file():
        raise ArtifactError(f"The table {path} is missing: make the artifact again with --overwrite.")
    try:
        room = _ROOM + _RATIO * path.stat().st_size
        packed = _packed(path, room)
        with path.open("rb") as file:  # not by its path, of which pyarrow takes UTF-8 alone
            table = pq.read_table(file, columns=columns, partitioning=None, read_dictionary=packed)
        table.validate(full=True)
        return _unpacked(table, [name for name in packed if name in table.column_names], room)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError) as error:
        what = " ".join(str(error).split())
        raise ArtifactError(
            f"The table {path} cannot be read ({what}): make the artifact again with --overwrite."
        ) from error


def _packed(path: Path, room: int) -> list[str]:
    """The columns of texts that are stored as places in a list; checks that no column takes more than `room` bytes.

    Raises:
        ValueError: one does.
    """
    packed, taken = set(), 0
    groups = read_footer(path)
    for column in (column for group in groups for column in group.columns):
        pages = measure(path, column)
        taken += max(pages.total, _WORD * pages.values)
        if column.dictionary_page is not None and column.kind == BYTE_ARRAY:
            packed.add(column.path)
    if max(taken, *(group.rows for group in groups), 0) > room:
        raise ValueError(f"it would take {taken / 1e9:.1f} GB of memory")
    with path.open("rb") as file:
        schema = pq.read_schema(file)
    return [name for name in schema.names if name in packed and schema.field(name).type == pa.string()]


def _unpacked(table: pa.Table, packed: Sequence[str], room: int) -> pa.Table:
    """A table with its texts written out, where they fit into `room` bytes."""
    for name in packed:
        chunks = table.column(name).chunks
        lengths = (pc.take(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in chunks)
        size = sum(pc.sum(each).as_py() or 0 for each in lengths)
        if size > room:
            raise ValueError(f"its column {name!r} would take {size / 1e9:.1f} GB of memory")
        place = table.schema.get_field_index(name)
        field = pa.field(name, pa.string(), table.schema.field(place).nullable)
        table = table.set_column(place, field, table.column(name).cast(pa.string()))
    return table


def spreadsheet_safe(text: str) -> str:
    """A text as a cell of a CSV file that no spreadsheet runs as a formula.

    What begins as a formula does gets an apostrophe before it, which a spreadsheet takes for the mark of a text;
    numbers stay numbers.

    Example:
        >>> print(spreadsheet_safe("=1+1"), spreadsheet_safe("-1.5"), spreadsheet_safe("plate"))
        '=1+1 -1.5 plate
    """
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
