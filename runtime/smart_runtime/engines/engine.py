"""What every engine is, and what may be asked of it when it is made."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from smart_runtime.bundle.bundle import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.errors import EngineError

Batch: TypeAlias = npt.NDArray[np.float32]
Scores: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is to run; each engine heeds what applies to it. ONNX Runtime on the CPU heeds ``threads`` alone.

    Attributes:
        threads: Threads that one run may use; None leaves it to the engine (ONNX Runtime: one a physical core). At
            most one for each core of this process: more would wait for one another, thousands for minutes.
        device: The number of the GPU, from 0.
        max_batch: Images that a run takes at most, for engines that must know it beforehand; None leaves it to them.
        cache_dir: Where an engine keeps what it built for this device; None for nowhere.

    Raises:
        EngineError: A value out of range.
    """

    threads: int | None = None
    device: int = 0
    max_batch: int | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        cores = len(os.sched_getaffinity(0))
        for name in ("threads", "device", "max_batch"):
            value = getattr(self, name)
            if value is None:
                continue
            try:
                number = operator.index(value)  # NumPy's integers are welcome
            except TypeError:
                number = None
            if number is None or isinstance(value, bool):
                raise EngineError(f"expected {name} as a whole number, got {value!r:.40}")
            object.__setattr__(self, name, number)
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise EngineError(
                f"expected 1 to {cores} threads, as many as there are cores for this process, got {self.threads}; "
                "leave it out to let the engine choose"
            )
        if self.device < 0:
            raise EngineError(f"expected the number of a device, 0 or more, got {self.device}")
        if self.max_batch is not None and self.max_batch < 1:
            raise EngineError(f"expected a largest batch of 1 or more, got {self.max_batch}")


DEFAULT_OPTIONS = EngineOptions()


class Engine(ABC):
    """Runs one graph; safe to call from several threads at once."""

    @classmethod
    @abstractmethod
    def create(cls, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec, options: EngineOptions) -> Engine:
        """Return an engine made from the very bytes of ``graph``; arguments and errors are those of `create_engine`."""

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

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds; runs in flight on other threads finish. May be called again."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what runs the graph as plain values: ``engine``, ``library`` with its version, and what it heeds."""
