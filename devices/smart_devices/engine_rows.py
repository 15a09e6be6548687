"""Every engine that smart-edge knows of, a row each: to add one, write its factory and its judge and add a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smart_common.errors import alternatives
from smart_devices.errors import UnknownEngineError

AUTO = "auto"
"""Not an engine: asks for the best one that this device has."""

REFERENCE_ENGINE = "onnxruntime-cpu"
"""The engine that proves: graphs are verified, judged and evaluated with it, whatever serves. It computes in fp32."""


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """An engine: what runs graphs on a device, or builds what runs there.

    Attributes:
        name: What users call it.
        needs: What it needs, in words.
        part: The part of the device that computes, whose power counts.
        judge: ``"module:function"`` of what says whether it can run here, without importing its library: it takes a
            `smart_devices.gpu_engines.Surroundings`, or None to look itself, and returns an `EngineStatus`.
        library: ``"module"``, or ``"module/file"`` of a file beside its code, without which it runs nowhere: looking
            for it is quick, while judging an engine of a GPU looks at the whole machine. Empty where judging is quick.
        factory: ``"module:class"`` of a `smart_runtime.engines.Engine`; None for what builds for other devices and runs
            nothing.
        has_plans: Whether it runs plans, which ``smart-run install`` builds on the very device.
    """

    name: str
    needs: str
    part: Literal["cpu", "gpu"]
    judge: str
    library: str = ""
    factory: str | None = None
    has_plans: bool = False


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can run on this machine.

    Attributes:
        name: The engine or builder.
        available: Whether it can run here.
        version: The version found, ``None`` when it is absent or does not say.
        reason: Why it cannot run here, as part of a sentence; ``None`` when it can.
        install: The command to mend that with first; ``None`` when there is none.
    """

    name: str
    available: bool
    version: str | None = None
    reason: str | None = None
    install: str | None = None


ENGINES = (
    EngineInfo(
        name="tensorrt",
        needs="an NVIDIA GPU and TensorRT 8.6 or newer",
        part="gpu",
        judge="smart_devices.gpu_engines:tensorrt",
        library="tensorrt",
        factory="smart_runtime.engines.trt.tensorrt_engine:TensorRtEngine",
        has_plans=True,
    ),
    EngineInfo(
        name="tensorrt-rtx",
        needs="a GeForce or RTX card since Turing and TensorRT-RTX",
        part="gpu",
        judge="smart_devices.gpu_engines:tensorrt_rtx",
        library="tensorrt_rtx",
        factory="smart_runtime.engines.trt.tensorrt_engine:TensorRtRtxEngine",
        has_plans=True,
    ),
    EngineInfo(
        name="onnxruntime-cuda",
        needs="an NVIDIA GPU and ONNX Runtime with CUDA",
        part="gpu",
        judge="smart_devices.gpu_engines:onnxruntime_cuda",
        library="onnxruntime/capi/libonnxruntime_providers_cuda.so",
        factory="smart_runtime.engines.onnxruntime_cuda:OnnxRuntimeCudaEngine",
    ),
    EngineInfo(
        name="onnxruntime-cpu",
        needs="ONNX Runtime 1.23 or newer",
        part="cpu",
        judge="smart_devices.engines:onnxruntime_cpu",
        factory="smart_runtime.engines.onnxruntime:OnnxRuntimeEngine",
    ),
    EngineInfo(
        name="tensorrt-rtx-builder",
        needs="TensorRT-RTX, but no GPU",
        part="gpu",
        judge="smart_devices.gpu_engines:tensorrt_rtx_builder",
    ),
)
"""Best first; ``auto`` takes the first that can run here and has nothing to build for minutes first."""


def engine_names() -> tuple[str, ...]:
    """Return the engines that can run graphs on some device, best first."""
    return tuple(info.name for info in ENGINES if info.factory is not None)


def engine_info(name: str) -> EngineInfo:
    """Return the row of the engine or builder ``name``.

    Raises:
        UnknownEngineError: There is none; the message names the nearest.
    """
    for info in ENGINES:
        if info.name == name:
            return info
    raise UnknownEngineError(f"unknown engine {alternatives(name, [info.name for info in ENGINES])}")
