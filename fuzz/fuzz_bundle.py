"""Fuzz everything that reads a file from a stranger: bundles, checkpoints, keys, recipes, pictures, weights, ONNX.

    make fuzz                                                  200,000 inputs, seed 1
    .venv/bin/python fuzz/fuzz_bundle.py --target graph --runs 1000000 --seed 2
    .venv/bin/python fuzz/fuzz_bundle.py --target graph --replay build/fuzz/graph-crash-...

Inputs are valid files changed by mutators that know their form, and led by coverage (atheris, on libFuzzer). Anything
but our own refusals is a finding: its input is saved, the command that replays it is printed, and the exit status is 1.
The last line says how many inputs each reader took. Equal versions, runs and seed give equal inputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from targets import TARGETS
from worker import COUNTS

from smart_runtime.bench.environment import read_environment

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("worker.py")
ARTIFACTS = ROOT / "build/fuzz"
RUNS, SEED = 200_000, 1
DEFAULT_TARGETS = tuple(name for name, target in TARGETS.items() if target.share)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the fuzzing of one target went; ``finding`` is the file with the input that it ended at."""

    target: str
    inputs: int
    accepted: int
    refused: int
    seconds: float
    status: int
    finding: str | None


def fuzz(target: str, *, runs: int, seed: int, artifacts: Path) -> Outcome:
    """Fuzz one target in a process of its own; what libFuzzer says goes to ``artifacts/TARGET.log``."""
    artifacts.mkdir(parents=True, exist_ok=True)
    for old in artifacts.glob(f"{target}-*"):
        old.unlink()
    counts, log = artifacts / f"{target}.counts", artifacts / f"{target}.log"
    counts.write_bytes(bytes(COUNTS.size))
    memory = Path("/dev/shm")  # noqa: S108  # a file system in memory: a bundle is written anew for each input
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        log.open("wb") as output,
    ):
        arguments = ["--runs", str(runs), "--seed", str(seed), "--artifacts", str(artifacts), "--counts", str(counts)]
        command = [sys.executable, str(WORKER), target, *arguments, "--folder", folder]
        done = subprocess.run(command, env=_environment(), stdout=output, stderr=output, check=False)
    seconds = time.perf_counter() - started
    inputs, accepted = COUNTS.unpack(counts.read_bytes())
    finding = next((str(file) for file in sorted(artifacts.glob(f"{target}-*"))), None)
    status = done.returncode
    if status == 0 and inputs < runs:  # libFuzzer ended early and said nothing
        status = 1
    refused = inputs - accepted - (status != 0)
    return Outcome(
        target=target,
        inputs=inputs,
        accepted=accepted,
        refused=max(0, refused),
        seconds=seconds,
        status=status,
        finding=finding,
    )


def _environment() -> dict[str, str]:
    """Return what a worker runs in: the tests' bundles importable, and the same hashes and one thread on every run."""
    path = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    return os.environ | settings


def replay(target: str, *, file: Path) -> int:
    """Give ``target`` the input in ``file`` once more, with its traceback on standard error; return the exit status."""
    done = subprocess.run([sys.executable, str(WORKER), target, "--replay", str(file)], env=_environment(), check=False)
    return 0 if done.returncode == 0 else 1


def sentence(outcomes: Sequence[Outcome], *, seed: int, versions: str) -> str:
    """Return the line that says what was done."""
    each = "; ".join(
        f"{o.target} {o.inputs} inputs, {o.accepted} accepted, {o.refused} refused, {o.seconds:.0f} s" for o in outcomes
    )
    found = [o.target for o in outcomes if o.status]
    total = sum(o.inputs for o in outcomes)
    verdict = f"findings in {', '.join(found)}" if found else "no finding"
    return f"fuzz: {total} inputs, seed {seed}, {verdict} ({each}; {versions})"


def main() -> None:
    """Fuzz or replay; exit with status 1 on a finding, 2 where it cannot run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="inputs of all targets together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of libFuzzer, above 0 (default: %(default)s)")
    parser.add_argument("--target", choices=TARGETS, action="append", help=f"default: {', '.join(DEFAULT_TARGETS)}")
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="where findings and logs go")
    parser.add_argument("--replay", type=Path, help="give this input to the one --target, and nothing else")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--output", type=Path, help="write the outcome and the environment to this file too")
    options = parser.parse_args()
    chosen: list[str] = list(dict.fromkeys(options.target or DEFAULT_TARGETS))
    if options.runs < 1 or options.seed < 1:
        parser.error("expected 1 or more runs and a seed of 1 or more; libFuzzer takes 0 for any")
    if options.replay is not None:
        if len(chosen) != 1:
            parser.error("expected one --target with --replay; a finding's file begins with its name")
        sys.exit(replay(chosen[0], file=options.replay))
    if importlib.util.find_spec("atheris") is None:
        print(
            f"error: atheris, which leads the fuzzing by coverage, is not there on {platform.machine()}; "
            "pip install 'smart-edge[dev]' on x86-64, the only machine that it has wheels for",
            file=sys.stderr,
        )
        sys.exit(2)
    environment = read_environment(packages=("atheris", "cryptography", "torch"))
    shares = {name: TARGETS[name].share or 1 for name in chosen}
    outcomes = []
    for name in chosen:
        runs = max(1, round(options.runs * shares[name] / sum(shares.values())))
        outcome = fuzz(name, runs=runs, seed=options.seed, artifacts=options.artifacts.resolve())
        outcomes.append(outcome)
        if outcome.status:
            _report(outcome, artifacts=options.artifacts)
    named = [f"--target {name}" for name in options.target or ()]
    record = {
        "command": " ".join(["python fuzz/fuzz_bundle.py", f"--runs {options.runs}", f"--seed {options.seed}", *named]),
        "inputs": sum(outcome.inputs for outcome in outcomes),
        "seed": options.seed,
        "findings": sum(outcome.status != 0 for outcome in outcomes),
        "targets": [asdict(outcome) for outcome in outcomes],
        "environment": asdict(environment),
    }
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    versions = ", ".join(f"{name} {found}" for name, found in environment.versions.items())
    line = sentence(outcomes, seed=options.seed, versions=f"python {environment.python}, {versions}")
    print(json.dumps(record) if options.json else line)
    sys.exit(1 if record["findings"] else 0)


def _report(outcome: Outcome, *, artifacts: Path) -> None:
    """Say on standard error what was found and how to see it again."""
    log = artifacts / f"{outcome.target}.log"
    sys.stderr.write(f"{outcome.target} ended with status {outcome.status}; the end of {log}:\n")
    sys.stderr.write("".join(f"  {line}\n" for line in log.read_text(errors="replace").splitlines()[-40:]))
    if outcome.finding is not None:
        script = Path(__file__).resolve()
        sys.stderr.write(
            f"replay it with: {sys.executable} {script} --target {outcome.target} --replay {outcome.finding}\n"
        )


if __name__ == "__main__":
    main()
