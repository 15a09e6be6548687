"""ONNX Runtime on CUDA without a card: its code on another provider, and the real library refused without a driver."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import CHANNELS, CLASSES, HEIGHT, WIDTH, as_float, expected_scores, graph_files, random_images
from smart_common.errors import MissingExtraError
from smart_devices import EngineStatus
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import AUTO, EngineOptions, choose_engine, onnxruntime_cuda
from smart_runtime.engines.cuda import driver
from smart_runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from smart_runtime.errors import ClosedError, DeviceLostError, EngineError, OutOfMemoryError

INPUTS = InputSpec(name="image", channels=CHANNELS, height=HEIGHT, width=WIDTH)
OUTPUTS = OutputSpec(name="scores", classes=CLASSES)
IMAGES = as_float(random_images(3))
OPTIONS = EngineOptions(device=1, tf32=True, memory_limit_bytes=2**20)

GPU_BUILD = "SMART_EDGE_ORT_GPU"
"""The environment variable that names a folder with onnxruntime-gpu in it, as ``pip install --target`` makes one."""


def graph() -> GraphBytes:
    model, weights = graph_files("clean")
    return GraphBytes(model=model, weights=weights, weights_name="weights.bin")


class OnTheCpu(OnnxRuntimeCudaEngine):
    """The engine as it is, but for the provider: the CPU's, which takes none of CUDA's options."""

    provider = "CPUExecutionProvider"
    asked: dict[str, str]

    @classmethod
    def _provider_options(cls, options: EngineOptions) -> dict[str, str]:
        cls.asked = super()._provider_options(options)
        return {}

    @classmethod
    def _settings(cls, options: EngineOptions) -> onnxruntime.SessionOptions:
        settings = super()._settings(options)
        assert settings.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        return settings


@pytest.fixture
def _card(stand_in: StandInDriver) -> Iterator[None]:
    """A driver with two devices; whoever asked it for one gave it back."""
    yield
    assert stand_in.leaks() == {}


@pytest.fixture
def _loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "_load", lambda _: None)


@pytest.mark.usefixtures("_card", "_loads")
class TestOnAnotherProvider:
    def test_scores_are_those_of_the_oracle(self) -> None:
        engine = OnTheCpu.create(graph(), inputs=INPUTS, outputs=OUTPUTS, options=OPTIONS)
        np.testing.assert_allclose(engine.run(IMAGES), expected_scores("clean", IMAGES), rtol=0, atol=1e-6)
        assert engine.describe() == {
            "engine": "onnxruntime-cuda",
            "library": f"onnxruntime {onnxruntime.__version__}",
            "threads": None,
            "ordinal": 1,
            "tf32": True,
        }
        engine.close()
        with pytest.raises(ClosedError):
            engine.run(IMAGES)

    @pytest.mark.parametrize(
        ("options", "asked"),
        [
            (EngineOptions(), {"device_id": "0", "use_tf32": "0"}),
            (OPTIONS, {"device_id": "1", "use_tf32": "1", "gpu_mem_limit": "1048576"}),
        ],
        ids=["defaults", "all"],
    )
    def test_what_the_provider_is_asked(self, options: EngineOptions, asked: dict[str, str]) -> None:
        OnTheCpu.create(graph(), inputs=INPUTS, outputs=OUTPUTS, options=options)
        assert OnTheCpu.asked == asked | {
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "do_copy_in_default_stream": "1",
        }

    def test_a_file_of_the_users_own(self, tmp_path: Path) -> None:
        model = onnx.load_from_string(graph_files("clean")[0])
        (tmp_path / "weights.bin").write_bytes(graph_files("clean")[1])
        onnx.save(model, tmp_path / "own.onnx")
        engine = OnTheCpu.open_file(tmp_path / "own.onnx", shape=INPUTS.shape, batch=3, options=OPTIONS)
        np.testing.assert_allclose(engine.run(IMAGES), expected_scores("clean", IMAGES), rtol=0, atol=1e-6)

    def test_the_loggers_own_level_comes_back(self, capfd: pytest.CaptureFixture[str]) -> None:
        OnTheCpu.create(graph(), inputs=INPUTS, outputs=OUTPUTS, options=OPTIONS)
        onnxruntime.InferenceSession(graph_without_a_need(), providers=["CPUExecutionProvider"])
        assert capfd.readouterr() == ("", "")


def graph_without_a_need() -> bytes:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[N] a) => (float[N] b) { b = Relu (a) }'
    return bytes(onnx.parser.parse_model(text).SerializeToString())


@pytest.mark.usefixtures("_card", "_loads")
def test_another_provider_in_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that ignores the setting, as one without it does, gives a session on the CPU."""
    monkeypatch.setattr(OnTheCpu, "provider", "CPUExecutionProvider")
    made = OnTheCpu._session_of(graph_without_a_need(), {}, options=OPTIONS)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: made)
    with pytest.raises(EngineError, match="would run the graph with CPUExecutionProvider instead of CUDAExecution"):
        OnnxRuntimeCudaEngine.create(graph(), inputs=INPUTS, outputs=OUTPUTS, options=OPTIONS)


