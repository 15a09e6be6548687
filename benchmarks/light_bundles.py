"""Bundles that travel without their weights: a few hundred kB each, whole again wherever they are needed.

The weights of an untrained network are noise; other noise of the same mean and deviation in every tensor does as well,
and a seed stands for it. It is drawn by NumPy alone, and the bundle's checksums say whether it came out the same.

    lighten(bundle)                      # in place: the weights' files go, WEIGHTS.json comes
    restore(bundle, output=folder)       # a whole bundle, on any machine with NumPy
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from smart_runtime import Bundle
from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.engines.onnx_weights import external_tensors

RECIPE = "WEIGHTS.json"

_Statistics: TypeAlias = dict[str, tuple[float, float]]


def lighten(bundle: Path) -> None:
    """Take the weights' files from a bundle of float tensors, in place; its checksums become those of the noise.

    Raises:
        ValueError: A graph has external tensors that are not floating point.
    """
    recipe = {}
    for graph in Bundle.open(bundle).manifest.graphs:
        if graph.weights is None:
            continue
        model, weights = (bundle / graph.file).read_bytes(), (bundle / graph.weights).read_bytes()
        name = Path(graph.weights).name
        tensors = external_tensors(GraphBytes(model=model, weights=weights, weights_name=name))
        if any(tensor.dtype.kind != "f" for tensor in tensors.values()):
            raise ValueError(f"{graph.file} has weights that are not floating point; noise cannot replace them")
        statistics = {key: _mean_and_deviation(tensor) for key, tensor in tensors.items()}
        recipe[graph.weights] = {"graph": graph.file, "bytes": len(weights), "tensors": statistics}
        (bundle / graph.weights).write_bytes(_noise(model, name, size=len(weights), statistics=statistics))
    _forget_reference(bundle / "manifest.json", bundle)
    write_checksums(bundle)
    for weights_file in recipe:
        (bundle / weights_file).unlink()
    (bundle / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")


def restore(light: Path, *, output: Path) -> Path:
    """Write the whole bundle of a light one into ``output``, which must not exist; return it.

    Raises:
        BundleError: This machine draws other noise than the one that made it light.
    """
    shutil.copytree(light, output)
    recipe: dict[str, Any] = json.loads((output / RECIPE).read_text(encoding="utf-8"))
    (output / RECIPE).unlink()
    for name, entry in recipe.items():
        model = (output / entry["graph"]).read_bytes()
        noise = _noise(model, Path(name).name, size=entry["bytes"], statistics=entry["tensors"])
        (output / name).write_bytes(noise)
    Bundle.open(output).verify()
    return output


def _forget_reference(manifest: Path, bundle: Path) -> None:
    """Take out the scores that a bundle's graphs gave at export: they are those of other weights."""
    document = json.loads(manifest.read_text(encoding="utf-8"))
    reference = document["additional_metadata"]["smart_edge"].pop("reference", None)
    if reference is not None:
        for name in (reference["inputs"], *reference["scores"].values()):
            (bundle / name).unlink()
        manifest.write_text(json.dumps(document), encoding="utf-8")


def _mean_and_deviation(tensor: np.ndarray[Any, Any]) -> tuple[float, float]:
    values = tensor.astype(np.float64)
    return float(values.mean()), float(values.std())


def _noise(model: bytes, name: str, *, size: int, statistics: _Statistics) -> bytearray:
    """Return the weights' file ``name`` of ``model`` full of uniform noise, which needs IEEE arithmetic alone."""
    weights = bytearray(size)
    lent = GraphBytes(model=model, weights=weights, weights_name=name)  # type: ignore[arg-type]  # written through it
    seed = int.from_bytes(hashlib.sha256(model).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    for key, tensor in sorted(external_tensors(lent).items()):
        mean, deviation = statistics[key]
        spread = np.float32(deviation * 12**0.5)  # a uniform distribution of width 1 has the deviation 1 / sqrt(12)
        tensor[...] = (rng.random(tensor.shape, dtype=np.float32) - np.float32(0.5)) * spread + np.float32(mean)
        if not np.shares_memory(tensor, np.frombuffer(weights, np.uint8)):
            raise ValueError(f"the tensor {key} of {name} is not aligned; export the bundle again")
    return weights
