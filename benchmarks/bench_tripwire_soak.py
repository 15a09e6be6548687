"""A soak under a policy that switches: ten minutes of calls from four threads, under attack every other second.

    .venv/bin/python benchmarks/bench_tripwire_soak.py --work FOLDER

On the demo's network that bench_tripwire.py left in FOLDER, with a tripwire that is quick to alarm and quick to calm.
Every result is compared, to the bit, with what the path that it names gives for that frame when nobody else calls.
Memory of the process is read after the first minute and at the end. Writes benchmarks/results/tripwire_soak.json with
the environment (a trial run: --output ELSEWHERE), prints the table and ends with status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_switch import Tally, call_until, known_scores
from bench_tripwire import exported, trained
from outcome import finish

from smart_runtime import SmartModel
from smart_runtime.bench.environment import read_environment
from smart_runtime.memory import resident_bytes
from smart_runtime.policies import Tripwire
from smart_train import load_checkpoint

RESULT = Path(__file__).resolve().parent / "results/tripwire_soak.json"
CALLERS, FRAMES = 4, 64
TURN_S = 1.0
MIB = 2**20


def soak(work: Path, *, minutes: float) -> dict[str, Any]:
    """Return what the callers saw, and the policy."""
    checkpoint = trained(work, 0)
    samples = load_checkpoint(checkpoint).samples
    assert samples is not None
    kinds = [
        [images[None] for images in one.numpy()[:FRAMES]] for one in (samples.images, samples.adversarial["clean"])
    ]
    bundle = exported("demo", checkpoint, work)
    with SmartModel.load(bundle, threads=1) as alone:
        known = [known_scores(alone, frames) for frames in kinds]
    policy = Tripwire(
        every=2, false_alarms_per_day=1e5, hold_s=0.1, calm_frames=5, max_switches_per_hour=1_000_000, seed=0
    )
    tallies: list[Tally] = []
    memory = []
    with SmartModel.load(bundle, threads=1, policy=policy) as model:
        start = time.monotonic()
        turn = 0
        while (now := time.monotonic()) < start + minutes * 60:
            stop, which = threading.Event(), turn % 2
            of_turn = [Tally() for _ in range(CALLERS)]
            callers = [
                threading.Thread(target=call_until, args=(stop, model, kinds[which], known[which], tally))
                for tally in of_turn
            ]
            for caller in callers:
                caller.start()
            time.sleep(TURN_S)
            stop.set()
            for caller in callers:
                caller.join()
            tallies += of_turn
            turn += 1
            if now > start + min(60, minutes * 60 / 4):
                memory.append(resident_bytes() or 0)
        stats, status = model.stats, policy.status()
    return {
        "minutes": minutes,
        "callers": CALLERS,
        **{key: sum(getattr(tally, key) for tally in tallies) for key in ("right", "mixed", "failed")},
        "switches": stats.switches,
        "calls_by_path": {path: one.calls for path, one in stats.paths.items()},
        "shadow_frames": status["shadow_runs_total"],
        "dropped_frames": status["dropped_total"],
        "failures": status["failures_total"],
        "alarms": status["alarms_total"],
        "memory_after_a_minute": memory[0],
        "memory_at_the_end": memory[-1],
    }


def table(record: dict[str, Any]) -> str:
    """Return the soak as one sentence."""
    found = record["soak"]
    return (
        f"{found['minutes']:g} minutes, {found['callers']} threads, {found['right'] / 1e6:.1f} million calls, "
        f"{found['switches']:,} switches by the tripwire: {found['mixed']} results of another path than they name, "
        f"{found['failed']} failed calls, {found['failures']} failures of the worker; memory of the process "
        f"{found['memory_after_a_minute'] / MIB:.0f} MiB after a minute, {found['memory_at_the_end'] / MIB:.0f} MiB at "
        "the end."
    )


def main() -> None:
    """Soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where bench_tripwire.py left its networks")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    environment = asdict(read_environment())
    found = soak(options.work, minutes=options.minutes)
    grown = found["memory_at_the_end"] / found["memory_after_a_minute"]
    record = {
        "command": "python benchmarks/bench_tripwire_soak.py --work FOLDER",
        "soak": found,
        "goals": [
            {"goal": "results of another path than they name", "value": found["mixed"], "reached": not found["mixed"]},
            {"goal": "failed calls", "value": found["failed"], "reached": not found["failed"]},
            {"goal": "switches", "value": found["switches"], "reached": found["switches"] >= 100},
            {"goal": "memory at the end : after a minute", "value": grown, "reached": grown <= 1.1},
        ],
        "environment": environment,
    }
    finish(record, output=options.output, lines=[table(record)])


if __name__ == "__main__":
    main()