ERRORS: dict[str, tuple[str, type[EngineError], str]] = {
    "no kernel": (
        "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, "
        "but fallback to CPU EP has been explicitly disabled by the user.",
        EngineError,
        "cannot run all of the graph on the GPU: .*; run smart-devices doctor, or choose onnxruntime-cpu$",
    ),
    "driver out of memory": (
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; file=/src/cuda_allocator.cc ; line=27 ; expr=malloc",
        OutOfMemoryError,
        r"got too little \(CUDA failure 2: out of memory\); free some",
    ),
    "arena": (
        "Available memory of 1024 is smaller than requested bytes of 4096",
        OutOfMemoryError,
        "expected memory of the GPU",
    ),
    "cuBLAS": ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=box", OutOfMemoryError, "too little"),
    "host": ("bad allocation", OutOfMemoryError, "expected memory for the graph"),
    "lost": (
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=box",
        DeviceLostError,
        "the GPU failed .*illegal memory access.*; start the process again$",
    ),
    "old driver": (  # as 1.31 says it
        "/src/cuda_execution_provider_info.cc:63 static CUDAExecutionProviderInfo [ONNXRuntimeError] : 1 : FAIL : "
        'Parse Failed to parse provider option "device_id": CUDA failure 35: CUDA driver version is insufficient for '
        "CUDA runtime version ; GPU=-1 ; hostname=box ; file=/src/cuda_execution_provider_info.cc ; line=70 ; expr=x",
        EngineError,
        "could not run the graph on the GPU: CUDA failure 35: CUDA driver version is insufficient for CUDA runtime "
        "version; run smart-devices doctor$",
    ),
    "other": ("INVALID_GRAPH", EngineError, "ONNX Runtime could not run the graph: INVALID_GRAPH; export"),
}


