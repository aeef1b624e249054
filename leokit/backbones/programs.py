"""What a torch file asks for, found out before torch is let at it.

A torch file is a pickle, a program that calls functions by name, and the numbers of tensors. With `weights_only` torch
calls only functions that it knows to run no other code, but these can still take all memory, or for ever: a zip that
unpacks to a thousand times its size, the same text copied again and again, tuples that double as the keys of a dict,
tensors that are made larger than the file. Here the program is gone through with nothing called in it.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

_ZIP = b"PK\x03\x04"
_PICKLES = 5  # of a file that is no zip: what it is (three), the tensors, and the names of their numbers
_ROOM = 2**20  # bytes that calls may make of a small file
_PLAIN = (str, bytes, int, float, complex, type(None))
_REBUILDS = ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"]
_REBUILDS += ["_rebuild_parameter", "_rebuild_parameter_with_state"]
_TENSORS = {f"torch._utils.{name}" for name in _REBUILDS} | {"torch.nn.parameter.Parameter"}
_VALUES = {"torch.Size", "torch.device", "torch.serialization._get_layout", "builtins.complex", "__builtin__.complex"}
_HASHED = {"collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set"}
_BYTES = {"_codecs.encode", "builtins.bytearray", "__builtin__.bytearray"}
_OF_A_KIND = "torch._tensor._rebuild_from_type_v2"  # which calls what it is given


class Refused(Exception):
    """What a file asks for and shall not have; the message says what that is."""


def check_program(path: Path) -> None:
    """Go through the program of a torch file without running it.

    Raises:
        Refused: it asks for more than tensors in plain containers, or for more than the file has bytes.
        Exception: it is damaged, in any of the ways that `pickle` and `zipfile` complain of.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            for _ in range(_PICKLES):
                _Unpickler(file, size).load()
            return
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > size:
                raise Refused(f"it would unpack to {unpacked} bytes, but has {size}; torch.save does not compress")
            for entry in archive.infolist():
                if entry.filename.rpartition("/")[2].lower() == "data.pkl":
                    with archive.open(entry) as program:
                        _Unpickler(program, size).load()


class _Named:
    """What a name in a pickle stands for, and what calls of it make: nothing."""

    def __init__(self, name: str, note: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._name, self._note = name, note

    def __call__(self, *arguments: Any) -> "_Made":
        self._note(self._name, arguments)
        return _Made()


class _Made:
    """What a call would have made: takes items and a state as a dict does, and forgets them."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget."""

    def __setstate__(self, state: Any) -> None:
        """Forget."""


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, _PLAIN) for part in parts):
            raise Refused("a dict or set whose keys are no plain values")


class _Unpickler(pickle._Unpickler):
    """Loads plain data; whatever else there is stays a name."""

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(file, encoding="latin1")
        self._room = _ROOM + size

    def _note(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == _OF_A_KIND and len(arguments) > 2 and isinstance(arguments[2], tuple):
            if isinstance(arguments[0], _Named):
                arguments[0](*arguments[2])
                return
        elif name in _BYTES:
            for made in arguments[:1]:
                self._room -= made if isinstance(made, int) else len(made)
        elif name in _HASHED:
            for values in arguments:
                pairs = name.endswith("Dict") and not isinstance(values, dict)
                _check_keys(value[0] if pairs else value for value in values)
        elif name not in _TENSORS | _VALUES:
            raise Refused(f"a call of {name}, where weights are tensors in plain containers")
        if self._room < 0:
            raise Refused("more bytes than the file has")

    def _load_newobj(self: Any) -> None:
        arguments = self.stack.pop()
        self.stack.append(self.stack.pop()(*arguments))

    def _load_item(self: Any) -> None:
        _check_keys(self.stack[-2:-1])
        pickle._Unpickler.dispatch[pickle.SETITEM[0]](self)

    def _load_items(self: Any) -> None:
        _check_keys(self.stack[::2])
        pickle._Unpickler.dispatch[pickle.SETITEMS[0]](self)

    def _load_dict(self: Any) -> None:
        _check_keys(self.stack[::2])
        pickle._Unpickler.dispatch[pickle.DICT[0]](self)

    def _load_set_items(self: Any) -> None:
        _check_keys(self.stack)
        pickle._Unpickler.dispatch[pickle.ADDITEMS[0]](self)

    def _load_frozenset(self: Any) -> None:
        _check_keys(self.stack)
        pickle._Unpickler.dispatch[pickle.FROZENSET[0]](self)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.NEWOBJ[0]: _load_newobj,
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
        pickle.DICT[0]: _load_dict,
        pickle.ADDITEMS[0]: _load_set_items,
        pickle.FROZENSET[0]: _load_frozenset,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _Named(f"{module_name}.{global_name}", self._note)

    def persistent_load(self, pid: Any) -> Any:
        return _Made()
