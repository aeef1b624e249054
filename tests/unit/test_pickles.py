"""DeepMind's pickles as any Python and NumPy wrote them, and everything else that a pickle may ask for."""

import collections
import datetime
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from leokit.errors import DataError
from leokit.features.pickles import read_pickle

OTHERS = sorted((Path(__file__).parent / "pickles").glob("*.pkl"))
KEYS = ["0-n01-n01_1.JPEG", "1-n02-n02_7.JPEG", "2-n01-n01_2.JPEG", "3-n02-n02_3.JPEG"]
EMBEDDINGS = np.arange(12, dtype=np.float32).reshape(4, 3) / 4
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
FORMS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "bytes": lambda keys: np.array(keys, dtype="S"),
    "objects": lambda keys: np.array(keys, dtype=object),
    "scalars": lambda keys: list(np.array(keys)),
    "big-endian": lambda keys: np.array(keys).astype(">U20"),
}


def written(folder, value, protocol=2):
    path = folder / "train_embeddings.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


def check(path):
    rows, others = read_pickle(path)
    assert rows.embeddings.tolist() == EMBEDDINGS.tolist()
    assert rows.classes == ["n01", "n02", "n01", "n02"]
    assert rows.images == ["n01/n01_1.JPEG", "n02/n02_7.JPEG", "n01/n01_2.JPEG", "n02/n02_3.JPEG"]
    assert others == []
    return rows


@pytest.mark.parametrize("path", OTHERS, ids=[path.stem for path in OTHERS])
def test_pickles_of_other_pythons_and_numpys(path):
    assert check(path).embeddings.dtype == np.float32


