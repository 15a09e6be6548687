"""A graph built and run through `Library`, as the runtime does it, in plain steps that tests can break into."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from runtime.bundles import CHANNELS, CLASSES, HEIGHT, WIDTH, Array, graph_files
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.trt.library import Library, LibraryName
from smart_runtime.engines.trt.log import Log

MAX_BATCH = 4
IMAGE = (CHANNELS, HEIGHT, WIDTH)


def inlined_graph(name: str = "clean") -> bytes:
    """One of the tests' tiny graphs with its weights inside."""
    text, weights = graph_files(name)
    model = onnx.load_from_string(text)
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        start = int(place["offset"])
        tensor.raw_data = weights[start : start + int(place["length"])]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return bytes(model.SerializeToString())


def configured(
    library: Library, builder: Any, *, batch: tuple[int, int, int] = (1, 2, MAX_BATCH), **chosen: Any
) -> Any:
    """A configuration with a profile for batches of 1 to ``MAX_BATCH``."""
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((size, *IMAGE) for size in batch))
    config.add_optimization_profile(profile)
    recipe: dict[str, Any] = {
        "precision": "fp32",
        "tf32": False,
        "sparse_weights": False,
        "workspace_bytes": 1 << 28,
        "level": 3,
    }
    library.configure(config, **(recipe | chosen))
    return config


def built(library: Library, graph: bytes | None = None, log: Log | None = None, **chosen: Any) -> bytes:
    """The plan of a graph; a context of the device is current where the library needs one."""
    log = log or library.logger()
    builder = library.builder(log)
    network = library.network(builder)
    parser = library.module.OnnxParser(network, log.trt)
    assert parser.parse(inlined_graph() if graph is None else graph), library.parse_errors(parser)
    plan = builder.build_serialized_network(network, configured(library, builder, **chosen))
    assert plan is not None, log.last_error
    return bytes(memoryview(plan))


class Running:
    """An engine with one context on a device, within ``with device.use():``; `close` takes them down in order."""

    def __init__(self, library: Library, device: Device, plan: bytes) -> None:
        self.library, self.log = library, library.logger()
        try:
            self._load(device, plan)
        except BaseException:
            self.close()
            raise

    def _load(self, device: Device, plan: bytes) -> None:
        self.stream = device.stream()
        self.runtime: Any = self.library.runtime(self.log)
        self.engine: Any = self.library.deserialize(self.runtime, plan)
        assert self.engine is not None, self.log.last_error
        self.scratch = device.memory(max(self.library.activation_bytes(self.engine), 1))
        self.images = device.memory(4 * MAX_BATCH * int(np.prod(IMAGE)))
        self.scores = device.memory(4 * MAX_BATCH * CLASSES)
        self.context = self.new_context()

    def new_context(self, cache: Any = None) -> Any:
        context = self.library.new_context(self.engine, stream=self.stream.handle, cache=cache)
        assert context is not None
        self.library.set_activation_memory(context, self.scratch.address, self.scratch.bytes)
        assert context.set_tensor_address("image", self.images.address)
        assert context.set_tensor_address("scores", self.scores.address)
        return context

    def run(self, images: Array) -> Array:
        scores = np.empty((len(images), CLASSES), np.float32)
        assert self.context.set_input_shape("image", images.shape)
        self.stream.copy_in(self.images.address, images.ctypes.data, images.nbytes)
        assert self.context.execute_async_v3(self.stream.handle), self.log.last_error
        self.stream.copy_out(scores.ctypes.data, self.scores.address, scores.nbytes)
        self.stream.synchronize()
        return scores

    def close(self) -> None:
        for name in ("context", "engine", "runtime"):
            setattr(self, name, None)
        for name in ("stream", "scratch", "images", "scores"):
            if hasattr(self, name):  # it may not have come to that
                getattr(self, name).release()


def name_of(dialect: str) -> LibraryName:
    """The library that a dialect is of."""
    return "tensorrt-rtx" if dialect.startswith("rtx") else "tensorrt"