@pytest.mark.parametrize(("text", "kind", "said"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_in_our_words(text: str, kind: type[EngineError], said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        OnnxRuntimeCudaEngine._refuse("could not run the graph", RuntimeError(text))
    assert type(caught.value) is kind
    assert "hostname" not in str(caught.value)


@pytest.mark.usefixtures("_card")
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "_load", None)  # it is not come to
    with pytest.raises(EngineError, match=r"^there is no GPU 9: the driver shows 2, counted from 0; choose one"):
        OnnxRuntimeCudaEngine.create(graph(), inputs=INPUTS, outputs=OUTPUTS, options=EngineOptions(device=9))


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of ONNX Runtime's provider is loaded before the driver has answered."""
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-of-no-machine.so.1")
    driver.load_driver.cache_clear()
    monkeypatch.setattr(onnxruntime_cuda, "_load", None)
    with pytest.raises(MissingExtraError, match=r"no NVIDIA driver that works: libcuda-of-no-machine.*`smart-devices"):
        OnnxRuntimeCudaEngine.create(graph(), inputs=INPUTS, outputs=OUTPUTS, options=OPTIONS)


@pytest.mark.usefixtures("_card")
def test_auto_passes_over_one_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver, and an ONNX Runtime with CUDA whose own libraries are missing: what pip installs without the extras."""
    fine = EngineStatus("onnxruntime-cuda", available=True)
    monkeypatch.setattr("smart_runtime.engines.has_library", lambda info: info.name.startswith("onnxruntime-"))
    monkeypatch.setattr("smart_devices.gpu_engines.onnxruntime_cuda", lambda _: fine)
    choice = choose_engine(AUTO)
    assert choice.engine == "onnxruntime-cpu"
    (why,) = choice.passed_over
    assert why.startswith("onnxruntime-cuda: ONNX Runtime's CUDA provider does not load: ")
    monkeypatch.setattr(onnxruntime_cuda, "_load", lambda _: None)
    assert choose_engine(AUTO).engine == "onnxruntime-cuda"
    with pytest.raises(EngineError, match="there is no GPU 9"):
        OnnxRuntimeCudaEngine.why_not_now(None, EngineOptions(device=9))


@pytest.mark.usefixtures("_card")
def test_a_build_without_cuda(capfd: pytest.CaptureFixture[str]) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("needs an ONNX Runtime without CUDA")
    with pytest.raises(MissingExtraError, match=r"CUDA provider does not load: .*; pip install 'onnxruntime-gpu"):
        OnnxRuntimeCudaEngine.create(graph(), inputs=INPUTS, outputs=OUTPUTS, options=OPTIONS)
    assert capfd.readouterr() == ("", "")


_ASK_THE_REAL_ONE = """
import json, sys
import onnxruntime
from smart_common.errors import SmartError
from runtime.test_onnxruntime_cuda import IMAGES, INPUTS, OUTPUTS, graph
from smart_runtime.engines import EngineOptions
from smart_runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
assert "CUDAExecutionProvider" in onnxruntime.get_available_providers(), onnxruntime.__file__
try:
    made = OnnxRuntimeCudaEngine.create(graph(), inputs=INPUTS, outputs=OUTPUTS, options=EngineOptions())
    answer = {"made": made.describe(), "scores": made.run(IMAGES).tolist()}
except SmartError as error:
    answer = {"refused": type(error).__name__, "words": str(error)}
print(json.dumps(answer))
"""


def ask_the_real_one(folder: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what a fresh process with the onnxruntime of ``folder`` said; it prints nothing beside that."""
    paths = [folder, str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", _ASK_THE_REAL_ONE],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.skipif(
    GPU_BUILD not in os.environ,
    reason=f"needs a folder with onnxruntime-gpu, named by {GPU_BUILD}: pip install --no-deps --target FOLDER "
    "onnxruntime-gpu",
)
class TestTheRealLibrary:
    def test_it_is_never_silently_on_the_cpu(self) -> None:
        """The scores are exact in any order of adding, so a GPU gives them too; without one there are none."""
        answer = ask_the_real_one(os.environ[GPU_BUILD], os.environ)
        if "made" in answer:
            np.testing.assert_allclose(answer["scores"], expected_scores("clean", IMAGES), rtol=0, atol=1e-6)
        else:
            assert answer["refused"] in {"MissingExtraError", "EngineError"}, answer
            assert "; " in answer["words"]

    def test_a_driver_that_it_cannot_use(self, stand_in: StandInDriver) -> None:
        """Ours is satisfied by the driver without a device, and what ONNX Runtime needs of it is not there."""
        answer = ask_the_real_one(os.environ[GPU_BUILD], stand_in.environment())
        assert answer["refused"] in {"MissingExtraError", "EngineError"}
        assert re.search("CUDA provider does not load: .*; pip install|on the GPU: CUDA failure", answer["words"])
