"""Files of plain values and tensors: saved whole, and read as if they came from a stranger, refusing all else."""

from __future__ import annotations

import argparse
import io
import math
import pickle
import pickletools
import re
import stat
import zipfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smart_common.files import replacing
from smart_common.names import MAX_NAME, is_name, is_printable
from smart_train.checkpoint.bystanders import BYSTANDERS, STAND_INS, EncodedTexts
from smart_train.choices import MAX_DECIMAL, MAX_INTEGER, Argument
from smart_train.errors import CheckpointError

MAX_BYTES = 4 * 2**30  # far above any edge classifier; a larger file is refused before it is read
_MAX_PICKLE_BYTES = 4 * 2**20  # a real one has under 1 MiB; each byte can ask for 60, and a microsecond, when read
_MAX_ENTRIES = 4096  # a tensor is one; networks of some hundred layers have a thousand
_MAX_SCALARS = 4096  # tuples of NumPy's beside the tensors of others: two a figure
_MAX_DEPTH = 8  # of nested plain values
_MAX_VALUES = 2**20  # in the plain record, and instructions of a pickle, of which a tensor takes about sixty
_ZIP = b"PK\x03\x04"
_FIRST_ENTRY = 512  # bytes, in which torch.save names the first entry of its archive
_NUMBERS = re.compile(r"[^/]+/data/[0-9]+", re.ASCII)  # the entry of a tensor
# torch.serialization.MAGIC_NUMBER, as each protocol writes it.
_LEGACY_MAGIC = tuple(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=protocol) for protocol in range(2, 6))

# All that torch.save writes for tensors. torch reads more without running code, but not without harm: a bytearray of
# any length, a text in any codec.
_PICKLE_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch BoolStorage",
    "torch ByteStorage",
    "torch FloatStorage",
    "torch LongStorage",
}
# What files of others have too: parameters, all kinds of numbers, and the options of timm's script.
_PARAMETER_NAMES = BYSTANDERS | {
    "argparse Namespace",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch.nn.parameter Parameter",
    "torch BFloat16Storage",
    "torch DoubleStorage",
    "torch HalfStorage",
    "torch IntStorage",
}


