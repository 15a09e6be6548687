"""What a plan of the stand-in holds: facts about its build as JSON, the graph, and a checksum of both."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass

_MAGIC = {"tensorrt": b"trtstand", "tensorrt_rtx": b"rtxstand"}


class ForeignPlan(Exception):  # noqa: N818
    """Not a plan of this library and version: the real one notices too."""


class DamagedPlan(Exception):  # noqa: N818
    """Bytes of it have changed: the real one may run them."""


@dataclass(frozen=True)
class Tensor:
    """An input or output; sizes that vary are -1, and an input has its profile."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Plan:
    """One built graph.

    Attributes:
        version: Of the library.
        capabilities: Compute capabilities that it runs on.
        multiprocessors: Of the device that built it; None where none was asked.
        layers: Names of the layers.
        eligible: Those with 2:4 weights, where they were looked for.
        sparse: Those whose tactic uses that.
        detailed: Whether the inspector may name tactics.
        activation_bytes: What a context needs.
        shares_profile: Whether several contexts may use its one profile: in 8.6 only if that was asked for.
        graph: The ONNX model.
    """

    version: str
    capabilities: tuple[str, ...]
    multiprocessors: int | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[str, ...]
    eligible: tuple[str, ...]
    sparse: tuple[str, ...]
    detailed: bool
    activation_bytes: int
    shares_profile: bool
    graph: bytes


def pack(plan: Plan, library: str) -> bytes:
    """Return the plan's bytes; like the real ones they differ from build to build."""
    facts = {key: value for key, value in asdict(plan).items() if key != "graph"} | {"built": os.urandom(8).hex()}
    head = json.dumps(facts).encode()
    body = _MAGIC[library] + struct.pack("<I", len(head)) + head + plan.graph
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes, library: str, version: str) -> Plan:
    """Return the plan.

    Raises:
        ForeignPlan: Another library's or version's, or no plan at all.
        DamagedPlan: It was one, but a byte of it has changed.
    """
    if data[:8] != _MAGIC[library]:
        raise ForeignPlan("the magic tag does not match")
    body, checksum = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != checksum:
        raise DamagedPlan("a plan was deserialised whose bytes are not those that were built")
    (size,) = struct.unpack_from("<I", body, 8)
    facts = json.loads(body[12 : 12 + size])
    del facts["built"]
    if facts["version"] != version:
        raise ForeignPlan(f"the version tag {facts['version']} is not {version}")
    for side in ("inputs", "outputs"):
        facts[side] = tuple(
            Tensor(
                **{
                    **tensor,
                    "shape": tuple(tensor["shape"]),
                    "profile": tuple(tuple(shape) for shape in tensor["profile"]),
                }
            )
            for tensor in facts[side]
        )
    for key in ("capabilities", "layers", "eligible", "sparse"):
        facts[key] = tuple(facts[key])
    return Plan(**facts, graph=body[12 + size :])
