"""Small Parquet tables: written whole and atomically, equal tables as equal bytes; and what goes into CSV files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leokit.errors import ArtifactError
from leokit.manifest import write_atomically

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


def read_table(path: Path) -> pa.Table:
    """Read a table.

    Raises:
        ArtifactError: missing, or no Parquet.
    """
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"The table {path} cannot be read ({error}): make the artifact again.") from error


def spreadsheet_safe(text: str) -> str:
    """A text as a cell of a CSV file that no spreadsheet runs as a formula.

    What begins as a formula does gets an apostrophe before it, which a spreadsheet takes for the mark of a text;
    numbers stay numbers.

    Example:
        >>> print(spreadsheet_safe("=1+1"), spreadsheet_safe("-1.5"), spreadsheet_safe("plate"))
        '=1+1 -1.5 plate
    """
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
