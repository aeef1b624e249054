"""DeepMind's embeddings: a pickle for each split, read by an unpickler that can do nothing but hold data.

A pickle is a program: it names functions and classes, and loading calls them. Here a name stands for one of a few
objects that record what NumPy would be told, and never for NumPy's own; any other name stops the loading before
anything was called. Arrays are made afterwards, out of bytes whose type and length have been checked.
"""

import math
import os
import pickle
import re
import reprlib
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from leokit.errors import DataError
from leokit.features.labelled import LabelledRows
from leokit.images.scan import escape

_FLOATS = re.compile(r"f[248]")
_STRINGS = re.compile(r"[SU][1-9]\d{0,5}")
_OBJECTS = re.compile(r"O[48]?")
_LINE = 200  # characters of a message that come from a pickle
_ROOM = 2**20  # characters that texts of a small pickle may have
_SHORT = reprlib.Repr()  # which goes no deeper than a line is long
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist = 3, _LINE, _LINE, 20
_FORM = "<x>-<class>-<image>"


class _Refused(Exception):
    """What a pickle wants is none of what is admitted; says what that is."""


class _Type:
    """What a pickle says about a NumPy type, `numpy.dtype`."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        self.code = code if isinstance(code, str) else ""
        self.order: object = "="

    def __setstate__(self, state: object) -> None:
        # (version, byte order, subtype, names, fields, size, alignment, flags, …)
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("numpy.dtype with fields")
        self.order = state[1]

    def matching(self, pattern: re.Pattern[str]) -> np.dtype[Any] | None:
        """The type, if its code is one of those of the pattern."""
        if not pattern.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            return None
        order = str(self.order)
        return np.dtype(self.code) if order == "|" else np.dtype(self.code).newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """What a pickle says about a NumPy array."""

    __slots__ = ("data", "fortran", "shape", "type")

    def __init__(self, shape: object = (), kind: object = None, *, fortran: bool = False, data: object = b"") -> None:
        self.shape, self.type, self.fortran, self.data = shape, kind, fortran, data

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("numpy.ndarray with an unknown state")
        _, self.shape, self.type, fortran, self.data = state
        self.fortran = fortran is True or fortran == 1

    def of(self, pattern: re.Pattern[str]) -> NDArray[Any] | None:
        """The array, (n,) or (n, D), if its type is one of the pattern and its bytes are as many as its shape says."""
        kind = self.type.matching(pattern) if isinstance(self.type, _Type) else None
        shape, data = self.shape, self.data
        if isinstance(data, str):  # Python 2 wrote bytes as a string, which was decoded as latin1
            data = data.encode("latin1", "ignore")
        if kind is None or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
            return None
        if len(shape) not in (1, 2) or not all(isinstance(size, int) and size > 0 for size in shape):
            return None
        if math.prod(shape) * kind.itemsize != len(data):
            return None
        return np.frombuffer(data, kind).reshape(shape, order="F" if self.fortran else "C")


class _Admitted:
    """What an admitted name stands for while loading: may be called, and cannot be changed."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., object] | None = None) -> None:
        self._name = name
        self._call = call

    def __call__(self, *arguments: object) -> object:
        if self._call is None:
            raise _Refused(f"a call of {self._name}")
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _Refused(f"a change to {self._name}")


_NDARRAY = _Admitted("numpy.ndarray")


def _reconstruct(kind: object, shape: object = (), code: object = b"") -> _Array:
    """An empty array, whose state follows: NumPy's way before protocol 5, and of arrays of objects."""
    if kind is not _NDARRAY:
        raise _Refused("an array of a class that is not numpy.ndarray")
    return _Array()


def _frombuffer(data: object, kind: object, shape: object, order: object = "C", *_: object) -> _Array:
    """An array from its bytes: NumPy's way from protocol 5 on."""
    if order not in ("C", "F"):
        raise _Refused("an array in an unknown order")
    return _Array(shape, kind, fortran=order == "F", data=data)


