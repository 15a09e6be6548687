"""The switch under fire: 8 threads call, another one switches every 2 ms; and a soak of a million calls.

    .venv/bin/python benchmarks/bench_switch.py

Random weights and masks, one thread a call: ResNet-34 at 3x32x32 (a call takes milliseconds) and ResNet-8 at 1x8x8
(tens of microseconds: all overhead, all races). Every result is compared, to the bit, with what the path that it names
gives for that input when nobody else calls. Phases take turns, each path alone (the same callers, nobody switches) and
both in alternation, and throughput is compared round by round. A user without the switch reads the other path's files
and makes its engine: the cold load. The soak and what each memory mode takes are measured in fresh processes. Writes
benchmarks/results/switch.json with the environment (a trial run: --output ELSEWHERE), prints the table and ends with
status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

import numpy as np
from outcome import finish

from smart_runtime import Bundle, SmartModel
from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import interval, random_batch, resampled
from smart_runtime.bench.switching import cold_load_ms, first_result_ms, measure_switch
from smart_runtime.engines import AUTO, Batch, Scores
from smart_runtime.engines.onnx_weights import external_tensors
from smart_runtime.memory import Mode

RESULT = Path(__file__).resolve().parent / "results/switch.json"
NETWORKS = {"resnet34": (3, 32, 32), "resnet8": (1, 8, 8)}
DENSITY, ALIGN, SEED = 0.5, 8, 0
CALLERS, INPUTS = 8, 16
SWITCH_EVERY_MS = 2.0
ROUNDS = 6
RELOADS = 4000
RESAMPLES = 4000
MIB = 2**20

Known: TypeAlias = Mapping[str, list[Scores]]


@dataclass
class Tally:
    """What one caller saw: results that were right, that were not their path's, and calls that raised."""

    right: int = 0
    mixed: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What must hold of ``value``, said in words."""

    goal: str
    value: float
    reached: bool


def known_scores(model: SmartModel, inputs: list[Batch]) -> Known:
    """Return what each path gives for each input, nobody else at work."""
    known = {}
    for path in model.paths:
        with model.using(path):
            known[path] = [model(images) for images in inputs]
    clean, robust = (known[path] for path in model.paths)
    for one, other in zip(clean, robust, strict=True):  # else a mix-up could not be seen
        assert not np.array_equal(one, other)
    return known


def call_until(stop: threading.Event, model: SmartModel, inputs: list[Batch], known: Known, tally: Tally) -> None:
    """Call the model and compare until ``stop`` is set."""
    which = 0
    while not stop.is_set():
        which = (which + 1) % len(inputs)
        try:
            result = model.run(inputs[which])
        except Exception:  # counted, whatever it is
            tally.failed += 1
            continue
        if np.array_equal(result.scores, known[result.path][which]):
            tally.right += 1
        else:
            tally.mixed += 1


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Calls, and switches, in some seconds; the tally is of all callers."""

    seconds: float
    switches: int
    tally: Tally

    @property
    def calls_per_second(self) -> float:
        """Right results a second."""
        return self.tally.right / self.seconds


def run_phase(model: SmartModel, inputs: list[Batch], known: Known, *, seconds: float, path: str | None) -> Phase:
    """Let the callers call for ``seconds``, on one path alone or, with None, while both take turns."""
    model.switch(path or model.paths[0])
    stop = threading.Event()
    tallies = [Tally() for _ in range(CALLERS)]
    callers = [threading.Thread(target=call_until, args=(stop, model, inputs, known, tally)) for tally in tallies]
    switches = model.stats.switches
    start = time.perf_counter()
    for caller in callers:
        caller.start()
    if path is None:
        due, turn = start, 0
        while (now := time.perf_counter()) < start + seconds:
            if now < due:
                time.sleep(due - now)
            turn += 1
            model.switch(model.paths[turn % len(model.paths)])
            due = max(due + SWITCH_EVERY_MS / 1e3, time.perf_counter())  # what was missed is not made up for
    else:
        time.sleep(seconds)
    stop.set()
    for caller in callers:
        caller.join()
    total = Tally(*(sum(values) for values in zip(*(asdict(tally).values() for tally in tallies), strict=True)))
    return Phase(seconds=time.perf_counter() - start, switches=model.stats.switches - switches, tally=total)