def test_pickles_of_others_are_there():
    assert len(OTHERS) == 11


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", FORMS)
def test_every_protocol_and_form_of_keys(tmp_path, form, protocol):
    check(written(tmp_path, {"embeddings": EMBEDDINGS, "keys": FORMS[form](KEYS)}, protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["<f2", ">f2", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_float_and_order_of_bytes(tmp_path, kind, order, protocol):
    value = {"embeddings": np.asarray(EMBEDDINGS, kind, order=order), "keys": KEYS}
    assert check(written(tmp_path, value, protocol)).embeddings.dtype == np.dtype(kind)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_old_and_new_module_names(tmp_path, protocol):
    data = pickle.dumps({"embeddings": EMBEDDINGS, "keys": KEYS}, protocol)
    check(written(tmp_path, data))
    new, old = b"numpy._core", b"numpy.core"
    if protocol < 4:  # in others the name stands after its length
        assert new in data
        check(written(tmp_path, data.replace(new, old)))


def test_what_is_not_used_is_named(tmp_path):
    path = written(tmp_path, {"embeddings": EMBEDDINGS, "keys": KEYS, "labels": np.arange(4), 7: None})
    assert read_pickle(path)[1] == ["'labels'", "7"]


def test_any_bytes_in_a_key_come_back(tmp_path):
    keys = np.array([b"x-n01-\xff\\.JPEG", "x-n01-ä.JPEG".encode(), b"x-n02-a", b"x-n02-b"])
    rows, _ = read_pickle(written(tmp_path, {"embeddings": EMBEDDINGS, "keys": keys}))
    assert rows.images[:2] == ["n01/\\xff\\\\.JPEG", "n01/ä.JPEG"]


class Call:
    """Unpickled by the ordinary unpickler, it calls something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __repr__(self):  # the tests' names, the same in every process
        return f"{self.call[0].__name__}{self.call[1]}"


def ran(tmp_path):
    return tmp_path / "it-ran"


def hostile(tmp_path):
    return Call(os.system, f"touch {ran(tmp_path)}")


def places(thing):
    """Where a hostile object may lie."""
    objects = np.empty(1, object)
    objects[0] = thing
    nested = np.empty(1, object)
    nested[0] = [{"deep": (objects,)}]
    return {
        "top": thing,
        "embeddings": {"embeddings": thing, "keys": KEYS},
        "key": {"embeddings": EMBEDDINGS, "keys": [*KEYS[:3], thing]},
        "unused": {"embeddings": EMBEDDINGS, "keys": KEYS, "more": thing},
        "objects": {"embeddings": EMBEDDINGS, "keys": objects},
        "nested": {"embeddings": EMBEDDINGS, "keys": KEYS, "more": nested},
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", places(None))
def test_a_call_of_the_system_is_refused_by_name_and_not_made(tmp_path, place, protocol):
    path = written(tmp_path, places(hostile(tmp_path))[place], protocol)
    with pytest.raises(DataError, match=rf"asks for {os.name}\.system, .* Nothing of it was run") as caught:
        read_pickle(path)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert not ran(tmp_path).exists()


def test_the_hostile_pickle_of_these_tests_works(tmp_path):
    pickle.loads(pickle.dumps(hostile(tmp_path)))
    assert ran(tmp_path).exists()


def structured():
    return np.zeros(4, dtype=[("a", "f4")])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (Call(eval, "1"), r"(builtins|__builtin__)\.eval"),
        (Call(getattr, "x", "y"), r"(builtins|__builtin__)\.getattr"),
        (Call(bytes, 10), r"(builtins|__builtin__)\.bytes|a call of bytes|_codecs\.encode"),
        (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
        (datetime.date(2020, 1, 1), r"datetime\.date"),
        (EMBEDDINGS.view(np.recarray), r"numpy\.(rec\.)?recarray"),
        (np.ma.masked_array(EMBEDDINGS), r"numpy\.ma(\.core)?\._mareconstruct"),
        (np.float32(1.5), "a numpy scalar that is no string"),
        (structured(), r"numpy\.dtype with fields"),
        (structured().dtype, r"numpy\.dtype with fields"),
        (np.float32, r"numpy\.float32"),
        (np.random.default_rng(0), r"numpy\.random\._pickle\.__generator_ctor"),
        (Call(np.fromfile, "/etc/hostname"), r"numpy(\._core\.multiarray|\.core\.multiarray)?\.fromfile"),
        (Call(np.ndarray, (10**12,)), r"a call of numpy\.ndarray"),
        (Path("a"), r"pathlib\.\w+"),
        (1j, r"(builtins|__builtin__)\.complex"),
    ],
    ids=str,
)
def test_other_names_are_refused(tmp_path, thing, name, protocol):
    for value in (thing, {"embeddings": EMBEDDINGS, "keys": KEYS, "more": [thing]}):
        with pytest.raises(DataError, match=rf"asks for ({name}), but"):
            read_pickle(written(tmp_path, value, protocol))


def name(module, attribute):
    """The program that puts a name with dots on the stack."""
    return (
        b"\x80\x04"
        + b"".join(b"\x8c" + struct.pack("B", len(text)) + text.encode() for text in (module, attribute))
        + b"\x93"
    )


MULTIARRAY = "numpy._core.multiarray"


@pytest.mark.parametrize(
    ("program", "asks"),
    [
        (b"cposix\nsystem\n(S'true'\ntR.", "posix.system"),
        (b"(S'true'\niposix\nsystem\n.", "posix.system"),
        (b"(cposix\nsystem\nS'true'\no.", "posix.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"ccopy_reg\n_reconstructor\n(cposix\nsystem\nc__builtin__\nobject\nNtR.", "copy_reg._reconstructor"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cposix\nsystem\n(I0\ntS'b'\ntR.", "posix.system"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.", "an array of a class that is not"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(S'numpy.ndarray'\n(I0\ntS'b'\ntR.",
            "an array of a class that is not",
        ),
        (b"cnumpy\nndarray\n(I9\ntR.", "a call of numpy.ndarray"),
        (b"cnumpy\nndarray\n}S'__call__'\ncnumpy\ndtype\nsb.", "a change to numpy.ndarray"),
        (b"cnumpy\nndarray\n(N}S'a'\nI1\nstb.", "a change to numpy.ndarray"),
        (b"c_codecs\nencode\n(S'ab'\nS'rot13'\ntR.", "_codecs.encode other than to latin1"),
        (b"c_codecs\nencode\n(cnumpy\nndarray\nS'latin1'\ntR.", "_codecs.encode other than to latin1"),
        (b"c_codecs\ndecode\n(S'ab'\nS'zip'\ntR.", "_codecs.decode"),
        (b"c__builtin__\nbytes\n(I999999999\ntR.", "a call of bytes"),
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nS'x'\ntR.", "a numpy scalar that is no string"),
        (b"cnumpy.core.numeric\n_frombuffer\n(S''\nNNcnumpy\nndarray\ntR.", "an array in an unknown order"),
        (b"Pname\n.", "an object from outside of the pickle"),
        (b"\x80\x02U\x01aQ.", "an object from outside of the pickle"),
        (name("numpy", "ndarray.__class__") + b".", "numpy.ndarray.__class__"),
        (name(MULTIARRAY, "_reconstruct.__globals__") + b".", f"{MULTIARRAY}._reconstruct.__globals__"),
        (name("numpy.testing._private.utils", "runstring") + b".", "numpy.testing._private.utils.runstring"),
        (name("os", "system\n\x1b[31m") + b".", r"os.system\n\x1b[31m"),
        (name("a" * 255, "b" * 255) + b".", "a" * 198),
    ],
    ids=repr,
)
def test_programs_by_hand_are_refused(tmp_path, program, asks):
    with pytest.raises(DataError) as caught:
        read_pickle(written(tmp_path, program))
    message = str(caught.value)
    assert f"asks for {asks}" in message
    assert message.isprintable() and len(message) < 600


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"\x80\x04cnumpy\nndarray\n)}\x92.",  # NEWOBJ_EX
        b"\x82\x01.",  # EXT1
        b"cnumpy\nndarray\nI1\na.",  # APPEND
        b"cnumpy\ndtype\nS'a'\nI1\ns.",  # SETITEM
        b"S'a'\n(tR.",  # a call of a string
        b"\x80\x02Nr\xff\xff\xff\x7f0.",  # a far place in the memo
        b"\x80\x02h\x07.",
        b"\x80\x09.",
        b"\x00",
        b"",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # a bytearray of a terabyte
        b"\x89HDF\r\n\x1a\n",
    ],
    ids=repr,
)
def test_programs_that_do_not_work_are_no_pickles(tmp_path, program):
    with pytest.raises(DataError, match=r"is no pickle, or not a whole one \(\w+"):
        read_pickle(written(tmp_path, program))


@pytest.mark.parametrize("path", [OTHERS[0], OTHERS[2], OTHERS[-2]], ids=lambda path: path.stem)
def test_a_truncated_pickle_is_refused_wherever_it_ends(tmp_path, path):
    data = path.read_bytes()
    for end in range(len(data)):
        # Cut at one of its points, a module's name is another name.
        with pytest.raises(DataError, match=r"not a whole one|asks for numpy\.(core\.)?, but"):
            read_pickle(written(tmp_path, data[:end]))


@pytest.mark.parametrize("path", [OTHERS[0], OTHERS[2], OTHERS[-2]], ids=lambda path: path.stem)
def test_a_scrambled_pickle_is_read_or_refused_and_nothing_else(tmp_path, path):
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in (position % 8, (position + 3) % 8):
            altered = bytearray(data)
            altered[position] ^= 1 << bit
            try:
                read_pickle(written(tmp_path, bytes(altered)))
            except DataError as error:
                assert str(error).isprintable()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"embeddings": EMBEDDINGS}, "holds a dict with ['embeddings']: a dict with 'embeddings' and 'keys' is needed"),
        ([EMBEDDINGS], "holds a list"),
        (EMBEDDINGS, "holds an array of 'f4' with shape (4, 3)"),
        ({"embeddings": EMBEDDINGS.tolist(), "keys": KEYS}, "no array of floats (a list)"),
        (
            {"embeddings": EMBEDDINGS.astype(int), "keys": KEYS},
            "no array of floats (an array of 'i8' with shape (4, 3))",
        ),
        ({"embeddings": EMBEDDINGS[:0], "keys": []}, "no array of floats (an array of 'f4' with shape (0, 3))"),
        ({"embeddings": EMBEDDINGS.reshape(2, 2, 3), "keys": KEYS}, "no array of floats (an array of 'f4' with shape"),
        ({"embeddings": EMBEDDINGS[0], "keys": KEYS[:3]}, "have the shape (3,)"),
        ({"embeddings": EMBEDDINGS, "keys": KEYS[:3]}, "4 embeddings, but 3 labels"),
        ({"embeddings": EMBEDDINGS, "keys": "abcd"}, "no list or array of strings (a str)"),
        ({"embeddings": EMBEDDINGS, "keys": np.arange(4)}, "no list or array of strings (an array of 'i8'"),
        ({"embeddings": EMBEDDINGS, "keys": np.array([KEYS[:2], KEYS[2:]])}, "no list or array of strings (an array"),
        ({"embeddings": EMBEDDINGS, "keys": [*KEYS[:3], 4]}, "The key of row 3 in"),
        ({"embeddings": EMBEDDINGS, "keys": [*KEYS[:3], np.zeros(2)]}, "no string (an array of 'f8' with shape (2,))"),
        ({"embeddings": EMBEDDINGS, "keys": [*KEYS[:3], "n01-x"]}, "is b'n01-x': it must be of the form <x>-<class>-"),
        ({"embeddings": EMBEDDINGS, "keys": [*KEYS[:3], "0--x"]}, "must be of the form"),
        (
            {"embeddings": EMBEDDINGS, "keys": [*KEYS[:3], "9-n01-n01_1.JPEG"]},
            "the image 'n01/n01_1.JPEG' more than once",
        ),
        ({"embeddings": np.full_like(EMBEDDINGS, np.inf), "keys": KEYS}, "(row 0 in"),
        ({"embeddings": np.where(EMBEDDINGS == 2, np.nan, EMBEDDINGS), "keys": KEYS}, "has the value nan"),
    ],
)
def test_contents_of_another_form_are_refused(tmp_path, value, words):
    with pytest.raises(DataError) as caught:
        read_pickle(written(tmp_path, value))
    assert words in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_pickle(tmp_path / "no.pkl")
