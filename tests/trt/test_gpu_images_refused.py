"""Images on a GPU that a model does not take: each is refused in a sentence, and nothing is kept of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import CHANNELS, HEIGHT, WIDTH
from smart_runtime import EngineError, InputError, SmartModel
from smart_runtime.engines import REFERENCE_ENGINE
from smart_runtime.engines.cuda.dlpack import DLDataType
from smart_runtime.engines.cuda.gpu_images import gpu_images
from smart_runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from trt.gpu_arrays import IMAGES, OPTIONS, PROTOCOLS, GpuLibrary, InterfaceArray, finished

N, C, H, W = 2, CHANNELS, HEIGHT, WIDTH
UINT8, FLOAT16, FLOAT32X4, BFLOAT16 = (
    DLDataType(1, 8, 1),
    DLDataType(2, 16, 1),
    DLDataType(2, 32, 4),
    DLDataType(4, 16, 1),
)


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
