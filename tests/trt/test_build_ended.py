"""Builds that end too early: nothing is left of them, and one sentence says why."""

from __future__ import annotations

import gc
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from hardened.striking import Stop, places, struck
from runtime.fakes import TIMEOUT
from smart_runtime.engines.trt import build, plan_worker
from smart_runtime.engines.trt.build import STARTING, BuiltPlan, build_plan
from smart_runtime.errors import EngineError
from trt.builds import (
    RECIPE,
    Children,
    no_child_is_left,
    nothing_left,
    open_files,
    processes,
    small_graph,
    wait_until_dead,
)

pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX library (extra tensorrt-rtx) is not installed")
pytestmark = pytest.mark.trt

MOMENTS = 20
TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    return Children(monkeypatch)


@pytest.fixture(scope="module")
def whole() -> BuiltPlan:
    return build_plan(small_graph(), RECIPE)


def at_phase(name: str, act: Callable[[], object]) -> Callable[[str, float], None]:
    """Do ``act`` once when the phase ``name`` begins."""
    todo = [act]

    def on_phase(phase: str, _: float) -> None:
        if phase == name and todo:
            todo.pop()()

    return on_phase


def kill_at(resident: int, children: Children, ended: threading.Event) -> None:
    """Kill the child with signal 9 as soon as it holds so many bytes."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # behind the child, which it watches all the time
    while not children.pids:
        if ended.is_set():
            return
    page = os.sysconf("SC_PAGE_SIZE")
    memory = Path(f"/proc/{children.pid}/statm")
    with suppress(FileNotFoundError, ProcessLookupError):  # it was done before
        while not ended.is_set():
            if int(memory.read_text().split()[1]) * page >= resident:
                os.kill(children.pid, signal.SIGKILL)
                return


def killed_or_whole(whole: BuiltPlan, on_phase: Callable[[str, float], None] | None = None) -> bool:
    """Build; whether the child was killed before it was done. There is no third way."""
    try:
        built = build_plan(small_graph(), RECIPE, on_phase=on_phase)
    except EngineError as error:
        assert re.search("was killed in the phase '.*memory.*--workspace.*--level 2.*swap", str(error))  # noqa: PT017
        return True
    assert len(built.plan) == len(whole.plan)
    return False


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_builder_killed_at_any_moment_leaves_nothing(moment: int, whole: BuiltPlan, children: Children) -> None:
    """From the interpreter's start to the plan: moments are told by the memory that the child holds so far."""
    assert whole.peak_bytes is not None
    ended = threading.Event()
    killer = threading.Thread(target=kill_at, args=(whole.peak_bytes * moment // MOMENTS, children, ended))
    with nothing_left():
        killer.start()
        try:
            killed = killed_or_whole(whole)
        finally:
            ended.set()
            killer.join()
    assert killed or moment > MOMENTS // 4  # on a busy machine the build may be done before a late moment is seen


@pytest.mark.parametrize("phase", [STARTING, plan_worker.READING, plan_worker.BUILDING, "Timing tactics"])
def test_a_builder_killed_in_a_phase_leaves_nothing(phase: str, whole: BuiltPlan, children: Children) -> None:
    with nothing_left():
        killed = killed_or_whole(whole, at_phase(phase, lambda: os.kill(children.pid, signal.SIGKILL)))
    assert killed or phase != STARTING


@pytest.fixture
def talking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the child do, in the place of the library's import, what it is told."""

    def use(code: str) -> None:
        (tmp_path / "tensorrt_rtx.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    return use


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "crashed with signal 6 in the phase 'starting'; try --level 2, or report this"),
        (
            "import os; os.write(2, b'one\\nterminate called: \\x1b[31mwhat\\n'); os.abort()",
            r"crashed with signal 6 in the phase 'starting': terminate called: .*what; try --level 2",
        ),
        ("import os; os._exit(7)", "ended with status 7 in the phase 'starting'; try --level 2"),
        ("raise SystemExit(3)", "ended with status 3 in the phase 'starting'"),
        ("1 / 0", "the build failed: ZeroDivisionError: division by zero; report this"),
        ("raise MemoryError", "too little memory for the build; free some"),
    ],
)
def test_a_builder_that_ends_by_itself_is_said_to(code: str, said: str, talking: Callable[[str], None]) -> None:
    talking(code)
    with nothing_left(), pytest.raises(EngineError, match=said) as caught:
        build_plan(small_graph(), RECIPE)
    assert str(caught.value).isprintable()


def test_a_timeout_ends_a_build_that_hangs(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is stopped, and our clock is a test's: an hour goes by at once."""
    hours = [0.0]

    def hang() -> None:
        os.kill(children.pid, signal.SIGSTOP)
        hours.append(3600.0)

    monkeypatch.setattr("smart_runtime.engines.trt.build.time.monotonic", lambda: hours[-1])
    with nothing_left(), pytest.raises(EngineError, match=r"ended after 60 seconds, in the phase .* --timeout"):
        build_plan(small_graph(), RECIPE, timeout_s=60, on_phase=at_phase(plan_worker.READING, hang))


def test_no_time_at_all_is_not_enough(children: Children) -> None:
    with nothing_left(), pytest.raises(EngineError, match=r"ended after 0 seconds, in the phase 'starting'"):
        build_plan(small_graph(), RECIPE, timeout_s=0)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, BrokenPipeError, MemoryError, Stop])