def save_atomically(value: Any, path: Path) -> None:
    """``torch.save`` into ``path``, which a reader or a crash sees whole or not at all; raises OSError if refused."""
    with replacing(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch finds its file too short and forgets why the write before that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a file as `save_atomically` writes it; raises OSError if the system cannot read it."""
    with path.open("rb") as file:
        head = file.read(_FIRST_ENTRY)
    return head.startswith(_ZIP) and b"/data.pkl" in head


def read_plain(
    path: Path, *, kind: str = "smart-edge checkpoint of tensors and plain values", parameters: bool = False
) -> Any:
    """Read a file of tensors and plain values; anything that would run code is refused and does not run.

    Args:
        path: the file, as ``torch.save`` writes it.
        kind: what it should be, for the error.
        parameters: whether it may hold ``nn.Parameter`` objects and all kinds of numbers, as others' files do.

    Raises:
        CheckpointError: if it is missing, too large, damaged, or holds more than tensors and plain values.
    """
    return plain_value(read_bytes(path), path=path, kind=kind, parameters=parameters)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of tensors, which is then checked and read from memory: on the disk it may change.

    What is no regular file is as an empty one.

    Raises:
        CheckpointError: if it is missing, or has more than `MAX_BYTES`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, and a device may never end
            return b""
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1) if status.st_size <= MAX_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"no checkpoint at {path}: {error.strerror}; check the path") from error
    size = max(len(data), status.st_size)
    if size > MAX_BYTES:
        raise CheckpointError(
            f"expected a checkpoint of at most {MAX_BYTES} bytes, got {size} in {path}; it is not one of ours"
        )
    return data


def plain_value(data: bytes, *, path: Path, kind: str, parameters: bool) -> Any:
    """Return what is in ``data``, as `read_plain` does with the content of ``path``, which messages name."""
    try:
        if parameters and data[:4] != _ZIP:  # as torch tells, and not by the end of the file as zipfile does
            _check_legacy(data)
            checked = io.BytesIO(data)
        else:
            checked = _checked_archive(data, names=_PICKLE_NAMES | _PARAMETER_NAMES if parameters else _PICKLE_NAMES)
            del data  # what is read is the new archive
        with torch.serialization.safe_globals([argparse.Namespace, *STAND_INS] if parameters else []):
            return torch.load(checked, map_location="cpu", weights_only=True)
    except Exception as error:  # what a foreign file makes the readers of zip and pickle trip over has no bounds
        raise CheckpointError(
            f"{path} is damaged or no {kind}, and was not run or loaded; copy it again, or "
            f"{'save network.state_dict() with torch.save' if parameters else 'train one with smart-train'}"
        ) from error


def _checked_archive(data: bytes, *, names: Set[str]) -> io.BytesIO:
    """Return the entries of a zip as torch.save writes it, stored and as summed, in a new one for torch to read.

    Of one file zipfile, which checks, and torch, which reads, can see two archives: an end record names the directory
    of entries in ways that not all readers follow. torch checks no sums itself, and reads what is no zip in older ways.

    Raises:
        ValueError: if it is anything else.
    """
    if data[:4] != _ZIP:
        raise ValueError("not a file of torch.save")
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(target, "w") as written:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
            raise ValueError("compressed")
        if len({e.filename.lower() for e in entries}) != len(entries):  # torch finds a name in capitals too
            raise ValueError("two entries of one name")
        if any(e.external_attr for e in entries):  # one bit of it makes an entry a folder, which torch reads as nothing
            raise ValueError("an entry that is no plain file")
        if sum(e.file_size for e in entries) > len(data):
            raise ValueError("overlapping entries")
        pickles = [e for e in entries if e.filename.lower().endswith(".pkl")]
        if len(entries) > _MAX_ENTRIES or len(pickles) != 1:
            raise ValueError("too many entries, or not one that says what the others are")
        # A name with letters is another one in capitals, and torch would read its numbers once for each of them.
        if any("/data/" in e.filename.lower() and not _NUMBERS.fullmatch(e.filename) for e in entries):
            raise ValueError("numbers under another name than torch gives them")
        if pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise ValueError("too many plain values")
        for entry in entries:
            content = archive.read(entry)  # raises an error of its own if the sum differs
            if entry is pickles[0]:
                _check_pickle(content, names=names, entries=len(entries))
            copy = zipfile.ZipInfo(entry.filename)
            written.writestr(copy, content)
            copy.external_attr = 0  # zipfile has put a file's mode there
    target.seek(0)
    return target


def _check_legacy(data: bytes) -> None:
    """Raise ValueError unless the file is one that torch.save wrote before version 1.6: five pickles, then the numbers.

    They are a magic number, a version, the sizes of C's types, the value, and the order in which its numbers follow.
    """
    magic = next((form for form in _LEGACY_MAGIC if data.startswith(form)), None)
    if magic is None:
        raise ValueError("not a file of torch.save")
    pickles = io.BytesIO(data[: 2 * _MAX_PICKLE_BYTES])
    pickles.seek(len(magic))
    for _ in range(4):
        start = pickles.tell()
        names = _PICKLE_NAMES | _PARAMETER_NAMES
        _check_pickle(pickles, names=names, entries=_MAX_ENTRIES, most=max(len(data), 2**16))
        if pickles.tell() - start > _MAX_PICKLE_BYTES:
            raise ValueError("too many plain values")


def _check_pickle(data: bytes | io.BytesIO, *, names: Set[str], entries: int, most: int = 2**63 - 1) -> None:
    """Raise ValueError if the pickle names more than tensors are made of, or holds what can share one hash.

    A dictionary of many keys with one hash takes minutes to fill. Long numbers and tuples can be made so; ours has none
    of the first, and of the second five for each tensor, which is an entry of the file. Calls, two for each tensor,
    make objects of some hundred bytes out of five.
    """
    tuples_left = calls_left = 8 * entries + (_MAX_SCALARS if names >= BYSTANDERS else 64)
    texts = EncodedTexts()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number > _MAX_VALUES:
            raise ValueError("more plain values than any checkpoint has")
        texts.step(opcode, argument)
        tuples_left -= "TUPLE" in opcode.name
        calls_left -= opcode.name in {"REDUCE", "NEWOBJ", "BINPERSID"}
        if tuples_left < 0 or calls_left < 0:
            raise ValueError("more tuples or calls than tensors need")
        if opcode.name == "GLOBAL" and argument not in names:
            raise ValueError("more than tensors and plain values")
        if isinstance(argument, int) and not -(2**63) <= argument <= most:
            raise ValueError("a number that is too large")


class Reader:
    """Takes values out of a checkpoint's nested dictionaries, refusing what is missing or of another type.

    Tensors are counted against the size of the file: a pickle can claim a tensor of any size over a few stored bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes_left = path.stat().st_size
        self._values_left = _MAX_VALUES
        self._characters_left = _MAX_PICKLE_BYTES

    def fail(self, what: str) -> CheckpointError:
        """Return the error that ``what`` was expected, for the caller to raise."""
        return CheckpointError(
            f"expected {what} in the checkpoint {self._path}, got another value; it is damaged or not one of ours"
        )

    def get(self, source: Any, key: str, kind: type | tuple[type, ...]) -> Any:
        """Return ``source[key]``, which must be there and of that kind."""
        if not isinstance(source, dict) or key not in source or not isinstance(source[key], kind):
            raise self.fail(f"a value '{key}'")
        return source[key]

    def integer(self, source: Any, key: str) -> int:
        """Return a whole number of less than 2^31 either way; no bool."""
        value = self.get(source, key, int)
        if isinstance(value, bool) or abs(value) > MAX_INTEGER:
            raise self.fail(f"an integer '{key}'")
        return int(value)

    def number(self, source: Any, key: str) -> float:
        """Return a finite number of less than 1e6 either way; no bool."""
        value = self.get(source, key, (int, float))
        if isinstance(value, bool) or not abs(value) < MAX_DECIMAL:  # false for nan too
            raise self.fail(f"a finite number '{key}'")
        return float(value)

    def fraction(self, source: Any, key: str) -> float:
        """Return a number in [0, 1]."""
        value = self.number(source, key)
        if not 0 <= value <= 1:
            raise self.fail(f"{key} in [0, 1]")
        return value

    def argument(self, source: Any, key: str) -> Argument:
        """Return an argument of a network: a whole number, a finite one, true or false, or printable text."""
        value = self.get(source, key, (bool, int, float, str))
        if isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(source, key)
        return self.integer(source, key) if isinstance(value, int) else self.number(source, key)

    def numbers(self, source: Any, key: str, *, length: int) -> tuple[float, ...]:
        """Return a list of exactly ``length`` numbers."""
        values = self.get(source, key, list)
        if len(values) != length:
            raise self.fail(f"{length} numbers '{key}'")
        return tuple(self.number({key: v}, key) for v in values)

    def text(self, source: Any, key: str) -> str:
        """Return a name, printable because it may reach a terminal."""
        value = self.get(source, key, str)
        if not is_name(value):
            raise self.fail(f"printable text of up to {MAX_NAME} characters '{key}'")
        return str(value)

    def texts(self, source: Any, key: str, *, least: int, most: int) -> tuple[str, ...]:
        """Return a list of ``least`` to ``most`` names."""
        values = self.get(source, key, list)
        if not least <= len(values) <= most:
            raise self.fail(f"from {least} to {most} '{key}'")
        return tuple(self.text({key: v}, key) for v in values)

    def tensor(self, source: Any, key: str, *, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
        """Return a copy of a plain tensor on the CPU; None in ``shape`` stands for any length."""
        value = self.get(source, key, Tensor)
        plain = type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu"
        fits = len(shape) == value.dim() and all(w in (None, n) for w, n in zip(shape, value.shape, strict=True))
        # A tensor may be stored as the negative of its bytes, which NumPy does not take.
        if not plain or not fits or value.dtype != dtype or value.requires_grad or value.is_neg():
            raise self.fail(f"a {dtype} tensor '{key}' of shape {shape}")
        self._bytes_left -= value.numel() * value.element_size()
        if self._bytes_left < 0:
            raise self.fail("tensors no larger than the file")
        if dtype.is_floating_point and not bool(torch.isfinite(value).all()):
            raise self.fail(f"finite values in '{key}'")
        copy: Tensor = value.clone(memory_format=torch.contiguous_format)
        return copy

    def record(self, source: Any, key: str) -> dict[str, Any]:
        """Return a dictionary of plain values that JSON can hold."""
        found = self.get(source, key, dict)
        self._plain(found, key, depth=0)
        return dict(found)

    def _plain(self, value: Any, key: str, *, depth: int) -> None:
        self._values_left -= 1  # a list may hold another one many times over, and that one another
        if type(value) is str:
            self._characters_left -= len(value)  # likewise
        if depth > _MAX_DEPTH or self._values_left < 0 or self._characters_left < 0:
            raise self.fail(f"a record '{key}' of less depth and length")
        if type(value) is dict and all(type(k) is str for k in value):
            inner = [*value, *value.values()]
        elif type(value) is list:
            inner = value
        elif (
            value is None
            or type(value) is bool
            or (type(value) is str and is_printable(value))  # it may reach a terminal
            or (type(value) is int and abs(value) < 2**63)
            or (type(value) is float and math.isfinite(value))
        ):
            return
        else:
            raise self.fail(f"plain values in '{key}'")
        for item in inner:
            self._plain(item, key, depth=depth + 1)
