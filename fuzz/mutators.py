"""Changes to an input that keep its form, so that it reaches what lies behind the parser; nearly no random bytes do.

Every mutator takes an input and a random generator and returns the changed input, or None where the input has not the
form that it works on.
"""

from __future__ import annotations

import base64
import itertools
import json
import pickle
import pickletools
import random
from collections.abc import Callable
from typing import Any, TypeAlias

Mutator: TypeAlias = Callable[[bytes, random.Random], "bytes | None"]

_NUMBERS = (0, 1, -1, 2, 255, 2**31, 2**32 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400)
_FLOATS = (0.0, -0.0, 0.5, 1.5, -0.5, 1e-320, 1e308, float("inf"), float("nan"))
_TEXTS = (
    "",
    "a",
    "clean",
    "dense",
    "../a",
    "/etc/passwd",
    "a/b",
    "a//b",
    "c:a",
    "a\\b",
    "\x1b[2J",
    "\0",
    "\ud800",
    "é" * 99,
)
_NAMES = (*_TEXTS, "clean/model.onnx", "clean/weights.bin", "SHA256SUMS", "SHA256SUMS.sig", "manifest.json", "x" * 5000)
_VARINTS = (0, 1, 2, 7, 127, 128, 2**31, 2**32 + 1, 2**62, 2**63, 2**64 - 1)
# Of a pickle: values of every kind, and names that torch knows or must refuse.
_INSTRUCTIONS = (
    *(
        pickle.dumps(value, protocol=2)[2:-1]
        for value in (*_NUMBERS, *_FLOATS, "clean", "a\x1b", "x" * 5000, None, True)
    ),
    *(b"]", b"}", b")", b"(", b"0", b"R", b"b", b"t", b"\x85", b"\x86", b"\x81"),
    *(b"cbuiltins\nbytearray\n", b"c_codecs\nencode\n", b"ctorch\nDoubleStorage\n", b"cos\nsystem\n"),
)
_EDITS = (1, 1, 1, 2, 3)  # in one change: few enough that some inputs stay valid
_MAX_DEPTH = 12  # of nested messages that are looked into


def mutate_json(data: bytes, rng: random.Random) -> bytes | None:
    """Edit one to three places of a JSON document; sometimes write a key twice, as no parser returns it."""
    try:
        document = json.loads(data)
        for _ in range(rng.choice(_EDITS)):
            if places := _places(document):
                _edit(*rng.choice(places), rng)
        text = json.dumps(document)
    except (ValueError, RecursionError):
        return None
    if rng.random() < 0.02:
        text = text.replace("{", '{"twice": 0, "twice": 1, ', 1)
    if rng.random() < 0.01:
        text = text.replace("{}", "[" * 3000 + "]" * 3000, 1)
    return text.encode()


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Return every dictionary and list that holds something, with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        value = waiting.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            found.append((value, key))
            waiting.append(value[key])
    return found


def _edit(holder: Any, key: Any, rng: random.Random) -> None:
    """Change ``holder[key]`` in place."""
    old = holder[key]
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(_NAMES)] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder += [old] * rng.randint(1, 5)
    elif kind == 3:
        for _ in range(rng.choice((1, 3, 100))):
            old = [old] if rng.random() < 0.5 else {"a": old}
        holder[key] = old
    elif kind == 4 and isinstance(old, int | float) and abs(old) < 2**64:
        holder[key] = rng.choice((old + 1, old - 1, -old, old * 2, float(old), str(old)))
    elif kind == 5 and isinstance(old, str):
        cut = rng.randint(0, len(old))
        holder[key] = old[:cut] + rng.choice(_TEXTS) + old[cut:]
    else:
        holder[key] = rng.choice((*_NUMBERS, *_FLOATS, *_NAMES, None, True, False, [], {}))


def mutate_lines(data: bytes, rng: random.Random) -> bytes | None:
    """Edit one to three lines of ``SHA256SUMS``."""
    lines = data.split(b"\n")
    for _ in range(rng.choice(_EDITS)):
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        digest, _, name = lines[i].partition(b"  ")
        odd = rng.choice(_NAMES).encode("utf-8", "surrogatepass")
        kind = rng.randrange(8)
        if kind == 0:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 1:
            lines.insert(i, lines[j])
        elif kind == 2 and len(lines) > 1:
            del lines[i]
        elif kind == 3:
            lines[i] = digest + b"  " + odd
        elif kind == 4:
            lines[i] = digest + rng.choice((b"", b" ", b" *", b"   ", b"\t")) + name
        elif kind == 5:
            lines[i] = rng.choice((digest.upper(), digest[1:], digest + b"0", odd)) + b"  " + name
        elif kind == 6:
            lines[i] = digest + b"  " + name + rng.choice((b"\r", b"\0", b" ", b"/", b"/..", b"a", odd))
        else:
            lines.append(rng.randbytes(32).hex().encode() + b"  " + name + rng.choice((b"b", b"z/z", odd)))
    return b"\n".join(lines)


