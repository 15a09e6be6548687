"""ONNX Runtime: on the CPU, and what its other providers share with that."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import numpy as np

from smart_common.errors import MissingExtraError, shortened
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.engine import Batch, Engine, EngineOptions, Scores
from smart_runtime.engines.onnx_weights import Tensor, external_tensors
from smart_runtime.errors import ClosedError, EngineError, OutOfMemoryError

if TYPE_CHECKING:
    import onnxruntime

CPU = "onnxruntime-cpu"

REMEDY = "export the bundle again or report this"
_SHORTAGE = ("bad_alloc", "bad allocation", "Failed to allocate memory")


class OnnxRuntimeEngine(Engine):
    """One ONNX Runtime session with float32 images in and scores out; another provider's engine derives from it.

    Attributes:
        name: The engine's name.
        provider: What ONNX Runtime calls the provider that must compute all of the graph.
    """

    name: ClassVar[str] = CPU
    provider: ClassVar[str] = "CPUExecutionProvider"

    def __init__(
        self, session: onnxruntime.InferenceSession, *, input_name: str, output_name: str, options: EngineOptions
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._input = input_name
        self._outputs = [output_name]
        self._options = options

    @classmethod
    def create(
        cls, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec, options: EngineOptions
    ) -> OnnxRuntimeEngine:
        """Return a session made from the very bytes of ``graph``; see `create_engine`."""
        session = cls._session_of(graph.model, external_tensors(graph), options=options)
        _check_signature(session, inputs=inputs, outputs=outputs)
        return cls(session, input_name=inputs.name, output_name=outputs.name, options=options)

    @classmethod
    def open_file(
        cls, path: Path, *, shape: tuple[int, int, int], batch: int, options: EngineOptions
    ) -> OnnxRuntimeEngine:
        """Return a session of an ONNX file of the user's own, warm; see `open_engine`."""
        remedy = f"check the file {str(path)!r}"
        session = cls._session_of(os.fspath(path), {}, options=options, remedy=remedy)
        inputs, outputs = _ports(session.get_inputs()), _ports(session.get_outputs())
        wanted = (batch, *shape)
        if not _takes(inputs, wanted):
            got = " and ".join(_described(value) for value in inputs) or "none"
            raise EngineError(
                f"expected an ONNX classifier whose one input takes float32 {_sizes(wanted)} in {str(path)!r}, got "
                f"{shortened(got)}; export it for that input, with a free batch size"
            )
        images = np.zeros(wanted, dtype=np.float32)
        try:
            scores = session.run([outputs[0].name], {inputs[0].name: images})[0]
        except Exception as error:  # as above; free sizes in its input may fit nothing in the graph
            cls._refuse("could not run the graph", error, remedy=remedy)
        if not isinstance(scores, np.ndarray) or scores.shape[:1] != (batch,):
            got = f"{scores.shape}" if isinstance(scores, np.ndarray) else type(scores).__name__
            raise EngineError(f"expected scores of {batch} images from {str(path)!r}, got {got}; {remedy}")
        return cls(session, input_name=inputs[0].name, output_name=outputs[0].name, options=options)

    def run(self, batch: Batch) -> Scores:
        """Return the scores of a batch; see `Engine.run`."""
        session = self._session  # read once: a close on another thread must not take it away in the middle
        if session is None:
            raise ClosedError("the engine is closed; load the model again")
        try:
            scores: Scores = session.run(self._outputs, {self._input: batch})[0]
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            self._refuse("could not run the graph", error)
        return scores

    def close(self) -> None:
        """Drop the session: the last run in flight that holds it frees it."""
        self._session = None

    def describe(self) -> dict[str, Any]:
        """Return the engine, ONNX Runtime's version and the threads, None if ONNX Runtime chooses; see `Engine`."""
        version = import_onnxruntime().__version__
        return {"engine": self.name, "library": f"onnxruntime {version}", "threads": self._options.threads}

    @classmethod
    def _settings(cls, options: EngineOptions) -> onnxruntime.SessionOptions:
        """Return how a session is to run."""
        settings = import_onnxruntime().SessionOptions()
        # Both paths stay loaded, and by default the idle one's threads spin and steal the cores of the other: 3 to 4
        # times the latency on two cores. This stops a session's threads as soon as its last run returns.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        settings.log_severity_level = 4  # errors reach the user as exceptions; standard error helps nobody here
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        return settings

    @classmethod
    def _provider_options(cls, options: EngineOptions) -> dict[str, str]:  # noqa: ARG003  # for those that have some
        """Return how the provider is to run, in ONNX Runtime's own words."""
        return {}

    @classmethod
    def _session_of(
        cls, model: bytes | str, tensors: Mapping[str, Tensor], *, options: EngineOptions, remedy: str = REMEDY
    ) -> onnxruntime.InferenceSession:
        """Return a session of a graph's bytes with its external ``tensors``, or of the file ``model``.

        Raises:
            EngineError: ONNX Runtime refuses the graph.
        """
        onnxruntime = import_onnxruntime()
        settings = cls._settings(options)
        try:
            if tensors:
                # The session copies the tensors; the bytes need to live only until it is made.
                values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor) for tensor in tensors.values()]
                settings.add_external_initializers(list(tensors), values)
            # With a fallback the Python side of ONNX Runtime prints to standard output what it was refused, with
            # whatever names the graph has, and tries the same provider again, or the CPU.
            return onnxruntime.InferenceSession(
                model, settings, providers=[(cls.provider, cls._provider_options(options))], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            cls._refuse("did not accept the graph", error, remedy=remedy)

    @classmethod
    def _refuse(cls, what: str, error: Exception, *, remedy: str = REMEDY) -> NoReturn:
        """Raise what ONNX Runtime's ``error`` is in our words; ``what`` it did not do.

        Raises:
            EngineError: Always; OutOfMemoryError where memory ran out.
        """
        reason = shortened(str(error))  # it comes with line breaks, and with whatever names the graph has
        # ONNX Runtime has no exception of its own for this: C++'s name, and its arena's words.
        if isinstance(error, MemoryError) or any(words in reason for words in _SHORTAGE):
            raise OutOfMemoryError(
                f"expected memory for the graph, got too little ({reason}); "
                "free some, or load fewer paths with memory='on-demand'"
            ) from error
        raise EngineError(f"ONNX Runtime {what}: {reason}; {remedy}") from error


def import_onnxruntime() -> Any:
    """Return the module ``onnxruntime``, imported with its telemetry off."""
    # ONNX Runtime 1.32 writes an identifier and a database of events into the user's cache directory when it is
    # imported, and may send them; to switch that off afterwards is too late. Who sets the variable to 0 keeps that.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime  # noqa: PLC0415  # an optional library is imported where it is used
    except ImportError as error:  # it is there, `resolve_engine` saw that, but does not load
        raise MissingExtraError(
            f"ONNX Runtime cannot be imported: {error}; pip install --force-reinstall 'smart-edge[cpu]'"
        ) from error
    return onnxruntime


class _Port(NamedTuple):
    """An input or output of a graph."""

    name: str
    type: str
    shape: Sequence[Any]


def _ports(values: Sequence[Any]) -> list[_Port]:
    """Return what ONNX Runtime says of a graph's inputs or outputs."""
    try:
        return [_Port(value.name, value.type, value.shape) for value in values]
    except UnicodeDecodeError as error:  # it takes a graph's names as they are, and decodes them when they are read
        raise EngineError(f"expected a graph with names in UTF-8, got other bytes; {REMEDY}") from error


def _takes(inputs: Sequence[_Port], wanted: tuple[int, ...]) -> bool:
    """Say whether a graph with ``inputs`` takes float32 of the shape ``wanted``; a size without a number is free."""
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != len(wanted):
        return False
    sizes = zip(inputs[0].shape, wanted, strict=True)
    return all(not isinstance(size, int) or size == needed for size, needed in sizes)


def _check_signature(session: onnxruntime.InferenceSession, *, inputs: InputSpec, outputs: OutputSpec) -> None:
    """Check that the graph takes and gives what the manifest says: one float32 input and output, N free."""
    for kind, found, name, shape in (
        ("input", _ports(session.get_inputs()), inputs.name, inputs.shape),
        ("output", _ports(session.get_outputs()), outputs.name, (outputs.classes,)),
    ):
        expected = _described(_Port(name, "tensor(float)", ("N", *shape)))
        got = [_described(value._replace(shape=("N", *value.shape[1:]))) for value in found]
        free = all(not isinstance(value.shape[0], int) for value in found if value.shape)
        if got != [expected] or not free:
            batch = "" if free else " with a fixed batch size"
            raise EngineError(
                f"expected a graph with the {kind} {shortened(expected)}, got {shortened(' and '.join(got)) or 'none'}"
                f"{batch}; export the bundle again"
            )


def _described(port: _Port) -> str:
    return f"{port.name} {port.type} {_sizes(port.shape)}"


def _sizes(shape: Sequence[Any]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
