"""The tripwire on a model: what it sees, when it switches, and that no call pays for what goes wrong in it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundles import MIX, as_float, expected_scores, random_images, write_bundle
from runtime.fakes import TIMEOUT, Thread, replace_engines
from runtime.operating_points import LOUD, QUIET, Agreeing, frames, pair, tripwire, write_watched_bundle
from smart_runtime import BundleError, EngineError, InputError, SmartModel
from smart_runtime.engines import Batch, Scores
from smart_runtime.policies import Tripwire
from smart_runtime.tripwire.calibration import calibration_of, write_calibration

OFTEN: dict[str, Any] = {"false_alarms_per_day": 1e4}
"""So that few frames make an alarm, though never one alone."""


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    return write_watched_bundle(tmp_path / "watched")


@pytest.fixture
def agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_engines(monkeypatch, Agreeing)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def until(holds: Callable[[], bool]) -> None:
    """Wait for the worker; a test that waits in vain fails."""
    end = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < end, "the worker did not get there"
        time.sleep(0.001)


def looked_at(policy: Tripwire) -> int:
    status = policy.status()
    return int(status["shadow_runs_total"] + status["shadow_failures_total"])


def looks_further(policy: Tripwire, than: int) -> bool:
    return looked_at(policy) > than


def send(model: SmartModel, policy: Any, *levels: float) -> list[str]:
    """Classify a frame of each brightness, let the worker look at it, and return the path after each."""
    answered = []
    for level in levels:
        before = looked_at(policy)
        model.run(frames(level))
        until(partial(looks_further, policy, before))
        answered.append(model.path)
    return answered


@pytest.mark.usefixtures("agreeing")
def test_it_switches_at_the_alarm_holds_and_comes_back_when_it_is_calm(watched: Path) -> None:
    clock = Clock()
    policy = Tripwire(every=1, **OFTEN, hold_s=60, calm_frames=3, clock=clock)
    with SmartModel.load(watched, policy=policy) as model:
        assert send(model, policy, *[QUIET] * 5) == ["clean"] * 5
        attacked = send(model, policy, *[LOUD] * 6)
        assert attacked[0] == "clean"  # no frame alone raises an alarm
        assert attacked[-1] == "robust"
        assert model.stats.last_reason == "the paths disagree: tripwire alarm"
        assert policy.status()["alarm"]
        assert send(model, policy, *[QUIET] * 10) == ["robust"] * 10  # the hold
        clock.now += 61
        assert send(model, policy, LOUD, *[QUIET] * 10)[-1] == "clean"
        status = policy.status()
        assert (status["alarms_total"], status["alarm"], status["S"]) == (1, False, 0.0)
        assert status["disagreements_total"] == 7
        stats = model.stats
        assert stats.switches_by == {"tripwire": 2}
        # What it runs for itself are no calls of the user's.
        assert sum(path.calls for path in stats.paths.values()) == status["frames_total"] == 32
        assert sum(path.policy_calls for path in stats.paths.values()) == status["shadow_runs_total"] == 32
    assert policy.status()["off"] == "the model is closed"


@pytest.mark.usefixtures("agreeing")
def test_by_name(watched: Path) -> None:
    with SmartModel.load(watched, path="robust", policy="tripwire") as model:
        assert model.path == "clean"
        model.run(frames(QUIET, count=50))
        assert model.policy is not None
        assert model.policy.status()["frames_total"] == 50  # type: ignore[attr-defined]


@pytest.mark.usefixtures("agreeing")
def test_after_too_many_alarms_it_stays_robust_for_the_hour(watched: Path) -> None:
    clock = Clock()
    policy = Tripwire(every=1, **OFTEN, hold_s=1, calm_frames=1, max_switches_per_hour=2, clock=clock)
    with SmartModel.load(watched, policy=policy) as model:
        for _ in range(2):
            assert send(model, policy, *[LOUD] * 6)[-1] == "robust"
            clock.now += 2
            last = send(model, policy, *[QUIET] * 8)[-1]
        assert last == "robust"
        assert policy.status()["stays_robust"]
        clock.now += 3600
        assert send(model, policy, QUIET) == ["clean"]


@pytest.mark.usefixtures("agreeing")
def test_a_clock_that_jumps_back_lengthens_no_hold(watched: Path) -> None:
    clock = Clock()
    policy = Tripwire(every=1, **OFTEN, hold_s=10, calm_frames=1, clock=clock)
    with SmartModel.load(watched, policy=policy) as model:
        send(model, policy, *[LOUD] * 6)
        clock.now -= 1e6
        assert send(model, policy, *[QUIET] * 8)[-1] == "robust"
        clock.now += 10
        assert send(model, policy, QUIET) == ["clean"]


@pytest.mark.usefixtures("agreeing")
def test_a_hand_overrules_it(watched: Path) -> None:
    policy = Tripwire(every=1, **OFTEN)
    with SmartModel.load(watched, policy=policy) as model:
        model.path = "clean"
        assert send(model, policy, *[LOUD] * 8) == ["clean"] * 8
        assert policy.status()["alarm"]
        assert model.stats.ignored_switches > 0
        model.follow_policy()
        assert send(model, policy, LOUD) == ["robust"]


@pytest.mark.usefixtures("agreeing")
def test_from_a_mix_it_comes_back_to_its_own_paths(tmp_path: Path) -> None:
    """It watches the two paths alone, so one that a mix answers in the place of must not wait for a frame to watch."""
    policy = Tripwire(every=1, **OFTEN)
    with SmartModel.load(write_watched_bundle(tmp_path / "mixed", mixed=True), policy=policy) as model:
        model.path = MIX
        assert [model.run(frames(LOUD)).path for _ in range(9)] == [MIX] * 9
        assert (policy.status()["frames_total"], model.stats.ignored_switches) == (0, 9)
        model.follow_policy()
        model.run(frames(QUIET))
        assert model.path == "clean"
        with model.using(MIX):
            assert [model.run(frames(LOUD)).path for _ in range(9)] == [MIX] * 9
        assert model.path == "clean"
        assert send(model, policy, *[LOUD] * 6)[-1] == "robust"
        model.path = MIX
        model.follow_policy()
        model.run(frames(LOUD))
        assert (model.path, model.stats.last_reason) == ("robust", "the paths disagree: tripwire alarm")


@pytest.mark.usefixtures("agreeing")
def test_frames_are_drawn_at_random_one_in_so_many(watched: Path) -> None:
    """Also in batches: the gaps are those of a draw for each frame, geometric with the mean that was asked for."""
    gaps = []
    for sizes in ([1] * 4000, [7] * 600):
        policy = Tripwire(every=10, seed=3)
        position, last = 0, -1
        for size in sizes:
            for drawn in policy._draw(size):
                gaps.append(position + drawn - last)
                last = position + drawn
            position += size
    gaps_array = np.array(gaps)
    error = gaps_array.std() / len(gaps) ** 0.5
    assert abs(gaps_array.mean() - 10) < 4 * error
    assert abs((gaps_array == 1).mean() - 0.1) < 4 * (0.09 / len(gaps)) ** 0.5
    assert gaps_array.max() > 30
    assert Tripwire(every=1)._draw(3) == [0, 1, 2]


def test_what_it_cannot_watch_fails_the_load(tmp_path: Path, watched: Path, own_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no operating points.*export it again"):
        SmartModel.load(own_bundle, policy="tripwire")
    with pytest.raises(EngineError, match="memory='resident'"):
        SmartModel.load(watched, memory="on-demand", policy="tripwire")
    with pytest.raises(InputError, match="no operating point for the score 'hunch'"):
        SmartModel.load(watched, policy=Tripwire(score="hunch"))
    with pytest.raises(InputError, match="no calibration of the tripwire at"):
        SmartModel.load(watched, policy=Tripwire(calibration=tmp_path / "nowhere.json"))
    bends: list[dict[str, Any]] = [
        {"clean": "robust"},
        {"points": {}},
        {"points": {"kl": 1}},
        {"points": {"hunch": {}}},
    ]
    for number, changes in enumerate(bends):
        bent = write_watched_bundle(tmp_path / f"bent{number}", **changes)
        with pytest.raises(BundleError, match=r"the manifest is damaged: expected .* tripwire"):
            SmartModel.load(bent, policy="tripwire")


def test_a_bundle_of_two_paths_for_clean_images(tmp_path: Path) -> None:
    def no_attacked(document: dict[str, Any]) -> None:
        document["additional_metadata"]["smart_edge"]["paths"]["robust"]["role"] = "clean"

    with pytest.raises(BundleError, match="no such pair"):
        SmartModel.load(write_bundle(tmp_path / "same", change=no_attacked), policy="tripwire")


def test_one_model_each(watched: Path) -> None:
    policy = Tripwire()
    with SmartModel.load(watched, policy=policy), pytest.raises(InputError, match="another model already"):
        SmartModel.load(watched, policy=policy)


def test_false_alarms_that_no_threshold_keeps_apart() -> None:
    with pytest.raises(ValueError, match=r"allow 3e-05 a day"):
        Tripwire(every=10, false_alarms_per_day=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"false_alarms_per_day": 0},
        {"rate_hz": float("nan")},
        {"hold_s": -1},
        {"calm_frames": 0},
        {"max_switches_per_hour": 0},
    ],
)
def test_arguments_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} from"):
        Tripwire(**wrong)


def test_a_calibration_is_of_its_bundle_only(tmp_path: Path, watched: Path, agreeing: None) -> None:
    with SmartModel.load(watched) as model:
        digest = model.bundle.digest
    file = tmp_path / "own.json"
    write_calibration(file, calibration_of(pair(apart=40, together=60), tripwire=tripwire(), digest=digest))
    policy = Tripwire(every=1, calibration=file)
    with SmartModel.load(watched, policy=policy) as model:
        assert send(model, policy, *[LOUD] * 4) == ["clean"] * 4  # 40% of such frames are usual here
    write_calibration(file, calibration_of(pair(apart=40, together=60), tripwire=tripwire(), digest="0" * 64))
    with pytest.raises(InputError, match="the calibration is that of the bundle 000000000000, and this one is"):
        SmartModel.load(watched, policy=Tripwire(calibration=file))


def test_a_calibration_is_the_same_file_after_chdir(
    tmp_path: Path, watched: Path, monkeypatch: pytest.MonkeyPatch, agreeing: None
) -> None:
    with SmartModel.load(watched) as model:
        digest = model.bundle.digest
    for folder, apart in (("ours", 40), ("theirs", 1)):
        (tmp_path / folder).mkdir()
        counts = calibration_of(pair(apart=apart, together=60), tripwire=tripwire(), digest=digest)
        write_calibration(tmp_path / folder / "own.json", counts)
    monkeypatch.chdir(tmp_path / "ours")
    policy = Tripwire(calibration="own.json")
    with SmartModel.load(watched, policy=policy) as model:
        before = policy.status()
        for place in (tmp_path / "theirs", tmp_path):
            monkeypatch.chdir(place)
            model.reload(watched)
            assert policy.status() == before


class Failing(Agreeing):
    """As the robust path it fails on pictures, but not on what loading tries."""

    def run(self, batch: Batch) -> Scores:
        if self.robust and len(np.unique(batch)) == 1 and batch.flat[0] > 0:
            raise EngineError("the card is gone")
        return super().run(batch)


def test_a_shadow_that_fails_is_counted_and_calls_go_on(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_engines(monkeypatch, Failing)
    policy = Tripwire(every=1)
    with SmartModel.load(watched, policy=policy) as model:
        assert send(model, policy, *[QUIET] * 3) == ["clean"] * 3
        status = policy.status()
        assert (status["shadow_failures_total"], status["shadow_runs_total"], status["restarts_total"]) == (3, 0, 0)
        assert status["last_failure"] == "EngineError: the card is gone"
        assert model.stats.paths["robust"].errors == 0
        assert model.stats.paths["clean"].calls == 3
        metrics = model.metrics()
    assert "\nsmart_edge_policy_shadow_failures_total 3.0\n" in metrics
    numbers = [name for name, value in status.items() if isinstance(value, int | float)]
    assert [name for name in numbers if f"# TYPE smart_edge_policy_{name} " not in metrics] == []
    assert "\nsmart_edge_policy_failures_total 0\n" in metrics  # of the policy itself


class Waiting(Agreeing):
    """As the robust path it waits for its test before it answers a picture."""

    may = threading.Semaphore(0)

    def run(self, batch: Batch) -> Scores:
        if self.robust and len(np.unique(batch)) == 1 and batch.flat[0] > 0:
            assert self.may.acquire(timeout=TIMEOUT)
        return super().run(batch)


def test_what_comes_while_the_worker_is_behind_is_dropped(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Waiting.may = threading.Semaphore(0)
    replace_engines(monkeypatch, Waiting)
    policy = Tripwire(every=1)
    with SmartModel.load(watched, policy=policy) as model:
        for _ in range(30):
            model.run(frames(QUIET))
        status = policy.status()
        assert status["frames_total"] == 30
        assert 30 - 24 <= status["dropped_total"] <= 30 - 16  # 16 wait, up to 8 may be in work
        model.close()  # while the shadow runs: nobody waits for it
        Waiting.may.release(100)
        until(lambda: not policy._working)


def test_few_frames_of_a_large_batch_are_looked_at(watched: Path, agreeing: None) -> None:
    policy = Tripwire(every=1)
    with SmartModel.load(watched, policy=policy) as model:
        model.run(frames(QUIET, count=100))
        until(lambda: policy.status()["shadow_runs_total"] == 8)
        assert policy.status()["dropped_total"] == 92


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_died_is_replaced(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Waiting.may = threading.Semaphore(0)
    replace_engines(monkeypatch, Waiting)
    policy = Tripwire(every=1)
    with SmartModel.load(watched, policy=policy) as model:
        model.run(frames(QUIET))
        until(lambda: policy._working and policy._jobs.qsize() == 0)
        worker = policy._worker and policy._worker()
        assert worker is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(SystemExit))
        del worker
        Waiting.may.release()
        until(lambda: not policy._working)
        Waiting.may.release(2)
        assert send(model, policy, QUIET) == ["clean"]
        assert policy.status()["restarts_total"] == 1


@pytest.mark.usefixtures("agreeing")
def test_a_reload_begins_again_or_turns_it_off(tmp_path: Path, watched: Path, own_bundle: Path) -> None:
    policy = Tripwire(every=1, **OFTEN)
    with SmartModel.load(watched, policy=policy) as model:
        send(model, policy, LOUD, LOUD)
        before = policy.status()["S"]
        assert before > 0
        model.reload(write_watched_bundle(tmp_path / "next"))
        assert policy.status()["S"] == 0
        assert send(model, policy, LOUD) == ["clean"]
        model.reload(own_bundle)
        assert "no operating points" in policy.status()["off"]
        assert [model.run(frames(LOUD)).path for _ in range(20)] == ["clean"] * 20
        assert model.stats.policy_failures == 1
        model.reload(watched)
        assert policy.status()["off"] == ""
        assert send(model, policy, *[LOUD] * 6)[-1] == "robust"
        model.reload(own_bundle)
        assert model.path == "robust"  # an alarm that nobody can end stays


class Slow(Agreeing):
    """As the clean path it waits for its test before it answers a bright picture."""

    begun, may = threading.Event(), threading.Event()

    def run(self, batch: Batch) -> Scores:
        if not self.robust and len(np.unique(batch)) == 1 and batch.flat[0] > 0.5:
            self.begun.set()
            assert self.may.wait(TIMEOUT)
        return super().run(batch)


def test_a_call_that_a_reload_overtakes_is_not_judged_by_the_new_bundle(
    tmp_path: Path, watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Slow.begun, Slow.may = threading.Event(), threading.Event()
    replace_engines(monkeypatch, Slow)
    policy = Tripwire(every=1)
    with SmartModel.load(watched, policy=policy) as model:
        call = Thread(partial(model.run, frames(LOUD)))
        assert Slow.begun.wait(TIMEOUT)
        model.reload(write_watched_bundle(tmp_path / "next"))
        Slow.may.set()
        assert call.outcome().path == "clean"
        send(model, policy, QUIET)
        status = policy.status()
        assert (status["shadow_runs_total"], status["disagreements_total"]) == (1, 0)


@pytest.mark.usefixtures("agreeing")
def test_threads_and_tasks(watched: Path) -> None:
    policy = Tripwire(every=3)
    callers, calls = 4, 100
    with SmartModel.load(watched, policy=policy) as model:

        def call() -> None:
            for _ in range(calls):
                model.run(frames(QUIET, count=2))

        for thread in [Thread(call) for _ in range(callers)]:
            thread.outcome()

        async def main() -> None:
            await asyncio.gather(*(model.arun(frames(QUIET, count=2)) for _ in range(calls)))

        asyncio.run(main())
        until(lambda: policy._jobs.qsize() == 0)
        status = policy.status()
        assert status["frames_total"] == 2 * calls * (callers + 1)
        assert status["shadow_failures_total"] == status["alarms_total"] == 0
        assert model.stats.policy_failures == 0


def test_no_result_is_mixed_while_it_switches_under_load(tmp_path: Path) -> None:
    """Real graphs, on which the paths disagree on most noise: each result is the one path's that it names."""
    images = as_float(random_images(64))
    expected = {name: expected_scores(name, images) for name in ("clean", "robust")}
    policy = Tripwire(every=1, hold_s=0, calm_frames=1, max_switches_per_hour=1_000_000, false_alarms_per_day=1e6)
    with SmartModel.load(write_watched_bundle(tmp_path / "real"), threads=1, policy=policy) as model:

        def call(number: int) -> None:
            rng = np.random.default_rng(number)
            for _ in range(300):
                one = rng.integers(64)
                result = model.run(images[one : one + 1])
                np.testing.assert_allclose(result.scores[0], expected[result.path][one], rtol=0, atol=1e-5)

        for thread in [Thread(partial(call, number)) for number in range(3)]:
            thread.outcome()
        assert model.stats.policy_failures == policy.status()["shadow_failures_total"] == 0


def test_a_forgotten_model_goes_and_takes_its_worker_along(watched: Path, agreeing: None) -> None:
    policy = Tripwire(every=1)
    model = SmartModel.load(watched, policy=policy)
    send(model, policy, QUIET)
    worker, gone = policy._worker, weakref.ref(policy)
    assert worker is not None
    del policy, model
    gc.collect()
    assert gone() is None
    until(lambda: worker() is None)


def test_a_forked_child_watches_nothing(watched: Path, agreeing: None) -> None:
    policy = Tripwire(every=1)
    with SmartModel.load(watched, policy=policy) as model:
        send(model, policy, QUIET)
        child = os.fork()
        if child == 0:
            os._exit(0 if "forked" in policy.status()["off"] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert send(model, policy, QUIET) == ["clean"]


def test_a_finished_program_ends_without_closing(watched: Path) -> None:
    program = (
        "import sys, numpy; from smart_runtime import SmartModel; from smart_runtime.policies import Tripwire\n"
        "model = SmartModel.load(sys.argv[1], policy=Tripwire(every=1))\n"
        "for _ in range(5): model.run(numpy.full((1, 3, 6, 4), 0.5, numpy.float32))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(watched)], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
