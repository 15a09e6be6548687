"""What a session on a GPU does, step by step; `gpu_session.py` says in which order, for how long and where to."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from light_bundles import restore

from smart_common.errors import MissingExtraError
from smart_devices.engine_rows import REFERENCE_ENGINE, engine_info
from smart_runtime import Bundle, SmartModel
from smart_runtime.bench.contenders import Source, contenders, open_contender
from smart_runtime.bench.measure import WARM_UP_MS, calls_per_block, interleave, random_batch, speed_up, summarise
from smart_runtime.engines import Batch, Scores
from smart_runtime.engines.cuda.device import Device
from smart_runtime.memory import Mode, resident_bytes
from smart_runtime.selfcheck import cuda_checks

SEED = 0
# Of the largest score: a GPU adds in another order, and fp16 graphs round in other places.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2}


@dataclass(frozen=True, kw_only=True)
class Session:
    """What all steps share: the light bundles by name, the engine, and how much of each is done."""

    bundles: Mapping[str, Path]
    engine: str
    batches: tuple[int, ...]
    blocks: int
    storm_seconds: float
    reloads: int

    @property
    def first(self) -> str:
        """The bundle of the steps that need one only."""
        return next(iter(self.bundles))


class NotHere(Exception):  # noqa: N818  # no failure: the reason why this machine cannot do a step
    """This machine lacks what a step needs, and says so in a sentence."""


def describe_device(_: Session) -> dict[str, Any]:
    """Return what the driver and its own tool say of the GPU."""
    found: dict[str, Any] = {"driver": None, "reason": None, "nvidia-smi": None}
    try:
        device = Device.shared()
    except MissingExtraError as error:
        found["reason"] = str(error)
    else:
        names = ("name", "capability", "multiprocessors", "total_bytes", "integrated", "cuda_version")
        found["driver"] = {name: getattr(device, name) for name in names} | {"free_bytes": device.free_bytes()}
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        done = subprocess.run([tool, "-q"], capture_output=True, text=True, check=False, timeout=60)
        found["nvidia-smi"] = done.stdout.splitlines()
    return found


def check_contracts(_: Session) -> dict[str, Any]:
    """Return the figures of every check of the CUDA layer on the driver of this machine, and what failed."""
    try:
        Device.shared().check()
    except MissingExtraError as error:
        raise NotHere(str(error)) from error
    figures: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name, check in inspect.getmembers(cuda_checks, inspect.isfunction):
        if name.startswith("check_"):
            try:
                figures[name] = check(0)
            except Exception as error:  # the others are to run all the same
                failed[name] = f"{type(error).__name__}: {error}"
    return {"figures": figures, "failed": failed}


def time_paths(session: Session, name: str) -> dict[str, Any]:
    """Return what each graph of a bundle takes at each batch size, and how far its scores are from the CPU's."""
    warm_up_ms = WARM_UP_MS[engine_info(session.engine).part]
    with _whole(session, name) as folder, ExitStack() as undo:
        bundle = Bundle.open(folder)
        graphs = contenders({name: bundle}, baseline=None)
        differences = [_difference(session, graph.source) for graph in graphs]
        largest = max(session.batches)
        engines = []
        for graph in graphs:
            engines.append(open_contender(graph.source, engine=session.engine, batch=largest, threads=1))
            undo.callback(engines[-1].close)
        rows = []
        for batch in session.batches:
            rng = np.random.default_rng(SEED)
            images = random_batch(bundle.manifest.input.shape, size=batch, rng=rng)
            calls = [calls_per_block(engine, images, warm_up_ms=warm_up_ms) for engine in engines]
            timed = interleave(engines, images, calls=calls, blocks=session.blocks, rng=rng, warm_up_ms=warm_up_ms)
            for graph, engine, blocks, difference in zip(graphs, engines, timed, differences, strict=True):
                times = engine.run_timed(images)[1]
                rows.append(
                    {
                        "bundle": name,
                        "precision": bundle.manifest.precision,
                        "graph": graph.name,
                        "batch": batch,
                        **asdict(summarise(blocks)),
                        "speed_up": asdict(speed_up(timed[0], blocks, rng=rng)),
                        "mac_ratio": (graphs[0].macs or 0) / (graph.macs or 1),
                        "on_device": None if times is None else asdict(times),
                        "largest_difference": difference,
                        "calls": sum(map(len, blocks)),
                    }
                )
        return {"library": engines[0].describe(), "against": graphs[0].name, "rows": rows}


