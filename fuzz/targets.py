"""The readers that are fuzzed: everything that reads a file which may come from a stranger.

A target imports what it fuzzes when it is made ready, so that the coverage of it alone is followed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import users_files
from mutators import mutate_json, mutate_lines, mutate_pem, mutate_pickle, mutate_protobuf
from subject import Subject


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader by name.

    Attributes:
        share: of the inputs of a whole run; a target without one runs only when it is named.
        modules: packages and modules whose coverage is followed.
        max_bytes: of an input.
        prepare: makes it ready in an empty folder.
    """

    share: float
    modules: tuple[str, ...]
    max_bytes: int
    prepare: Callable[[Path], Subject]


def _manifest(_: Path) -> Subject:
    from runtime.bundles import manifest_document  # noqa: PLC0415
    from smart_common.names import is_printable  # noqa: PLC0415
    from smart_runtime.bundle.manifest import (  # noqa: PLC0415
        DENSE,
        MAX_REFERENCE_IMAGES,
        PATH_NAME,
        parse_manifest,
    )
    from smart_runtime.bundle.package import is_inside  # noqa: PLC0415
    from smart_runtime.errors import BundleError  # noqa: PLC0415

    def check(data: bytes) -> None:
        manifest = parse_manifest(data)
        assert manifest.default_path in manifest.paths
        assert len(manifest.class_names) == manifest.output.classes >= 1
        assert all(map(is_printable, manifest.class_names))
        assert all(1 <= side < 2**63 for side in manifest.input.shape)
        for name, graph in manifest.paths.items():
            assert graph.name == name
            assert PATH_NAME.fullmatch(name)
            assert name != DENSE
        for graph in manifest.graphs:
            for name in graph.files:
                assert is_inside(name)
                assert os.path.normpath(f"/bundle/{name}") == f"/bundle/{name}"
            assert graph.weights is None or Path(graph.weights).parent == Path(graph.file).parent
            assert all(0 <= count < 2**63 for count in (graph.parameters, graph.macs, graph.bytes))
            for fraction in (graph.density, graph.parameter_density, graph.argmax_agreement):
                assert fraction is None or 0 <= fraction <= 1
            for number in (graph.tolerance, graph.max_rel_diff):
                assert number is None or 0 <= number < float("inf")
        if (reference := manifest.reference) is not None:
            assert 2 <= reference.images <= MAX_REFERENCE_IMAGES
            assert set(reference.scores) <= {graph.name for graph in manifest.graphs}
            assert all(map(is_inside, [reference.inputs, *reference.scores.values()]))

    documents = (
        manifest_document(reference=True),
        manifest_document(baseline=False, channels=1),
        manifest_document(channels=5),
    )
    return Subject(
        seeds=tuple(json.dumps(document).encode() for document in documents),
        mutate=mutate_json,
        check=check,
        refusals=(BundleError,),
    )


def _checksums(_: Path) -> Subject:
    from smart_runtime.bundle.bundle import CHECKSUMS, SIGNATURE, parse_checksums  # noqa: PLC0415
    from smart_runtime.bundle.package import is_inside  # noqa: PLC0415
    from smart_runtime.errors import BundleError  # noqa: PLC0415

    def check(data: bytes) -> None:
        sums = parse_checksums(data)
        assert sums
        assert all(is_inside(name) for name in sums)
        assert not {CHECKSUMS, SIGNATURE} & set(sums)
        # Two bundles with the same files have the same digest only if there is one way to write this down.
        assert "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode() == data

    seed = "".join(f"{'0' * 64}  {name}\n" for name in ("clean/model.onnx", "clean/weights.bin", "manifest.json", "ü"))
    return Subject(
        seeds=(seed.encode(), b"f" * 64 + b"  a\n"), mutate=mutate_lines, check=check, refusals=(BundleError,)
    )


