"""What `SmartModel` promises, checked with one bundle and one engine on the device that will serve it.

Every check takes a `Subject` and returns figures worth keeping, as plain values.

Raises:
    CheckFailed: The engine does not do what the runtime promises.
    SmartError: It failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from smart_devices.engine_rows import REFERENCE_ENGINE
from smart_devices.engines import engine_status
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.signatures import PublicKey
from smart_runtime.engines import Batch, Engine, EngineOptions, Scores, class_of
from smart_runtime.engines.cuda.device import Device
from smart_runtime.memory import ON_DEMAND, RESIDENT, Mode
from smart_runtime.model import SmartModel
from smart_runtime.reference import TOLERANCES, parity, stored_scores
from smart_runtime.selfcheck.failure import check

Figures: TypeAlias = dict[str, Any]

_IMAGES = 24
_SEED = 0
_THREADS, _CALLS = 8, 40
_RELOADS = 5
_UNSTEADY = 32 * 2**20  # bytes that other programs, and the driver for itself, may take or give meanwhile


@dataclass(frozen=True)
class Subject:
    """What is checked: a bundle in a directory, on an engine."""

    bundle: Path
    engine: str
    options: EngineOptions = field(default_factory=EngineOptions)
    trust: PublicKey | None = None

    @contextmanager
    def loaded(self, memory: Mode = RESIDENT) -> Iterator[SmartModel]:
        """Load the bundle for a ``with`` block."""
        with SmartModel.load(
            self.bundle, engine=self.engine, options=self.options, memory=memory, trust=self.trust
        ) as model:
            yield model

    @cached_property
    def images(self) -> Batch:
        """24 random images, float32 (24, channels, height, width)."""
        shape = Bundle.open(self.bundle, trust=self.trust).manifest.input.shape
        return np.random.default_rng(_SEED).random((_IMAGES, *shape), dtype=np.float32)


def check_scores_of_the_export(subject: Subject) -> Figures:
    """The scores are those that the export wrote into the bundle, within what its precision allows."""
    figures: Figures = {}
    with subject.loaded() as model:
        for path in model.manifest.paths:
            stored = stored_scores(model.bundle, path)
            if stored is None:
                continue
            model.path = path
            result = parity(stored.scores, model(stored.images), tolerance=stored.tolerance)
            figures[path] = asdict(result)
            check(result.holds, f"{path}: the scores differ by {result.max_rel_diff:.2g} from those of the export")
    return figures or {"skipped": "the bundle has no scores of its own"}


def check_scores_of_the_reference_engine(subject: Subject) -> Figures:
    """The scores of random images are those of ONNX Runtime on the CPU, within what the precision allows."""
    if not engine_status(REFERENCE_ENGINE).available:
        return {"skipped": f"{REFERENCE_ENGINE} is not installed"}
    figures: Figures = {}
    expected = _scores(Subject(subject.bundle, REFERENCE_ENGINE, trust=subject.trust), subject.images)
    with subject.loaded() as model:
        tolerance = TOLERANCES[model.manifest.precision]
        for path in model.paths:
            model.path = path
            result = parity(expected[path], model(subject.images), tolerance=tolerance)
            figures[path] = asdict(result)
            check(result.holds, f"{path}: the scores differ by {result.max_rel_diff:.2g} from those of the CPU")
    return figures


def check_batches(subject: Subject) -> Figures:
    """An image has the scores of its own in every batch, also in those that are cut into pieces."""
    images = subject.images
    largest = 0.0
    with subject.loaded() as model:
        for path in model.paths:
            model.path = path
            alone = np.concatenate([model(image[None]) for image in images])
            scale = max(1.0, float(np.abs(alone).max()))
            for size in (2, 3, 7, 8, 9, len(images)):
                difference = float(np.abs(model(images[:size]) - alone[:size]).max()) / scale
                largest = max(largest, difference)
                tolerance = TOLERANCES[model.manifest.precision]
                check(difference <= tolerance, f"{path}: in a batch of {size} the scores differ by {difference:.2g}")
            many = np.concatenate([images] * 12)
            check(model(many).shape == (len(many), alone.shape[1]), f"{path}: a batch of {len(many)} lost images")
    return {"max_rel_diff": largest}


class _OnGpu:
    """Images on a GPU, as another library would have them whose stream is still copying them there."""

    def __init__(self, images: Batch, *, device: Device, stack: ExitStack) -> None:
        memory, pinned, stream = device.memory(images.nbytes), device.pinned(images.nbytes), device.stream()
        for one in (memory, pinned, stream):  # given back from the last on: the stream waits for its work
            stack.callback(one.release)
        pinned.array[:] = images.reshape(-1).view(np.uint8)
        with device.use():
            stream.copy_in(memory.address, pinned.address, images.nbytes)
        self.shape = images.shape
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": "<f4",
            "shape": images.shape,
            "data": (memory.address, False),
            "stream": stream.handle,
        }


def check_images_on_the_gpu(subject: Subject) -> Figures:
    """Images that are on the GPU, or on their way there, have the scores that they have from the host's memory."""
    if class_of(subject.engine).run_gpu_images is Engine.run_gpu_images:
        return {"skipped": f"{subject.engine} takes images from the host's memory only"}
    largest = 0.0
    with subject.loaded() as model, ExitStack() as stack:
        device = Device.shared(subject.options.device)
        tolerance = TOLERANCES[model.manifest.precision]
        for size in (1, 8, len(subject.images)):
            images = subject.images[:size]
            on_gpu = _OnGpu(images, device=device, stack=stack)
            result = parity(model(images), model(on_gpu), tolerance=tolerance)
            check(result.holds, f"in a batch of {size} on the GPU the scores differ by {result.max_rel_diff:.2g}")
            largest = max(largest, result.max_rel_diff)
    return {"max_rel_diff": largest}