def under_fire(folder: Path, *, seconds: float) -> dict[str, Any]:
    """Return what came of ``seconds`` of calls under switches, and of as many with each path alone."""
    bundle = Bundle.open(folder)
    rng = np.random.default_rng(SEED)
    inputs = [random_batch(bundle.manifest.input.shape, size=1, rng=rng) for _ in range(INPUTS)]
    with SmartModel.load(folder, threads=1) as model:
        known = known_scores(model, inputs)
        phases: dict[str | None, list[Phase]] = {name: [] for name in (*model.paths, None)}
        for _ in range(ROUNDS):
            order = list(phases)
            rng.shuffle(cast("list[Any]", order))
            for path in order:
                share = seconds / ROUNDS * (1 if path is None else 0.5)
                phases[path].append(run_phase(model, inputs, known, seconds=share, path=path))
        ratios = np.array(
            [
                both.calls_per_second / statistics.harmonic_mean([alone.calls_per_second for alone in others])
                for both, *others in zip(phases[None], *(phases[path] for path in model.paths), strict=True)
            ]
        )
        drawn = resampled(
            lambda rounds: float(np.median(ratios[rounds])), rounds=len(ratios), resamples=RESAMPLES, rng=rng
        )
        loaded = first_results_under_load(model, bundle, inputs, known)
    idle = measure_switch(bundle, inputs[0], engine=AUTO, threads=1)
    assert idle is not None  # only a bundle with one path has nothing to switch to
    fire = phases[None]
    every = [phase for part in phases.values() for phase in part]
    return {
        "seconds": sum(phase.seconds for phase in fire),
        "calls": sum(phase.tally.right + phase.tally.mixed + phase.tally.failed for phase in fire),
        "switches": sum(phase.switches for phase in fire),
        "mixed": sum(phase.tally.mixed for phase in every),
        "failed": sum(phase.tally.failed for phase in every),
        "calls_per_second": {
            path or "switching": statistics.median(phase.calls_per_second for phase in part)
            for path, part in phases.items()
        },
        "throughput_ratio": asdict(interval(float(np.median(ratios)), drawn)),
        "idle": asdict(idle),
        "under_load": loaded,
    }


def first_results_under_load(
    model: SmartModel, bundle: Bundle, inputs: list[Batch], known: Known, *, repeats: int = 15
) -> dict[str, float]:
    """Return how long the first result of the other path takes while all callers call, and how long a cold load."""
    stop = threading.Event()
    callers = [
        threading.Thread(target=call_until, args=(stop, model, inputs, known, Tally())) for _ in range(CALLERS - 1)
    ]
    for caller in callers:
        caller.start()
    try:
        path = next(name for name in model.paths if name != bundle.manifest.default_path)
        switched = [first_result_ms(model, inputs[0], path=path) for _ in range(repeats)]
        cold = [cold_load_ms(bundle, inputs[0], path=path, engine=AUTO, threads=1) for _ in range(repeats)]
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    return {"first_result_ms": statistics.median(switched), "cold_load_ms": statistics.median(cold)}