def _graph(_: Path) -> Subject:
    """An input is the size of the weights in two bytes, little-endian, then the graph."""
    import numpy as np  # noqa: PLC0415

    from runtime.bundles import GRAPHS, graph_files  # noqa: PLC0415
    from smart_runtime.bundle.graph_bytes import GraphBytes  # noqa: PLC0415
    from smart_runtime.engines.onnx_weights import external_locations, external_tensors  # noqa: PLC0415
    from smart_runtime.errors import EngineError  # noqa: PLC0415

    def check(data: bytes) -> None:
        weights = bytes(int.from_bytes(data[:2], "little"))
        model = data[2:]
        tensors = external_tensors(GraphBytes(model=model, weights=weights, weights_name="weights.bin"))
        assert set(external_locations(model)) <= {"weights.bin"}
        whole = np.frombuffer(weights, np.uint8)
        for value in tensors.values():
            assert value.nbytes <= len(weights)
            assert value.flags.aligned
            inside = value.flags.owndata or (not value.flags.writeable and np.may_share_memory(value, whole))
            assert inside or not value.size

    def mutate(data: bytes, rng: random.Random) -> bytes | None:
        size = data[:2] if rng.random() < 0.9 else rng.randbytes(2)
        model = mutate_protobuf(data[2:], rng)
        return None if model is None else size + model

    files = [graph_files(name) for name in GRAPHS]
    seeds = tuple(struct.pack("<H", len(weights)) + model for model, weights in files)
    return Subject(seeds=seeds, mutate=mutate, check=check, refusals=(EngineError,))


def _bundle(folder: Path) -> Subject:
    """An input is the number of the file that it changes, whether the checksums are made anew, and its new bytes."""
    import numpy as np  # noqa: PLC0415

    from runtime.bundles import write_bundle  # noqa: PLC0415
    from smart_common.errors import SmartError  # noqa: PLC0415
    from smart_runtime.bundle.bundle import CHECKSUMS, Bundle  # noqa: PLC0415
    from smart_runtime.reference import stored_scores  # noqa: PLC0415

    root = write_bundle(folder / "bundle", reference=True)
    whole = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    names = sorted(whole)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in whole.items() if name != CHECKSUMS}

    def check(data: bytes) -> None:
        name, again, content = names[data[0] % len(names)] if data else CHECKSUMS, data[1:2] > b"\x7f", data[2:]
        again = again and name != CHECKSUMS
        (root / name).write_bytes(content)
        if again:
            found = sums | {name: hashlib.sha256(content).hexdigest()}
            lines = (f"{digest}  {file}\n" for file, digest in sorted(found.items()))
            (root / CHECKSUMS).write_bytes("".join(lines).encode())
        try:
            bundle = Bundle.open(root)
            bundle.verify()
            for graph in bundle.manifest.graphs:
                read = bundle.graph_bytes(graph.name)
                assert read.model == (root / graph.file).read_bytes()
                assert graph.weights is None or read.weights == (root / graph.weights).read_bytes()
                if (stored := stored_scores(bundle, graph.name)) is not None:
                    assert stored.images.shape[1:] == bundle.manifest.input.shape
                    assert stored.scores.shape == (len(stored.images), bundle.manifest.output.classes)
                    assert stored.scores.dtype == stored.images.dtype == np.float32
                    assert 0 <= stored.images.min() <= stored.images.max() <= 1
            assert again or content == whole[name], f"{name} was changed and nothing noticed"
            assert bundle.digest == hashlib.sha256((root / CHECKSUMS).read_bytes()).hexdigest()
        finally:
            for file in (name, CHECKSUMS):
                (root / file).write_bytes(whole[file])

    def mutate(data: bytes, rng: random.Random) -> bytes | None:
        name = names[data[0] % len(names)] if data else ""
        change = {".json": mutate_json, ".onnx": mutate_protobuf, "": mutate_lines}.get(Path(name).suffix)
        content = None if change is None else change(data[2:], rng)
        return None if content is None else data[:1] + rng.randbytes(1) + content

    seeds = tuple(bytes([i, again]) + whole[name] for i, name in enumerate(names) for again in (0, 255))
    return Subject(seeds=seeds, mutate=mutate, check=check, refusals=(SmartError, OSError))


