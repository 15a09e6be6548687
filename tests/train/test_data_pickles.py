from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_train.data.load import load_data
from smart_train.data.pickles import PickleError, plain_pickle
from smart_train.errors import DataError
from train.data_files import RELEASES, python2_pickle

CONTENT = {
    b"labels": [0, 255, 256, 65536, -1],
    b"data": np.arange(24, dtype=np.uint8).reshape(2, 12),
    b"names": [b"airplane", b"x" * 300, b"\xe9t\xe9"],
    b"empty": [],
}
WRITTEN = {"Python 2": python2_pickle(CONTENT)} | {
    f"Python 3, protocol {protocol}": pickle.dumps(CONTENT, protocol=protocol) for protocol in (0, 1, 2)
}


def plain(value: object) -> object:
    """The same in the words of `plain_pickle`."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("raw", WRITTEN.values(), ids=WRITTEN)
def test_plain_data_is_read_as_python_reads_it(raw: bytes) -> None:
    found, expected = plain_pickle(raw), plain(pickle.loads(raw, encoding="bytes"))  # noqa: S301  # written above
    assert isinstance(expected, dict)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        here = found[key]
        if isinstance(value, np.ndarray):
            assert isinstance(here, np.ndarray)
            assert (here.dtype, here.shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(here, value)
        else:
            assert plain(here) == value


def test_an_array_in_columns_keeps_its_order() -> None:
    array = np.asfortranarray(np.arange(24, dtype=np.uint8).reshape(2, 12))
    found = plain_pickle(pickle.dumps({"data": array}, protocol=2))["data"]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, array)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(command: str) -> dict[str, bytes]:
    """Pickles that create a file when Python's own unpickler reads them, and some that hang it or fill the memory."""
    line = command.encode()
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    deep = b"(tq\x00" + b"h\x00h\x00\x86q\x00" * 60  # a pair of one thing twice, 60 deep: 2**60 steps to its hash
    one = python2_pickle({b"data": np.zeros((1, 4), np.uint8)})
    state = one[one.index(b"(K\x01(") : -2]
    return {
        "os.system": pickle.dumps({"data": Calls(os.system, command)}, protocol=2),
        "os.system as Python 2 writes it": b"cposix\nsystem\n(S'" + line + b"'\ntR.",
        "eval": b'c__builtin__\neval\n(S\'__import__("os").system("' + line + b"\")'\ntR.",
        "INST": b"(S'" + line + b"'\niposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\nS'" + line + b"'\no.",
        "NEWOBJ": b"\x80\x02cnumpy\nndarray\n(K\x01tt\x81.",
        "STACK_GLOBAL": pickle.dumps({"data": Calls(os.system, command)}, protocol=4),
        "a persistent name": b"Psystem\n.",
        "an extension": b"\x80\x02\x82\x01.",
        "a name below an allowed one": b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        "encode of a foreign codec": b"c_codecs\nencode\n(Vx\nVzlib_codec\ntR.",
        "a call of what is no name": b"}(tR.",
        "a name called with other things": b"cnumpy.core.multiarray\n_reconstruct\n(I1\ntR.",
        "state for a name": b"c_codecs\nencode\n}S'__defaults__'\n(I1\ntsb.",
        "state for a dictionary": b"}}b.",
        "an array of objects": reconstruct + b"(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntRI00\n(lp0\ntb.",
        "an array filled twice": one[:-2] + state + b"u.",
        "a memo of gigabytes": b"\x80\x02}r\xff\xff\xff\x7f" * 2 + b".",
        "a list that claims gigabytes": b"\x80\x02T\xff\xff\xff\x7fabc.",
        "a key without end": b"}" + deep + b"I1\ns.",
        "a tuple for a key": b"}(I1\ntI1\ns.",
        "keys without values": b"}(S'a'\nu.",
        "append to a dictionary": b"}I1\na.",
        "a mark for a result": b"(.",
        "nothing on the stack": b"\x80\x02.",
        "two results": b"}}.",
        "a memo that was never put": b"g7\n.",
        "no end": b"\x80\x02}",
        "nothing": b"",
        "a negative side": one.replace(b"(K\x01(K\x01", b"(K\x01(J\xff\xff\xff\xff"),
        "too few bytes": one.replace(b"K\x01K\x04", b"K\x02K\x04"),
        "another type": python2_pickle({b"data": np.zeros(4)}),
    }


@pytest.mark.parametrize("name", hostile(""))
def test_a_pickle_that_is_more_than_data_is_refused_and_nothing_runs(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    raw = hostile(f"touch {trace}")[name]
    with pytest.raises(PickleError):
        plain_pickle(raw)
    RELEASES["cifar10"].write(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(raw)
    with pytest.raises(DataError, match=r"data_batch_1 of .*: a") as caught:
        load_data("cifar10", data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_the_hostile_pickles_would_run_if_python_read_them(tmp_path: Path) -> None:
    for i, name in enumerate(("os.system", "os.system as Python 2 writes it", "eval", "INST", "OBJ", "STACK_GLOBAL")):
        trace = tmp_path / f"trace{i}"
        pickle.loads(hostile(f"touch {trace}")[name])  # noqa: S301  # that it runs code is the point
        assert trace.exists(), name


def test_a_pickle_that_would_run_code_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(PickleError, match=r"a pickle that would run code .*system"):
        plain_pickle(hostile("true")["os.system"])


@given(data=st.data(), raw=st.sampled_from(list(WRITTEN.values())))
def test_any_change_of_a_pickle_gives_data_or_a_refusal(data: st.DataObject, raw: bytes) -> None:
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = plain_pickle(bytes(changed[: data.draw(st.integers(0, len(raw)))]))
    except PickleError:
        return
    assert all(isinstance(key, str) for key in found)
