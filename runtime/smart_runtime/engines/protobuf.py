"""Read and write the wire format of protobuf messages, which ONNX files are (protobuf.dev, Encoding).

What is read may be a stranger's: whatever is no protobuf, or what protobuf's own readers might take for something else,
is a ValueError. Nothing is copied: a field's bytes are a view of the message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

Field: TypeAlias = "tuple[int, int | memoryview, int]"
"""A field's number; its value, an integer or the bytes of a text, a message or a packed list; and where it ends."""


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message one after the other; fixed-size numbers as their bytes."""
    position = 0
    while position < len(message):
        key, position = varint(message, position)
        if key >= 2**32:  # protobuf would cut it to the number of another field
            raise ValueError(f"the protobuf field {key >> 3}, which ONNX does not use")
        wire_type = key & 7
        if wire_type == 0:
            value, position = varint(message, position)
            yield key >> 3, value, position
            continue
        if wire_type == 2:
            size, position = varint(message, position)
        elif wire_type in {1, 5}:
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"the protobuf wire type {wire_type}, which ONNX does not use")
        if position + size > len(message):
            raise ValueError("a file that ends too early")
        yield key >> 3, message[position : position + size], position + size
        position += size


def messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the values of the field ``number``: messages, texts or packed lists."""
    for field, value, _ in fields(message):
        if field == number:
            if isinstance(value, int):
                raise ValueError("a number in the place of a message")
            yield value


def text(message: memoryview, number: int) -> str:
    """Return the last value of a text field, "" without one, as protobuf does."""
    result = b""
    for value in messages(message, number):
        result = bytes(value)
    return result.decode("utf-8")


def integer(message: memoryview, number: int) -> int:
    """Return the last value of an integer field, 0 without one, as protobuf does."""
    result = 0
    for field, value, _ in fields(message):
        if field == number:
            if not isinstance(value, int):
                raise ValueError("a message in the place of a number")
            result = value
    return result


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number at ``position`` and where the next one begins."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a file that ends too early or is no protobuf")


def message_field(number: int, pieces: Sequence[memoryview]) -> list[memoryview]:
    """Return the field ``number`` whose value are the bytes of ``pieces``, in pieces again: nothing is copied."""
    head = _written(number << 3 | 2) + _written(sum(len(piece) for piece in pieces))
    return [memoryview(head), *pieces]


def _written(number: int) -> bytes:
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)