def _key(folder: Path) -> Subject:
    """An input is the PEM file of a public key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    from smart_runtime.bundle.signatures import load_public_key  # noqa: PLC0415
    from smart_runtime.errors import SignatureError  # noqa: PLC0415

    file = folder / "key.pub"

    def check(data: bytes) -> None:
        file.write_bytes(data)
        key = load_public_key(file)
        assert len(key.raw) == 32

    public = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    seed = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Subject(seeds=(seed,), mutate=mutate_pem, check=check, refusals=(SignatureError,))


def _session(_: Path) -> Subject:
    """A graph as ONNX Runtime gets it, with ONNX Runtime itself behind our reader, on one image of zeros."""
    import numpy as np  # noqa: PLC0415

    from runtime.bundles import CHANNELS, CLASSES, GRAPHS, HEIGHT, WIDTH, graph_files  # noqa: PLC0415
    from smart_runtime.bundle.graph_bytes import GraphBytes  # noqa: PLC0415
    from smart_runtime.bundle.manifest import InputSpec, OutputSpec  # noqa: PLC0415
    from smart_runtime.engines import REFERENCE_ENGINE, EngineOptions, create_engine  # noqa: PLC0415
    from smart_runtime.errors import EngineError  # noqa: PLC0415

    inputs = InputSpec(name="image", channels=CHANNELS, height=HEIGHT, width=WIDTH)
    outputs = OutputSpec(name="scores", classes=CLASSES)
    image = np.zeros((1, *inputs.shape), np.float32)
    weights = graph_files("clean")[1]

    def check(data: bytes) -> None:
        graph = GraphBytes(model=data, weights=weights, weights_name="weights.bin")
        engine = create_engine(
            REFERENCE_ENGINE, graph, inputs=inputs, outputs=outputs, options=EngineOptions(threads=1)
        )
        engine.run(image)

    seeds = tuple(graph_files(name)[0] for name in GRAPHS)
    return Subject(seeds=seeds, mutate=mutate_protobuf, check=check, refusals=(EngineError,))


def _checkpoint(folder: Path) -> Subject:
    """An input is a pickle, put into the archive of a real checkpoint with the right sum, or a whole archive."""
    from tiny_checkpoint import write_checkpoint  # noqa: PLC0415

    from smart_train.checkpoint.format import describe, load_checkpoint  # noqa: PLC0415
    from smart_train.errors import CheckpointError  # noqa: PLC0415

    file = folder / "ckpt.pt"
    write_checkpoint(file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in entries if name.endswith("data.pkl"))

    def check(data: bytes) -> None:
        file.write_bytes(data if data[:2] == b"PK" else _archive(entries | {pickle: data}))
        found = load_checkpoint(file)
        describe(found)
        assert found.net.path_names
        for path in found.net.path_names:
            kept = [int(mask.sum()) for mask in found.net.masks(path)]
            assert kept == list(found.net.kept)

    return Subject(
        seeds=(entries[pickle], file.read_bytes()), mutate=mutate_pickle, check=check, refusals=(CheckpointError,)
    )


def _archive(entries: Mapping[str, bytes]) -> bytes:
    """Return a zip as torch.save writes it: nothing compressed, and no entry with a file mode."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            archive.writestr(info, content)
            info.external_attr = 0  # zipfile has put a file's mode there
    return target.getvalue()


def _planted(_: Path) -> Subject:
    from planted import subject  # noqa: PLC0415

    return subject()


_RUNTIME = ("smart_runtime", "smart_devices")
_TRAIN = ("smart_train",)

TARGETS: Mapping[str, Target] = {
    "manifest": Target(share=0.29, modules=_RUNTIME, max_bytes=16_384, prepare=_manifest),
    "checksums": Target(share=0.2, modules=_RUNTIME, max_bytes=4096, prepare=_checksums),
    "graph": Target(share=0.22, modules=_RUNTIME, max_bytes=4096, prepare=_graph),
    "key": Target(share=0.03, modules=_RUNTIME, max_bytes=4096, prepare=_key),
    "bundle": Target(share=0.06, modules=_RUNTIME, max_bytes=16_384, prepare=_bundle),
    "session": Target(share=0.01, modules=_RUNTIME, max_bytes=4096, prepare=_session),
    "checkpoint": Target(share=0.01, modules=_TRAIN, max_bytes=131_072, prepare=_checkpoint),
    "recipe": Target(share=0.06, modules=_TRAIN, max_bytes=4096, prepare=users_files.recipe),
    "picture": Target(share=0.06, modules=_RUNTIME, max_bytes=4096, prepare=users_files.picture),
    "onnx": Target(share=0.02, modules=("smart_export", "smart_runtime"), max_bytes=4096, prepare=users_files.onnx),
    "safetensors": Target(share=0.02, modules=_TRAIN, max_bytes=4096, prepare=users_files.safetensors),
    "init": Target(share=0.02, modules=_TRAIN, max_bytes=8192, prepare=users_files.initial_weights),
    "planted": Target(share=0, modules=("planted",), max_bytes=64, prepare=_planted),
}
"""What ``--target`` names. ``planted`` has a defect, which shows that defects are found."""