def _scalar(kind: object, data: object = None) -> str:
    """A string of NumPy, as they lie in a list that was made from an array."""
    value = _Array((1,), kind, data=data).of(_STRINGS)
    if value is None:
        raise _Refused("a numpy scalar that is no string")
    return _text(value[0])


def _encode(text: object, encoding: object = "") -> bytes:
    """Bytes, as Python 3 writes them for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("_codecs.encode other than to latin1")
    return text.encode("latin1")


def _no_bytes(*arguments: object) -> bytes:
    """No bytes at all, as Python 3 writes them for Python 2."""
    if arguments:
        raise _Refused("a call of bytes")
    return b""


_NUMPY = [f"{package}.{module}" for package in ("numpy.core", "numpy._core") for module in ("multiarray", "numeric")]
_NUMPY += [f"{package}._multiarray_umath" for package in ("numpy.core", "numpy._core")]
_CALLS: dict[str, Callable[..., object]] = {
    "_reconstruct": _reconstruct,
    "scalar": _scalar,
    "_frombuffer": _frombuffer,
}
_ADMITTED = {
    **{(module, name): _Admitted(f"{module}.{name}", call) for module in _NUMPY for name, call in _CALLS.items()},
    **{(module, "ndarray"): _NDARRAY for module in ("numpy", *_NUMPY)},
    **{(module, "dtype"): _Admitted("numpy.dtype", _Type) for module in ("numpy", *_NUMPY)},
    ("_codecs", "encode"): _Admitted("_codecs.encode", _encode),
    ("builtins", "bytes"): _Admitted("bytes", _no_bytes),
    ("__builtin__", "bytes"): _Admitted("bytes", _no_bytes),
}


_MAKERS_OF_TEXT: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, "scalar"): _scalar for module in _NUMPY},
    ("_codecs", "encode"): _encode,
}


def _check_keys(keys: list[Any]) -> None:
    for key in keys:
        if not isinstance(key, str | bytes | int | float | None):
            raise _Refused("a dict whose keys are no strings")


class _Unpickler(pickle._Unpickler):
    """Loads plain data and what `_ADMITTED` names, as records.

    This is the unpickler in Python. That in C takes memory up to whatever place of its memo a pickle names; this one
    only where a pickle announces a long bytearray, which is therefore read before there is room for it. A few bytes can
    also ask for the same long text again and again, and for tuples inside of tuples, each twice, whose hash takes for
    ever: texts that calls make are counted, and only strings are keys.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Load from a file of so many bytes."""
        super().__init__(file, encoding="latin1")
        self._room = _ROOM + 4 * size  # characters that calls may still make; NumPy has four bytes for each

    def _load_bytearray(self: Any) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def _load_item(self: Any) -> None:
        _check_keys(self.stack[-2:-1])
        pickle._Unpickler.dispatch[pickle.SETITEM[0]](self)

    def _load_items(self: Any) -> None:
        _check_keys(self.stack[::2])
        pickle._Unpickler.dispatch[pickle.SETITEMS[0]](self)

    def _load_dict(self: Any) -> None:
        _check_keys(self.stack[::2])
        pickle._Unpickler.dispatch[pickle.DICT[0]](self)

    def _load_set(self: Any) -> None:
        raise _Refused("a set")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
        pickle.DICT[0]: _load_dict,
        pickle.EMPTY_SET[0]: _load_set,
        pickle.FROZENSET[0]: _load_set,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        admitted = _ADMITTED.get((module_name, global_name))
        if admitted is None:
            raise _Refused(f"{module_name}.{global_name}")
        call = _MAKERS_OF_TEXT.get((module_name, global_name))
        return admitted if call is None else _Admitted(f"{module_name}.{global_name}", self._counted(call))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            made = call(*arguments)
            self._room -= len(made)
            if self._room < 0:
                raise _Refused("more text than the file has bytes")
            return made

        return counted

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object from outside of the pickle")


def _load(path: Path) -> object:
    """What a pickle holds: plain data, with arrays as `_Array`.

    Raises:
        DataError: no such file, no whole pickle, or it names anything that is not admitted.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read() != pickle.STOP:
                raise EOFError("its last byte does not end a pickle")
            file.seek(0)
            return _Unpickler(file, size).load()
    except _Refused as refused:
        raise DataError(
            f"{path} is refused: it asks for {_line(refused)}, but such a pickle may hold NumPy arrays and "
            "strings, and nothing else. Nothing of it was run."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a program cut short or scrambled can stumble in any way
        raise DataError(f"{path} is no pickle, or not a whole one ({type(error).__name__}: {_line(error)}).") from error


def read_pickle(path: Path) -> tuple[LabelledRows, list[str]]:
    """Read one of DeepMind's pickles: a dict with `embeddings` (n, D) and `keys`, n strings `<x>-<class>-<image>`.

    As in DeepMind's code, an image is known by its class and the last part of its key; the first part is not used.

    Returns:
        The rows, and the names of whatever else the dict holds.

    Raises:
        DataError: missing, truncated, refused for what it asks for, or its contents are not of this form.
    """
    loaded = _load(path)
    if not isinstance(loaded, dict) or not {"embeddings", "keys"} <= loaded.keys():
        found = f"a dict with {_line(list(loaded))}" if isinstance(loaded, dict) else _kind(loaded)
        raise DataError(f"{path} holds {found}: a dict with 'embeddings' and 'keys' is needed.")
    embeddings = loaded["embeddings"].of(_FLOATS) if isinstance(loaded["embeddings"], _Array) else None
    if embeddings is None:
        raise DataError(f"The embeddings in {path} are no array of floats ({_kind(loaded['embeddings'])}).")
    parts = [_parts(path, row, key) for row, key in enumerate(_keys(path, loaded["keys"]))]
    rows = LabelledRows.checked(
        path, embeddings, [name for name, _ in parts], [f"{name}/{image}" for name, image in parts]
    )
    return rows, sorted(_line(name) for name in loaded.keys() - {"embeddings", "keys"})


def _keys(path: Path, keys: object) -> list[bytes]:
    """The keys as bytes, from a list or from an array of strings or objects."""
    values: Any = keys
    if isinstance(keys, _Array):
        strings = keys.of(_STRINGS)
        if strings is not None and strings.ndim == 1:
            with suppress(ValueError):  # four bytes that are no character
                values = strings.tolist()
        elif isinstance(keys.type, _Type) and keys.type.matching(_OBJECTS) is not None:
            values = keys.data
    if not isinstance(values, list | tuple):
        raise DataError(f"The keys in {path} are no list or array of strings ({_kind(keys)}).")
    for row, value in enumerate(values):
        if not isinstance(value, str | bytes):
            raise DataError(f"The key of row {row} in {path} is no string ({_kind(value)}).")
    if sum(map(len, values)) > _ROOM + path.stat().st_size:  # one long string, again and again
        raise DataError(f"The keys in {path} are longer than the file: write them anew.")
    return [value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass") for value in values]


def _parts(path: Path, row: int, key: bytes) -> tuple[str, str]:
    """Class and image of a key."""
    parts = key.split(b"-")
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise DataError(f"The key of row {row} in {path} is {_line(key)}: it must be of the form {_FORM}.")
    return escape(parts[1]), escape(parts[2])


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _line(value: object) -> str:
    """Something out of a pickle as a short line of plain characters."""
    try:
        text = str(value) if isinstance(value, Exception) else _SHORT.repr(value)
    except ValueError:  # a number with more digits than Python writes
        text = type(value).__name__
    text = text.encode("unicode_escape").decode("ascii").replace("\\\\", "\\")
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"


def _kind(value: object) -> str:
    """What something is, for a message."""
    if isinstance(value, _Array):
        code = value.type.code if isinstance(value.type, _Type) else ""
        return f"an array of {_line(code)} with shape {_line(value.shape)}"
    return "an object of NumPy" if isinstance(value, _Type | _Admitted) else f"a {type(value).__name__}"
