"""Policies: what decides by itself which path answers."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smart_runtime.policies
from runtime.bundles import CLASSES, as_float, random_images
from runtime.fakes import Thread, replace_engines
from smart_common.lazy import load
from smart_runtime import ClosedError, Hysteresis, InputError, PathError, Policy, Result, SmartModel, SwitchRequest
from smart_runtime.engines import Batch, Engine, Scores
from smart_runtime.inputs import Images
from smart_runtime.policies import POLICIES
from smart_runtime.policies.policy import PolicyModel

FLOATS = as_float(random_images(2))


class Scripted:
    """Does what ``ask`` says with each call, and remembers what it saw."""

    def __init__(self, ask: Callable[[Result], Any] = lambda _: None) -> None:
        self.ask = ask
        self.seen: list[str] = []
        self.events: list[str] = []

    def start(self, model: PolicyModel) -> None:
        self.model = model
        self.events.append("start")

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:
        assert images.shape == FLOATS.shape
        self.seen.append(result.path)
        answer: SwitchRequest | None = self.ask(result)
        return answer

    def stop(self) -> None:
        self.events.append("stop")


def test_a_policy_sees_each_call_and_switches_with_a_reason(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = Scripted(lambda _: SwitchRequest("robust", "dusk"))
    with caplog.at_level(logging.INFO, logger="smart_runtime"), SmartModel.load(bundle, policy=policy) as model:
        assert [model.run(FLOATS).path for _ in range(3)] == ["clean", "robust", "robust"]
        assert policy.seen == ["clean", "robust", "robust"]
        stats = model.stats
        assert (stats.switches, stats.last_reason, stats.policy_failures) == (1, "dusk", 0)
        assert policy.events == ["start"]
    model.close()
    assert policy.events == ["start", "stop"]
    assert [record.getMessage() for record in caplog.records] == ["path 'robust' answers from now on, reason 'dusk'"]


def test_a_call_that_failed_is_not_observed(bundle: Path) -> None:
    policy = Scripted()
    with SmartModel.load(bundle, policy=policy) as model:
        with pytest.raises(InputError):
            model.run(FLOATS[0])
        assert policy.seen == []


def raising(_: Result) -> None:
    raise ZeroDivisionError("a policy's own fault")


@pytest.mark.parametrize(
    "ask",
    [
        raising,
        lambda _: SwitchRequest("nowhere", "lost"),
        lambda _: SwitchRequest(["clean"], "no text"),  # type: ignore[arg-type]
        lambda _: "robust",
    ],
    ids=["raises", "unknown path", "a path that is no text", "no request"],
)
def test_a_policy_that_fails_breaks_no_call(bundle: Path, caplog: pytest.LogCaptureFixture, ask: Any) -> None:
    with SmartModel.load(bundle, policy=Scripted(ask)) as model:
        assert [model.run(FLOATS).path for _ in range(10)] == ["clean"] * 10
        stats = model.stats
    assert (stats.policy_failures, stats.switches) == (10, 0)
    assert (stats.paths["clean"].calls, stats.paths["clean"].errors) == (10, 0)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"the policy failed in observe, {count} failures so far; calls go on" for count in (1, 2, 4, 8)]
    assert caplog.records[0].exc_info is not None


def test_a_switch_that_fails_breaks_no_call(own_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On demand the other path is loaded after the call that asks for it; here its file has been overwritten."""
    policy = Scripted(lambda _: SwitchRequest("robust", "dusk"))
    with SmartModel.load(own_bundle, memory="on-demand", policy=policy) as model:
        with (own_bundle / "robust/weights.bin").open("r+b") as file:
            file.write(b"other")
        assert [model.run(FLOATS).path for _ in range(2)] == ["clean"] * 2
        assert (model.stats.policy_failures, model.stats.switches) == (2, 0)
    assert "as it was exported" in caplog.text


