"""The readers of files that a user got from somewhere and names on a command line: recipes, pictures, weights, ONNX."""

from __future__ import annotations

import io
import json
import random
import struct
from pathlib import Path
from typing import Any

from mutators import mutate_bytes, mutate_json, mutate_options, mutate_pickle, mutate_protobuf
from subject import Subject


def recipe(folder: Path) -> Subject:
    """An input is a recipe, JSON where it begins with a brace, else TOML."""
    from smart_train.errors import ConfigError  # noqa: PLC0415
    from smart_train.training.recipe import read_recipe  # noqa: PLC0415

    def check(data: bytes) -> None:
        path = folder / ("recipe.json" if data[:1] == b"{" else "recipe.toml")
        path.write_bytes(data)
        for value in read_recipe(path).values():
            for one in value.values() if isinstance(value, dict) else (value,):
                assert len(one) <= 1000 if isinstance(one, str) else abs(one) < 2**31  # type: ignore[arg-type]

    def mutate(data: bytes, rng: random.Random) -> bytes | None:
        return mutate_json(data, rng) if data[:1] == b"{" else mutate_options(data, rng)

    options: dict[str, Any] = {"method": "trades", "epochs": 3, "eps": "8/255", "lr": 0.1, "flip": True}
    lines = [f"{name} = {json.dumps(value)}  # why" for name, value in options.items()]
    toml = "\n".join([*lines, "# a. b", "[model_arg]", "width = 16", ""])
    document = json.dumps(options | {"model_arg": {"width": 16}})
    return Subject(seeds=(toml.encode(), document.encode()), mutate=mutate, check=check, refusals=(ConfigError,))


def picture(_: Path) -> Subject:
    """An input is a picture of 12x9 in any of the formats."""
    from PIL import Image  # noqa: PLC0415

    from smart_runtime.errors import InputError  # noqa: PLC0415
    from smart_runtime.pictures import FORMATS, read_picture  # noqa: PLC0415

    def check(data: bytes) -> None:
        found = read_picture(io.BytesIO(data), height=8, width=8, colour="RGB")
        assert found.shape == (8, 8, 3)

    seeds = [b"P3 2 1 255\n1 2 3 4 5 6\n"]
    for kind in FORMATS:
        for mode in ("L", "RGB"):
            file = io.BytesIO()
            Image.linear_gradient("L").resize((12, 9)).convert(mode).save(file, kind)
            seeds.append(file.getvalue())
    return Subject(seeds=tuple(seeds), mutate=mutate_bytes, check=check, refusals=(InputError,))


def onnx(folder: Path) -> Subject:
    """An input is an ONNX file as ``smart-export check`` gets it; shapes are inferred in a child, which is left out."""
    from runtime.bundles import GRAPHS, graph_files  # noqa: PLC0415
    from smart_export import shapes  # noqa: PLC0415
    from smart_export.errors import ExportError  # noqa: PLC0415
    from smart_export.sparsity import sparsity_of_onnx  # noqa: PLC0415

    vars(shapes)["run_limited"] = lambda *_, **__: None
    path = folder / "model.onnx"
    (folder / "weights.bin").write_bytes(graph_files("clean")[1])

    def check(data: bytes) -> None:
        path.write_bytes(data)
        found = sparsity_of_onnx(path)
        for layer in found.layers:
            assert layer.zeros is None or 0 <= layer.zeros.zeros <= layer.zeros.weights
        assert found.bytes >= 0

    seeds = tuple(graph_files(name)[0] for name in GRAPHS)
    return Subject(seeds=seeds, mutate=mutate_protobuf, check=check, refusals=(ExportError,))


def safetensors(folder: Path) -> Subject:
    """An input is a file of safetensors: the size of the header in eight bytes, the header, the numbers."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save  # noqa: PLC0415

    path = folder / "weights.safetensors"
    seed = save({"a.weight": torch.zeros(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)})

    def mutate(data: bytes, rng: random.Random) -> bytes | None:
        size = int.from_bytes(data[:8], "little")
        header = mutate_json(data[8 : 8 + size], rng)
        return None if header is None else struct.pack("<Q", len(header)) + header + data[8 + size :]

    return Subject(seeds=(seed,), mutate=mutate, check=_initial_weights(path), refusals=_refusals())


def initial_weights(folder: Path) -> Subject:
    """An input is a file of torch.save for ``--init``, of today or of the time before version 1.6."""
    import torch  # noqa: PLC0415

    seeds = []
    for new in (True, False):
        file = io.BytesIO()
        value = {"state_dict": {"a.weight": torch.zeros(2, 3), "a.bias": torch.ones(2)}, "epoch": 3}
        torch.save(value, file, _use_new_zipfile_serialization=new)
        seeds.append(file.getvalue())

    def mutate(data: bytes, rng: random.Random) -> bytes | None:
        return mutate_bytes(data, rng) if rng.random() < 0.5 else mutate_pickle(data, rng)

    return Subject(
        seeds=tuple(seeds), mutate=mutate, check=_initial_weights(folder / "weights.pth"), refusals=_refusals()
    )


def _initial_weights(path: Path) -> Any:
    from smart_train.training.initial_weights import read_initial_weights  # noqa: PLC0415

    def check(data: bytes) -> None:
        path.write_bytes(data)
        found = read_initial_weights(path)
        assert found.tensors
        assert sum(tensor.numel() * tensor.element_size() for tensor in found.tensors.values()) <= 4 * len(data)

    return check


def _refusals() -> tuple[type[Exception], ...]:
    from smart_train.errors import CheckpointError  # noqa: PLC0415

    return (CheckpointError,)
