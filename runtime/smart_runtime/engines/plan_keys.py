"""What a plan depends on, as a key; and in words what differs between two keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from smart_common.errors import shortened
from smart_runtime.bundle.graph_bytes import GraphBytes, GraphIdentity
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.engine import BatchRange

FORMAT = 2
"""Of the cache: one more whenever what lies in it, or what a key says, means something else."""

Key: TypeAlias = Mapping[str, Any]
"""JSON values only."""


class Gpu(Protocol):
    """What a plan depends on of a GPU; `smart_runtime.engines.cuda.device.Device` has it."""

    @property
    def name(self) -> str:
        """As CUDA says it, such as ``Orin``."""

    @property
    def capability(self) -> str:
        """Such as ``8.7``."""

    @property
    def multiprocessors(self) -> int:
        """How many there are; boards of one name differ in it."""

    @property
    def total_bytes(self) -> int:
        """Of its memory."""

    @property
    def integrated(self) -> bool:
        """Whether it shares the memory of the host."""


def plan_key(
    *,
    library: str,
    version: str,
    graph: GraphBytes | GraphIdentity,
    inputs: InputSpec,
    outputs: OutputSpec,
    batch: BatchRange,
    precision: str,
    recipe: str | None,
    tf32: bool,
    sparse: bool,
    level: int,
    workspace_bytes: int | None,
    gpu: Gpu,
    system: str,
) -> Key:
    """Return everything that decides which plan a build makes, and whether this machine can run it.

    Args:
        library: What builds and runs it, ``tensorrt`` or ``tensorrt-rtx``, which are the names of their engines too.
        version: The library's full version.
        graph: Its very bytes count: two networks of one structure differ in their weights alone.
        inputs: What the graph takes.
        outputs: What the graph gives.
        batch: The batch sizes that it is built for.
        precision: ``fp32``, ``fp16`` or ``int8``.
        recipe: How int8 came about, None for the others.
        tf32: Whether fp32 may be rounded to TF32.
        sparse: Whether the builder looks for 2:4 weights.
        level: The builder's optimization level.
        workspace_bytes: What the build may use; None leaves it to the library.
        gpu: The GPU that it is built for.
        system: The L4T release of a Jetson (``L4T 36.4.3``), or the driver's CUDA elsewhere (``CUDA 13``).
    """
    model, weights = graph.digests
    return {
        "format": FORMAT,
        "library": library,
        "version": version,
        "graph": {"model": model, "weights": weights},
        "input": asdict(inputs),
        "output": asdict(outputs),
        "batch": asdict(batch),
        "precision": precision,
        "recipe": recipe,
        "tf32": tf32,
        "sparse": sparse,
        "level": level,
        "workspace_bytes": workspace_bytes,
        "gpu": {
            "name": gpu.name,
            "capability": gpu.capability,
            "multiprocessors": gpu.multiprocessors,
            # Rounded: a Jetson's is what the kernel leaves of the board's, a little more or less after each start.
            "memory_gib": round(gpu.total_bytes / 2**30),
            "integrated": gpu.integrated,
        },
        "system": system,
    }


def timing_name(key: Key) -> str:
    """Return the name of the file of what layers took on a GPU, which all builds of one library there may use."""
    same = {name: key.get(name) for name in ("library", "version", "gpu", "system")}
    return f"timing-{key_digest(same)[:16]}.cache"


_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "format": "cache format",
        "version": "library version",
        "input.name": "input name",
        "output.name": "output name",
        "output.classes": "classes",
        "batch.min": "smallest batch",
        "batch.opt": "best batch",
        "batch.max": "largest batch",
        "tf32": "TF32",
        "sparse": "sparse weights",
        "workspace_bytes": "workspace in bytes",
        "gpu.name": "GPU",
        "gpu.capability": "compute capability",
        "gpu.multiprocessors": "multiprocessors",
        "gpu.memory_gib": "GPU memory in GiB",
        "gpu.integrated": "integrated GPU",
    }
)
"""What fields of a key are called in a sentence, where it is not their own name."""


def canonical(value: Any) -> bytes:
    """Return the one way to write a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def key_digest(key: Key) -> str:
    """Return the SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(canonical(key)).hexdigest()


def differences(old: Key, new: Key) -> tuple[str, ...]:
    """Return what differs between two keys, such as ``library version 8.6.2 instead of 10.3.0``, in their order."""
    before, now = dict(_flat(old)), dict(_flat(new))
    return tuple(
        f"{_WORDS.get(name, name.replace('.', ' '))} {_shown(before.get(name))} instead of {_shown(now.get(name))}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    )


def _flat(key: Key, *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in key.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else shortened(str(value))