def test_a_policy_switches_on_demand(bundle: Path) -> None:
    policy = Scripted(lambda result: SwitchRequest("clean" if result.path == "robust" else "robust", "turn"))
    with SmartModel.load(bundle, memory="on-demand", policy=policy) as model:
        assert [model.run(FLOATS).path for _ in range(4)] == ["clean", "robust"] * 2


def test_a_policy_that_cannot_start_fails_the_load(bundle: Path) -> None:
    models: list[Any] = []

    class Refusing(Scripted):
        def start(self, model: PolicyModel) -> None:
            models.append(model)
            raise ZeroDivisionError

    policy = Refusing()
    with pytest.raises(ZeroDivisionError):
        SmartModel.load(bundle, policy=policy)
    assert policy.events == []  # it never ran, so there is nothing to stop
    with pytest.raises(ClosedError):
        models[0].run(FLOATS)


def test_a_policy_that_does_not_stop_keeps_nothing_open(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = Scripted()
    policy.stop = functools.partial(raising, None)  # type: ignore[method-assign, arg-type]
    model = SmartModel.load(bundle, policy=policy)
    model.close()
    assert model.stats.policy_failures == 1
    assert "the policy failed in stop" in caplog.text


def test_a_policy_may_close_the_model(bundle: Path) -> None:
    """As another thread might between a call and its policy: that is no failure of the policy."""
    model = SmartModel.load(bundle)

    def close(_: Result) -> SwitchRequest:
        model.close()
        return SwitchRequest("robust", "too late")

    policy = Scripted(close)
    model._steering.policy = policy
    assert model.run(FLOATS).path == "clean"
    assert (model.stats.policy_failures, policy.events) == (0, ["stop"])


class Tripwire(Scripted):
    """Runs the same images on the other path too, and switches where the two disagree: one more file, no more."""

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:
        self.seen.append(result.path)
        with self.model.using("robust"):
            other = self.model.run(images)
        agree = np.array_equal(result.scores.argmax(axis=1), other.scores.argmax(axis=1))
        return SwitchRequest("clean" if agree else "robust", f"the paths {'agree' if agree else 'disagree'}")


def test_a_policy_may_run_other_paths_without_being_shown_that(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bright(Engine):
        """Sees a bright picture as class 1 if it may, else all pictures as class 0."""

        def __init__(self, path: str) -> None:
            self.may = path == "clean"

        @classmethod
        def create(cls, *_: object, **__: object) -> Engine:
            raise AssertionError("a model under test is given its engines")

        def run(self, batch: Batch) -> Scores:
            found = (batch.mean(axis=(1, 2, 3)) > 0.5) & self.may
            scores: Scores = np.eye(CLASSES, dtype=np.float32)[found.astype(int)]
            return scores

        def close(self) -> None: ...

        def describe(self) -> dict[str, Any]:
            return {"engine": "a test's"}

    replace_engines(monkeypatch, Bright)
    policy = Tripwire()
    with SmartModel.load(bundle, policy=policy) as model:
        answered = [model.run(np.full_like(FLOATS, level)).path for level in (0.1, 0.9, 0.1, 0.1)]
        assert answered == ["clean", "clean", "robust", "clean"]
        assert policy.seen == answered
        stats = model.stats
    assert (stats.last_reason, stats.policy_failures) == ("the paths agree", 0)
    assert {name: path.calls for name, path in stats.paths.items()} == {"clean": 3, "robust": 1}
    assert {name: path.policy_calls for name, path in stats.paths.items()} == {"clean": 0, "robust": 4}


def test_a_policy_is_called_in_every_thread_and_task(bundle: Path) -> None:
    """Many callers at once, and every second call asks for the other path: each is seen, and nothing fails."""
    policy = Scripted(lambda result: SwitchRequest("robust" if result.path == "clean" else "clean", "turn"))
    callers, calls = 6, 100
    with SmartModel.load(bundle, threads=1, policy=policy) as model:
        start = threading.Barrier(callers)

        def call() -> None:
            start.wait()
            for _ in range(calls):
                model.run(FLOATS)

        for thread in [Thread(call) for _ in range(callers)]:
            thread.outcome()

        async def main() -> None:
            await asyncio.gather(*(model.arun(FLOATS) for _ in range(calls)))

        asyncio.run(main())
        stats = model.stats
    assert len(policy.seen) == sum(path.calls for path in stats.paths.values()) == (callers + 1) * calls
    assert stats.policy_failures == 0
    assert stats.switches > 0


class Setting:
    """A signal and a clock that a test sets."""

    def __init__(self) -> None:
        self.value, self.now = 0.0, 100.0

    def policy(self, **levels: Any) -> Hysteresis:
        levels = {"path": "robust", "otherwise": "clean", "enter": 0.8, "leave": 0.5, **levels}
        return Hysteresis(lambda: self.value, clock=lambda: self.now, **levels)


def test_hysteresis_enters_above_one_level_and_leaves_below_another(bundle: Path) -> None:
    setting = Setting()
    with SmartModel.load(bundle, policy=setting.policy()) as model:
        answered = []
        for value in (0.0, 0.8, 0.81, 0.6, 0.5, float("nan"), 0.49, 0.6):
            setting.value = value
            model.run(FLOATS)
            answered.append(model.path)
        assert answered == ["clean", "clean", "robust", "robust", "robust", "robust", "clean", "clean"]
        assert (model.stats.switches, model.stats.last_reason) == (2, "signal 0.49 below 0.5")


def test_hysteresis_holds_for_a_time_since_the_signal_was_last_high(bundle: Path) -> None:
    setting = Setting()
    with SmartModel.load(bundle, policy=setting.policy(hold_s=10)) as model:
        answered = []
        for now, value in ((0, 1.0), (5, 0.0), (6, 1.0), (15.9, 0.0), (16, 0.0), (17, 0.6)):
            setting.now, setting.value = now, value
            model.run(FLOATS)
            answered.append(model.path)
        assert answered == ["robust", "robust", "robust", "robust", "clean", "clean"]


def test_a_signal_that_raises_is_a_failure_of_the_policy(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = iter([0.5])  # and then StopIteration
    policy = Hysteresis(lambda: next(values), path="robust", otherwise="clean", enter=1, leave=0)
    with SmartModel.load(bundle, policy=policy) as model:
        assert model.run(FLOATS).path == "clean"
        assert model.stats.policy_failures == 1
    assert "StopIteration" in caplog.text


def test_hysteresis_decides_the_first_call_too(bundle: Path) -> None:
    setting = Setting()
    setting.value = 1.0
    with SmartModel.load(bundle, policy=setting.policy()) as model:
        assert model.run(FLOATS).path == "robust"


def test_hysteresis_with_a_path_that_the_bundle_does_not_have(bundle: Path) -> None:
    for paths in ({"path": "fast"}, {"otherwise": "fast"}):
        with pytest.raises(PathError, match="unknown path 'fast'"):
            SmartModel.load(bundle, policy=Setting().policy(**paths))


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"enter": 0.4}, "expected leave <= enter, got leave 0.5 and enter 0.4"),
        ({"enter": float("nan")}, "expected leave <= enter"),
        ({"hold_s": -1}, "expected hold_s in seconds, at least 0, got -1"),
        ({"hold_s": float("nan")}, "got nan"),
    ],
)
def test_levels_that_make_no_sense(levels: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Setting().policy(**levels)


@pytest.mark.parametrize("name", POLICIES)
def test_a_row_makes_a_policy_importable(name: str) -> None:
    policy = getattr(smart_runtime.policies, name)
    assert policy is load(f"{POLICIES[name]}:{name}")
    assert all(callable(getattr(policy, method)) for method in ("start", "observe", "stop"))


def test_what_the_type_checker_holds() -> None:
    """Both are policies: mypy reads this, a class that differs from the protocol would not pass."""
    policies: list[Policy] = [Scripted(), Setting().policy()]
    assert len(policies) == 2
