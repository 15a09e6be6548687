"""What smart_runtime costs on top of ONNX Runtime: a call, uint8 images, loading, importing and memory.

    .venv/bin/python benchmarks/bench_runtime.py

Random weights and masks, density 0.5, one thread, batch 1: ResNet-34 at 3x32x32 and ResNet-50 at 3x224x224. What is
compared takes turns, block by block or process by process, so that all see the same machine; figures are medians with
a 95% bootstrap interval over the rounds. Writes benchmarks/results/runtime.json with the environment (a trial run:
--output ELSEWHERE), prints the table and ends with status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the runtime does, and before the import below

import numpy as np
import numpy.typing as npt
import onnxruntime
from outcome import finish

from smart_runtime import Bundle, SmartModel
from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import Block, Interval, calls_per_block, interleave, interval, random_batch, resampled
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import Batch, Engine, EngineOptions, Scores
from smart_runtime.engines.onnxruntime import CPU, OnnxRuntimeEngine
from smart_runtime.inputs import prepare
from smart_runtime.memory import ON_DEMAND
from smart_runtime.path_state import PathState
from smart_runtime.serving import LoadedPath, Loader

RESULT = Path(__file__).resolve().parent / "results/runtime.json"
LARGE = "resnet50"
DENSITY, ALIGN, SEED = 0.5, 8, 0
RESAMPLES = 4000
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something to time as `interleave` times engines; it brings its own input."""

    call: Callable[[], object]

    def run(self, batch: Batch) -> Scores:
        """Call it; ``batch`` stands in for the scores, which nobody looks at."""
        self.call()
        return batch

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What must hold: ``value`` at most ``limit``; ``goal`` says it in words."""

    goal: str
    value: float
    limit: float

    @property
    def reached(self) -> bool:
        """Whether it holds."""
        return self.value <= self.limit


def turns(calls: Mapping[str, Callable[[], object]], *, blocks: int) -> dict[str, list[Block]]:
    """Time ``calls`` in interleaved blocks; return each one's blocks of latencies in ms."""
    contestants = [Contestant(call=call) for call in calls.values()]
    nothing = np.zeros((1, 1), np.float32)
    counts = [calls_per_block(contestant, nothing) for contestant in contestants]
    rng = np.random.default_rng(SEED)
    return dict(zip(calls, interleave(contestants, nothing, calls=counts, blocks=blocks, rng=rng), strict=True))


def medians(blocks: Sequence[Block]) -> npt.NDArray[np.float64]:
    """Return the median of each block, (rounds,)."""
    return np.array([np.median(block) for block in blocks])


def median_of(figures: npt.NDArray[np.float64]) -> Interval:
    """Return the median of one figure a round with its bootstrap interval over the rounds."""
    rng = np.random.default_rng(SEED)
    drawn = resampled(
        lambda rounds: float(np.median(figures[rounds])), rounds=len(figures), resamples=RESAMPLES, rng=rng
    )
    return interval(float(np.median(figures)), drawn)


def extra_us(timed: Mapping[str, list[Block]], more: str, less: str) -> Interval:
    """Return how many us longer ``more`` takes than ``less``: the median over rounds of their medians' difference."""
    return median_of(1000 * (medians(timed[more]) - medians(timed[less])))


def ratio(timed: Mapping[str, list[Block]], more: str, less: str) -> Interval:
    """Return how many times as long as ``less`` ``more`` takes: the median over rounds of their medians' ratio."""
    return median_of(medians(timed[more]) / medians(timed[less]))


def session_of(model: str | bytes) -> onnxruntime.InferenceSession:
    """Return what a user without us would write, for an ONNX file or its bytes, with the options the runtime sets."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bare_session(bundle: Path, graph: str) -> onnxruntime.InferenceSession:
    """Return a session of a bundle's graph, from its file."""
    return session_of(str(bundle / Bundle.open(bundle).manifest.graph(graph).file))


