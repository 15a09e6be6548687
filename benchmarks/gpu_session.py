"""Everything that a lent GPU can show in one call of some minutes, in files; `gpu_session.sh` starts it.

    benchmarks/gpu_session.sh --prepare bundles/      # beforehand, on any machine with smart-edge[all]; 20 minutes
    benchmarks/gpu_session.sh --bundles bundles/      # on the one with the GPU, where NumPy and the engine do
    benchmarks/gpu_session.sh --bundles bundles/ --dry-run   # on any machine: every step, on the CPU, tiny

Each step runs in a process of its own and writes benchmarks/results/gpu/STEP.json with its environment; one whose file
is there is not run again, so a session that broke off goes on where it was. A step that does not fit into what is left
of --minutes is skipped, and the end says so. The CUDA layer's checks on the real driver, and once more under
compute-sanitizer where that is installed; ResNet-34 and WRN-28-10 with random weights and masks at density 0.5, paths
against dense at batch 1, 8 and 64 in fp32 and fp16; a switch storm; memory. Ends with status 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_steps
from gpu_steps import NotHere, Session

from smart_devices.engine_rows import engine_names
from smart_devices.nvml import Gpu, open_gpu
from smart_runtime.bench.environment import read_environment

RESULTS = Path(__file__).resolve().parent / "results/gpu"
SANITIZER = ("compute-sanitizer", "--error-exitcode=9", "--report-api-errors=no")  # the checks ask for such errors
PRECISIONS = ("fp32", "fp16")
MINUTES = 8.0
_NOT_HERE = 3  # the status of a step that this machine cannot do


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: what to call, how many seconds it takes on an H100 at most, and what its process is started with."""

    name: str
    seconds: float
    work: Callable[[Session], dict[str, Any]]
    under: tuple[str, ...] = ()


def steps(session: Session) -> list[Step]:
    """Return all steps, what matters most first."""
    return [
        Step(name="device", seconds=20, work=gpu_steps.describe_device),
        Step(name="contracts", seconds=60, work=gpu_steps.check_contracts),
        *(
            Step(name=f"paths-{name}", seconds=75, work=partial(gpu_steps.time_paths, name=name))
            for name in session.bundles
        ),
        Step(name="storm", seconds=60, work=gpu_steps.storm),
        Step(name="memory", seconds=60, work=gpu_steps.memory),
        Step(name="contracts-sanitized", seconds=120, work=gpu_steps.check_contracts, under=SANITIZER),
    ]


def run_all(options: argparse.Namespace) -> int:
    """Run every step that is due and fits; return the exit status."""
    session = session_of(options)
    end = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for step in steps(session):
        outcomes[step.name] = outcome = _outcome(step, options, left=end - time.monotonic())
        print(f"{step.name}: {outcome}", flush=True)
    return 1 if any(outcome.startswith("failed") for outcome in outcomes.values()) else 0


def _outcome(step: Step, options: argparse.Namespace, *, left: float) -> str:
    """Run one step if it is due and fits; return what became of it, in words."""
    file = options.output / f"{step.name}.json"
    if file.exists():
        return "done before"
    if step.under and shutil.which(step.under[0]) is None:
        return f"skipped: {step.under[0]} is not installed"
    if left < (1 if options.dry_run else step.seconds):
        return f"skipped: it takes up to {step.seconds:.0f} s, and {max(0, left):.0f} s are left; run the session again"
    return _run(step, options, file=file, left=left)


def _run(step: Step, options: argparse.Namespace, *, file: Path, left: float) -> str:
    """Run one step in a process of its own; return what became of it, in words."""
    command = [*step.under, sys.executable, __file__, *_again(options), "--step", step.name]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=left)
    except subprocess.TimeoutExpired:
        return f"failed: it did not end in the {left:.0f} s that were left"
    if done.stdout:  # the sanitizer's report; a step itself prints nothing there
        file.with_suffix(".log").write_text(done.stdout, encoding="utf-8")
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if done.returncode == _NOT_HERE:
        return f"skipped: {last}"
    if done.returncode != 0:
        if file.exists():  # its figures are kept, and the next session does it again
            file.replace(file.with_suffix(".failed.json"))
        return f"failed: {last}"
    return f"done in {time.monotonic() - start:.0f} s"


