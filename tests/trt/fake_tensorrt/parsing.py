"""What parses: the superset of all versions, which `bindings.fitted` cuts down to one."""

from __future__ import annotations

import os
from typing import Any

import onnx

from trt.fake_tensorrt import graphs
from trt.fake_tensorrt.bindings import Bound
from trt.fake_tensorrt.plan import Tensor
from trt.fake_tensorrt.rules import undefined


class INetworkDefinition(Bound):
    """A parsed graph."""

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input) if self._model else 0

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output) if self._model else 0

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node) if self._model else 0

    @property
    def flags(self) -> int:
        return int(self._flags)

    @property
    def name(self) -> str:
        return "Unnamed Network 0"

    def get_input(self, index: int) -> Any:
        return self._tensor(graphs.tensors(self._model.graph.input)[index])

    def get_output(self, index: int) -> Any:
        return self._tensor(graphs.tensors(self._model.graph.output)[index])

    def _tensor(self, tensor: Tensor) -> Any:
        return self._world.new("ITensor", tensor=tensor)

    _model: Any
    _flags: int
    _strong: bool


class ITensor(Bound):
    """An input or output of a network."""

    _tensor: Tensor

    @property
    def name(self) -> str:
        return self._tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._tensor.shape

    @property
    def dtype(self) -> Any:
        return getattr(self._world.module.DataType, self._tensor.dtype)


class OnnxParser(Bound):
    """Reads a graph out of bytes."""

    def __init__(self, network: Any, logger: Any) -> None:
        module = self._world.module
        if not isinstance(network, module.INetworkDefinition) or not isinstance(logger, module.ILogger):
            raise TypeError("__init__(): incompatible constructor arguments")
        self._pid, self._network, self._logger = os.getpid(), network, logger
        self._faults: list[graphs.Fault] = []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        self._enter()
        if path is not None:
            raise undefined("a parser was given a path: whatever lies there is opened")
        try:
            parsed = onnx.load_from_string(bytes(memoryview(model)))
            self._faults = graphs.faults(parsed)
        except Exception:  # whatever protobuf raises
            self._faults = [graphs.Fault("MODEL_DESERIALIZE_FAILED", "Failed to parse the ONNX model.")]
        for fault in self._faults:
            self._logger.log(self._world.module.ILogger.ERROR, f"{fault.code}: {fault.reason}")
        if not self._faults:
            self._network._model = parsed
        return not self._faults

    @property
    def num_errors(self) -> int:
        return len(self._faults)

    def get_error(self, index: int) -> Any:
        return self._world.new("ParserError", fault=self._faults[index])

    def clear_errors(self) -> None:
        self._faults = []


class ParserError(Bound):
    """One thing that the parser has against a graph."""

    _fault: graphs.Fault

    def code(self) -> Any:
        return getattr(self._world.module.ErrorCode, self._fault.code)

    def desc(self) -> str:
        return self._fault.reason

    def node(self) -> int:
        return self._fault.node

    def node_name(self) -> str:
        return self._fault.node_name

    def node_operator(self) -> str:
        return self._fault.operator
