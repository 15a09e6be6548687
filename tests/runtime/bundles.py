"""Tiny bundles with real graphs, and in plain NumPy what each of their graphs gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.reference import INPUTS, SCORES, npy_bytes

Array = npt.NDArray[np.float32]

CHANNELS, HEIGHT, WIDTH, CLASSES = 3, 6, 4, 5
CLASS_NAMES = ["ant", "bee", "cat", "dog", "elk"]
GRAPHS = {"clean": 1, "robust": 2, "dense": 3}  # name -> seed of its weights; dense has twice the filters
REFERENCE_IMAGES = 5
FILTERS = {"clean": 4, "robust": 4, "dense": 8}

_TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
{name} (float[{batch}, {channels}, {height}, {width}] image) => (float[{batch}, {classes}] scores)
<float[{filters}, {channels}, 1, 1] w, float[{filters}] b, float[{filters}, {classes}] head>
{{
    hidden = Conv(image, w, b)
    active = Relu(hidden)
    pooled = GlobalAveragePool(active)
    flat = Flatten(pooled)
    scores = MatMul(flat, head)
}}
"""


def weights_of(name: str, *, channels: int = CHANNELS) -> dict[str, Array]:
    """Small integers over a power of two, so that every sum is exact and each path has outputs of its own."""
    rng = np.random.default_rng(GRAPHS[name])
    shapes = {"w": (FILTERS[name], channels, 1, 1), "b": (FILTERS[name],), "head": (FILTERS[name], CLASSES)}
    return {key: (rng.integers(-8, 9, shape) / 8).astype(np.float32) for key, shape in shapes.items()}


def expected_scores(name: str, images: Array) -> npt.NDArray[np.float64]:
    """The oracle: what the graph ``name`` gives for float32 (N, C, H, W)."""
    weights = weights_of(name, channels=images.shape[1])
    hidden = np.einsum("nchw,fc->nfhw", images.astype(np.float64), weights["w"][:, :, 0, 0])
    active = np.maximum(hidden + weights["b"][:, None, None], 0)
    scores: npt.NDArray[np.float64] = active.mean(axis=(2, 3)) @ weights["head"]
    return scores


# Takes one row of a large table of zeros and adds it: memory that no optimizer can fold away, and no work.
_BALLAST = """
    brightest = ReduceMax<keepdims = 0>(image)
    row = Cast<to = 7>(brightest)
    zeros = Gather(table, row)
    scores = Add(plain, zeros)
}
"""


