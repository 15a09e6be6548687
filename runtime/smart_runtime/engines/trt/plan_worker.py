"""Build a plan: in this process, or as a child that `smart_runtime.engines.trt.build` starts for it.

A build may take minutes and all memory, cannot be stopped from inside, and crashes with what it crashes on: a process
of its own can be killed. The child gets the graph as a file in memory, so neither a path nor a time lies between its
check and its use. It tells what it does in lines of JSON on a pipe of their own; what libraries print goes elsewhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from smart_common.errors import SmartError, shortened
from smart_common.files import owning, replacing
from smart_runtime.engines.trt.library import Library, load_library
from smart_runtime.engines.trt.log import Log
from smart_runtime.engines.trt.recipe import BuildRecipe, BuildRefusedError, BuiltPlan
from smart_runtime.engines.trt.sparsity import SparsityLog, layers_of
from smart_runtime.errors import EngineError, OutOfMemoryError

READING, BUILDING, INSPECTING = "reading the graph", "building", "inspecting"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NICE = 10
_MOST_KILLABLE = "1000"  # proc(5): the first that the kernel ends when memory is short
_MAX_TIMINGS = 2**28  # bytes; TensorRT's file of a large network's has a few millions
_SHORTAGE = ("out of memory", "outofmemory", "insufficient memory")


def plan_in_process(
    model: bytes | mmap.mmap,
    recipe: BuildRecipe,
    *,
    on_phase: Callable[[str], None] = lambda _: None,
    on_line: Callable[[str, str], None] = lambda _, __: None,
) -> BuiltPlan:
    """Build a plan in this process; `smart_runtime.engines.trt.build.build_plan` does the same in a child.

    Args:
        model: An ONNX file with its weights inside, see `smart_runtime.engines.onnx_inline`.
        recipe: How.
        on_phase: Called with what happens now, on whatever thread; must not raise.
        on_line: Called with severity and text of what the library says, on whatever thread; must not raise.

    Raises:
        BuildRefusedError: The library cannot read or build the graph; the message names operators.
        EngineError: The graph takes or gives something else than the recipe says, or the device fails.
        MissingExtraError: The library is not installed, or there is no driver for a plan for this device.
    """
    started = time.perf_counter()
    library = load_library(recipe.library)
    with ExitStack() as undo:
        if recipe.capabilities is None or not library.capabilities():
            # Before any of TensorRT's objects: without a driver they end in a segmentation fault. Being current makes
            # the device the one that TensorRT builds for.
            from smart_runtime.engines.cuda.device import Device  # noqa: PLC0415  # not needed for other cards

            undo.enter_context(Device.shared(recipe.device).use())
        sparsity = SparsityLog()

        def heard(severity: str, text: str) -> None:
            sparsity.heard(text)
            on_line(severity, text)

        log = library.logger(heard)
        plan = _built(library, log, model, recipe, on_phase=on_phase)
        layers = sparse = None
        if recipe.capabilities is None and not recipe.weightless:
            on_phase(INSPECTING)
            layers, sparse = _inspected(library, log, plan)
    return BuiltPlan(
        plan=plan,
        version=library.version,
        seconds=time.perf_counter() - started,
        layers=layers,
        eligible=sparsity.eligible,
        sparse=sparse if sparsity.chosen is None else sparsity.chosen,
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int | None:
    """Return the most memory that this process has held; getrusage would count that of who started it."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return None


def _built(
    library: Library, log: Log, model: bytes | mmap.mmap, recipe: BuildRecipe, *, on_phase: Callable[[str], None]
) -> bytes:
    on_phase(READING)
    builder = library.builder(log)
    network = library.network(builder)
    parser = library.module.OnnxParser(network, log.trt)
    if not parser.parse(model):
        raise BuildRefusedError(library.title, shortened("; ".join(library.parse_errors(parser)) or log.last_error))
    _check_ports(network, recipe)
    config = builder.create_builder_config()
    library.configure(
        config,
        precision=recipe.precision,
        tf32=recipe.tf32,
        sparse_weights=recipe.sparse_weights,
        workspace_bytes=recipe.workspace_bytes,
        level=recipe.level,
        capabilities=recipe.capabilities,
    )
    if recipe.weightless:
        config.set_flag(library.module.BuilderFlag.STRIP_PLAN)
    profile = builder.create_optimization_profile()
    batch, image = recipe.batch, recipe.inputs.shape
    profile.set_shape(recipe.inputs.name, *((size, *image) for size in (batch.min, batch.opt, batch.max)))
    config.add_optimization_profile(profile)
    timings = None
    if recipe.timing_cache is not None:
        timings = library.use_timing_cache(config, _saved_timings(recipe.timing_cache))
    monitor = library.watch(config, started=lambda name, _: on_phase(name), finished=lambda _: None)
    on_phase(BUILDING)
    plan = builder.build_serialized_network(network, config)
    del monitor  # it had to outlive the build
    if plan is None:
        if any(words in log.first_error.lower() for words in _SHORTAGE):
            raise OutOfMemoryError(
                f"too little memory for {library.title} to build the graph: {log.first_error}; "
                "close other programs, or build with less --workspace or with --level 2"
            )
        more = "" if recipe.workspace_bytes is None else " (more --workspace may help)"
        raise BuildRefusedError(library.title, f"{log.first_error}{more}")
    if timings is not None and recipe.timing_cache is not None:
        _save_timings(config, timings, recipe.timing_cache)
    return bytes(memoryview(plan).cast("B"))  # TensorRT-RTX calls its bytes floats