def storm(session: Session) -> dict[str, Any]:
    """Return what 8 threads saw that call batches of 1 to 16 images while the path is switched every 2 ms."""
    with _whole(session, session.first) as folder, SmartModel.load(folder, engine=session.engine, threads=1) as model:
        rng = np.random.default_rng(SEED)
        inputs = [random_batch(model.manifest.input.shape, size=size, rng=rng) for size in range(1, 17)]
        known: dict[str, list[tuple[Batch, Scores]]] = {}
        for path in model.paths:
            model.switch(path)
            known[path] = [(images, model.run(images).scores) for images in inputs]
        allowed = TOLERANCES[model.manifest.precision]
        stop = threading.Event()
        tallies = [Counter[str]() for _ in range(8)]
        callers = [threading.Thread(target=_call_until, args=(stop, model, known, allowed, tally)) for tally in tallies]
        for caller in callers:
            caller.start()
        end, switches = time.monotonic() + session.storm_seconds, 0
        while time.monotonic() < end:
            time.sleep(0.002)
            switches += 1
            model.switch(model.paths[switches % len(model.paths)])
        stop.set()
        for caller in callers:
            caller.join()
        return {"seconds": session.storm_seconds, "switches": switches, **sum(tallies, Counter[str]())}


def memory(session: Session) -> dict[str, Any]:
    """Return what is in use, of the GPU's memory or without one of this process, before, while and after loading."""
    found: dict[str, Any] = {}
    with _whole(session, session.first) as folder, _used(session) as used:
        shape = Bundle.open(folder).manifest.input.shape
        images = random_batch(shape, size=max(session.batches), rng=np.random.default_rng(SEED))
        found["before"] = used()
        for mode in get_args(Mode):
            with SmartModel.load(folder, engine=session.engine, threads=1, memory=mode) as model:
                for path in model.paths:
                    model.switch(path)
                    model(images)
                found[mode] = used()
                for _ in range(session.reloads):
                    model.reload(folder)
                found[f"{mode} after {session.reloads} reloads"] = used()
            found[f"{mode} closed"] = used()
    return found


@contextmanager
def _whole(session: Session, name: str) -> Iterator[Path]:
    """Give a light bundle with its weights."""
    with tempfile.TemporaryDirectory() as folder:
        yield restore(session.bundles[name], output=Path(folder, name))


def _difference(session: Session, source: Source) -> float:
    """Return how far the engine's scores of 8 images are from the reference engine's, of the largest score."""
    images = random_batch(source.shape, size=8, rng=np.random.default_rng(SEED))
    scores: list[Scores] = []
    for engine in (REFERENCE_ENGINE, session.engine):
        made = open_contender(source, engine=engine, batch=len(images), threads=1)
        scores.append(made.run(images))
        made.close()
    expected, got = scores
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def _call_until(
    stop: threading.Event,
    model: SmartModel,
    known: Mapping[str, Sequence[tuple[Batch, Scores]]],
    allowed: float,
    tally: Counter[str],
) -> None:
    """Call until told to stop; count results that are to the bit or nearly those of the path they name, and others."""
    rng = np.random.default_rng(threading.get_native_id())
    while not stop.is_set():
        which = int(rng.integers(16))
        try:
            result = model.run(known[model.path][which][0])
        except Exception as error:  # counted by name
            tally[f"failed with {type(error).__name__}"] += 1
            continue
        expected = known[result.path][which][1]
        if np.array_equal(result.scores, expected):
            tally["same bits"] += 1
        elif np.abs(result.scores - expected).max() <= allowed * np.abs(expected).max():
            tally["within tolerance"] += 1
        else:
            tally["wrong"] += 1


@contextmanager
def _used(session: Session) -> Iterator[Callable[[], int | None]]:
    if engine_info(session.engine).part != "gpu":
        yield resident_bytes
        return
    device = Device.shared()
    yield lambda: device.total_bytes - device.free_bytes()
