"""What a plan is to be built for, what a build gives, and what it raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.engine import BatchRange
from smart_runtime.engines.trt.library import LibraryName, Precision
from smart_runtime.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class BuildRecipe:
    """How a plan is built from a graph; `smart_runtime.engines.engine.EngineOptions` has more on most of it.

    Attributes:
        library: What builds it.
        batch: The batch sizes that the plan takes, and the one that it is fastest at.
        inputs: The one input that the graph must have.
        outputs: The one output that the graph must have; None for whatever it has.
        precision: Of the graph; TensorRT 8.6 has to be told, others see it.
        tf32: Whether fp32 may be rounded to TF32.
        sparse_weights: Whether to look for 2:4 weights, which takes longer.
        workspace_bytes: What a layer may use of the GPU's memory; None for all of it.
        level: How hard to try, 0 to 5.
        device: The number of the GPU that the plan is for.
        capabilities: Compute capabilities, such as ``8.9``, to build for instead of that GPU, which need not be here;
            TensorRT-RTX only.
        timing_cache: A file in which TensorRT keeps what it measured on this GPU; it is read and, after the build,
            written. None for none. TensorRT-RTX has none.
        weightless: Leave the weights out (``STRIP_PLAN``).
    """

    library: LibraryName
    batch: BatchRange
    inputs: InputSpec
    outputs: OutputSpec | None
    precision: Precision = "fp32"
    tf32: bool = False
    sparse_weights: bool = False
    workspace_bytes: int | None = None
    level: int = 3
    device: int = 0
    capabilities: tuple[str, ...] | None = None
    timing_cache: Path | None = None
    weightless: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """The recipe in what JSON can hold; `from_document` reads it."""
        cache = None if self.timing_cache is None else str(self.timing_cache)
        return {**asdict(self), "timing_cache": cache}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> BuildRecipe:
        """Return the recipe that `document` was made of."""
        values = dict(document)
        outputs, capabilities, cache = (values[name] for name in ("outputs", "capabilities", "timing_cache"))
        values["batch"] = BatchRange(**values["batch"])
        values["inputs"] = InputSpec(**values["inputs"])
        values["outputs"] = None if outputs is None else OutputSpec(**outputs)
        values["capabilities"] = None if capabilities is None else tuple(capabilities)
        values["timing_cache"] = None if cache is None else Path(cache)
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """What a build gave.

    Attributes:
        plan: The library's own bytes. They are code: whoever keeps them keeps them where nobody else writes.
        version: Of the library, full; the plan runs with no other one.
        seconds: What the build took, without waiting for another one.
        layers: Layers of the plan; None where it cannot be opened, since its GPU is not here.
        eligible: Layers whose weights are 2:4 by the library's own count; None if it does not say.
        sparse: Layers that use it; None if the library does not say, as TensorRT-RTX, which decides where it runs.
        peak_bytes: The most of the host's memory that the build held at once; None if that is not known.
    """

    plan: bytes = field(repr=False)
    version: str
    seconds: float
    layers: int | None
    eligible: int | None
    sparse: int | None
    peak_bytes: int | None


class BuildRefusedError(EngineError):
    """The library cannot read or build the graph; ``library`` and its version and ``reason`` say which and why."""

    def __init__(self, library: str, reason: str) -> None:
        super().__init__(
            f"{library} refuses the graph: {reason}; export the bundle again for this device, or use another engine"
        )
        self.library = library
        self.reason = reason