def random_pixels(spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Return one random uint8 image, (1, height, width, channels)."""
    size = (1, spec.height, spec.width, spec.channels)
    return np.random.default_rng(SEED).integers(0, 256, size, dtype=np.uint8)


class Idle(Engine):
    """An engine that computes nothing, to time what stands around it."""

    def __init__(self, classes: int) -> None:
        self._scores = np.zeros((1, classes), np.float32)

    @classmethod
    def create(
        cls,
        graph: GraphBytes,  # noqa: ARG003  # an engine's signature
        *,
        inputs: InputSpec,  # noqa: ARG003
        outputs: OutputSpec,
        options: EngineOptions,  # noqa: ARG003
    ) -> Idle:
        """Return one for so many classes."""
        return cls(outputs.classes)

    def describe(self) -> dict[str, Any]:
        """Return its name."""
        return {"engine": "idle"}

    def run(self, batch: Batch) -> Scores:  # noqa: ARG002  # an engine's signature
        """Return scores made before."""
        return self._scores

    def close(self) -> None:
        """Nothing to give back."""


def model_around(bundle: Bundle, engine: Engine) -> SmartModel:
    """Return a model whose default path is run by ``engine``."""
    path = bundle.manifest.default_path
    loaded = LoadedPath(path, engine, spec=bundle.manifest.input, classes=bundle.manifest.output.classes)
    open_loader = partial(Loader, trust=None, engine=CPU, options=EngineOptions(threads=1))
    state = PathState(
        open_loader(bundle.root), {path: loaded}, path=path, memory=ON_DEMAND, mode=ON_DEMAND, open_loader=open_loader
    )
    return SmartModel(state)


def measure_calls(folder: Path, *, blocks: int) -> dict[str, Any]:
    """Time a call of `SmartModel` against one of the session in it, and the parts of it that are ours alone.

    Both use one session: two sessions of one graph differ by more than a call costs, for where their weights lie.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    path, spec = manifest.default_path, manifest.input
    session = bare_session(folder, path)
    model = model_around(
        bundle,
        OnnxRuntimeEngine(
            session, input_name=spec.name, output_name=manifest.output.name, options=EngineOptions(threads=1)
        ),
    )
    around = model_around(bundle, Idle(manifest.output.classes))
    image, pixels = random_batch(spec.shape, size=1, rng=np.random.default_rng(SEED)), random_pixels(spec)
    timed = turns(
        {
            "bare session": lambda: session.run([manifest.output.name], {spec.name: image})[0],
            "SmartModel, float32": lambda: model(image),
            "SmartModel, uint8": lambda: model(pixels),
        },
        blocks=blocks,
    )
    ours = turns(
        {
            "float32": lambda: around(image),
            "uint8": lambda: around(pixels),
            "conversion": lambda: prepare(pixels, spec),
        },
        blocks=blocks,
    )
    return {
        "median_ms": {name: float(np.median(np.concatenate(found))) for name, found in timed.items()},
        "extra_us": asdict(extra_us(timed, "SmartModel, float32", "bare session")),
        "ratio": asdict(ratio(timed, "SmartModel, float32", "bare session")),
        "uint8_ratio": asdict(ratio(timed, "SmartModel, uint8", "SmartModel, float32")),
        "around_an_idle_engine_us": {
            name: 1000 * float(np.median(np.concatenate(found))) for name, found in ours.items()
        },
    }


def converting(model: Any, spec: InputSpec) -> Any:
    """Return the ONNX ``model`` with uint8 (N, height, width, channels) ``pixels`` in, converted inside."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415  # not in a process whose memory is measured

    graph = model.graph
    pixels = helper.make_tensor_value_info(
        "pixels", TensorProto.UINT8, ["batch", spec.height, spec.width, spec.channels]
    )
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["bright"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["bright", "full_scale"], [spec.name]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array(255, np.float32), "full_scale"))
    first = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *first])
    graph.input.append(pixels)
    return model


def measure_conversion(folder: Path, *, blocks: int) -> dict[str, Any]:
    """Time what a graph that converts inside would win over converting in NumPy: in all, and the conversion alone."""
    import onnx  # noqa: PLC0415  # not in a process whose memory is measured
    import onnx.parser  # noqa: PLC0415

    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    path, spec = manifest.default_path, manifest.input
    pixels, output = random_pixels(spec), manifest.output.name
    size = f"N, {spec.channels}, {spec.height}, {spec.width}"
    alone = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[{size}] {spec.name}) => (float[{size}] out) '
        f"{{ out = Identity({spec.name}) }}"
    )
    inside = session_of(converting(onnx.load(str(folder / manifest.graph(path).file)), spec).SerializeToString())
    inside_alone = session_of(converting(alone, spec).SerializeToString())
    converted = inside_alone.run(None, {"pixels": pixels})[0]
    with SmartModel.load(folder, path=path, threads=1) as model:
        agree = np.array_equal(inside.run([output], {"pixels": pixels})[0], model(pixels))
        timed = turns(
            {
                "SmartModel, uint8": lambda: model(pixels),
                "converting graph": lambda: inside.run([output], {"pixels": pixels})[0],
            },
            blocks=blocks,
        )
    short = turns(
        {
            "NumPy": lambda: prepare(pixels, spec),
            "ONNX Runtime": lambda: inside_alone.run(None, {"pixels": pixels}),
        },
        blocks=blocks,
    )
    return {
        "scores_bitwise_equal": bool(agree),
        "input_bitwise_equal": bool(np.array_equal(converted, prepare(pixels, spec))),
        "won_us": asdict(extra_us(timed, "SmartModel, uint8", "converting graph")),
        "ratio": asdict(ratio(timed, "SmartModel, uint8", "converting graph")),
        "conversion_alone_us": {name: 1000 * float(np.median(np.concatenate(found))) for name, found in short.items()},
    }


def measure_load(folder: Path, *, repeats: int) -> dict[str, Any]:
    """Time `SmartModel.load` against two bare sessions of the same files with a first run each, taking turns."""
    manifest = Bundle.open(folder).manifest
    image = np.zeros((1, *manifest.input.shape), np.float32)

    def bare() -> None:
        kept = [bare_session(folder, path) for path in manifest.paths]
        for session in kept:
            session.run(None, {manifest.input.name: image})

    def ours() -> None:
        SmartModel.load(folder, threads=1).close()

    times: dict[str, list[float]] = {"SmartModel.load": [], "two bare sessions": []}
    for _ in range(repeats + 1):
        for name, load in zip(times, (ours, bare), strict=True):
            started = time.perf_counter()
            load()
            times[name].append(1000 * (time.perf_counter() - started))
    kept = {name: np.array(values[1:]) for name, values in times.items()}  # the first brings the files into memory
    return {
        "median_ms": {name: float(np.median(values)) for name, values in kept.items()},
        "ratio": asdict(median_of(kept["SmartModel.load"] / kept["two bare sessions"])),
        "repeats": repeats,
    }


def measure_imports(*, repeats: int) -> dict[str, Any]:
    """Time imports, each in fresh processes that take turns."""
    code = "import sys, time; t = time.perf_counter(); __import__(sys.argv[1]); print(time.perf_counter() - t)"
    times: dict[str, list[float]] = {name: [] for name in ("numpy", "smart_runtime", "onnxruntime")}
    for _ in range(repeats + 1):
        for name, found in times.items():
            command = [sys.executable, "-c", code, name]
            found.append(1000 * float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {"median_ms": {name: statistics.median(found[1:]) for name, found in times.items()}, "repeats": repeats}


LOADS = {
    "clean, bare": ["clean"],
    "robust, bare": ["robust"],
    "dense, bare": ["dense"],
    "clean and robust, bare": ["clean", "robust"],
    "two dense, bare": ["dense", "dense"],
    "SmartModel": [],
}


def memory_now() -> dict[str, int]:
    """Return the resident set and its peak so far, of this process, in bytes (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: 1024 * int(lines[name].split()[0]) for key, name in (("resident", "VmRSS"), ("peak", "VmHWM"))}


def probe(folder: Path, graphs: Sequence[str]) -> dict[str, int]:
    """Load ``graphs`` as bare sessions, without any the bundle as a `SmartModel`; return what that takes in bytes."""
    spec = Bundle.open(folder).manifest.input
    image = random_batch(spec.shape, size=1, rng=np.random.default_rng(SEED))
    before = memory_now()
    if graphs:
        sessions = [bare_session(folder, graph) for graph in graphs]
        for session in sessions:
            for _ in range(5):
                session.run(None, {spec.name: image})
    else:
        model = SmartModel.load(folder, threads=1)
        for path in model.paths:
            model.path = path
            for _ in range(5):
                model(image)
    after = memory_now()
    return {key: after[key] - before["resident"] for key in after}


def measure_memory(folder: Path, *, repeats: int) -> dict[str, Any]:
    """Return the medians over fresh processes of what each of ``LOADS`` takes, in bytes."""
    found: dict[str, list[dict[str, int]]] = {name: [] for name in LOADS}
    for _ in range(repeats):
        for name, graphs in LOADS.items():
            command = [sys.executable, str(Path(__file__).resolve()), "--probe", str(folder), *graphs]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout))
    taken = {
        name: {key: int(statistics.median(one[key] for one in values)) for key in ("resident", "peak")}
        for name, values in found.items()
    }
    ours, alone = taken["SmartModel"], ("clean, bare", "robust, bare")
    return {
        "bytes": taken,
        "ratio_to_the_paths_alone": ours["resident"] / sum(taken[name]["resident"] for name in alone),
        "ratio_to_both_bare_in_one_process": ours["resident"] / taken["clean and robust, bare"]["resident"],
        "repeats": repeats,
    }


