"""What goes wrong around a model: dying threads and processes, forks, clocks, full disks, bundles that lie.

docs/reliability.md lists every fault with its test.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardened.striking import Stop, interrupt, strike
from runtime.bundles import as_float, expected_scores, graph_files, ours, random_images, write_bundle
from runtime.each_engine import GPU, EngineUnderTest, cpu_only
from runtime.fakes import TIMEOUT, Thread
from smart_common.errors import SmartError
from smart_runtime import Bundle, EngineError, SmartModel
from smart_runtime.bundle.bundle import write_checksums

pytestmark = pytest.mark.usefixtures("engine")

struck = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
"""For tests that interrupt: what strikes inside of a finalizer Python only reports, and a file that is struck between
its opening and its owner is closed by its finalizer, which warns."""

FLOATS = as_float(random_images(4))


def assert_scores(model: SmartModel, made_by: str) -> None:
    np.testing.assert_allclose(model(FLOATS), expected_scores(made_by, FLOATS), rtol=0, atol=1e-6)


# Threads


@struck
@pytest.mark.parametrize("memory", ["resident", "tight"])
def test_threads_killed_by_an_exception_leave_the_model_whole(bundle: Path, memory: Any) -> None:
    """Killed anywhere inside of a call: it leaves no mark, so that a path can still be drained, and others go on."""
    budget = max(sum(len(data) for data in graph_files(name)) for name in ("clean", "robust"))
    model = SmartModel.load(bundle, threads=1, memory=budget if memory == "tight" else "resident")

    def call_for_ever(started: threading.Event) -> None:
        started.set()
        while True:
            model.run(FLOATS)

    for i in range(40):
        started = threading.Event()
        thread = Thread(functools.partial(call_for_ever, started))
        assert started.wait(timeout=TIMEOUT)
        for _ in range(i):
            model.run(FLOATS)
        strike(thread)
        with pytest.raises(Stop):
            thread.outcome()
        path = "robust" if i % 2 == 0 else "clean"
        model.switch(path)  # under the tight budget it waits for every call that is still inside
        assert_scores(model, path)
    assert all(not loaded.calls for loaded in model._state.loaded.values())
    model.close()


@struck
def test_interrupts_in_the_middle_of_calls_leave_the_model_whole(bundle: Path) -> None:
    model = SmartModel.load(bundle, threads=1)
    interrupt(lambda: model.run(FLOATS), apart_s=1e-6)
    assert all(not loaded.calls for loaded in model._state.loaded.values())
    for path in ("robust", "clean"):
        model.switch(path)
        assert_scores(model, path)
    model.close()


@struck
def test_interrupts_in_the_middle_of_switches_leave_the_model_whole(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a budget for one path, where a switch drops it, waits, loads and may have to load again.

    A bundle of its own: a file that is struck while it is opened may stay open. And nothing is logged: a strike could
    leave a lock of logging's locked, which no other thread could log past.
    """
    monkeypatch.setattr(logging.getLogger("smart_runtime.path_state"), "disabled", True)
    budget = max(sum(len(data) for data in graph_files(name)) for name in ("clean", "robust"))
    model = SmartModel.load(own_bundle, threads=1, memory=budget)

    def run_once() -> None:
        with contextlib.suppress(EngineError):  # struck while the old path was loaded again: it says so
            model.run(FLOATS)

    interrupt(lambda: model.switch("robust" if model.path == "clean" else "clean"), apart_s=2e-5, after_each=run_once)
    for path in ("robust", "clean", "robust"):
        model.switch(path)
        assert_scores(model, path)
    model.close()


# Processes