def _check_ports(network: Any, recipe: BuildRecipe) -> None:
    """Check that the graph takes and gives what the recipe says, float32 with N free."""
    expected: list[tuple[str, tuple[str, tuple[int, ...]]]] = [
        ("input", (recipe.inputs.name, (-1, *recipe.inputs.shape)))
    ]
    if recipe.outputs is not None:
        expected.append(("output", (recipe.outputs.name, (-1, recipe.outputs.classes))))
    for kind, wanted in expected:
        ports = [getattr(network, f"get_{kind}")(number) for number in range(getattr(network, f"num_{kind}s"))]
        got = [(port.name, tuple(port.shape)) for port in ports]
        if got != [wanted] or any(port.dtype.name != "FLOAT" for port in ports):
            found = " and ".join(f"{port.dtype.name.lower()} {port.name} {tuple(port.shape)}" for port in ports)
            raise EngineError(
                f"expected a graph with the {kind} float {wanted[0]} {wanted[1]}, got {shortened(found) or 'none'}; "
                "export the bundle again"
            )


def _inspected(library: Library, log: Log, plan: bytes) -> tuple[int | None, int | None]:
    """Return the layers of a plan that runs here, and how many have a sparse tactic; None for what is not known."""
    runtime = library.runtime(log)
    engine = library.deserialize(runtime, plan)
    if engine is None:
        raise EngineError(
            f"{library.title} built a plan that it does not open: {log.last_error}; close other programs and try again"
        )
    inspector = engine.create_engine_inspector()
    layers, sparse = layers_of(inspector.get_engine_information(library.module.LayerInformationFormat.JSON))
    del inspector, engine, runtime  # in this order
    return layers, None if library.name == "tensorrt-rtx" else sparse  # which chooses its kernels later


def _saved_timings(file: Path) -> bytes:
    """Return what `_save_timings` wrote, nothing if that cannot be read: TensorRT measures again."""
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            content = opened.read(_MAX_TIMINGS + 1)
            return content if len(content) <= _MAX_TIMINGS else b""
    return b""


def _save_timings(config: Any, cache: Any, file: Path) -> None:
    """Add what the build measured to ``file``; not while another process does, nor where it cannot be written."""
    with suppress(OSError, SmartError), owning(file) as mine:
        if mine:
            others = config.create_timing_cache(_saved_timings(file))
            if others is not None:
                cache.combine(others, False)  # not what another device measured
            with replacing(file) as opened:
                opened.write(memoryview(cache.serialize()).cast("B"))


def main() -> None:
    """Answer the one request of `build_plan`, in that child."""
    request = json.loads(sys.argv[1])
    report = _Report(request["report"])
    for name in ("graph", "plan", "report"):
        os.set_inheritable(request[name], False)
    _be_a_good_child(request["parent"])
    try:
        size = os.fstat(request["graph"]).st_size
        # Private: older kernels let nobody map a sealed file in any other way.
        model = mmap.mmap(request["graph"], size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        built = plan_in_process(
            model,
            BuildRecipe.from_document(request["recipe"]),
            on_phase=report.phase,
            on_line=report.line,
        )
        with os.fdopen(request["plan"], "wb", buffering=0, closefd=False) as file:
            left = memoryview(built.plan)
            while left:
                left = left[file.write(left) :]
    except Exception as error:  # whatever it is, its words are all that the parent can show
        report.error(error)
    else:
        values = {name: value for name, value in vars(built).items() if name != "plan"}
        report.tell(done=values, bytes=len(built.plan), sha256=hashlib.sha256(built.plan).hexdigest())
    os._exit(0)  # what libraries do at the end may take long or crash, and nothing is left to be done


def _be_a_good_child(parent: int) -> None:
    """Take what others leave, and end when the parent does or gives the build up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both, and the parent decides
    with suppress(OSError):
        os.nice(_NICE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_MOST_KILLABLE)
    # The parent may have forked: then its death alone does not close our standard input.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before that
        os._exit(1)
    threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


class _Report:
    """Lines of JSON to the parent, from any thread: each is one write, too short for the system to part it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, **values: Any) -> None:
        with suppress(BrokenPipeError):  # nobody listens: the end is near
            os.write(self._descriptor, json.dumps(values, ensure_ascii=False).encode() + b"\n")

    def phase(self, name: str) -> None:
        self.tell(phase=shortened(name))

    def line(self, severity: str, text: str) -> None:
        if severity not in {"INFO", "VERBOSE"}:
            self.tell(log=f"{severity}: {shortened(text)}")

    def error(self, error: Exception) -> None:
        if isinstance(error, BuildRefusedError):
            self.tell(error=type(error).__name__, arguments=[error.library, error.reason])
        elif isinstance(error, SmartError):
            self.tell(error=type(error).__name__, arguments=[shortened(str(error))])
        elif isinstance(error, MemoryError):
            self.tell(error=OutOfMemoryError.__name__, arguments=["too little memory for the build; free some"])
        else:
            said = shortened(f"{type(error).__name__}: {error}")
            self.tell(error=EngineError.__name__, arguments=[f"the build failed: {said}; report this"])


if __name__ == "__main__":
    main()
