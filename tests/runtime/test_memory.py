"""Memory modes: all paths loaded, one at a time, or what a budget allows."""

from __future__ import annotations

import asyncio
import mmap
import os
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import smart_runtime.path_changes
import smart_runtime.serving
from runtime.bundles import Array, as_float, expected_scores, graph_files, random_images, write_bundle
from runtime.each_engine import cpu_only
from runtime.fakes import TIMEOUT, Gate, Thread, replace_engines
from smart_runtime import (
    BundleError,
    ClosedError,
    EngineError,
    OutOfMemoryError,
    SmartModel,
)
from smart_runtime.engines import create_engine
from smart_runtime.memory import Mode, choose_mode, resident_bytes

pytestmark = pytest.mark.usefixtures("engine")

FLOATS = as_float(random_images(4))
BYTES = {name: sum(len(data) for data in graph_files(name)) for name in ("clean", "robust")}
BOTH = sum(BYTES.values())
ONE = max(BYTES.values())


def assert_scores(scores: Array, path: str) -> None:
    np.testing.assert_allclose(scores, expected_scores(path, FLOATS), rtol=0, atol=1e-6)


def loaded(model: SmartModel) -> list[str]:
    return [name for name, path in model.memory().paths.items() if path.loaded]


@pytest.mark.parametrize(
    ("memory", "mode"),
    [
        ("resident", "resident"),
        ("on-demand", "on-demand"),
        (BOTH, "resident"),
        (BOTH - 1, "on-demand"),
        (ONE, "on-demand"),
    ],
)
def test_modes(bundle: Path, memory: Any, mode: str) -> None:
    with SmartModel.load(bundle, threads=1, memory=memory) as model:
        report = model.memory()
        assert (report.mode, report.budget_bytes) == (mode, memory if isinstance(memory, int) else None)
        assert {name: path.file_bytes for name, path in report.paths.items()} == BYTES
        assert loaded(model) == (["clean", "robust"] if mode == "resident" else ["clean"])
        for path in ("robust", "clean", "robust"):
            model.switch(path)
            assert_scores(model(FLOATS), path)
            if mode == "on-demand":
                assert loaded(model) == [path]
        assert model.stats.switches == 3


@cpu_only("no engine")
@pytest.mark.parametrize("memory", ["all", 0, -1, True, None, 1.5, ["resident"]])
def test_other_modes_are_refused(bundle: Path, memory: Any) -> None:
    with pytest.raises(EngineError, match="expected 'resident', 'on-demand' or a budget in bytes"):
        SmartModel.load(bundle, memory=memory)


def test_a_budget_that_no_mode_fits(bundle: Path) -> None:
    with pytest.raises(EngineError, match=f"expected a budget of at least {ONE} bytes.*got {ONE - 1}"):
        SmartModel.load(bundle, memory=ONE - 1)


@cpu_only("no engine")
def test_a_budget_chooses_by_every_path() -> None:
    costs = {"clean": 10, "robust": 20, "fast": 5}
    assert [choose_mode(budget, costs=costs) for budget in (35, 34, 20)] == ["resident", "on-demand", "on-demand"]


def test_what_parts_cost_is_measured(bundle: Path) -> None:
    with SmartModel.load(bundle, threads=1) as model:
        report = model.memory()
        assert report.process_bytes is not None
        assert all(path.resident_bytes is not None and path.resident_bytes >= 0 for path in report.paths.values())
        assert sum(path.resident_bytes or 0 for path in report.paths.values()) < report.process_bytes


