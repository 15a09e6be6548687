"""One graph of a bundle: its checked bytes, and what tells it from all others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from smart_runtime.bundle.manifest import GraphInfo, Manifest


@dataclass(frozen=True, kw_only=True)
class GraphIdentity:
    """What tells one graph from all others, without its bytes; see `GraphBytes`."""

    digests: tuple[str, str | None]
    precision: str
    recipe: str | None
    two_four: int


@dataclass(frozen=True, kw_only=True)
class GraphBytes:
    """One graph, checked and in memory: what an engine is made from.

    ``model`` is an ONNX file; ``weights`` is the file that its external tensors call ``weights_name``, both None for a
    graph without external tensors. ``precision`` is the one of the bundle, ``recipe`` what its int8 was made by, and
    ``two_four`` how many of the graph's layers have 2:4 weights.
    """

    model: bytes = field(repr=False)
    weights: bytes | None = field(repr=False)
    weights_name: str | None
    precision: str = "fp32"
    recipe: str | None = None
    two_four: int = 0

    @classmethod
    def of(cls, graph: GraphInfo, contents: Sequence[bytes], *, manifest: Manifest) -> GraphBytes:
        """Return ``graph``, one of ``manifest``'s, with the contents of its files, in their order."""
        return cls(
            model=contents[0],
            weights=contents[1] if contents[1:] else None,
            weights_name=graph.weights_name,
            precision=manifest.precision,
            recipe=manifest.recipe,
            two_four=graph.two_four,
        )

    @property
    def digests(self) -> tuple[str, str | None]:
        """The SHA-256 of ``model`` and of ``weights``, in hexadecimal digits; computed at each call."""
        weights = None if self.weights is None else hashlib.sha256(self.weights).hexdigest()
        return hashlib.sha256(self.model).hexdigest(), weights
