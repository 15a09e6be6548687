"""What int8 and bf16 gain in ONNX Runtime on this CPU, dense and on one path.

    .venv/bin/python benchmarks/bench_quantised.py

ResNet-34 at 3x32x32 and ResNet-50 at 3x224x224 with random weights and masks, density 0.5, one thread; dense and the
clean path in fp32 and in int8 by two recipes take turns in one process, in blocks of calls. Both recipes are QDQ with
int8 weights per output channel, calibrated on noise: `cpu` has asymmetric uint8 activations and an int32 bias,
`tensorrt` symmetric int8 activations and a float bias, as that engine wants them. For bf16 it is tried whether ONNX
Runtime runs such a convolution on a CPU at all, and whether its one option for it changes anything here. Accuracy is
not measured: nothing is trained. No goals: it says what there is to gain. Takes about 4 minutes; writes
benchmarks/results/quantised.json with the environment and prints the table. --quick only shows that it works, and
writes nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the runtime does, and before the import below

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from synthetic import synthetic_bundle

from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import calls_per_block, interleave, random_batch, speed_up, summarise
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import DENSE, InputSpec, Manifest
from smart_runtime.engines import EngineOptions
from smart_runtime.engines.onnxruntime import OnnxRuntimeEngine

RESULT = Path(__file__).resolve().parent / "results/quantised.json"
FP32, FASTMATH = "fp32", "fp32, bf16 fastmath option"
GRAPHS = (DENSE, "clean")
DENSITY, ALIGN, SEED = 0.5, 8, 0
CALIBRATION_IMAGES = 8
FASTMATH_OPTION = "mlas.enable_gemm_fastmath_arm64_bfloat16"
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
RECIPES: Mapping[str, dict[str, Any]] = {
    "int8, cpu": {"activation_type": QuantType.QUInt8, "extra_options": {}},
    "int8, tensorrt": {
        "activation_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True, "QuantizeBias": False},
    },
}
BF16_CONVOLUTION = """
<ir_version: 10, opset_import: ["" : 22]>
convolution (bfloat16[1, 16, 8, 8] x, bfloat16[16, 16, 3, 3] w) => (bfloat16[1, 16, 6, 6] y) { y = Conv (x, w) }
"""


@dataclass(frozen=True)
class Case:
    """A network, its batch, and how many seconds of blocks it gets."""

    model: str
    input_shape: tuple[int, int, int]
    classes: int
    batch: int
    seconds: float


FULL = (
    Case("resnet34", (3, 32, 32), 10, 1, 12),
    Case("resnet34", (3, 32, 32), 10, 8, 20),
    Case("resnet50", (3, 224, 224), 1000, 1, 35),
)
QUICK = (Case("resnet18", (3, 16, 16), 10, 1, 1), Case("resnet50", (3, 32, 32), 10, 8, 1))
MIN_ROUNDS, MAX_ROUNDS = 6, 40


class Noise(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Images to calibrate on: uniform noise, since untrained networks have no data of their own."""

    def __init__(self, spec: InputSpec) -> None:
        rng = np.random.default_rng(SEED)
        self._batches = iter(
            [{spec.name: random_batch(spec.shape, size=1, rng=rng)} for _ in range(CALIBRATION_IMAGES)]
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input; None at the end."""
        return next(self._batches, None)


def engine(model: Path, manifest: Manifest, *, config: Sequence[tuple[str, str]] = ()) -> OnnxRuntimeEngine:
    """Return a session on one thread, made as the runtime makes its own."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    for key, value in (("session.force_spinning_stop", "1"), *config):
        settings.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    options = EngineOptions(threads=1)
    return OnnxRuntimeEngine(session, input_name=manifest.input.name, output_name=manifest.output.name, options=options)


def quantised(model: Path, recipe: str, manifest: Manifest, folder: Path) -> Path:
    """Write ``model`` in int8 and return where."""
    output = folder / f"{model.parent.name}-{recipe.replace(', ', '-')}.onnx"
    quantize_static(
        str(model),
        str(output),
        Noise(manifest.input),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        **RECIPES[recipe],
    )
    return output


def measure(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Time every graph in every precision, interleaved; return one row each."""
    bundle = folder / case.model
    if not bundle.exists():
        synthetic_bundle(
            bundle,
            model=case.model,
            input_shape=case.input_shape,
            classes=case.classes,
            density=DENSITY,
            align=ALIGN,
            seed=SEED,
        )
    manifest = Bundle.open(bundle).manifest
    names: list[tuple[str, str]] = []
    engines: list[OnnxRuntimeEngine] = []
    for graph in GRAPHS:
        file = bundle / manifest.graph(graph).file
        engines.append(engine(file, manifest))
        engines.append(engine(file, manifest, config=[(FASTMATH_OPTION, "1")]))
        engines += [engine(quantised(file, recipe, manifest, folder), manifest) for recipe in RECIPES]
        names += [(graph, precision) for precision in (FP32, FASTMATH, *RECIPES)]
    rng = np.random.default_rng(SEED)
    images = random_batch(manifest.input.shape, size=case.batch, rng=rng)
    calls = [calls_per_block(made, images) for made in engines]
    started = time.perf_counter()
    interleave(engines, images, calls=calls, blocks=1, rng=rng)
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(case.seconds / (time.perf_counter() - started))))
    timed = dict(zip(names, interleave(engines, images, calls=calls, blocks=rounds, rng=rng), strict=True))
    rows = []
    for (graph, precision), blocks in timed.items():
        same = speed_up(timed[graph, FP32], blocks, rng=rng)
        whole = speed_up(timed[DENSE, FP32], blocks, rng=rng)
        rows.append(
            {
                "network": case.model,
                "input_shape": list(case.input_shape),
                "batch": case.batch,
                "threads": 1,
                "graph": graph,
                "density": 1.0 if graph == DENSE else DENSITY,
                "precision": precision,
                "median_ms": summarise(blocks).median_ms,
                "speedup_over_its_fp32": asdict(same),
                "speedup_over_dense_fp32": asdict(whole),
                "rounds": rounds,
            }
        )
    return rows


def attempt(run: Callable[[], object]) -> str | None:
    """Return what ONNX Runtime says against it in one line; None where it does it."""
    try:
        run()
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        return " ".join(str(error).split())
    return None


def bf16_convolution() -> None:
    """Make a session of one bf16 convolution on the CPU."""
    model = onnx.parser.parse_model(BF16_CONVOLUTION)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def cpu_features() -> dict[str, bool]:
    """Return which of the instruction sets that matter here the CPU reports; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return {name: name in flags for name in FEATURES} if flags else {}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| network | batch | graph | precision | ms | of its fp32 | of dense fp32 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratios = [
            f"{found['value']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"
            for found in (row["speedup_over_its_fp32"], row["speedup_over_dense_fp32"])
        ]
        lines.append(
            f"| {row['network']} | {row['batch']} | {row['graph']} | {row['precision']} | {row['median_ms']:.2f} | "
            f"{' | '.join(ratios)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, few blocks; figures mean nothing")
    parser.add_argument("--output", type=Path, help="the file of results; --quick writes none without it")
    options = parser.parse_args()
    output = options.output or (None if options.quick else RESULT)
    logging.getLogger().setLevel(logging.ERROR)  # it advises to optimise graphs before quantising; the fold did
    started = time.perf_counter()
    environment, features = asdict(read_environment()), cpu_features()
    refusal = attempt(bf16_convolution)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in QUICK if options.quick else FULL:
            rows += measure(case, Path(folder))
    found = {
        "command": "python benchmarks/bench_quantised.py" + (" --quick" if options.quick else ""),
        "method": "medians of interleaved blocks in one process, 95% bootstrap interval over the rounds; untrained "
        "weights, random masks, scope block: latency only, accuracy is not measured",
        "seconds": time.perf_counter() - started,
        "seed": SEED,
        "cpu_features": features,
        "bf16": {
            "runs_on_cpu_provider": refusal is None,
            "refusal": refusal,
            "option": FASTMATH_OPTION,
            "option_is_for": "arm64",
            "machine": platform.machine(),
        },
        "rows": rows,
        "environment": environment,
    }
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")
    print(table(rows))
    print("\nCPU: " + (", ".join(name for name, there in features.items() if there) or "flags unknown"))
    print(f"bf16 convolution: {'runs' if refusal is None else refusal}")


if __name__ == "__main__":
    main()