def test_handles_come_back(bundle: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208  # not a folder of files
    for memory in get_args(Mode):
        model = SmartModel.load(bundle, threads=1, memory=memory)
        model.close()
        with pytest.raises(EngineError):
            SmartModel.load(bundle, memory=1)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@cpu_only("engines of its own")
def test_the_new_path_is_up_before_the_old_one_goes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = {"clean": Gate(1), "robust": Gate(2)}
    replace_engines(monkeypatch, gates.__getitem__)
    model = SmartModel.load(bundle, memory="on-demand")
    gates["robust"].armed = True  # its first run, before the switch
    switching = Thread(lambda: model.switch("robust", reason="test"))
    assert gates["robust"].entered.wait(timeout=TIMEOUT)
    assert (model.path, model.run(FLOATS).path, gates["clean"].closed) == ("clean", "clean", False)
    gates["robust"].let_go.set()
    switching.outcome()
    assert (model.run(FLOATS).path, gates["clean"].closed) == ("robust", True)
    assert model.stats.last_reason == "test"
    model.close()


@cpu_only("engines of its own")
def test_under_a_tight_budget_the_old_path_goes_first_and_calls_wait(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, robust = Gate(1), Gate(2)
    replace_engines(monkeypatch, {"clean": clean, "robust": robust}.__getitem__)
    model = SmartModel.load(bundle, memory=ONE)
    clean.armed = robust.armed = True
    in_flight = Thread(lambda: model.run(FLOATS))
    assert clean.entered.wait(timeout=TIMEOUT)
    switching = Thread(lambda: model.switch("robust"))
    while model._state.settled:  # the switch has begun; it waits for the call
        pass
    waiting = [Thread(lambda: model.run(FLOATS)) for _ in range(3)]
    assert not clean.closed
    assert not robust.entered.is_set()
    clean.let_go.set()
    assert in_flight.outcome().path == "clean"
    assert robust.entered.wait(timeout=TIMEOUT)
    assert clean.closed
    robust.let_go.set()
    switching.outcome()
    assert [call.outcome().path for call in waiting] == ["robust"] * 3
    assert sum(path.errors for path in model.stats.paths.values()) == 0
    model.close()


def test_under_a_tight_budget_the_old_path_comes_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SmartModel.load(bundle, threads=1, memory=ONE) as model:
        monkeypatch.setattr(smart_runtime.serving, "create_engine", failing_for("robust"))
        with pytest.raises(EngineError, match="robust does not work"):
            model.switch("robust")
        assert (model.path, model.stats.switches, loaded(model)) == ("clean", 0, ["clean"])
        assert_scores(model(FLOATS), "clean")


def failing_for(*names: str) -> Any:
    models = {graph_files(name)[0]: name for name in names}

    def create(engine: str, graph: Any, **options: Any) -> Any:
        if graph.model in models:
            raise EngineError(f"{models[graph.model]} does not work")
        return create_engine(engine, graph, **options)

    return create


def test_when_no_path_comes_back_calls_say_why_and_a_later_switch_mends_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SmartModel.load(bundle, threads=1, memory=ONE) as model:
        with monkeypatch.context() as broken:
            broken.setattr(smart_runtime.serving, "create_engine", failing_for("clean", "robust"))
            with pytest.raises(EngineError, match="robust does not work"):
                model.switch("robust")
            with pytest.raises(EngineError, match=r"no path is loaded: .*robust does not.*clean does not"):
                model.run(FLOATS)
            with pytest.raises(EngineError, match="clean does not work"):
                model.switch("clean")
        model.switch("robust")
        assert_scores(model(FLOATS), "robust")
        assert model.path == "robust"


def test_an_interrupt_while_the_old_path_is_loaded_again_is_told_to_calls(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SmartModel.load(bundle, threads=1, memory=ONE) as model:

        def interrupted(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as broken:
            broken.setattr(smart_runtime.serving, "create_engine", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.switch("robust")
        with pytest.raises(EngineError, match="no path is loaded: loading 'robust' failed"):
            model.run(FLOATS)
        model.switch("clean")
        assert_scores(model(FLOATS), "clean")


def test_a_scope_that_begins_while_the_old_path_is_to_be_dropped_keeps_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SmartModel.load(bundle, threads=1, memory=ONE) as model, ExitStack() as scope:

        def scoped_meanwhile(_: int) -> bool:
            scope.enter_context(model.using("clean"))
            return True

        monkeypatch.setattr(smart_runtime.path_changes, "has_room", scoped_meanwhile)
        with pytest.raises(OutOfMemoryError, match="which a block uses"):
            model.switch("robust")
        assert_scores(model(FLOATS), "clean")
        assert (model.path, loaded(model)) == ("clean", ["clean"])


def test_what_the_caller_is_handling_stays_whole(bundle: Path) -> None:
    """To make room, a failed load's frames are let go; those of an exception from before are none of ours."""

    def fail() -> None:
        frame = 42
        raise KeyError(frame)

    def fail_and_switch(model: SmartModel) -> None:
        try:
            fail()
        finally:
            model.switch("robust")

    with SmartModel.load(bundle, threads=1, memory=ONE) as model:
        with pytest.raises(KeyError) as caught:
            fail_and_switch(model)
        assert caught.traceback[-1].locals == {"frame": 42}


@pytest.mark.parametrize("mend", ["switch", "reload"])
def test_a_lost_path_can_be_loaded_again(bundle: Path, monkeypatch: pytest.MonkeyPatch, mend: str) -> None:
    with SmartModel.load(bundle, threads=1, memory=ONE) as model:
        with monkeypatch.context() as broken:
            broken.setattr(smart_runtime.serving, "create_engine", failing_for("clean", "robust"))
            with pytest.raises(EngineError):
                model.switch("robust")
        if mend == "switch":
            model.switch("clean")
        else:
            model.reload(bundle)
        assert_scores(model(FLOATS), "clean")


def test_a_scope_on_demand_has_its_path_for_as_long_as_it_lasts(bundle: Path) -> None:
    with SmartModel.load(bundle, threads=1, memory="on-demand") as model:
        with model.using("robust"):
            assert loaded(model) == ["clean", "robust"]
            assert_scores(model(FLOATS), "robust")
            with model.using("robust"):
                pass
            assert loaded(model) == ["clean", "robust"]
            model.switch("robust")
            assert loaded(model) == ["robust"]
            model.switch("clean")
            assert loaded(model) == ["clean", "robust"]
            assert_scores(model(FLOATS), "robust")
            model.reload(bundle)
            assert loaded(model) == ["clean", "robust"]
            assert_scores(model(FLOATS), "robust")
        assert loaded(model) == ["clean"]
        assert_scores(model(FLOATS), "clean")


def test_a_scope_that_the_budget_forbids(bundle: Path) -> None:
    with SmartModel.load(bundle, threads=1, memory=ONE) as model:
        with (
            pytest.raises(OutOfMemoryError, match=f"expected a budget of at least {BOTH} bytes"),
            model.using("robust"),
        ):
            pass
        with model.using("clean"):  # keeps the only path that fits
            with pytest.raises(OutOfMemoryError, match="'clean', 'robust' at once"):
                model.switch("robust")
            assert_scores(model(FLOATS), "clean")
        model.switch("robust")
        assert_scores(model(FLOATS), "robust")


def test_scopes_of_tasks_on_demand(bundle: Path) -> None:
    async def ask(model: SmartModel, path: str) -> None:
        with model.using(path):
            assert_scores((await model.arun(FLOATS)).scores, path)

    async def main(model: SmartModel) -> None:
        await asyncio.gather(*(ask(model, path) for path in ["clean", "robust"] * 8))

    with SmartModel.load(bundle, threads=1, memory="on-demand") as model:
        asyncio.run(main(model))
        assert loaded(model) == ["clean"]


def test_calls_and_switches_at_once_on_demand(bundle: Path) -> None:
    memory: Any
    for memory in ("on-demand", ONE):
        with SmartModel.load(bundle, threads=1, memory=memory) as model:
            stop = threading.Event()

            def call(model: SmartModel = model, stop: threading.Event = stop) -> int:
                calls = 0
                while not stop.is_set():
                    result = model.run(FLOATS)
                    assert_scores(result.scores, result.path)
                    calls += 1
                return calls

            callers = [Thread(call) for _ in range(4)]
            try:
                for i in range(20):
                    model.switch("clean" if i % 2 else "robust")
            finally:
                stop.set()
            assert all(caller.outcome() > 0 for caller in callers)
            assert sum(path.errors for path in model.stats.paths.values()) == 0


@pytest.mark.parametrize("how", ["removed", "replaced", "renamed"])
def test_a_bundle_that_is_replaced_on_disk_goes_on_serving(own_bundle: Path, how: str) -> None:
    """On demand the files stay open, so that a path can be loaded that is no longer under its name."""
    with SmartModel.load(own_bundle, threads=1, memory="on-demand") as model:
        if how == "renamed":
            own_bundle.rename(own_bundle.with_name("elsewhere"))
        else:
            shutil.rmtree(own_bundle)
        if how == "replaced":
            write_bundle(own_bundle, channels=1)
        model.switch("robust")
        assert_scores(model(FLOATS), "robust")


def test_a_file_that_is_overwritten_in_place_is_refused_and_the_old_path_goes_on(own_bundle: Path) -> None:
    with SmartModel.load(own_bundle, threads=1, memory="on-demand") as model:
        with (own_bundle / "robust/weights.bin").open("r+b") as file:
            file.write(b"other")
        with pytest.raises(BundleError, match=r"expected 'robust/weights.bin' as it was exported"):
            model.switch("robust")
        assert_scores(model(FLOATS), "clean")


def test_closed_on_demand(bundle: Path) -> None:
    model = SmartModel.load(bundle, threads=1, memory="on-demand")
    model.close()
    model.close()
    with pytest.raises(ClosedError):
        model.switch("robust")
    with pytest.raises(ClosedError):
        model.reload(bundle)


_TIGHT = """
import resource, sys
import numpy as np
from smart_runtime import OutOfMemoryError, SmartModel
folder, mode = sys.argv[1:3]
model = SmartModel.load(folder, threads=1, memory=mode)
spec = model.manifest.input
images = np.full((1, *spec.shape), 0.5, np.float32)
known = model(images)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    if mode == "resident":
        model.reload(folder)
    else:
        model.switch("robust")
    print("done", model.path)
except OutOfMemoryError as error:
    print("refused", str(error).split(";")[0])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(model.path, np.array_equal(model(images), known), model.run(images).path)
"""
MIB = 2**20


@pytest.fixture(scope="module")
def large_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paths of 64 MiB each, far more than the slack of an allocator; loading one takes 147 MiB for a moment."""
    return write_bundle(tmp_path_factory.mktemp("large") / "large", baseline=False, ballast_bytes=64 * MIB)


def run_tight(bundle: Path, mode: str, room: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _TIGHT, str(bundle), mode, str(room)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@cpu_only("measured of ONNX Runtime")
def test_where_memory_forbids_two_paths_the_old_one_goes_first(large_bundle: Path) -> None:
    assert run_tight(large_bundle, "on-demand", 136 * MIB) == ["done robust", "robust False robust"]


@cpu_only("measured of ONNX Runtime")
def test_where_memory_forbids_even_that_the_old_path_stays(large_bundle: Path) -> None:
    lines = run_tight(large_bundle, "on-demand", 8 * MIB)
    assert lines[0].startswith("refused too little memory to load the path 'robust' in the place of 'clean'")
    assert lines[1] == "clean True clean"


@cpu_only("measured of ONNX Runtime")
def test_where_memory_forbids_a_reload_the_old_bundle_serves(large_bundle: Path) -> None:
    lines = run_tight(large_bundle, "resident", 32 * MIB)
    assert lines[0].startswith(("refused expected memory for the", "refused too little memory to read"))
    assert lines[1] == "clean True clean"


@cpu_only("no engine")
def test_the_system_says_how_much_memory_a_process_has() -> None:
    content = b"1" * (8 * MIB)  # made before: what it leaves behind would count
    before = resident_bytes()
    with mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE) as kept:  # an array may get pages that earlier tests have freed
        kept.write(content)
        after = resident_bytes()
    assert before is not None
    assert after is not None
    assert 0.9 * 8 * MIB < after - before < 2 * 8 * MIB
