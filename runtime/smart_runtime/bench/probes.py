"""Graphs of equal layers, whose times tell what a processor attains: made here, so that no network is needed.

The device side has no onnx package to write graphs with; what these need of the format is little. Field numbers:
onnx.proto3 of ONNX 1.x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from smart_devices.roofline import LayerWork
from smart_runtime.bundle.bundle import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import Batch, Engine, Scores, create_engine

_OPSET, _IR_VERSION = 17, 8  # all that is used here is older; every ONNX Runtime that we run with knows these
_FLOAT, _INTS, _INT = 1, 7, 2
_INPUT, _OUTPUT = "image", "scores"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A chain of ``layers`` equal layers on images of ``channels`` x ``side`` x ``side``.

    ``kernel`` is the side of a convolution's square kernel, 0 for linear layers, which need a ``side`` of 1.
    """

    channels: int
    side: int
    kernel: int
    layers: int
    batch: int = 1
    depthwise: bool = False

    @property
    def work(self) -> LayerWork:
        """What each of its layers asks for."""
        weights = self.channels * (1 if self.depthwise else self.channels) * max(1, self.kernel) ** 2
        return LayerWork(
            name="probe",
            kind="linear" if not self.kernel else "depthwise" if self.depthwise else "convolution",
            groups=self.channels if self.depthwise else 1,
            in_channels=self.channels,
            out_channels=self.channels,
            weights=weights,
            macs=weights * self.side**2,
        )

    def graph(self, rng: np.random.Generator) -> bytes:
        """Return it as an ONNX file; each layer has weights of its own, or they would stay in the processor's cache."""
        nodes, tensors, last = [], [], _INPUT
        if not self.kernel:
            nodes.append(_node("Flatten", [last], "flat"))
            last = "flat"
        for i in range(self.layers):
            weight = self._weight(rng)
            tensors += [_tensor(f"w{i}", weight), _tensor(f"b{i}", np.zeros(self.channels, np.float32))]
            nodes += [self._layer([last, f"w{i}", f"b{i}"], f"x{i}"), _node("Relu", [f"x{i}"], f"y{i}")]
            last = f"y{i}"
        if self.kernel:
            nodes += [_node("GlobalAveragePool", [last], "pooled"), _node("Flatten", ["pooled"], _OUTPUT)]
        else:
            nodes.append(_node("Identity", [last], _OUTPUT))
        graph = [
            *((1, node) for node in nodes),
            (2, b"probe"),
            *((5, tensor) for tensor in tensors),
            (11, _port(_INPUT, [self.channels, self.side, self.side])),
            (12, _port(_OUTPUT, [self.channels])),
        ]
        return _message((1, _IR_VERSION), (7, _message(*graph)), (8, _message((2, _OPSET))))

    def _weight(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        inputs = 1 if self.depthwise else self.channels
        shape = (self.channels, inputs, *([self.kernel] * 2 if self.kernel else []))
        weight: npt.NDArray[np.float32] = rng.standard_normal(shape, dtype=np.float32)
        # He et al. 2015, Delving deep into rectifiers: what passes through keeps its size; numbers near zero would take
        # a processor longer.
        weight *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        return weight

    def _layer(self, inputs: Sequence[str], output: str) -> bytes:
        if not self.kernel:
            return _node("Gemm", inputs, output)
        square = {"kernel_shape": [self.kernel] * 2, "pads": [self.kernel // 2] * 4}
        return _node("Conv", inputs, output, ints=square, count={"group": self.work.groups})


class ProbeEngine:
    """An engine that runs a probe on images of its own, whatever it is given: to take turns with others.

    Args:
        probe: What to run.
        engine: An engine's name.
        threads: Threads a call may use.
        rng: Draws weights and images.

    Raises:
        EngineError: The engine refuses it.
        MissingExtraError: The engine's library is not installed.
    """

    def __init__(self, probe: Probe, *, engine: str, threads: int, rng: np.random.Generator) -> None:
        shape = (probe.channels, probe.side, probe.side)
        self._engine: Engine = create_engine(
            engine,
            GraphBytes(model=probe.graph(rng), weights=None, weights_name=None),
            inputs=InputSpec(name=_INPUT, channels=shape[0], height=shape[1], width=shape[2]),
            outputs=OutputSpec(name=_OUTPUT, classes=probe.channels),
            threads=threads,
        )
        self._images = rng.random((probe.batch, *shape), dtype=np.float32)

    def run(self, batch: Batch) -> Scores:  # noqa: ARG002  # an engine gets one; this one has its own
        """Run the probe; see `Engine.run`."""
        return self._engine.run(self._images)

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()


def _node(
    op: str,
    inputs: Sequence[str],
    output: str,
    *,
    ints: Mapping[str, Sequence[int]] = MappingProxyType({}),
    count: Mapping[str, int] = MappingProxyType({}),
) -> bytes:
    lists = (_message((1, name.encode()), *((8, value) for value in many), (20, _INTS)) for name, many in ints.items())
    single = (_message((1, name.encode()), (3, value), (20, _INT)) for name, value in count.items())
    return _message(
        *((1, name.encode()) for name in inputs),
        (2, output.encode()),
        (3, output.encode()),
        (4, op.encode()),
        *((5, attribute) for attribute in (*lists, *single)),
    )


def _tensor(name: str, values: npt.NDArray[np.float32]) -> bytes:
    return _message(*((1, side) for side in values.shape), (2, _FLOAT), (8, name.encode()), (9, values.tobytes()))


def _port(name: str, shape: Sequence[int]) -> bytes:
    """A float32 input or output with a free batch size."""
    sides = [_message((2, b"N")), *(_message((1, side)) for side in shape)]
    tensor = _message((1, _FLOAT), (2, _message(*((1, side) for side in sides))))
    return _message((1, name.encode()), (2, _message((1, tensor))))


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    """Return a protobuf message: numbers as varints, all else with its length in front."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_varint(number << 3), _varint(value)]
        else:
            parts += [_varint(number << 3 | 2), _varint(len(value)), value]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