def graph_files(
    name: str, *, channels: int = CHANNELS, batch: str = "N", ballast_bytes: int = 0
) -> tuple[bytes, bytes]:
    """The bytes of ``model.onnx`` and ``weights.bin``; ``ballast_bytes`` makes the weights larger by so much."""
    text = _TEXT.format(
        name=name, batch=batch, channels=channels, height=HEIGHT, width=WIDTH, classes=CLASSES, filters=FILTERS[name]
    )
    values = weights_of(name, channels=channels)
    if ballast_bytes:
        values["table"] = np.zeros((ballast_bytes // (4 * CLASSES), CLASSES), np.float32)
        rows = len(values["table"])
        text = text.replace("head>", f"head, float[{rows}, {CLASSES}] table>").replace("scores = Mat", "plain = Mat")
        text = text[: text.rindex("}")] + _BALLAST.lstrip("\n")
    model = onnx.parser.parse_model(text)
    weights = bytearray()
    for key, value in values.items():
        tensor = onnx.TensorProto(name=key, dims=value.shape, data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for entry, text_value in (("location", "weights.bin"), ("offset", len(weights)), ("length", value.nbytes)):
            tensor.external_data.add(key=entry, value=str(text_value))
        weights += value.tobytes()
        model.graph.initializer.append(tensor)
    return bytes(model.SerializeToString(deterministic=True)), bytes(weights)


def graph_entry(name: str, *, size: int) -> dict[str, Any]:
    return {
        "file": f"{name}/model.onnx",
        "weights": f"{name}/weights.bin",
        "density": 0.5,
        "parameter_density": 0.51,
        "parameters": sum(value.size for value in weights_of(name).values()),
        "macs": FILTERS[name] * (CHANNELS * HEIGHT * WIDTH + CLASSES),
        "bytes": size,
        "tolerance": 1e-4,
        "max_rel_diff": 3e-7,
        "argmax_agreement": 1.0,
        "layers": [{"name": "conv", "type": "Conv2d", "macs": 288, "bytes": 64}],
        "metrics": {
            "clean_accuracy": {"clean": 0.99, "robust": 0.95}.get(name, 0.99),
            "robust_accuracy": {"clean": 0.09, "robust": 0.46}.get(name, 0.0),
            "attack": "pgd20x1",
            "eps": 0.3,
            "examples": 256,
            "split": "validation",
        },
    }


def reference_entry(names: list[str]) -> dict[str, Any]:
    return {
        "engine": "onnxruntime-cpu 1.32.0",
        "images": REFERENCE_IMAGES,
        "tolerance": 1e-3,
        "inputs": INPUTS,
        "scores": {name: f"{name}/{SCORES}" for name in names},
    }


def masks_entry(**changes: Any) -> dict[str, Any]:
    """What is said of masks; ``changes`` are made to the only group."""
    group = {"name": "conv1", "size": 8, "kept": {"clean": 4, "robust": 4}, "both": 2, "either": 6, **changes}
    overlap = {"counted": "channels", "overlap": 0.5, "chance": 0.5, "groups": [group]}  # a reader counts anew
    return {"mode": "gradual", "origin": "ours", "budget": "uniform", "union_density": 0.4, "overlap": overlap}


def manifest_document(*, baseline: bool = True, channels: int = CHANNELS, reference: bool = False) -> dict[str, Any]:
    """A manifest as docs/formats.md describes it."""
    names = [name for name in GRAPHS if baseline or name != "dense"]
    sizes = {name: sum(len(data) for data in graph_files(name, channels=channels)) for name in GRAPHS}
    dense = graph_entry("dense", size=sizes["dense"]) | {"name": "dense"}
    for key in ("density", "parameter_density", "metrics"):
        del dense[key]
    return {
        "schema_version": "1.0",
        "package_name": "tiny",
        "package_version": "1",
        "components": {
            name: {
                "variants": {
                    "cpu": {
                        "ep": "CPUExecutionProvider",
                        "variant_directory": name,
                        "executor_info": {"ort": {"model_file": "model.onnx"}},
                    }
                }
            }
            for name in ("clean", "robust")
        },
        "additional_metadata": {
            "smart_edge": {
                "format_version": 1,
                "created_by": "smart-edge 0.1.0",
                "target": {"name": "cpu", "profile": "x86-cpu", "kind": "cpu"},
                "precision": "fp32",
                "default_path": "clean",
                "input": {
                    "name": "image",
                    "dtype": "float32",
                    "layout": "NCHW",
                    "channels": channels,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "range": [0.0, 1.0],
                },
                "output": {"name": "scores", "classes": CLASSES},
                "preprocessing": {
                    "colour": {1: "L", 3: "RGB"}.get(channels),
                    "resize": "shorter-side",
                    "interpolation": "bilinear",
                    "crop": "center",
                },
                "class_names": list(CLASS_NAMES),
                "masks": masks_entry(),
                "paths": {name: graph_entry(name, size=sizes[name]) for name in ("clean", "robust")},
                "baseline": dense if baseline else None,
                **({"reference": reference_entry(names)} if reference else {}),
                "training": {"data": "synthetic", "seed": 0},
            }
        },
    }


def ours(document: dict[str, Any]) -> dict[str, Any]:
    """Our own part of a manifest document."""
    part: dict[str, Any] = document["additional_metadata"]["smart_edge"]
    return part


MIX = "mix-50"
SHARE, TEMPERATURES = 0.4, (0.5, 2.0)


def add_mix(document: dict[str, Any]) -> None:
    """Give a manifest a mix, which both paths have a part in."""
    mix = {"paths": ["clean", "robust"], "share": SHARE, "temperatures": list(TEMPERATURES), "gate": None}
    ours(document)["mixes"] = {MIX: mix}


def write_bundle(
    directory: Path,
    *,
    baseline: bool = True,
    channels: int = CHANNELS,
    ballast_bytes: int = 0,
    reference: bool = False,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Write a whole bundle, with ``reference`` scores or as those of before; ``change`` edits the manifest in time."""
    for name in GRAPHS:
        if name == "dense" and not baseline:
            continue
        (directory / name).mkdir(parents=True)
        model, weights = graph_files(name, channels=channels, ballast_bytes=ballast_bytes)
        (directory / name / "model.onnx").write_bytes(model)
        (directory / name / "weights.bin").write_bytes(weights)
        if reference:
            scores = expected_scores(name, as_float(random_images(REFERENCE_IMAGES, channels=channels)))
            (directory / name / SCORES).write_bytes(npy_bytes(scores.astype(np.float32)))
    if reference:
        (directory / INPUTS).write_bytes(npy_bytes(as_float(random_images(REFERENCE_IMAGES, channels=channels))))
    document = manifest_document(baseline=baseline, channels=channels, reference=reference)
    if change is not None:
        change(document)
    (directory / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    write_checksums(directory)
    return directory


def random_images(count: int, *, seed: int = 0, channels: int = CHANNELS) -> npt.NDArray[np.uint8]:
    """uint8 (N, H, W, C)."""
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, channels), dtype=np.uint8)


def as_float(images: npt.NDArray[np.uint8]) -> Array:
    """What the uint8 images mean, float32 (N, C, H, W)."""
    return np.ascontiguousarray((images / np.float32(255)).astype(np.float32).transpose(0, 3, 1, 2))
