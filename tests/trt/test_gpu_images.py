"""Images that are on the GPU already, given to a model by DLPack and by ``__cuda_array_interface__``."""

from __future__ import annotations

import asyncio
import ctypes
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import CHANNELS, HEIGHT, WIDTH, as_float, random_images, write_bundle
from runtime.fakes import TIMEOUT
from smart_runtime import BatchRange, EngineError, EngineOptions, InputError, SmartModel, SwitchRequest
from smart_runtime.engines import REFERENCE_ENGINE
from smart_runtime.engines.cuda.dlpack import CUDA_MANAGED, DLDataType
from smart_runtime.engines.cuda.lane_pool import LanePool
from smart_runtime.engines.cuda.resources import Stream
from smart_runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from trt.gpu_arrays import GpuArray, GpuLibrary, InterfaceArray, OldGpuArray
from trt.machine import gpu_machine

N, C, H, W = 2, CHANNELS, HEIGHT, WIDTH
IMAGES = as_float(random_images(17))
OPTIONS = EngineOptions(batch=BatchRange(3, 4, 8))
UINT8, FLOAT16, FLOAT32X4, BFLOAT16 = (
    DLDataType(1, 8, 1),
    DLDataType(2, 16, 1),
    DLDataType(2, 32, 4),
    DLDataType(4, 16, 1),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def expected(bundle: Path) -> np.ndarray:
    with SmartModel.load(bundle, engine=REFERENCE_ENGINE, threads=1) as model:
        return np.concatenate([model(image[None]) for image in IMAGES])


@pytest.fixture
def model(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> Iterator[SmartModel]:
    with (
        gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path),
        SmartModel.load(bundle, engine="tensorrt", options=OPTIONS) as loaded,
    ):
        yield loaded


@pytest.fixture
def library(model: SmartModel) -> Iterator[GpuLibrary]:  # which checks for leaks last
    one = GpuLibrary()
    try:
        yield one
    finally:
        one.close()


def old(array: GpuArray) -> Any:
    return array_as(OldGpuArray, array)


def array_as(kind: type[GpuArray], array: GpuArray) -> GpuArray:
    array.__class__ = kind
    return array


def finished(array: GpuArray, **entries: Any) -> InterfaceArray:
    """The interface of an array whose work is done, which names no stream."""
    with array.library.device.use():
        array.library.stream.synchronize()
    return InterfaceArray(array, **entries)


PROTOCOLS: dict[str, Callable[[GpuArray], Any]] = {
    "DLPack 1": lambda array: array,
    "DLPack before 1": old,
    "interface 3": InterfaceArray,
    "interface 3, no stream": lambda array: finished(array, stream=None),
    "interface 2": lambda array: finished(array, version=2),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_batch_size_gives_the_bits_of_the_reference(
    model: SmartModel, stand_in: StandInDriver, library: GpuLibrary, expected: np.ndarray, protocol: str
) -> None:
    stand_in.delay(20)
    for images in (1, 2, 3, 7, 8, 9, 16, 17):
        array = library.array(IMAGES[:images], byte_offset=4 * images)
        given = PROTOCOLS[protocol](array)
        before = stand_in.calls()
        assert np.array_equal(model(given), expected[:images])
        copies = [name for name in stand_in.trace(before) if name.startswith("cuMemcpy")]
        assert copies.count("cuMemcpyDtoDAsync_v2") == -(-images // 8)
        assert copies.count("cuMemcpyHtoDAsync_v2") == (0 < images % 8 < 3), "only what fills up comes from the host"
        assert array.given == array.deleted == ("DLPack" in protocol)
        array.release()
    assert sum(path.images for path in model.stats.paths.values()) == 1 + 2 + 3 + 7 + 8 + 9 + 16 + 17


@pytest.mark.parametrize("protocol", ["DLPack 1", "DLPack before 1", "interface 3"])
def test_what_the_producer_is_still_working_on_is_waited_for(  # noqa: PLR0917
    monkeypatch: pytest.MonkeyPatch, model: SmartModel, stand_in: StandInDriver, library: GpuLibrary,
    expected: np.ndarray, protocol: str,
) -> None:  # fmt: skip
    """The producer's stream goes on only when the call is at its end and waits for the lane's."""
    arrived = threading.Event()
    gate = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: arrived.wait(TIMEOUT) and None)
    synchronize = Stream.synchronize

    def arrive(stream: Stream) -> None:
        arrived.set()
        synchronize(stream)

    with library.device.use():
        code = stand_in.library.cuLaunchHostFunc(ctypes.c_void_p(library.stream.handle), gate, None)
    assert code == 0
    array = library.array(IMAGES[:4])
    monkeypatch.setattr(Stream, "synchronize", arrive)
    assert np.array_equal(model(PROTOCOLS[protocol](array)), expected[:4])
    array.release()


@pytest.mark.parametrize("stream", [1, 2])
def test_the_default_streams_are_waited_for_by_their_names(
    model: SmartModel, stand_in: StandInDriver, library: GpuLibrary, expected: np.ndarray, stream: int
) -> None:
    array = library.array(IMAGES[:4])
    given = finished(array, stream=stream)
    before = stand_in.calls()
    assert np.array_equal(model(given), expected[:4])
    trace = stand_in.trace(before)
    assert trace.index("cuEventRecord") < trace.index("cuStreamWaitEvent") < trace.index("cuMemcpyDtoDAsync_v2")
    array.release()


def test_strides_that_say_contiguous_will_do(model: SmartModel, library: GpuLibrary, expected: np.ndarray) -> None:
    steps = (C * H * W, H * W, W, 1)
    for strides in (steps, (7, *steps[1:])):  # the first one counts for nothing: it is of one image
        array = library.array(IMAGES[:1], strides=strides)
        assert np.array_equal(model(array), expected[:1])
        interface = finished(array, strides=tuple(4 * step for step in strides))
        assert np.array_equal(model(interface), expected[:1])
        array.release()


def test_a_batch_that_is_too_small_is_filled_up_with_zeros(model: SmartModel, library: GpuLibrary) -> None:
    def views() -> list[np.ndarray]:
        """The lanes' inputs, which the host can read here."""
        lanes = LanePool.shared(library.device)._lanes
        return [np.ctypeslib.as_array((ctypes.c_float * (3 * C * H * W)).from_address(a))
                for lane in lanes for a in (lane.device_in.address, lane.host_in.address)]  # fmt: skip

    for images in (IMAGES[:1], library.array(IMAGES[:1])):
        for view in views():
            view[:] = np.nan
        model(images)
        (seen,) = (view for view in views()[::2] if not np.isnan(view[0]))
        assert np.array_equal(seen.reshape(3, C, H, W), np.concatenate([IMAGES[:1], np.zeros((2, C, H, W))]))
    assert isinstance(images, GpuArray)
    images.release()


def test_managed_memory_is_taken_too(model: SmartModel, library: GpuLibrary, expected: np.ndarray) -> None:
    array = library.array(IMAGES[:4], kind=CUDA_MANAGED)
    assert np.array_equal(model(array), expected[:4])
    array.release()


def test_the_memory_of_an_array_that_nobody_has_is_freed_after_the_call(
    model: SmartModel, stand_in: StandInDriver, library: GpuLibrary, expected: np.ndarray
) -> None:
    used = stand_in.used()
    array = library.array(IMAGES, frees=True)
    assert np.array_equal(model(array), expected)
    assert array.deleted == 1
    assert stand_in.used() == used
    assert not any(stand_in.faults().values())


BY_DLPACK: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "float16": ({"dtype": FLOAT16}, (N, C, H, W), r"got float16; .*images\.float\(\)"),
    "bfloat16": ({"dtype": BFLOAT16}, (N, C, H, W), r"got bfloat16; .*images\.float\(\)"),
    "uint8": ({"dtype": UINT8}, (N, C, H, W), r"got uint8; .*\(images / 255\)\.float\(\)"),
    "lanes": ({"dtype": FLOAT32X4}, (N, C, H, W), "got float32x4"),
    "unknown type": ({"dtype": DLDataType(99, 8, 1)}, (N, C, H, W), "got 8 bits of type 99"),
    "one image": ({}, (C, H, W), r"got \(\d+, \d+, \d+\); add the batch dimension, images\[None\]"),
    "none": ({}, (0, C, H, W), r"N at least 1, got \(0, "),
    "a size": ({}, (N, C, H + 1, W), "resize and permute them there"),
    "no dimensions": ({}, (), r"got \(\)"),
    "strides": ({"strides": (C * H * W, 1, W * C, C)}, (N, C, H, W), r"expected contiguous .*images\.contiguous\(\)"),
    "another GPU": ({"ordinal": 1}, (N, C, H, W), r"on GPU 0 .*GpuArray on GPU 1; .*'cuda:0'.*device=1"),
    "a newer DLPack": ({"major": 2}, (N, C, H, W), r"of DLPack 2\.0, and DLPack 1 was asked for"),
    "fails": ({"fails": True}, (N, C, H, W), r"no tensor that requires grad; pass images\.detach\(\)"),
}


def test_what_a_network_does_not_take_is_refused_in_a_sentence(
    model: SmartModel, stand_in: StandInDriver, library: GpuLibrary, expected: np.ndarray
) -> None:
    before = stand_in.calls()
    for case, (attributes, shape, sentence) in BY_DLPACK.items():
        array = library.array(np.zeros(shape, np.float32), **attributes)
        with pytest.raises(InputError) as caught:
            model(array)
        assert re.search(sentence, str(caught.value)), (case, str(caught.value))
        assert array.deleted == array.given, "though the exception is still held"
        array.release()
    assert np.array_equal(model(IMAGES), expected)
    assert "cuStreamCreate" not in stand_in.trace(before), "the lanes serve on"
    assert model.stats.paths["clean"].errors == len(BY_DLPACK)


F32 = np.zeros((N, C, H, W), np.float32)
BY_INTERFACE: dict[str, tuple[dict[str, Any], str]] = {
    "version 1": ({"version": 1}, "versions 2 and 3"),
    "version 4": ({"version": 4}, "versions 2 and 3"),
    "stream 0": ({"stream": 0}, "no stream 0"),
    "a negative stream": ({"stream": -1}, "no stream 0"),
    "a stream that is no number": ({"stream": "default"}, "no stream 0"),
    "a mask": ({"mask": F32}, "without a mask"),
    "no data": ({"data": None}, "got something else"),
    "no shape": ({"shape": None}, "got something else"),
    "too few strides": ({"strides": (4,)}, "got something else"),
    "no version": ({"version": None}, "versions 2 and 3"),
    "another type": ({"typestr": "<f8"}, r"got <f8; .*images\.float\(\)"),
    "pixels": ({"typestr": "|u1"}, r"got \|u1; .*\(images / 255\)\.float\(\)"),
    "the host's memory": ({"data": (F32.ctypes.data, False)}, "the driver does not know"),
    "no address": ({"data": (None, False)}, "the driver does not know"),
    "strides": ({"strides": (4 * C * H * W, 4, 4 * W * C, 4 * C)}, r"images\.contiguous\(\)"),
    "none": ({"shape": (0, C, H, W), "data": (0, False)}, "N at least 1"),
}  # fmt: skip


def test_an_interface_that_is_none_is_refused_in_a_sentence(
    model: SmartModel, library: GpuLibrary, expected: np.ndarray
) -> None:
    array = library.array(F32)
    for case, (entries, sentence) in BY_INTERFACE.items():
        with pytest.raises(InputError) as caught:
            model(finished(array, **entries))
        assert re.search(sentence, str(caught.value)), (case, str(caught.value))
    array.release()
    assert np.array_equal(model(IMAGES[:2]), expected[:2])


def test_images_of_another_gpu_are_refused_by_its_number(model: SmartModel) -> None:
    other = GpuLibrary(1)
    for given_as in PROTOCOLS.values():
        array = other.array(F32)
        with pytest.raises(InputError, match=r"on GPU 0 \(Stand-in\), got \w+ on GPU 1; .*'cuda:0'.*device=1\)"):
            model(given_as(array))
        assert array.given == 0
        array.release()
    other.close()


def test_an_engine_on_the_cpu_refuses_them(library: GpuLibrary, bundle: Path) -> None:
    array = library.array(F32)
    with SmartModel.load(bundle, engine=REFERENCE_ENGINE, threads=1) as on_cpu:
        for given in (array, InterfaceArray(array)):
            with pytest.raises(InputError, match=r"onnxruntime-cpu, got \w+ on (a GPU|GPU 0); .*\.cpu\(\)\.numpy\(\)"):
                on_cpu(given)
    assert array.given == 0
    array.release()


def test_onnx_runtime_on_the_gpu_refuses_them_too(library: GpuLibrary, model: SmartModel) -> None:
    from smart_runtime.engines.cuda.gpu_images import gpu_images  # noqa: PLC0415  # only here

    session: Any = None
    engine = OnnxRuntimeCudaEngine(session, input_name="", output_name="", options=OPTIONS)
    array = library.array(F32)
    images = gpu_images(array, spec=model.manifest.input)
    assert images is not None
    with pytest.raises(InputError, match="engine onnxruntime-cuda, got GpuArray on GPU 0"):
        engine.run_gpu_images(images)
    array.release()


class Elsewhere:
    """An array that lies on no GPU of NVIDIA's."""

    def __init__(self, kind: int | None) -> None:
        self.kind = kind
        self.shape = F32.shape

    def __dlpack_device__(self) -> tuple[int | None, int]:
        if self.kind is None:
            raise ValueError("unknown device type meta")  # as PyTorch does
        return self.kind, 0

    def __dlpack__(self, *, stream: Any = None) -> Any:
        raise NotImplementedError


def test_what_is_not_on_a_gpu_is_to_be_converted(model: SmartModel, bundle: Path) -> None:
    cpu, pinned, rocm = Elsewhere(1), Elsewhere(3), Elsewhere(10)
    with SmartModel.load(bundle, engine=REFERENCE_ENGINE, threads=1) as on_cpu:
        for images in (cpu, pinned, rocm, Elsewhere(None), F32.tolist(), None):
            for one in (model, on_cpu):
                with pytest.raises(
                    InputError, match=r"NumPy array of images, got \w+; convert it, with numpy\.asarray"
                ):
                    one(images)  # type: ignore[arg-type]


class Recorder:
    """A policy that switches at once, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def start(self, model: object) -> None: ...

    def observe(self, result: object, images: object) -> SwitchRequest:  # noqa: ARG002  # a policy's signature
        self.seen.append(images)
        return SwitchRequest("robust", "for once")

    def stop(self) -> None: ...


def test_a_policy_is_shown_the_array(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    policy = Recorder()
    with (
        gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path),
        SmartModel.load(bundle, engine="tensorrt", options=OPTIONS, policy=policy) as model,
    ):
        library = GpuLibrary()
        array = library.array(IMAGES[:4])
        assert model.run(array).path == "clean"
        assert asyncio.run(model.arun(array)).path == "robust"
        assert policy.seen == [array, array]
        array.release()
        library.close()


def test_classify_takes_pictures_only(model: SmartModel, library: GpuLibrary) -> None:
    array = library.array(IMAGES[:1])
    with pytest.raises(InputError, match="a Pillow image or a file's name, got GpuArray"):
        model.classify(array)  # type: ignore[arg-type]
    array.release()


def test_nan_shows_in_the_scores(model: SmartModel, library: GpuLibrary) -> None:
    array = library.array(np.full((2, C, H, W), np.nan, np.float32))
    with pytest.raises(EngineError, match="gave NaN among its scores"):
        model(array)
    array.release()


def test_threads_with_images_here_and_there_mix_nothing(
    model: SmartModel, stand_in: StandInDriver, expected: np.ndarray
) -> None:
    stand_in.delay(100)
    right: list[bool] = []

    def work(seed: int) -> None:
        library = GpuLibrary()
        for call in range(12):
            images = slice((seed + call) % 8, (seed + 5 * call) % 8 + 9)
            array = library.array(IMAGES[images], frees=True)
            right.append(np.array_equal(model(array), expected[images]))
            right.append(np.array_equal(model(IMAGES[images]), expected[images]))
        library.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 96
