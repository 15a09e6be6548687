"""Peak memory and time of the worst input found for each reader of strangers' files, each in a process of its own.

    .venv/bin/python benchmarks/bench_hostile.py --output benchmarks/results/hostile.json

Inputs are as large as the reader's bounds allow, or were found to cost most for their size. Memory is what the process,
or a child of it, grows by; libraries that are loaded before count for nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outcome import finish

from smart_common.errors import SmartError
from smart_runtime.bench.environment import read_environment

_MIB = 2**20
GOAL_SECONDS, GOAL_MIB = 60, 2048


@dataclass(frozen=True)
class Hostile:
    """One input: what reads it, what is in it, its file name, and how it is made."""

    reader: str
    what: str
    file: str
    make: Callable[[], bytes]


def _png() -> bytes:
    """Return a black RGBA picture of 8192x8192, as large as pictures may be."""
    side = 8192

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(4 * side + 1)) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _coded(kind: str, size: tuple[int, int], **options: Any) -> bytes:
    from PIL import Image  # noqa: PLC0415

    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, **options)
    return file.getvalue()


def _scans() -> bytes:
    data = _coded("JPEG", (8000, 8000), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 5 + data[-2:]


def _checkpoint() -> bytes:
    """Return an archive whose pickle is one list of a million empty dictionaries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": b"\x80\x02](" + b"}" * (_MIB - 16) + b"e.", "version": b"3\n"}.items():
            info = zipfile.ZipInfo(f"archive/{name}")
            archive.writestr(info, content)
            info.external_attr = 0
    return file.getvalue()


def _safetensors() -> bytes:
    names = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(70_000))
    return struct.pack("<Q", len(names) + 2) + f"{{{names}}}".encode()


def _doubling() -> bytes:
    """Return a graph that doubles a list of one number forty times, for shapes to be taken from."""
    from onnx import TensorProto, helper  # noqa: PLC0415

    nodes = [helper.make_node("Constant", [], ["c0"], value=helper.make_tensor("v", TensorProto.INT64, [1], [1]))]
    nodes += [helper.make_node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(40)]
    nodes += [helper.make_node("Reshape", ["f", "c40"], ["r"]), helper.make_node("Conv", ["x", "r"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 4, 4])
    weight = helper.make_tensor("f", TensorProto.FLOAT, [4, 4, 1, 1], [0.0] * 16)
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [weight])
    made: bytes = helper.make_model(graph, ir_version=10).SerializeToString()
    return made


def _manifest() -> bytes:
    return b'{"format_version": 1, "paths": {' + b",".join(b'"%d":{}' % i for i in range(340_000)) + b"}}"


def _recipe() -> bytes:
    return b"".join(b"a%d=1\n" % i for i in range(110_000))


def _sums() -> bytes:
    return b"".join(b"%064d  %05d\n" % (i, i) for i in range(14_500))


INPUTS = (
    Hostile("recipe", "1 MB of options", "recipe.toml", _recipe),
    Hostile("checkpoint", "a list of a million dictionaries", "ckpt.pt", _checkpoint),
    Hostile("--init", "the same", "weights.pth", _checkpoint),
    Hostile("safetensors", "70,000 empty tensors", "weights.safetensors", _safetensors),
    Hostile("picture", "PNG, 8192x8192, black", "a.png", _png),
    Hostile("picture", "WebP, 8192x4096, black", "a.webp", lambda: _coded("WEBP", (8192, 4096), lossless=True)),
    Hostile("picture", "JPEG, 8000x8000, 15 scans", "a.jpg", _scans),
    Hostile("ONNX file", "a list doubled 40 times", "model.onnx", _doubling),
    Hostile("manifest", "340,000 paths", "manifest.json", _manifest),
    Hostile("checksums", "14,500 files", "SHA256SUMS", _sums),
)