def build(folder: Path, *, model: str, side: int) -> Path:
    """Build a bundle of random weights and masks."""
    from synthetic import synthetic_bundle  # noqa: PLC0415  # brings torch, which no probe of the memory may load

    shape = (3, side, side)
    built: Path = synthetic_bundle(folder, model=model, input_shape=shape, density=DENSITY, align=ALIGN, seed=SEED)
    return built


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Return what is asked of the figures."""
    small, large = results["3x32x32"], results["3x224x224"]
    found = [
        Goal(
            goal="at 3x32x32 a call costs at most 20 us more than a bare session's",
            value=small["call"]["extra_us"]["value"],
            limit=20,
        ),
        Goal(
            goal="at 3x224x224 a call costs at most 2% more than a bare session's",
            value=100 * (large["call"]["ratio"]["value"] - 1),
            limit=2,
        ),
        Goal(
            goal="at 3x224x224 uint8 costs at most 10% more than float32",
            value=100 * (large["call"]["uint8_ratio"]["value"] - 1),
            limit=10,
        ),
    ]
    return found + [
        Goal(
            goal=f"{name}: both paths loaded take at most 1.1 times the memory that their graphs need alone",
            value=results[name]["memory"]["ratio_to_the_paths_alone"],
            limit=1.1,
        )
        for name in ("3x32x32", "3x224x224")
    ]


def table(results: Mapping[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = ["| what | 3x32x32 | 3x224x224 |", "| --- | --- | --- |"]

    def line(what: str, show: Callable[[Mapping[str, Any]], str]) -> None:
        lines.append(f"| {what} | {show(results['3x32x32'])} | {show(results['3x224x224'])} |")

    def spread(*keys: str, digits: int, unit: str) -> Callable[[Mapping[str, Any]], str]:
        def show(result: Mapping[str, Any]) -> str:
            interval = result[keys[0]][keys[1]]
            low, high = interval["low"], interval["high"]
            return f"{interval['value']:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"

        return show

    def plain(*keys: str, digits: int, unit: str) -> Callable[[Mapping[str, Any]], str]:
        def show(result: Mapping[str, Any]) -> str:
            value: Any = result
            for key in keys:
                value = value[key]
            return f"{value:.{digits}f}{unit}"

        return show

    def memory(name: str) -> Callable[[Mapping[str, Any]], str]:
        def show(result: Mapping[str, Any]) -> str:
            taken = result["memory"]["bytes"][name]
            return f"{taken['resident'] / MIB:.0f} MiB, {taken['peak'] / MIB:.0f} MiB"

        return show

    line("network", lambda result: str(result["model"]))
    line("bare session, one call", plain("call", "median_ms", "bare session", digits=2, unit=" ms"))
    line("SmartModel costs more", spread("call", "extra_us", digits=1, unit=" us"))
    line("the same, as a ratio", spread("call", "ratio", digits=4, unit="x"))
    for kind in ("float32", "uint8"):
        what = f"all of SmartModel but the engine, {kind}"
        line(what, plain("call", "around_an_idle_engine_us", kind, digits=1, unit=" us"))
    line("uint8 over float32", spread("call", "uint8_ratio", digits=4, unit="x"))
    line("a graph that converts inside would win", spread("conversion", "won_us", digits=1, unit=" us"))
    for kind in ("NumPy", "ONNX Runtime"):
        line(f"conversion alone, {kind}", plain("conversion", "conversion_alone_us", kind, digits=1, unit=" us"))
    line("SmartModel.load", plain("load", "median_ms", "SmartModel.load", digits=0, unit=" ms"))
    line("over two bare sessions", spread("load", "ratio", digits=2, unit="x"))
    for name in LOADS:
        line(f"memory, {name}: resident, peak", memory(name))
    line("SmartModel over the paths alone", plain("memory", "ratio_to_the_paths_alone", digits=3, unit="x"))
    line(
        "SmartModel over both in one process", plain("memory", "ratio_to_both_bare_in_one_process", digits=3, unit="x")
    )
    imports = ", ".join(f"{name} {value:.0f} ms" for name, value in results["import"]["median_ms"].items())
    return "\n".join([*lines, "", f"import: {imports}"])


def main() -> None:
    """Run the benchmark; exit with status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40, help="interleaved blocks (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="loads and fresh processes (default: %(default)s)")
    parser.add_argument("--large", default=LARGE, help="network at 3x224x224 (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="the file of results")
    parser.add_argument("--probe", nargs="+", help=argparse.SUPPRESS)  # how a fresh process is asked for its memory
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(probe(Path(options.probe[0]), options.probe[1:])))
        return
    environment = read_environment(packages=("torch", "onnx", "onnxscript"))
    started = time.perf_counter()
    results: dict[str, Any] = {"import": measure_imports(repeats=options.repeats)}
    with tempfile.TemporaryDirectory() as place:
        for model, side in (("resnet34", 32), (options.large, 224)):
            folder = build(Path(place) / str(side), model=model, side=side)
            results[f"3x{side}x{side}"] = {
                "model": model,
                "call": measure_calls(folder, blocks=options.blocks),
                "conversion": measure_conversion(folder, blocks=options.blocks),
                "load": measure_load(folder, repeats=options.repeats),
                "memory": measure_memory(folder, repeats=options.repeats),
            }
    reached = goals(results)
    record = {
        "command": f"python benchmarks/bench_runtime.py --blocks {options.blocks} --repeats {options.repeats}"
        + (f" --large {options.large}" if options.large != LARGE else ""),
        "density": DENSITY,
        "align": ALIGN,
        "seed": SEED,
        "threads": 1,
        "batch": 1,
        "seconds": time.perf_counter() - started,
        "results": results,
        "goals": [asdict(goal) | {"reached": goal.reached} for goal in reached],
        "environment": asdict(environment),
    }
    finish(record, output=options.output, lines=[table(results)])


if __name__ == "__main__":
    main()