def resident_state() -> dict[str, int]:
    """Return this process's memory, threads and open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208  # not a folder of files
        "handles": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }


def soak(folder: Path, *, calls: int) -> dict[str, Any]:
    """Make ``calls`` calls from four threads, one of them through asyncio, under switches and scopes; then reload.

    The state is read 20 times in between, while the callers go on, the first time after a twentieth of the calls, and
    after every 100th reload.
    """
    rng = np.random.default_rng(SEED)
    callers = 4
    with SmartModel.load(folder, threads=1) as model:
        images = random_batch(model.manifest.input.shape, size=1, rng=rng)
        known = known_scores(model, [images])
        done, wrong = [0] * callers, [0] * callers

        def check(number: int, path: str, scores: Scores) -> None:
            done[number] += 1
            wrong[number] += not np.array_equal(scores, known[path][0])

        def call(number: int) -> None:
            for i in range(calls // callers):
                if i % 50 == 0:
                    with model.using(model.paths[i // 50 % len(model.paths)]):
                        result = model.run(images)
                else:
                    result = model.run(images)
                check(number, result.path, result.scores)

        async def call_in_tasks(number: int) -> None:
            for _ in range(calls // callers // 4):
                for result in await asyncio.gather(*(model.arun(images) for _ in range(4))):
                    check(number, result.path, result.scores)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(1, callers)]
        threads.append(threading.Thread(target=lambda: asyncio.run(call_in_tasks(0))))
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        states: list[dict[str, int]] = []
        while any(thread.is_alive() for thread in threads):
            for path in model.paths:
                model.switch(path)
                time.sleep(0.0005)
            if sum(done) >= (len(states) + 1) * calls / 20 and len(states) < 19:
                states.append({"calls": sum(done), **resident_state()})
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        switches = model.stats.switches
        reloads: list[dict[str, int]] = []
        for i in range(RELOADS):
            model.reload(folder)
            if (i + 1) % 100 == 0:
                reloads.append({"reloads": i + 1, **resident_state()})
    return {
        "calls": sum(done),
        "wrong": sum(wrong),
        "switches": switches,
        "seconds": seconds,
        "states": states,
        "growth": growth(states),
        "reloads": {"states": reloads, "growth": growth_between_quarters(reloads)},
    }


def growth(states: list[dict[str, int]]) -> dict[str, float]:
    """Return by how much the largest state exceeds the first one: memory as a fraction, the others as counts."""
    first = states[0]
    return {
        "bytes": max(state["bytes"] for state in states) / first["bytes"] - 1,
        "threads": max(state["threads"] for state in states) - first["threads"],
        "handles": max(state["handles"] for state in states) - first["handles"],
    }


def growth_between_quarters(states: list[dict[str, int]]) -> dict[str, float]:
    """Return by how much the last quarter's median state exceeds the second's, as `growth` does.

    Each reload frees and makes engines, and what malloc keeps meanwhile swings by 1%; the first quarter fills its heap.
    """
    quarter = len(states) // 4
    early, late = (
        {key: int(statistics.median(state[key] for state in part)) for key in ("bytes", "threads", "handles")}
        for part in (states[quarter : 2 * quarter], states[-quarter:])
    )
    return growth([early, late])


def memory_of(folder: Path, *, mode: Mode) -> dict[str, Any]:
    """Return what a mode takes in this process, which is fresh, and how long its switches take."""
    with SmartModel.load(folder, threads=1, memory=mode) as model:
        report = model.memory()
        times = []
        for i in range(20):
            start = time.perf_counter()
            model.switch(model.paths[(i + 1) % len(model.paths)])
            times.append((time.perf_counter() - start) * 1e3)
        return {
            "paths": {name: asdict(path) for name, path in report.paths.items()},
            "process_bytes": report.process_bytes,
            "switch_ms": statistics.median(times),
        }


def equal_weights(folder: Path) -> dict[str, int]:
    """Return the bytes of the tensors that both paths hold with the same shape and values, and of all of one path."""
    bundle = Bundle.open(folder)
    held = [
        {
            (value.shape, hashlib.sha256(value.tobytes()).digest()): value.nbytes
            for value in external_tensors(bundle.graph_bytes(path)).values()
        }
        for path in bundle.manifest.paths
    ]
    first, *others = held
    return {
        "equal": sum(size for key, size in first.items() if all(key in other for other in others)),
        "all": sum(first.values()),
    }


def in_fresh_process(*arguments: object) -> dict[str, Any]:
    """Return what a part of this benchmark says that runs alone in a process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def build(folder: Path, *, model: str) -> Path:
    """Build a bundle of random weights and masks."""
    from synthetic import synthetic_bundle  # noqa: PLC0415  # brings torch, which no measured process may load

    built: Path = synthetic_bundle(
        folder, model=model, input_shape=NETWORKS[model], density=DENSITY, align=ALIGN, seed=SEED
    )
    return built


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Return what is asked of the figures."""
    fire, soaked = results["fire"], results["soak"]
    found = []
    for name, result in fire.items():
        ratio = result["throughput_ratio"]["value"]
        failed, mixed = result["failed"], result["mixed"]
        found += [
            Goal(goal=f"{name}: no failed and no mixed result", value=failed + mixed, reached=failed + mixed == 0),
            Goal(
                goal=f"{name}: throughput under switches at least 0.95 of the harmonic mean of both paths alone",
                value=ratio,
                reached=ratio >= 0.95,
            ),
        ]
    for name, grown in (("a soak", soaked["growth"]), ("reloads", soaked["reloads"]["growth"])):
        counts = grown["threads"] + grown["handles"]
        found += [
            Goal(
                goal=f"{name}: memory grows by at most 1%", value=100 * grown["bytes"], reached=grown["bytes"] <= 0.01
            ),
            Goal(goal=f"{name}: no more threads and handles", value=counts, reached=counts == 0),
        ]
    found.append(Goal(goal="a soak: no wrong result", value=soaked["wrong"], reached=soaked["wrong"] == 0))
    return found


def table(results: Mapping[str, Any]) -> str:
    """Return the figures as Markdown."""
    names = list(results["fire"])
    lines = [
        "| under fire | " + " | ".join(f"{name}, {'x'.join(map(str, NETWORKS[name]))}" for name in names) + " |",
        "| --- |" + " --- |" * len(names),
    ]

    def line(what: str, show: Callable[[Mapping[str, Any]], str]) -> None:
        lines.append(f"| {what} | " + " | ".join(show(results["fire"][name]) for name in names) + " |")

    def ratio(result: Mapping[str, Any]) -> str:
        found = result["throughput_ratio"]
        return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"

    line("calls from 8 threads", lambda r: f"{r['calls']:,} in {r['seconds']:.0f} s")
    line("switches", lambda r: f"{r['switches']:,}, every {1e3 * r['seconds'] / r['switches']:.1f} ms")
    line("failed, mixed", lambda r: f"{r['failed']}, {r['mixed']}")
    line(
        "calls a second: clean, robust, switching",
        lambda r: ", ".join(f"{r['calls_per_second'][name]:,.0f}" for name in ("clean", "robust", "switching")),
    )
    line("throughput over the harmonic mean of both alone", ratio)
    line("a switch, idle", lambda r: f"{r['idle']['median_us']:.1f} us (p99 {r['idle']['p99_us']:.1f})")
    for where, key in (("idle", "idle"), ("under load", "under_load")):
        line(
            f"first result of the new path, {where}; cold load instead",
            lambda r, key=key: f"{r[key]['first_result_ms']:.2f} ms; {r[key]['cold_load_ms']:.1f} ms",  # type: ignore[misc]
        )
    soaked, modes, equal = results["soak"], results["modes"], results["equal_weights"]
    lines += [
        "",
        f"Soak: {soaked['calls']:,} calls and {soaked['switches']:,} switches in {soaked['seconds']:.0f} s, "
        f"{soaked['wrong']} wrong; memory at most {100 * soaked['growth']['bytes']:.2f}% above that after a twentieth "
        f"of them, {soaked['growth']['threads']:.0f} more threads, {soaked['growth']['handles']:.0f} more handles. "
        f"{RELOADS:,} reloads, the last quarter against the second: "
        f"{100 * max(0.0, soaked['reloads']['growth']['bytes']):.2f}%, "
        f"{soaked['reloads']['growth']['threads']:.0f} and {soaked['reloads']['growth']['handles']:.0f}.",
        "",
        "| memory, resnet34 | process | `clean` | `robust` | a switch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mode, found in modes.items():
        cells = [
            "not loaded" if path["resident_bytes"] is None else f"{path['resident_bytes'] / MIB:.0f} MiB"
            for path in found["paths"].values()
        ]
        switch = f"{found['switch_ms'] * 1e3:.1f} us" if found["switch_ms"] < 0.1 else f"{found['switch_ms']:.0f} ms"
        lines.append(f"| {mode} | {found['process_bytes'] / MIB:.0f} MiB | {' | '.join(cells)} | {switch} |")
    files = next(iter(modes.values()))["paths"]["clean"]["file_bytes"]
    lines += [
        "",
        f"A path's files are {files / MIB:.0f} MiB. Tensors that are equal in both paths: {equal['equal']:,} of "
        f"{equal['all']:,} bytes ({equal['equal'] / equal['all']:.2%}), so they are not shared.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark; exit with status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of calls under switches (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=1_000_000, help="of the soak (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="the file of results")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)  # how a fresh process is asked for its part
    options = parser.parse_args()
    if options.part:
        kind, folder, value = options.part
        part = soak(Path(folder), calls=int(value)) if kind == "soak" else memory_of(Path(folder), mode=value)
        print(json.dumps(part))
        return
    environment = read_environment(packages=("torch",))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folders = {name: build(Path(place) / name, model=name) for name in NETWORKS}
        results: dict[str, Any] = {
            "fire": {name: under_fire(folder, seconds=options.seconds) for name, folder in folders.items()},
            "soak": in_fresh_process("soak", folders["resnet8"], options.calls),
            "modes": {mode: in_fresh_process("memory", folders["resnet34"], mode) for mode in get_args(Mode)},
            "equal_weights": equal_weights(folders["resnet34"]),
        }
    reached = goals(results)
    record = {
        "command": f"python benchmarks/bench_switch.py --seconds {options.seconds:g} --calls {options.calls}",
        "density": DENSITY,
        "align": ALIGN,
        "seed": SEED,
        "threads": 1,
        "callers": CALLERS,
        "switch_every_ms": SWITCH_EVERY_MS,
        "seconds": time.perf_counter() - started,
        "results": results,
        "goals": [asdict(goal) for goal in reached],
        "environment": asdict(environment),
    }
    finish(record, output=options.output, lines=[table(results)])


if __name__ == "__main__":
    main()
