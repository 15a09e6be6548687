"""What every engine is, and what may be asked of it when it is made."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.errors import EngineError, InputError

if TYPE_CHECKING:
    from smart_runtime.engines.cuda.gpu_images import GpuImages

Batch: TypeAlias = npt.NDArray[np.float32]
Scores: TypeAlias = npt.NDArray[np.float32]

Prove: TypeAlias = Callable[["Engine"], Mapping[str, Any]]
"""Holds an engine whose graph was compiled on this device against what the graph answered at export.

It returns what to keep of that with what was compiled, JSON values, nothing where there is nothing to hold it against,
and raises DisprovedError where the two differ.
"""


MAX_LANES = 16

MAX_BATCH = 2**16

MAX_BYTES = 2**50
"""Of a limit: more than any GPU has. From 2**63 on, libraries count as negative what they are given."""


@dataclass(frozen=True)
class BatchRange:
    """Batch sizes that an engine is built for: from ``min`` to ``max``, fastest at ``opt``.

    Raises:
        EngineError: Not 1 <= min <= opt <= max <= 65,536.
    """

    min: int = 1
    opt: int = 8
    max: int = 64

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("min", "opt", "max"):
            object.__setattr__(self, name, _whole_number(f"the batch's {name}", getattr(self, name)))
        if not 1 <= self.min <= self.opt <= self.max <= MAX_BATCH:
            raise EngineError(
                f"expected batch sizes 1 <= MIN <= OPT <= MAX <= {MAX_BATCH}, got {self.min},{self.opt},{self.max}"
            )


@dataclass(frozen=True)
class DeviceTimes:
    """What one run took on a GPU by the GPU's own clock, in milliseconds: copying in, computing, copying out."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is to run; each engine heeds what applies to it. ONNX Runtime on the CPU heeds ``threads`` alone.

    Attributes:
        threads: Threads of the CPU that one run may use; None leaves it to the engine (ONNX Runtime: one a physical
            core). At most one for each core of this process: more would wait for one another, thousands for minutes.
        device: The number of the GPU, from 0.
        batch: What the batches of a run are like, for engines that are built for them; None leaves it to the engine.
            Larger and smaller ones run too, in pieces or filled up.
        lanes: Runs that may be on the GPU at once, each with buffers of its own; fewer if they do not fit.
        tf32: Whether a GPU may round fp32 to TF32, which is faster and was not judged at export.
        workspace_bytes: What a layer may use of the GPU's memory; None leaves it to the engine.
        memory_limit_bytes: What one graph may hold of the GPU's memory while it runs (ONNX Runtime); None for no limit.
        level: How hard a build tries, 0 to 5 (TensorRT's builder optimization level); None leaves it to the engine.
        cache_dir: Where an engine keeps what it built for this device; None for the user's own cache.

    Raises:
        EngineError: A value out of range.
    """

    threads: int | None = None
    device: int = 0
    batch: BatchRange | None = None
    lanes: int = 2
    tf32: bool = False
    workspace_bytes: int | None = None
    memory_limit_bytes: int | None = None
    level: int | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        cores = len(os.sched_getaffinity(0))
        for name in ("threads", "device", "lanes", "workspace_bytes", "memory_limit_bytes", "level"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _whole_number(name, getattr(self, name)))
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise EngineError(
                f"expected 1 to {cores} threads, as many as there are cores for this process, got {self.threads}; "
                "leave it out to let the engine choose"
            )
        if self.device < 0:
            raise EngineError(f"expected the number of a device, 0 or more, got {self.device}")
        if not 1 <= self.lanes <= MAX_LANES:
            raise EngineError(f"expected 1 to {MAX_LANES} lanes, got {self.lanes}")
        for name in ("workspace_bytes", "memory_limit_bytes"):
            size = getattr(self, name)
            if size is not None and not 1 <= size <= MAX_BYTES:
                raise EngineError(f"expected {name} of 1 to {MAX_BYTES}, got {size}; leave it out for no limit")
        if self.batch is not None and not isinstance(self.batch, BatchRange):
            raise EngineError(f"expected batch as BatchRange(min, opt, max), got {self.batch!r:.40}")
        if self.cache_dir is not None and not isinstance(self.cache_dir, str | Path):
            raise EngineError(f"expected cache_dir as the path of a folder, got {self.cache_dir!r:.40}")
        if self.level is not None and not 0 <= self.level <= 5:
            raise EngineError(f"expected a level of 0 to 5, got {self.level}")


def _whole_number(name: str, value: Any) -> int:
    try:
        number = operator.index(value)  # NumPy's integers are welcome
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise EngineError(f"expected {name} as a whole number, got {value!r:.40}")
    return number


DEFAULT_OPTIONS = EngineOptions()


def without_proof(_: Engine) -> Mapping[str, Any]:
    """Hold an engine against nothing: a `Prove` for graphs of which no scores are known."""
    return {}


class Engine(ABC):
    """Runs one graph; safe to call from several threads at once."""

    @classmethod
    @abstractmethod
    def create(cls, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec, options: EngineOptions) -> Engine:
        """Return an engine made from the very bytes of ``graph``; arguments and errors are those of `create_engine`."""

    @classmethod
    def create_proved(
        cls,
        graph: GraphBytes,
        *,
        inputs: InputSpec,
        outputs: OutputSpec,
        options: EngineOptions,
        prove: Prove,  # noqa: ARG003  # for those that compile
    ) -> Engine:
        """Return an engine as `create` does; one that keeps what it compiles proves that first, if it is not proved.

        By default nothing is compiled to be kept, and so there is nothing to prove.
        """
        return cls.create(graph, inputs=inputs, outputs=outputs, options=options)

    @classmethod
    def open_file(
        cls,
        path: Path,
        *,
        shape: tuple[int, int, int],  # noqa: ARG003  # for those that can
        batch: int,  # noqa: ARG003
        options: EngineOptions,  # noqa: ARG003
    ) -> Engine:
        """Return an engine for an ONNX file of the user's own; arguments and errors are those of `open_engine`."""
        raise EngineError(f"this engine opens bundles only, not {str(path)!r}; choose another one with --engine")

    @classmethod
    def why_not_now(cls, bundle: Bundle | None, options: EngineOptions) -> str | None:  # noqa: ARG003  # for those that can
        """Return why ``auto`` should pass the engine over for ``bundle``, or for any one: a sentence with the remedy.

        None, as here, from an engine that runs every bundle within seconds.

        Raises:
            EngineError, MissingExtraError: It does not work here; ``auto`` takes the next one.
        """
        return None

    @classmethod
    def measured_bytes(cls, bundle: Bundle, options: EngineOptions) -> Mapping[str, int]:  # noqa: ARG003  # as above
        """Return what paths of ``bundle`` take of a GPU's memory, as far as that is known before they are loaded.

        Budgets count the larger of this and the size of a path's files. Errors are those of `create`.
        """
        return {}

    @abstractmethod
    def run(self, batch: Batch) -> Scores:
        """Return the scores of a batch.

        The engine trusts its caller: what a user passes is checked in front of it, by `smart_runtime.inputs`.

        Args:
            batch: float32, (N, channels, height, width), C-contiguous, values in [0, 1], N at least 1; read only.

        Returns:
            float32 logits, (N, classes); the array is the caller's own.

        Raises:
            EngineError: The engine failed.
            ClosedError: The engine was closed.
        """

    def run_timed(self, batch: Batch) -> tuple[Scores, DeviceTimes | None]:
        """Return the scores and what the GPU says that they took; None from an engine that computes on the CPU.

        For measuring: it costs a little more than `run`, whose arguments and errors it has.
        """
        return self.run(batch), None

    def run_gpu_images(self, images: GpuImages) -> Scores:
        """Return the scores of images that lie on the engine's own GPU; they are opened and released here.

        Refused, as here, by an engine that takes images from the host's memory only.

        Raises:
            InputError: They are not what the graph takes, or lie elsewhere.
            EngineError: The engine failed.
            ClosedError: The engine was closed.
        """
        raise InputError(
            f"expected a NumPy array of images for the engine {self.describe()['engine']}, got {images}; copy it, "
            "images.cpu().numpy(), or load the model with engine='tensorrt'"
        )

    @property
    def device_bytes(self) -> int | None:
        """Memory of the GPU that the graph itself holds, without what all graphs share; None without one."""
        return None

    @property
    def shared_device_bytes(self) -> int | None:
        """Memory of the GPU that all graphs of this process share; None without one."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds; runs in flight on other threads finish. May be called again."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what runs the graph as plain values: ``engine``, ``library`` with its version, and what it heeds."""
