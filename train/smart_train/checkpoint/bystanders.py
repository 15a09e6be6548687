"""What training scripts of others leave beside the tensors in a file: read past, and never executed."""

from __future__ import annotations

import pickletools
from typing import Any


class Bystander:
    """Stands in for a value that nobody asks for: takes what it would be made of, and does nothing with it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_ENCODE = "_codecs encode"

# Best scores as scalars of NumPy 1 or 2, whose bytes are a text in latin1; arrays of such.
_STOOD_IN_FOR = (
    *(f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy dtype", "numpy ndarray"),
)

BYSTANDERS = frozenset((*_STOOD_IN_FOR, _ENCODE))
"""The names, as pickles have them, that a file may call beside those of tensors."""

STAND_INS = [(Bystander, name.replace(" ", ".")) for name in _STOOD_IN_FOR]
"""The same for ``torch.serialization.safe_globals``: only a stand-in is ever called. torch has ``encode`` itself."""


class EncodedTexts:
    """Sees that a pickle encodes texts as NumPy's bytes are encoded, and in no other way: some codecs take hours."""

    def __init__(self) -> None:
        self._memo: dict[int, str | None] = {}
        self._top: str | None = None  # of the stack, if it is a text or a name
        self._since = 0  # how many opcodes ago `encode` was pushed; 0 for not at all

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Look at the next opcode; raise ValueError if a text is encoded in another way."""
        if opcode.name in {"BINPUT", "LONG_BINPUT", "PUT"}:
            self._memo[argument] = self._top
            return
        is_get = opcode.name in {"BINGET", "LONG_BINGET", "GET"}
        self._top = self._memo.get(argument) if is_get else argument if isinstance(argument, str) else None
        if opcode.name == "MEMOIZE" or not self._fits(opcode.name):
            raise ValueError("a text that is encoded in another way than NumPy's")
        if self._since:
            self._since = (self._since + 1) % 5
        elif self._top == _ENCODE:
            self._since = 1

    def _fits(self, opcode: str) -> bool:
        """Whether the opcode is what NumPy has there: ``encode``, the text, "latin1", both as a tuple, the call."""
        if self._since == 1:
            return self._top is not None
        if self._since == 2:
            return self._top == "latin1"
        return {3: "TUPLE2", 4: "REDUCE"}.get(self._since, opcode) == opcode
