"""TensorRT and TensorRT-RTX as engines: a plan of this device, run on the lanes of its GPU."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.gpu_images import GpuImages
from smart_runtime.engines.cuda.lane_pool import LanePool, Turn
from smart_runtime.engines.engine import Batch, DeviceTimes, Engine, EngineOptions, Prove, Scores, without_proof
from smart_runtime.engines.plans import Entry, PlanCache, StoredPlan
from smart_runtime.engines.trt.installed import Installer
from smart_runtime.engines.trt.library import Library, LibraryName
from smart_runtime.engines.trt.program import Program
from smart_runtime.errors import ClosedError, EngineError

_log = logging.getLogger(__name__)


class TensorRtEngine(Engine):
    """One plan of TensorRT's, with float32 images in and scores out.

    Attributes:
        plan: What is known of the plan; None before it is loaded.
    """

    LIBRARY: ClassVar[LibraryName] = "tensorrt"
    BUILDS_FOR_MINUTES: ClassVar[bool] = True

    def __init__(self, device: Device, library: Library) -> None:
        """Use `create`; this has nothing to run yet."""
        self._device = device
        self._library = library
        self._pool = LanePool.shared(device)
        self._program: Program | None = None
        self._device_bytes = 0
        self.plan: Entry | None = None

    @classmethod
    def create(
        cls, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec, options: EngineOptions
    ) -> TensorRtEngine:
        """Return the engine of ``graph``, whose plan nothing proves if it is built now; see `create_engine`."""
        return cls.create_proved(graph, inputs=inputs, outputs=outputs, options=options, prove=without_proof)

    @classmethod
    def create_proved(
        cls, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec, options: EngineOptions, prove: Prove
    ) -> TensorRtEngine:
        """Return the engine of ``graph``, whose plan is built now if it is not installed; see `create_engine`."""
        device = Device.shared(options.device)  # before anything of TensorRT: without a driver it crashes
        return cls.of(Installer(cls.LIBRARY, device, options), graph, inputs=inputs, outputs=outputs, prove=prove)

    @classmethod
    def of(
        cls,
        installer: Installer,
        graph: GraphBytes,
        *,
        inputs: InputSpec,
        outputs: OutputSpec,
        prove: Prove,
        anew: bool = False,
    ) -> TensorRtEngine:
        """Return the engine of ``graph`` with the plan that ``installer`` finds or builds, see `Installer.load`."""
        engine = cls(installer.device, installer.library)
        load = partial(engine._load, inputs=inputs, outputs=outputs, lanes=installer.options.lanes)
        try:
            stored = installer.load(
                graph, inputs=inputs, outputs=outputs, load=load, prove=partial(prove, engine), anew=anew
            )
            engine._keep_kernels(stored, installer.cache)
            engine.plan = Entry(stored.key, stored.facts)
        except BaseException:
            engine.close()
            raise
        return engine

    def _load(self, stored: StoredPlan, *, inputs: InputSpec, outputs: OutputSpec, lanes: int) -> None:
        device = self._device
        try:
            with device.use():
                free = device.free_bytes()
                self._program = Program(self._library, stored, inputs=inputs, outputs=outputs)
                self._device_bytes = max(0, free - device.free_bytes())
                self._pool.attach(self._program, lanes=lanes)
        except BaseException:
            self.close()
            raise

    def _keep_kernels(self, stored: StoredPlan, cache: PlanCache) -> None:
        """Keep what was compiled in the first runs, so that the next load need not."""
        with self._device.use():
            kernels = b"" if self._program is None else self._program.kernels()
        if kernels and kernels != stored.kernels:
            try:
                cache.save_kernels(stored.key, kernels)
            except EngineError as error:  # a disk that is full, for one: it loads more slowly next time
                _log.warning("what was compiled cannot be kept: %s", str(error))

    def run(self, batch: Batch) -> Scores:
        """Return the scores of a batch; see `Engine.run`."""
        return self._run(batch, timed=False)[0]

    def run_timed(self, batch: Batch) -> tuple[Scores, DeviceTimes | None]:
        """Return the scores and what the GPU says that they took; see `Engine.run_timed`."""
        return self._run(batch, timed=True)

    def run_gpu_images(self, images: GpuImages) -> Scores:
        """Return the scores of images that are on this engine's GPU; see `Engine.run_gpu_images`."""
        try:
            return self._run(images, timed=False)[0]
        finally:
            images.release()  # not earlier: what failed has waited until the GPU does not read them any more

    def _run(self, batch: Batch | GpuImages, *, timed: bool) -> tuple[Scores, DeviceTimes | None]:
        program, pool = self._program, self._pool
        if program is None:
            raise ClosedError("the engine is closed; load the model again")
        with self._device.use():
            turn = Turn(program=program)
            try:
                lane = pool.take(turn)
                assert lane is not None, "no lane in particular was wanted"
                try:
                    given = batch.open(self._device, lane) if isinstance(batch, GpuImages) else batch
                    return program.run(lane, given, timed=timed)
                except BaseException:
                    if not lane.clean:  # the GPU may be at it still, and the caller may change its images
                        lane.stream.synchronize()
                    raise
            finally:
                pool.line.pop(turn, None)  # first of all: see `smart_runtime.engines.cuda.lane_pool`
                pool.left()

    @property
    def device_bytes(self) -> int | None:
        """By how much the GPU's free memory shrank while the plan was loaded, other programs' doing included."""
        return self._device_bytes

    @property
    def shared_device_bytes(self) -> int | None:
        """The buffers and activation blocks of all lanes."""
        return self._pool.device_bytes

    @classmethod
    def measured_bytes(cls, bundle: Bundle, options: EngineOptions) -> Mapping[str, int]:
        """See `Engine.measured_bytes`: `smart-run install` measures them."""
        entries = Installer(cls.LIBRARY, Device.shared(options.device), options).of_paths(bundle)
        known = {path: entry.facts.get("device_bytes") for path, entry in entries.items() if entry is not None}
        return {path: size for path, size in known.items() if isinstance(size, int)}

    @classmethod
    def why_not_now(cls, bundle: Bundle | None, options: EngineOptions) -> str | None:
        """See `Engine.why_not_now`: TensorRT builds for minutes, so its plans must be there."""
        device = Device.shared(options.device)
        installer = Installer(cls.LIBRARY, device, options)
        if not cls.BUILDS_FOR_MINUTES or (bundle is not None and all(installer.of_paths(bundle).values())):
            device.check()
            return None
        which = "BUNDLE" if bundle is None else shlex.quote(str(bundle.root))
        return (
            f"{installer.library.title} is here and may be faster, but this bundle is not installed for it: "
            f"smart-run install {which}"
        )

    def close(self) -> None:
        """Give the plan back; runs in flight on other threads finish. May be called again, after an interrupt too."""
        self._leave(self._pool.detach)

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        """Do what `close` does: an interrupt can lose an engine that is just being handed over."""
        if "_program" in vars(self) and not _finalizing() and self._device.is_of_this_process:
            self._leave(self._pool.forsake)

    def _leave(self, leave: Callable[[Program], None]) -> None:
        program = self._program
        if program is None:
            return
        try:
            with self._device.use():
                leave(program)
        except EngineError:  # the device does not answer, or is lost: what was on it is gone
            leave(program)
        self._program = None  # last: who is interrupted before that has not closed

    def describe(self) -> dict[str, Any]:
        """Return the engine, the library's version, the GPU and the lanes; see `Engine`."""
        return {
            "engine": self.LIBRARY,
            "library": self._library.title,
            "device": self._device.name,
            "lanes": self._pool.lanes,
            "lane_bytes": self._pool.device_bytes,
        }


class TensorRtRtxEngine(TensorRtEngine):
    """One plan of TensorRT-RTX's."""

    LIBRARY = "tensorrt-rtx"
    BUILDS_FOR_MINUTES = False  # a second; the rest is compiled at the first run of each batch size