def mutate_options(data: bytes, rng: random.Random) -> bytes | None:
    """Edit one to three lines of a TOML file of options: a value, a key, the whole line."""
    lines = data.decode(errors="replace").split("\n")
    for _ in range(rng.choice(_EDITS)):
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        name, _, value = lines[i].partition(" = ")
        kind = rng.randrange(6)
        if kind == 0:
            lines.insert(i, lines[j])
        elif kind == 1 and len(lines) > 1:
            del lines[i]
        elif kind == 2:
            lines[i] = f"{name}{rng.choice(('.', '-', ' ', '=', '[', '#', chr(34)))}{rng.choice(_NAMES)} = {value}"
        elif kind == 3:
            lines[i] = rng.choice(
                ("[a]", "[[a]]", "a = " + "[" * 50, ".".join("a" * 50) + " = 1", 'a = """', "a = {b = 1}")
            )
        else:
            odd = rng.choice((*_NUMBERS, *_FLOATS, *_NAMES))
            lines[i] = f"{name} = {json.dumps(odd) if isinstance(odd, str) else odd}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_bytes(data: bytes, rng: random.Random) -> bytes | None:
    """Change, add or take away some bytes in one to three places."""
    for _ in range(rng.choice(_EDITS)):
        place = rng.randint(0, len(data))
        odd = rng.choice((rng.randbytes(rng.randint(0, 4)), b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
        data = data[:place] + odd + data[place + rng.choice((0, len(odd), len(odd), 4)) :]
    return data


def mutate_pem(data: bytes, rng: random.Random) -> bytes | None:
    """Change one to three bytes of what a PEM file holds, under the label that it has."""
    head, _, rest = data.partition(b"\n")
    body, _, tail = rest.partition(b"\n-----END")
    try:
        content = bytearray(base64.b64decode(body))
    except ValueError:
        return None
    for _ in range(rng.choice(_EDITS)):
        place = rng.randint(0, len(content))
        content[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
    return head + b"\n" + base64.encodebytes(bytes(content)).strip() + b"\n-----END" + tail


def mutate_pickle(data: bytes, rng: random.Random) -> bytes | None:
    """Edit one to three instructions of a pickle; of a whole archive, some bytes."""
    if data[:2] == b"PK":
        place = rng.randrange(len(data))
        return data[:place] + rng.randbytes(rng.randint(0, 4)) + data[place + rng.randint(0, 4) :]
    try:
        starts = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception:  # what is no pickle makes it trip in its own ways
        return None
    parts = [data[a:b] for a, b in itertools.pairwise((*starts, len(data)))]
    for _ in range(rng.choice(_EDITS)):
        i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
        kind = rng.randrange(8)
        if kind == 0:
            parts[i] = b""
        elif kind == 1:
            parts[i] = parts[i] + parts[j]
        elif kind < 4:
            parts[i] = parts[j]
        elif kind < 6 and len(parts[i]) > 1:
            place = rng.randrange(1, len(parts[i]))
            parts[i] = parts[i][:place] + rng.randbytes(1) + parts[i][place + 1 :]
        else:
            parts[i] = rng.choice(_INSTRUCTIONS)
    return b"".join(parts)


def mutate_protobuf(data: bytes, rng: random.Random) -> bytes | None:
    """Edit one to three fields of a protobuf message, however deep, and mend the lengths of all that hold them."""
    changed: bytes | None = data
    for _ in range(rng.choice(_EDITS)):
        if changed is not None:
            changed = _mutate_message(changed, rng, depth=0)
    return changed


def _mutate_message(data: bytes, rng: random.Random, *, depth: int) -> bytes | None:
    fields = _fields(data)
    if not fields:
        return None
    i = rng.randrange(len(fields))
    number, wire_type, value = fields[i]
    kind = rng.randrange(8)
    if kind == 0:
        del fields[i]
    elif kind == 1:
        fields.insert(rng.randrange(len(fields)), fields[i])
    elif kind == 2:
        fields[i] = (rng.choice((number + 1, rng.randint(1, 30), 2**29 + number)), wire_type, value)
    elif isinstance(value, int):
        fields[i] = (number, wire_type, rng.choice((*_VARINTS, value + 1, value ^ 1)))
    else:
        inner = _mutate_message(value, rng, depth=depth + 1) if depth < _MAX_DEPTH and kind > 3 else None
        fields[i] = (number, wire_type, _odd_bytes(value, rng) if inner is None else inner)
    return b"".join(_field(*field) for field in fields)


def _odd_bytes(value: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return rng.choice((*(str(n) for n in _NUMBERS), *_NAMES)).encode("utf-8", "surrogatepass")
    if value.isdigit() and len(value) < 30 and rng.random() < 0.7:  # an offset or a length, which are texts
        return str(int(value) + rng.choice((-4, -1, 1, 4, 1000, -int(value), -2 * int(value)))).encode()
    cut = rng.randint(0, len(value))
    return value[:cut] + rng.randbytes(rng.randint(0, 3)) + value[cut + rng.randint(0, 3) :]


def _fields(data: bytes) -> list[tuple[int, int, int | bytes]]:
    """Return number, wire type and value of each field, nothing for what is no message."""
    fields: list[tuple[int, int, int | bytes]] = []
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _read_varint(data, position)
            fields.append((key >> 3, wire_type, value))
            continue
        size = {1: 8, 5: 4}.get(wire_type, -1)
        if wire_type == 2:
            size, position = _read_varint(data, position)
        if size < 0 or not position + size <= len(data):
            return []
        fields.append((key >> 3, wire_type, data[position : position + size]))
        position += size
    return fields


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number at ``position`` and where the next one begins: past the end where it is cut off."""
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    return value, position + 1


def _field(number: int, wire_type: int, value: int | bytes) -> bytes:
    key = _varint(number << 3 | wire_type)
    if isinstance(value, int):
        return key + _varint(value)
    return key + (_varint(len(value)) if wire_type == 2 else b"") + value


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])
