"""Read the pickles of the CIFAR archives as plain data.

A pickle is a program: Python's own unpickler calls what it names. Limiting the names is not enough for a stranger's
file, since even then it may set attributes, claim a memo of any size or hash a key that never ends. So the opcodes
that Python 2 wrote for these files are interpreted here, on strings, numbers, lists, dictionaries and bytes; there is
nothing on the stack that could be called, and every other opcode and name is refused.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt


class PickleError(ValueError):
    """A pickle that is damaged, or is more than plain data; its text says which."""


class _Name(Enum):
    """The only names that a file may mention, as inert marks."""

    RECONSTRUCT = "numpy.core.multiarray _reconstruct"
    NDARRAY = "numpy ndarray"
    DTYPE = "numpy dtype"
    ENCODE = "_codecs encode"  # how Python 3 writes bytes in Python 2's protocol


_NAMES = {name.value: name for name in _Name} | {"numpy._core.multiarray _reconstruct": _Name.RECONSTRUCT}


@dataclass
class _Pixels:
    """A uint8 array in the making: NumPy first names one, then fills it in."""

    array: npt.NDArray[np.uint8] | None = None


class _Mark(Enum):
    """Marks on the stack: where the items of a list begin, and NumPy's type ``u1``."""

    ITEMS = 0
    UINT8 = 1


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PLAIN = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"}
_PLAIN |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE"}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def plain_pickle(raw: bytes) -> dict[str, object]:
    """Return the dictionary in a pickle of protocol 0, 1 or 2.

    Byte strings come back as str in Latin-1, NumPy arrays as uint8 arrays; numbers, lists, tuples and dictionaries with
    string keys as they are.

    Raises:
        PickleError: if it is anything else.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except PickleError:
        raise
    except Exception as error:  # an empty stack, an unknown memo, a string that is no Latin-1, a cut file ...
        raise PickleError("a damaged pickle") from error
    if not isinstance(result, dict):
        raise PickleError("a pickle without a dictionary")
    return {key: value.array if isinstance(value, _Pixels) else value for key, value in result.items()}


class _Machine:
    """The stack and the memo of one pickle, and what each opcode does to them."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}  # by number: a list of that length could be of any size

    def step(self, opcode: str, argument: object) -> None:  # noqa: PLR0912  # one branch an opcode, as the format has it
        stack = self.stack
        if opcode in _PLAIN:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in {"BINPUT", "LONG_BINPUT", "PUT"}:
            self.memo[_integer(argument)] = stack[-1]
        elif opcode in {"BINGET", "LONG_BINGET", "GET"}:
            stack.append(self.memo[_integer(argument)])
        elif opcode == "MARK":
            stack.append(_Mark.ITEMS)
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode == "LIST":
            stack.append(self._items())
        elif opcode == "DICT":
            stack.append(_filled({}, self._items()))
        elif opcode == "TUPLE":
            stack.append(tuple(self._items()))
        elif opcode in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode in {"APPEND", "APPENDS"}:
            items = self._pop(1) if opcode == "APPEND" else self._items()
            target = stack[-1]
            if not isinstance(target, list):
                raise PickleError("a damaged pickle")
            target.extend(items)
        elif opcode in {"SETITEM", "SETITEMS"}:
            items = self._pop(2) if opcode == "SETITEM" else self._items()
            _filled(stack[-1], items)
        elif opcode == "GLOBAL":
            if argument not in _NAMES:
                raise PickleError(f"a pickle that would run code ({argument!a:.80})")
            stack.append(_NAMES[str(argument)])
        elif opcode == "REDUCE":
            callee, arguments = self._pop(2)
            stack.append(_reduced(callee, arguments))
        elif opcode == "BUILD":
            target, state = self._pop(2)
            _build_(target, state)
            stack.append(target)
        elif opcode not in {"PROTO", "STOP"}:
            raise PickleError(f"a pickle with the opcode {opcode}, which plain data does not need")

    def _items(self) -> list[object]:
        """Take what lies above the last mark, and the mark."""
        start = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _Mark.ITEMS)
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def _pop(self, count: int) -> list[object]:
        if len(self.stack) < count:
            raise PickleError("a damaged pickle")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items


def _integer(value: object) -> int:
    if type(value) is not int:
        raise PickleError("a damaged pickle")
    return value


def _filled(target: object, items: list[object]) -> object:
    """Put keys and values, one after the other, into ``target``."""
    keys = items[::2]
    # Strings only: the hash of a tuple of tuples of tuples can take for ever.
    if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in keys):
        raise PickleError("a pickle with a dictionary that is not keyed by strings")
    target.update(zip(keys, items[1::2], strict=True))
    return target


def _reduced(callee: object, arguments: object) -> object:
    """Return what the one call that plain data needs, would have given."""
    match callee, arguments:
        case _Name.RECONSTRUCT, (_Name.NDARRAY, (0,), "b"):
            return _Pixels()
        case _Name.DTYPE, ("u1", 0, 1):
            return _Mark.UINT8
        case _Name.DTYPE, (str(code), *_):
            raise PickleError(f"an array of type {code!a:.20} instead of uint8")
        case _Name.ENCODE, (str(text), "latin1"):
            return text
    raise PickleError("a pickle that would run code")


def _build_(target: object, state: object) -> None:
    """Fill in an array; the type ``u1`` has a state too, which says nothing new."""
    match target, state:
        case _Mark.UINT8, tuple():
            return
        case _Pixels(array=None), (1, tuple(shape), _Mark.UINT8, bool(fortran), str(content)):
            raw = content.encode("latin-1")
            sides = [_integer(side) for side in shape]
            if min(sides, default=0) < 0 or math.prod(sides) != len(raw):
                raise PickleError(f"an array of {len(raw)} bytes where its shape needs another number")
            target.array = np.frombuffer(raw, dtype=np.uint8).reshape(sides, order="F" if fortran else "C")
            return
    raise PickleError("a pickle that would run code")
