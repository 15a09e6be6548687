"""One call in a stream: ONNX Runtime computes on what lies at the device's addresses."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trt.fake_tensorrt.rules import UNDEFINED, Cuda, undefined

_DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
_lock = threading.Lock()


@dataclass
class Context:
    """What was set on a context, and the streams in which it is running, by how many calls."""

    fixed: Mapping[str, tuple[int, ...]]
    has_profile: bool = True
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    memory: int | None = None
    running: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call as it was when it was queued."""

    session: Any
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    addresses: Mapping[str, int]
    memory: tuple[int, int]

    def compute(self) -> None:
        """Do the work, in the stream's thread."""
        scratch = _at(self.memory[0], (self.memory[1],), np.uint8)
        pattern = np.frombuffer(np.random.default_rng().bytes(self.memory[1]), np.uint8)
        scratch[:] = pattern
        images = {
            name: _at(self.addresses[name], self.shapes[name], _DTYPES[dtype]).copy()
            for name, dtype in self.inputs.items()
        }
        scores = self.session.run(list(self.outputs), images)
        if not np.array_equal(scratch, pattern):
            UNDEFINED.append("activation memory was written to by another while a call used it")
            scores = [np.full_like(values, np.nan) for values in scores]
        for name, values in zip(self.outputs, scores, strict=True):
            values = np.ascontiguousarray(values)  # noqa: PLW2901
            ctypes.memmove(self.addresses[name], values.ctypes.data, values.nbytes)


def execute(call: Call, context: Context, *, stream: int, cuda: Cuda, busy: dict[tuple[int, int], list[int]]) -> None:
    """Queue a call.

    Args:
        call: What to do.
        context: Whose it is.
        stream: Where.
        cuda: The driver.
        busy: Activation memory in use, as address and size, and the streams that use it.

    Raises:
        Undefined: The context or its activation memory is in use in another stream.
        DriverError: The driver refuses.
    """
    start, size = call.memory
    with _lock:
        if set(context.running) - {stream}:
            raise undefined("one context was run in two streams at once")
        for (other, length), streams in busy.items():
            if start < other + length and other < start + size and set(streams) - {stream}:
                raise undefined("activation memory was given to two calls at once")
        context.running[stream] = context.running.get(stream, 0) + 1
        busy.setdefault(call.memory, []).append(stream)

    def done() -> None:
        with _lock:
            context.running[stream] -= 1
            if not context.running[stream]:
                del context.running[stream]
            busy[call.memory].remove(stream)
            if not busy[call.memory]:
                del busy[call.memory]

    def job() -> None:
        try:
            call.compute()
        finally:
            done()

    try:
        cuda.launch(stream, job)
    except BaseException:
        done()
        raise


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return an array over memory at ``address``."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size:
        return np.empty(shape, dtype)
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)