def _reader(name: str) -> Callable[[Path], object]:
    """Return what reads a file of that kind, its libraries loaded."""
    import onnx.reference  # noqa: PLC0415
    import PIL.Image  # noqa: PLC0415

    from smart_export.sparsity import sparsity_of_onnx  # noqa: PLC0415
    from smart_runtime.bundle.bundle import parse_checksums  # noqa: PLC0415
    from smart_runtime.bundle.manifest import parse_manifest  # noqa: PLC0415
    from smart_runtime.pictures import read_picture  # noqa: PLC0415
    from smart_train.checkpoint.format import load_checkpoint  # noqa: PLC0415
    from smart_train.training.initial_weights import read_initial_weights  # noqa: PLC0415
    from smart_train.training.recipe import read_recipe  # noqa: PLC0415

    PIL.Image.init()
    assert onnx.reference is not None
    readers: Mapping[str, Callable[[Path], object]] = {
        "recipe": read_recipe,
        "checkpoint": load_checkpoint,
        "--init": read_initial_weights,
        "safetensors": read_initial_weights,
        "picture": lambda path: read_picture(path, height=32, width=32, colour="RGB"),
        "ONNX file": sparsity_of_onnx,
        "manifest": lambda path: parse_manifest(path.read_bytes()),
        "checksums": lambda path: parse_checksums(path.read_bytes()),
    }
    return readers[name]


def one(number: int) -> dict[str, Any]:
    """Read one input in this process and return what it took."""
    hostile = INPUTS[number]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, hostile.file)
        made = subprocess.run([sys.executable, __file__, "--make", str(number)], stdout=subprocess.PIPE, check=True)
        path.write_bytes(made.stdout)
        size = len(made.stdout)
        del made
        read = _reader(hostile.reader)
        before, started, refused = _peak(resource.RUSAGE_SELF), time.perf_counter(), False
        try:
            read(path)
        except SmartError:
            refused = True
        seconds = time.perf_counter() - started
    grown = max(_peak(resource.RUSAGE_SELF) - before, 0)
    if hostile.reader == "ONNX file":  # the child that infers shapes
        grown = max(grown, _peak(resource.RUSAGE_CHILDREN))
    row = {"reader": hostile.reader, "what": hostile.what, "bytes": size, "seconds": seconds}
    return row | {"peak_bytes": grown, "refused": refused}


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * 1024


def table(record: Mapping[str, Any]) -> str:
    """Return the table of docs/security.md."""
    lines = ["| reader | worst input | size | peak memory | time | outcome |", "| --- | --- | --- | --- | --- | --- |"]
    for row in record["rows"]:
        outcome = "refused" if row["refused"] else "read"
        size = f"{row['bytes'] / 1000:,.0f} kB"
        memory = f"{row['peak_bytes'] / _MIB:,.0f} MiB"
        lines.append(f"| {row['reader']} | {row['what']} | {size} | {memory} | {row['seconds']:.1f} s | {outcome} |")
    return "\n".join(lines)


def main() -> None:
    """Read every input and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results to this file")
    parser.add_argument("--one", type=int, help="read one input here, and print what it took")
    parser.add_argument("--make", type=int, help="write one input to standard output")
    options = parser.parse_args()
    if options.make is not None:
        sys.stdout.buffer.write(INPUTS[options.make].make())
        return
    if options.one is not None:
        print(json.dumps(one(options.one)))
        return
    environment = read_environment(packages=("onnx", "pillow", "torch"))
    rows = []
    for number in range(len(INPUTS)):
        done = subprocess.run([sys.executable, __file__, "--one", str(number)], stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(done.stdout))
    worst = {"seconds": max(r["seconds"] for r in rows), "MiB": max(r["peak_bytes"] for r in rows) / _MIB}
    goals = [
        {"goal": f"every input in {most} {unit}", "value": worst[unit], "reached": worst[unit] <= most}
        for unit, most in (("seconds", GOAL_SECONDS), ("MiB", GOAL_MIB))
    ]
    record: dict[str, Any] = {"command": "python benchmarks/bench_hostile.py", "rows": rows, "goals": goals}
    record["environment"] = asdict(environment)
    finish(record, output=options.output, lines=[table(record)])


if __name__ == "__main__":
    main()