def check_threads_and_switches(subject: Subject) -> Figures:
    """While the path is switched all along, every call of 8 threads has the scores of the path that it names."""
    expected = _scores(subject, subject.images)
    wrong: list[str] = []
    switches = 0

    def work(model: SmartModel, seed: int) -> None:
        dice = np.random.default_rng(seed)
        for _ in range(_CALLS):
            first = int(dice.integers(_IMAGES - 1))
            last = int(dice.integers(first + 1, _IMAGES + 1))
            result = model.run(subject.images[first:last])
            truth = expected[result.path][first:last]
            if not parity(truth, result.scores, tolerance=tolerance).holds:
                wrong.append(result.path)

    with subject.loaded() as model:
        tolerance = TOLERANCES[model.manifest.precision]
        threads = [threading.Thread(target=work, args=(model, seed), daemon=True) for seed in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                model.switch(model.paths[switches % len(model.paths)])
                switches += 1
                thread.join(timeout=0.001)
        calls = sum(one.calls for one in model.stats.paths.values())
    check(calls == _THREADS * _CALLS, f"{calls} of {_THREADS * _CALLS} calls came to an end")
    check(not wrong, f"{len(wrong)} calls had scores of another path than they named, or wrong ones")
    return {"calls": calls, "switches": switches, "wrong": len(wrong)}


def check_on_demand(subject: Subject) -> Figures:
    """With one path loaded at a time a switch loads the other one, and the scores are the same."""
    expected = _scores(subject, subject.images[:4])
    figures: Figures = {}
    with subject.loaded(ON_DEMAND) as model:
        for path in (*model.manifest.paths, *model.manifest.paths):  # a mix needs both
            start = time.perf_counter()
            model.switch(path)
            figures[f"switch to {path} ms"] = (time.perf_counter() - start) * 1e3
            result = parity(expected[path], model(subject.images[:4]), tolerance=TOLERANCES[model.manifest.precision])
            check(result.holds, f"{path}: the scores differ by {result.max_rel_diff:.2g} after it was loaded on demand")
            check(list(_loaded(model)) == [path], f"{list(_loaded(model))} are loaded instead of {path} alone")
    return figures


def check_reloads(subject: Subject) -> Figures:
    """Five reloads change no score, and leave the GPU's memory as it was."""
    with subject.loaded() as model:
        before, first = _device_bytes(model), model(subject.images)
        for _ in range(_RELOADS):
            model.reload(subject.bundle)
        after = _device_bytes(model)
        tolerance = TOLERANCES[model.manifest.precision]
        check(parity(first, model(subject.images), tolerance=tolerance).holds, "a reload changed the scores")
    if before is not None and after is not None:
        check(abs(after - before) <= _UNSTEADY, f"after {_RELOADS} reloads {after} bytes are held, before {before}")
    return {"device_bytes_before": before, "device_bytes_after": after}


def check_times(subject: Subject) -> Figures:
    """What one run of each path takes at batch 1 and 8: the median of 20, in milliseconds."""
    figures: Figures = {}
    with subject.loaded() as model:
        for path in model.paths:
            model.path = path
            for size in (1, 8):
                batch = subject.images[:size]
                runs = [model.run(batch).latency_ms for _ in range(25)][5:]
                figures[f"{path}, batch {size}"] = float(np.median(runs))
        memory = model.memory()
        figures["device_bytes"] = {name: one.device_bytes for name, one in memory.paths.items()}
        figures["shared_device_bytes"] = memory.shared_device_bytes
    return figures


def _scores(subject: Subject, images: Batch) -> dict[str, Scores]:
    with subject.loaded() as model:
        found = {}
        for path in model.paths:
            model.path = path
            found[path] = model(images)
    return found


def _loaded(model: SmartModel) -> list[str]:
    return [name for name, one in model.memory().paths.items() if one.loaded]


def _device_bytes(model: SmartModel) -> int | None:
    memory = model.memory()
    held = [one.device_bytes for one in memory.paths.values()] + [memory.shared_device_bytes]
    known = [size for size in held if size is not None]
    return sum(known) if len(known) == len(held) else None


CHECKS: Mapping[str, Callable[[Subject], Figures]] = MappingProxyType(
    {
        "scores of the export": check_scores_of_the_export,
        "scores of the reference engine": check_scores_of_the_reference_engine,
        "batches": check_batches,
        "images on the GPU": check_images_on_the_gpu,
        "threads and switches": check_threads_and_switches,
        "on demand": check_on_demand,
        "reloads": check_reloads,
        "times": check_times,
    }
)
"""Every check by its name, in the order in which they are best run."""
