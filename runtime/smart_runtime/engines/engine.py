"""The one interface that every engine has."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Batch: TypeAlias = npt.NDArray[np.float32]
Scores: TypeAlias = npt.NDArray[np.float32]


class Engine(Protocol):
    """Runs one graph; safe to call from several threads at once."""

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
        ...

    def close(self) -> None:
        """Give back what the engine holds; runs in flight on other threads finish. May be called again."""
        ...