_FORK = """
import os, signal, sys
import numpy as np
from smart_runtime import ClosedError, SmartModel
folder, threads = sys.argv[1], int(sys.argv[2])
model = SmartModel.load(folder, threads=threads)
images = np.full((64, *model.manifest.input.shape), 0.5, np.float32)
known = model(images)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hang must end
    for name, argument in (("run", images), ("switch", "robust"), ("reload", folder), ("using", "robust")):
        try:
            result = getattr(model, name)(argument)
            if name == "using":
                result.__enter__()
        except ClosedError as error:
            print(error, flush=True)
    assert model.stats.paths["clean"].calls == 1
    model.close()
    try:
        with SmartModel.load(folder, threads=threads) as own:
            assert np.array_equal(own(images), known)
    except ClosedError as error:
        print(error, flush=True)
    sys.exit(3)  # with all that an interpreter takes down at its end
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 3, status
assert np.array_equal(model(images), known)
model.switch("robust")
model.close()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_after_a_fork_the_child_is_told_and_the_parent_goes_on(
    engine: EngineUnderTest, bundle: Path, threads: int
) -> None:
    """With two threads a session's pool stays behind: to run it or to free it would hang or crash the child.

    Where that cannot work, the child is refused a model of its own too.
    """
    done = engine.run(_FORK, bundle, threads)
    assert done.returncode == 0, done.stderr
    sentence = "the model was loaded before a fork; load the bundle in this process"
    no_cuda = (
        "CUDA does not survive a fork, and this process was forked from one that uses the GPU; let the parent load no "
        "model before it forks, or start this process by multiprocessing's 'spawn'"
    )
    assert done.stdout.splitlines() == [sentence] * 4 + [no_cuda] * (engine.name == GPU)


_FORK_UNDER_FIRE = """
import os, signal, sys, threading
import numpy as np
from smart_runtime import ClosedError, SmartModel
model = SmartModel.load(sys.argv[1], threads=1)
images = np.full((1, *model.manifest.input.shape), 0.5, np.float32)
stop = threading.Event()
def call():
    while not stop.is_set():
        model(images)
def switch():
    while not stop.is_set():
        model.switch("robust")
        model.switch("clean")
others = [threading.Thread(target=work) for work in (call, call, switch)]
for other in others:
    other.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            model.switch("robust")
        except ClosedError:
            model.stats  # takes a lock that another thread may have held
            model.close()
            os._exit(5)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 5, status
stop.set()
for other in others:
    other.join()
"""


def test_a_fork_while_other_threads_hold_locks(engine: EngineUnderTest, bundle: Path) -> None:
    done = engine.run(_FORK_UNDER_FIRE, bundle)
    assert done.returncode == 0, done.stderr


_RELOAD_FOR_EVER = """
import sys
from smart_runtime import SmartModel
model = SmartModel.load(sys.argv[1], threads=1, memory=sys.argv[2])
print("ready", flush=True)
while True:
    model.reload(sys.argv[1])
"""


@pytest.mark.parametrize("memory", ["resident", "on-demand"])
def test_kill_9_during_a_reload_leaves_the_bundle_whole(engine: EngineUnderTest, own_bundle: Path, memory: str) -> None:
    before = {path: path.read_bytes() for path in own_bundle.rglob("*") if path.is_file()}
    for _ in range(3):
        command = engine.command(_RELOAD_FOR_EVER, own_bundle, memory)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=engine.environment()) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            child.kill()
            assert child.wait(timeout=TIMEOUT) == -signal.SIGKILL
    assert {path: path.read_bytes() for path in own_bundle.rglob("*") if path.is_file()} == before
    with SmartModel.load(own_bundle, threads=1) as model:
        assert_scores(model, "clean")


_FULL_DISK = """
import resource, signal, sys
import numpy as np
from smart_runtime import SmartModel
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with open(sys.argv[2], "wb", buffering=0) as file:
        file.write(b"x")
except OSError as error:
    print(type(error).__name__, error.errno)