def _again(options: argparse.Namespace) -> list[str]:
    """Return the arguments that this process was started with, for a step."""
    given = ["--bundles", str(options.bundles), "--output", str(options.output)]
    given += ["--engine", options.engine] if options.engine else []
    return [*given, *(["--dry-run"] if options.dry_run else [])]


def run_step(name: str, options: argparse.Namespace) -> int:
    """Run one step in this process and write its file; return the exit status."""
    session = session_of(options)
    step = next(step for step in steps(session) if step.name == name)
    gpu = open_gpu()
    environment = asdict(read_environment(gpu=gpu if isinstance(gpu, Gpu) else None))
    start = time.monotonic()
    try:
        result = step.work(session)
    except NotHere as error:
        print(error, file=sys.stderr)
        return _NOT_HERE
    record = {
        "step": name,
        "engine": session.engine,
        "dry_run": options.dry_run,
        "under": step.under,
        "seconds": time.monotonic() - start,
        "result": result,
        "environment": environment,
    }
    file = options.output / f"{name}.json"
    part = file.with_suffix(".part")  # a step that is killed leaves no half file that looks done
    part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(file)
    if result.get("failed"):
        print(f"{len(result['failed'])} checks failed, see {file.with_suffix('.failed.json')}", file=sys.stderr)
        return 1
    return 0


def session_of(options: argparse.Namespace) -> Session:
    """Return what the options ask for."""
    bundles = {folder.name: folder for folder in sorted(options.bundles.iterdir()) if folder.is_dir()}
    if options.dry_run:
        engine = options.engine or "onnxruntime-cpu"
        return Session(bundles=bundles, engine=engine, batches=(1, 2), blocks=2, storm_seconds=0.2, reloads=1)
    engine = options.engine or "onnxruntime-cuda"
    return Session(bundles=bundles, engine=engine, batches=(1, 8, 64), blocks=20, storm_seconds=20, reloads=20)


def prepare(output: Path, *, tiny: bool) -> None:
    """Write the light bundles into ``output``, which must not exist; it needs smart_train, smart_export and a while."""
    from light_bundles import lighten  # noqa: PLC0415  # here and below: the machine with the GPU has no torch, perhaps
    from synthetic import synthetic_checkpoint  # noqa: PLC0415

    from smart_devices import resolve_target  # noqa: PLC0415
    from smart_export.build import build_bundle  # noqa: PLC0415

    output.mkdir(parents=True)
    for model in ["resnet8"] if tiny else ["resnet34", "wrn28-10"]:
        shape = (1, 8, 8) if tiny else (3, 32, 32)
        checkpoint = synthetic_checkpoint(model=model, input_shape=shape, density=0.5, align=16)
        for precision in PRECISIONS:
            print(f"{model} in {precision}", flush=True)
            built = build_bundle(
                checkpoint,
                output=output / f"{model}-{precision}",
                target=resolve_target("h100-sxm"),
                precision=precision,
                random_images=8,
                max_drop=1.0,  # accuracies of untrained networks mean nothing
            )
            lighten(built.bundle)


def main() -> int:
    """Do what the options say; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", metavar="FOLDER", type=Path, help="write the bundles there, and do nothing else")
    parser.add_argument("--bundles", metavar="FOLDER", type=Path, help="what --prepare wrote")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with sizes that show only that it works")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="what all may take (default: %(default)s)")
    parser.add_argument("--engine", choices=engine_names(), help="instead of onnxruntime-cuda")
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=RESULTS, help="where results are and go")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare is not None:
        prepare(options.prepare, tiny=options.dry_run)
        return 0
    if options.bundles is None or not options.bundles.is_dir():
        parser.error("--bundles FOLDER is needed: what --prepare FOLDER wrote")
    return run_all(options) if options.step is None else run_step(options.step, options)


if __name__ == "__main__":
    sys.exit(main())
