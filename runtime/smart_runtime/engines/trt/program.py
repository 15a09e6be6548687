"""A plan of TensorRT's that is loaded onto a GPU, and what a lane does with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any, NoReturn

import numpy as np

from smart_common.errors import SmartError, shortened
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.cuda.driver import CudaError
from smart_runtime.engines.cuda.gpu_images import GpuBatch
from smart_runtime.engines.cuda.lane import Lane, Seat
from smart_runtime.engines.engine import Batch, DeviceTimes, Scores
from smart_runtime.engines.plans import StoredPlan
from smart_runtime.engines.trt.installed import PlanRefusedError, batch_of
from smart_runtime.engines.trt.library import Library
from smart_runtime.engines.trt.log import Log
from smart_runtime.errors import EngineError, OutOfMemoryError

_FLOAT_BYTES = 4


class Program:
    """A plan that is loaded onto a GPU; what the lanes need to know of it is in `smart_runtime.engines.cuda.lane`."""

    def __init__(self, library: Library, stored: StoredPlan, *, inputs: InputSpec, outputs: OutputSpec) -> None:
        """Load a plan, inside of `Device.use`.

        Raises:
            OutOfMemoryError: There is no room for its weights.
            EngineError: The library does not take it, or it takes or gives something else than the graph.
        """
        self._library = library
        self._inputs, self._outputs, self._batch = inputs, outputs, batch_of(stored.key)
        self.input_bytes = _FLOAT_BYTES * self._batch.max * math.prod(inputs.shape)
        self.output_bytes = _FLOAT_BYTES * self._batch.max * outputs.classes
        self._engine: Any = None
        self._cache: Any = None
        self.keeps: tuple[Any, ...] = ()
        try:
            with self._refusing("failed with its plan") as log:
                self._open(stored, log)
        except BaseException:
            self.release()  # now, and not when the exception goes, whose traceback holds this
            raise

    def _open(self, stored: StoredPlan, log: Log) -> None:
        library = self._library
        # What is made goes into these at once, and a tuple lets go of its last item first.
        self.keeps = (library.runtime(log),)
        self._engine = library.deserialize(self.keeps[0], stored.plan)
        if self._engine is None:
            raise self._refused("did not take its own plan", log, PlanRefusedError)
        self.keeps += (self._engine,)
        self._check_tensors()
        self._cache = library.kernel_cache(self._engine, stored.kernels)
        self.keeps += (self._cache,)
        self.activation_bytes = library.activation_bytes(self._engine)

    def _check_tensors(self) -> None:
        engine: Any = self._engine
        trt = self._library.module
        # No comprehensions: what one holds lives on with the traceback of whatever strikes in it.
        names = list(map(engine.get_tensor_name, range(engine.num_io_tensors)))
        shapes = map(tuple, map(engine.get_tensor_shape, names))
        found = dict(zip(names, zip(map(engine.get_tensor_mode, names), shapes, strict=True), strict=True))
        dtypes = list(map(engine.get_tensor_dtype, names))
        expected = {
            self._inputs.name: (trt.TensorIOMode.INPUT, self._inputs.shape),
            self._outputs.name: (trt.TensorIOMode.OUTPUT, (self._outputs.classes,)),
        }
        # Where the plan takes one size only, some versions call the batch fixed and some free.
        sizes = {-1, self._batch.max} if self._batch.min == self._batch.max else {-1}
        kinds = {name: (mode, shape[1:]) for name, (mode, shape) in found.items()}
        free = all(shape[:1] and shape[0] in sizes for _, shape in found.values())
        if kinds != expected or not free or dtypes != [trt.DataType.FLOAT] * len(names):
            got = " and ".join(f"{name} {shape}" for name, (_, shape) in found.items()) or "none"
            raise PlanRefusedError(f"expected a plan from images to scores in float32, got {shortened(got)}")

    def release(self) -> None:
        """Let go of the plan; contexts that are there still keep it."""
        self._engine = None
        self._cache = None
        self.keeps = ()

    def kernels(self) -> bytes:
        """Return what the library compiled for this GPU as contexts ran; empty where it compiles nothing there."""
        with self._refusing("did not say what it compiled"):
            return b"" if self._cache is None else bytes(memoryview(self._cache.serialize()).cast("B"))

    def new_context(self, stream: int) -> Any:
        """Return a new execution context for runs in ``stream``, which has no memory of its own for activations."""
        with self._refusing("made no execution context") as log:
            # It gets no name: the traceback of an interrupt that comes as this block ends would keep it past its plan.
            return self._library.new_context(self._engine, stream=stream, cache=self._cache) or self._no_context(log)

    def _no_context(self, log: Log) -> NoReturn:
        raise self._refused("made no execution context", log)

    def bind(self, seat: Seat, lane: Lane) -> None:
        """Let the context of ``seat`` work in the buffers of ``lane`` from now on."""
        seat.log = self._library.logger()
        addresses = {self._inputs.name: lane.device_in.address, self._outputs.name: lane.device_out.address}
        with self._refusing("did not take its buffers") as log:
            if not all(seat.context.set_tensor_address(name, address) for name, address in addresses.items()):
                raise self._refused("did not take its buffers", log)
            self._library.set_activation_memory(seat.context, lane.activation.address, lane.activation.bytes)

    def warm(self, lane: Lane) -> None:
        """Run once with each batch size that the plan was told of."""
        for images in sorted({self._batch.min, self._batch.opt, self._batch.max}):
            self.run(lane, np.zeros((images, *self._inputs.shape), np.float32))

    def run(self, lane: Lane, batch: Batch | GpuBatch, *, timed: bool = False) -> tuple[Scores, DeviceTimes | None]:
        """Return the scores of a batch, in pieces where it is larger than the plan takes; ``lane`` is the caller's."""
        scores = np.empty((len(batch), self._outputs.classes), np.float32)
        times = [self._run_piece(lane, piece, out, timed=timed) for piece, out in self._pieces(batch, scores)]
        return scores, _sum(times) if timed else None

    def _pieces(self, batch: Batch | GpuBatch, scores: Scores) -> list[tuple[Batch | GpuBatch, Scores]]:
        most = self._batch.max
        return [(batch[start : start + most], scores[start : start + most]) for start in range(0, len(batch), most)]

    def _run_piece(self, lane: Lane, piece: Batch | GpuBatch, out: Scores, *, timed: bool) -> DeviceTimes:
        seat, stream = lane.seats[self], lane.stream
        images = max(len(piece), self._batch.min)
        size = self.input_bytes // self._batch.max * images
        host_out = lane.host_out.array[: _FLOAT_BYTES * images * out.shape[1]].view(np.float32)
        lane.clean = False
        here = piece.nbytes if isinstance(piece, GpuBatch) else 0  # bytes of it that are on the GPU already
        if here < size:
            host_in = lane.host_in.array[:size].view(np.float32)
            if not isinstance(piece, GpuBatch):
                host_in[: piece.size] = piece.reshape(-1)
            host_in[piece.size :] = 0  # a batch that is too small is filled up
        if timed:
            lane.start.record(stream)
        if isinstance(piece, GpuBatch):
            stream.copy_on_device(lane.device_in.address, piece.address, here)
        if here < size:
            stream.copy_in(lane.device_in.address + here, lane.host_in.address + here, size - here)
        if timed:
            lane.copied.record(stream)
        self._enqueue(seat, images, stream.handle)
        if timed:
            lane.computed.record(stream)
        stream.copy_out(lane.host_out.address, lane.device_out.address, host_out.nbytes)
        if timed:
            lane.end.record(stream)
        stream.synchronize()
        out.reshape(-1)[:] = host_out[: out.size]
        times = _NOTHING
        if timed:
            times = DeviceTimes(
                lane.copied.milliseconds_since(lane.start),
                lane.computed.milliseconds_since(lane.copied),
                lane.end.milliseconds_since(lane.computed),
            )
        lane.clean = True
        return times

    def _enqueue(self, seat: Seat, images: int, stream: int) -> None:
        with self._refusing("could not run the graph", seat.log) as log:
            if seat.images != images:
                seat.images = 0
                if not seat.context.set_input_shape(self._inputs.name, (images, *self._inputs.shape)):
                    raise self._refused(f"did not take a batch of {images}", log)
                seat.images = images
            if not seat.context.execute_async_v3(stream):
                raise self._refused("could not run the graph", log)

    @contextmanager
    def _refusing(self, what: str, log: Log | None = None) -> Iterator[Log]:
        """Make an error of ours of whatever the library raises; yields what it says meanwhile, in ``log`` if given."""
        log = self._library.logger() if log is None else log.listen()
        try:
            yield log
        except BaseException as error:
            clear_frames(error.__traceback__)  # they hold objects of the library's, which must not outlive the device
            if isinstance(error, Exception) and not isinstance(error, SmartError | CudaError):
                raise self._refused(what, log) from error  # its exceptions have no base class of their own
            raise

    def _refused(self, what: str, log: Log, kind: type[EngineError] = EngineError) -> EngineError:
        reason = log.last_error
        if "out of memory" in reason.lower() or "outofmemory" in reason.lower():
            return OutOfMemoryError(
                f"{self._library.title} {what} for want of memory ({reason}); end other programs that use the GPU, or "
                "load fewer paths with memory='on-demand'"
            )
        return kind(f"{self._library.title} {what}: {reason}; `smart-run install BUNDLE --force` builds it anew")


_NOTHING = DeviceTimes(0.0, 0.0, 0.0)


def _sum(times: list[DeviceTimes]) -> DeviceTimes:
    return DeviceTimes(
        sum(one.copy_in_ms for one in times),
        sum(one.compute_ms for one in times),
        sum(one.copy_out_ms for one in times),
    )