def test_what_a_display_raises_ends_the_build(raised: type[BaseException]) -> None:
    def fail(_: str, __: float) -> None:
        raise raised

    with nothing_left(), pytest.raises(raised):
        build_plan(small_graph(), RECIPE, on_phase=fail)


def test_a_display_is_told_the_time_while_nothing_happens(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TICK_SECONDS", 0.001)
    told: list[str] = []

    def on_phase(phase: str, _: float) -> None:
        told.append(phase)
        if phase == plan_worker.READING and told.count(phase) == 1:  # once: nobody might let it go on again
            os.kill(children.pid, signal.SIGSTOP)
        if told.count(phase) == 100:
            os.kill(children.pid, signal.SIGCONT)

    build_plan(small_graph(), RECIPE, on_phase=on_phase)
    assert max(map(told.count, told)) >= 100


_QUICK = """
import json, os, sys
request = json.loads(sys.argv[1])
os.write(request["plan"], b"plan")
done = {"version": "1", "seconds": 1, "layers": None, "eligible": None, "sparse": None, "peak_bytes": None}
for line in ({"phase": "one"}, {"log": "words"}, {"done": done, "bytes": 4, "sha256": SHA}):
    os.write(request["report"], json.dumps(line).encode() + b"\\n")
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is done at once."""
    import hashlib  # noqa: PLC0415

    (tmp_path / "quick_worker.py").write_text(_QUICK.replace("SHA", repr(hashlib.sha256(b"plan").hexdigest()), 1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(build, "_WORKER", "quick_worker")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_place_leaves_nothing(every: int) -> None:
    model = small_graph()

    def work() -> None:
        assert build_plan(model, RECIPE, on_phase=lambda *_: None, timeout_s=TIMEOUT).plan == b"plan"

    before, there = open_files(), processes()
    where = places(work)
    assert len(where) > MOMENTS
    for at in where[::every]:
        assert isinstance(struck(work, at=at), Stop | None)
        gc.collect()  # what was struck between its making and its owner
        subprocess._cleanup()  # type: ignore[attr-defined]  # children whose Popen was struck; the next one does this
        while not no_child_is_left(there):
            subprocess._cleanup()  # type: ignore[attr-defined]  # one that ends with its standard input
        assert open_files() == before


_PARENT = """
import os, signal, subprocess, sys
from smart_runtime.engines.trt import build
from trt.builds import RECIPE, small_graph
class Recorded(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.told = False
        Recorded.last = self
build.subprocess.Popen = Recorded
def on_phase(name, seconds):
    if name == sys.argv[1] and not Recorded.last.told:
        Recorded.last.told = True
        if sys.argv[2] == "stopped":
            os.kill(Recorded.last.pid, signal.SIGSTOP)
        os.write(1, b"%d\\n" % Recorded.last.pid)
        signal.sigwait(set()) if sys.argv[3] == "waiting" else None
try:
    build.build_plan(small_graph(), RECIPE, on_phase=on_phase)
except KeyboardInterrupt:
    os.write(1, b"interrupted\\n")
"""


@pytest.fixture
def parent() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], int]]]:
    """Start a process that builds, in a group of its own; returns it and a pidfd of its child in that phase."""
    started: list[subprocess.Popen[bytes]] = []
    files: list[int] = []

    def start(phase: str, *how: str) -> tuple[subprocess.Popen[bytes], int]:
        path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
        process = subprocess.Popen(
            [sys.executable, "-c", _PARENT, phase, *how],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        files.append(os.pidfd_open(int(process.stdout.readline())))
        return process, files[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for file in files:
        os.close(file)


@pytest.mark.parametrize("phase", [plan_worker.READING, "Building engine"])
def test_a_parent_that_is_killed_takes_its_child_along(
    phase: str, parent: Callable[..., tuple[subprocess.Popen[bytes], int]]
) -> None:
    process, child = parent(phase, "stopped", "going")  # stopped, so that it cannot end for another reason
    process.kill()
    wait_until_dead(child)


@pytest.mark.parametrize("phase", [plan_worker.READING, "Building engine"])
def test_ctrl_c_ends_both(phase: str, parent: Callable[..., tuple[subprocess.Popen[bytes], int]]) -> None:
    process, child = parent(phase, "stopped", "going")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=TIMEOUT)
    assert said == b"interrupted\n"
    assert process.returncode == 0
    wait_until_dead(child)


def test_a_child_whose_parent_has_forgotten_it_ends(children: Children) -> None:
    """Ctrl-C can come when the child is there and nobody has it yet: then the end of its standard input is its own."""
    recipe = RECIPE
    names = ("graph", "plan", "output")
    with ExitStack() as undo:
        graph, plan, output = map(undo.enter_context, build._memory_files(*names))
        build._write_sealed(graph, small_graph())
        child = undo.enter_context(build._Child(recipe, graph=graph, plan=plan, output=output))
        assert next(told for told in child.told(None) if "phase" in told)
        file = os.pidfd_open(children.pid)
        undo.callback(os.close, file)
        assert child._process.stdin is not None
        child._process.stdin.close()
        poll = select.poll()
        poll.register(file, select.POLLIN)
        assert poll.poll(1000 * TIMEOUT)
        assert child.wait() == -signal.SIGKILL
