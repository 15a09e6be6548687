"""ONNX Runtime on an NVIDIA GPU: all of the graph there, or an error; never silently on the CPU.

ONNX Runtime's own engine cache of TensorRT is never used: two graphs of one structure share an engine in it, whatever
their weights (microsoft/onnxruntime, issue 6455), and the paths of a bundle can be of one structure.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TextIO, cast

from smart_common.errors import MissingExtraError, shortened
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.driver import STICKY
from smart_runtime.engines.engine import EngineOptions
from smart_runtime.engines.onnx_weights import Tensor
from smart_runtime.engines.onnxruntime import REMEDY, OnnxRuntimeEngine, import_onnxruntime
from smart_runtime.errors import DeviceLostError, EngineError, OutOfMemoryError

if TYPE_CHECKING:
    import onnxruntime

CUDA = "onnxruntime-cuda"

_ON_THE_CPU = "fallback to CPU EP has been explicitly disabled"
_SHORTAGE = ("out of memory", "ALLOC_FAILED", "is smaller than requested bytes")
_FAILURE = re.compile(r"(\w+) failure (\d+): [^;]*[^; ]")  # of CUDA, cuDNN or cuBLAS; places in the source follow

_WARNING, _FATAL = 2, 4  # severities of ONNX Runtime's loggers; the first is what its default logger begins with


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """One ONNX Runtime session on one GPU, with float32 images in and scores out, both in the host's memory.

    ONNX Runtime does not say what a session holds of the GPU's memory, or how long it computes there: `device_bytes`
    is None, and so are the times of `run_timed`.
    """

    name: ClassVar[str] = CUDA
    provider: ClassVar[str] = "CUDAExecutionProvider"

    @classmethod
    def why_not_now(cls, bundle: Bundle | None, options: EngineOptions) -> str | None:  # noqa: ARG003  # see `Engine`
        """Return None, since nothing needs building; raise MissingExtraError or EngineError if it does not load."""
        device = Device.shared(options.device)
        _load_provider()
        device.check()  # last: it takes memory of the GPU for good
        return None

    def describe(self) -> dict[str, Any]:
        """Return the engine, ONNX Runtime's version, the GPU's number and whether TF32 is on; see `Engine`."""
        return super().describe() | {"ordinal": self._options.device, "tf32": self._options.tf32}

    @classmethod
    def _settings(cls, options: EngineOptions) -> onnxruntime.SessionOptions:
        settings = super()._settings(options)
        # Without it, whatever the provider lacks or cannot load runs on the CPU, with a line on standard error at most.
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return settings

    @classmethod
    def _provider_options(cls, options: EngineOptions) -> dict[str, str]:
        limit = options.memory_limit_bytes
        return {
            "device_id": str(options.device),
            "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm, anew for each batch size
            "use_tf32": str(int(options.tf32)),
            "arena_extend_strategy": "kSameAsRequested",  # by default it doubles, and both paths have an arena
            "do_copy_in_default_stream": "1",
            **({} if limit is None else {"gpu_mem_limit": str(limit)}),
        }

    @classmethod
    def _session_of(
        cls, model: bytes | str, tensors: Mapping[str, Tensor], *, options: EngineOptions, remedy: str = REMEDY
    ) -> onnxruntime.InferenceSession:
        Device.shared(options.device).check()  # who has no driver or not this GPU is told so first, in one sentence
        _load_provider()
        with _quiet():
            session = super()._session_of(model, tensors, options=options, remedy=remedy)
        providers = session.get_providers()
        if providers[:1] != [cls.provider]:
            raise EngineError(
                f"ONNX Runtime would run the graph with {' and '.join(providers)} instead of {cls.provider}; "
                "run smart-devices doctor"
            )
        return session

    @classmethod
    def _refuse(cls, what: str, error: Exception, *, remedy: str = REMEDY) -> NoReturn:
        text = str(error)
        failure = _FAILURE.search(text)
        reason = shortened(text if failure is None else failure[0])
        if any(words in text for words in _SHORTAGE):
            raise OutOfMemoryError(
                f"expected memory of the GPU for the graph, got too little ({reason}); "
                "free some, or load fewer paths with memory='on-demand'"
            ) from error
        if failure is not None and failure[1] == "CUDA" and int(failure[2]) in STICKY:
            raise DeviceLostError(
                f"the GPU failed and this process cannot use it any more ({reason}); start the process again"
            ) from error
        if failure is not None:
            raise EngineError(f"ONNX Runtime {what} on the GPU: {reason}; run smart-devices doctor") from error
        if _ON_THE_CPU in text:
            raise EngineError(
                f"ONNX Runtime cannot run all of the graph on the GPU: {cls.provider} did not start or lacks an "
                "operator of it; run smart-devices doctor, or choose onnxruntime-cpu"
            ) from error
        super()._refuse(what, error, remedy=remedy)


def _load_provider() -> None:
    """Load the libraries that the provider needs; ONNX Runtime itself would go on without the provider.

    Raises:
        MissingExtraError: They do not load, in the loader's words.
    """
    onnxruntime = import_onnxruntime()
    folder = Path(onnxruntime.__file__).parent / "capi"
    libraries = [folder / f"libonnxruntime_providers_{name}.so" for name in ("shared", "cuda")]
    try:
        _load(libraries)
    except OSError:
        preload = getattr(onnxruntime, "preload_dlls", None)  # since 1.21: from NVIDIA's packages in site-packages
        if preload is not None:
            with redirect_stdout(cast("TextIO", _WithoutThisThread(sys.stdout))):  # it prints what it does not find
                preload()
        try:
            _load(libraries)
        except OSError as error:
            raise MissingExtraError(
                f"ONNX Runtime's CUDA provider does not load: {shortened(str(error))}; "
                "pip install 'onnxruntime-gpu[cuda,cudnn]', or install the CUDA and cuDNN that it was built for"
            ) from error


def _load(libraries: list[Path]) -> None:
    for library in libraries:
        ctypes.CDLL(str(library))


class _WithoutThisThread:
    """A text stream that drops what this thread writes: other threads lose nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the logger of ONNX Runtime's loader quiet: what goes wrong comes as an exception of ours."""
    onnxruntime = import_onnxruntime()
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