model = SmartModel.load(sys.argv[1], threads=1, memory=sys.argv[3])
model.reload(sys.argv[1])
model.switch("robust")
print(model.run(np.zeros((1, *model.manifest.input.shape), np.float32)).path)
"""


@pytest.mark.parametrize("memory", ["resident", "on-demand"])
def test_a_model_needs_no_disk_to_write_to(engine: EngineUnderTest, bundle: Path, tmp_path: Path, memory: str) -> None:
    """A process that cannot write a single byte to any file loads, reloads and switches."""
    done = engine.run(_FULL_DISK, bundle, tmp_path / "file", memory)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["OSError 27", "robust"]


# Time


def test_a_clock_that_jumps_back_changes_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock is not used at all; and if the monotonic one were broken, calls would still answer."""
    wall = iter(range(10**9, 0, -3600))
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: next(wall))
    with SmartModel.load(bundle, threads=1) as model:
        monkeypatch.setattr(time, "perf_counter_ns", lambda: next(wall))
        result = model.run(FLOATS)
        assert (result.path, result.latency_ms) == ("clean", -3600 / 1e6)
        model.switch("robust")
        model.reload(bundle)
        assert_scores(model, "robust")
        stats = model.stats.paths["clean"]
        assert (stats.calls, sum(stats.latency.counts), stats.errors) == (1, 1, 0)


# Bundles


def truncate_graph(folder: Path) -> None:
    (folder / "robust/model.onnx").write_bytes(graph_files("robust")[0][:-1])


def flip_byte(folder: Path) -> None:
    data = bytearray((folder / "robust/weights.bin").read_bytes())
    data[7] ^= 1
    (folder / "robust/weights.bin").write_bytes(data)


def lose_path(folder: Path) -> None:
    shutil.rmtree(folder / "robust")


def swap_directories(folder: Path) -> None:
    (folder / "clean").rename(folder / "other")
    (folder / "robust").rename(folder / "clean")
    (folder / "other").rename(folder / "robust")


DAMAGES = [truncate_graph, flip_byte, lose_path, swap_directories]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_by_load_and_reload(
    bundle: Path, own_bundle: Path, damage: Callable[[Path], None]
) -> None:
    damage(own_bundle)
    with pytest.raises(SmartError):
        SmartModel.load(own_bundle)
    with SmartModel.load(bundle, threads=1) as model:
        with pytest.raises(SmartError):
            model.reload(own_bundle)
        assert_scores(model, "clean")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["robust/model.onnx", "robust/weights.bin"])
def test_a_truncated_file_with_checksums_of_its_own_is_refused(own_bundle: Path, name: str, keep: float) -> None:
    """Checksums that fit do not make a graph: it is refused by what reads it."""
    data = (own_bundle / name).read_bytes()
    (own_bundle / name).write_bytes(data[: int(len(data) * keep)])
    write_checksums(own_bundle)
    Bundle.open(own_bundle).verify()
    with pytest.raises(EngineError):
        SmartModel.load(own_bundle)


def test_a_bundle_written_over_while_it_is_loaded_is_refused(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check of one path and the reading of the other somebody copies another bundle over it."""
    held = Bundle.hold

    def copy_over(self: Bundle, name: str) -> Any:
        result = held(self, name)
        if name == "robust":
            (own_bundle / "robust/weights.bin").write_bytes(graph_files("clean")[1])
        return result

    monkeypatch.setattr(Bundle, "hold", copy_over)
    with pytest.raises(SmartError, match=r"expected 'robust/weights.bin' as it was exported"):
        SmartModel.load(own_bundle)


@cpu_only("no engine")
def test_other_labels_for_the_same_files_need_other_checksums(tmp_path: Path) -> None:
    """The manifest says which file is which path, and the checksums cover it: to change a label changes the digest."""

    def swap_labels(document: dict[str, Any]) -> None:
        paths = ours(document)["paths"]
        paths["clean"], paths["robust"] = paths["robust"], paths["clean"]
        document["components"]["clean"], document["components"]["robust"] = (
            document["components"]["robust"],
            document["components"]["clean"],
        )

    honest, swapped = write_bundle(tmp_path / "honest"), write_bundle(tmp_path / "swapped", change=swap_labels)
    assert Bundle.open(honest).digest != Bundle.open(swapped).digest
    shutil.copy(swapped / "manifest.json", honest / "manifest.json")
    with pytest.raises(SmartError, match=r"expected 'manifest.json' as it was exported"):
        SmartModel.load(honest)
