"""Schedule, Signal, Budget, First and Limit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundles import MIX, add_mix, as_float, random_images, write_bundle
from runtime.fakes import Thread
from smart_devices.errors import SensorError
from smart_devices.power import NoPower, PowerSource
from smart_runtime import EngineError, InputError, PathError, Policy, Result, SmartModel, SwitchRequest
from smart_runtime.inputs import Images
from smart_runtime.policies import Budget, First, Hysteresis, Limit, Schedule, Signal, budget
from smart_runtime.policies.policy import PolicyModel

FLOATS = as_float(random_images(2))
RESULT = Result(np.zeros((1, 5), np.float32), "clean", 1.0)
BERLIN = ZoneInfo("Europe/Berlin")


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def asked(policy: Policy) -> str:
    """The path that a policy asks for now."""
    request = policy.observe(RESULT, FLOATS)
    assert request is not None
    return request.path


# Schedule


def at(text: str, zone: Any = BERLIN, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("now", "path"),
    [
        (at("2026-01-05T21:59:59"), "clean"),
        (at("2026-01-05T22:00:00"), "robust"),
        (at("2026-01-06T00:00:00"), "robust"),
        (at("2026-01-06T05:59:59"), "robust"),
        (at("2026-01-06T06:00:00"), "clean"),
        (at("2026-07-05T22:00:00"), "robust"),
        (at("2026-07-05T20:30:00", timezone.utc), "robust"),  # 22:30 in summer
        (at("2026-01-05T20:30:00", timezone.utc), "clean"),  # 21:30 in winter
    ],
)
def test_a_stretch_over_midnight_by_the_clock_on_the_wall(now: float, path: str) -> None:
    policy = Schedule([("22:00", "06:00", "robust")], otherwise="clean", zone="Europe/Berlin", clock=Clock(now))
    assert asked(policy) == path


def test_an_hour_that_is_left_out_and_one_that_happens_twice() -> None:
    clock = Clock()
    policy = Schedule([("02:15", "02:45", "robust")], otherwise="clean", zone=BERLIN, clock=clock)
    spring = at("2026-03-29T01:59:00")  # 02:00 becomes 03:00
    found = []
    for minutes in range(120):
        clock.now = spring + 60 * minutes
        found.append(asked(policy))
    assert set(found) == {"clean"}
    autumn = at("2026-10-25T01:30:00")  # 03:00 becomes 02:00
    found = []
    for minutes in range(180):
        clock.now = autumn + 60 * minutes
        found.append(asked(policy))
    assert found.count("robust") == 60
    policy = Schedule([("02:30", "04:00", "robust")], otherwise="clean", zone=BERLIN, clock=clock)
    clock.now = spring + 60  # it is 03:00, and 02:30 did not come
    assert asked(policy) == "robust"


@given(
    begin=st.integers(0, 1439),
    end=st.integers(0, 1439),
    start=st.integers(0, 2**31),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe"]),
)
def test_a_schedule_against_minutes_that_are_counted_out(begin: int, end: int, start: int, zone: str) -> None:
    """The oracle walks the minutes of a day from the beginning of a stretch to its end, and looks where it came by."""
    if begin == end:
        return
    walked = set()
    minute = begin
    while minute != end:
        walked.add(minute)
        minute = (minute + 1) % 1440
    texts = [f"{one // 60:02}:{one % 60:02}" for one in (begin, end)]
    policy = Schedule([(*texts, "robust")], otherwise="clean", zone=zone, clock=Clock(start))
    shown = (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=start)).astimezone(ZoneInfo(zone))
    assert (asked(policy) == "robust") == (shown.hour * 60 + shown.minute in walked)


def test_a_schedule_decides_the_first_call_and_later_ones(bundle: Path) -> None:
    clock = Clock(at("2026-01-05T23:00:00"))
    stretches = [("22:00", "06:00", "robust"), ("00:00", "23:59", "clean")]
    policy = Schedule(stretches, otherwise="robust", zone=BERLIN, clock=clock)
    with SmartModel.load(bundle, policy=policy) as model:
        assert model.run(FLOATS).path == "robust"
        clock.now += 8 * 3600
        assert [model.run(FLOATS).path for _ in range(2)] == ["robust", "clean"]
        assert model.stats.last_reason == "it is between 00:00 and 23:59"
        assert policy.status() == {"time": "2026-01-06T07:00:00+01:00", "wanted": "clean"}


@pytest.mark.parametrize(
    ("stretches", "zone", "said"),
    [
        ([], "UTC", "expected stretches"),
        ([("7:00", "08:00", "robust")], "UTC", "expected a time as HH:MM from 00:00 to 23:59, got '7:00'"),
        ([("07:00", "24:00", "robust")], "UTC", "got '24:00'"),
        ([("07:00", "07:00", "robust")], "UTC", "got 07:00 twice; for a whole day use otherwise"),
        ([("07:00", "08:00", "robust")], "Europe/Nowhere", "no time zone 'Europe/Nowhere' on this machine"),
        ([("07:00", "08:00", "robust")], "../etc/passwd", "no time zone"),
    ],
)
def test_a_schedule_that_makes_no_sense(stretches: Any, zone: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Schedule(stretches, otherwise="clean", zone=zone)


# Signal


def test_a_function_names_the_path(bundle: Path) -> None:
    named: list[Any] = ["robust"]
    policy = Signal(lambda: named[0])
    with SmartModel.load(bundle, policy=policy) as model:
        assert model.run(FLOATS).path == "robust"
        for value, then in (
            ("clean", "clean"),
            (None, "clean"),
            ("nowhere", "clean"),
            (7, "clean"),
            ("robust", "robust"),
        ):
            named[0] = value
            model.run(FLOATS)
            assert model.path == then
        assert policy.status() == {"bad_total": 2}
        assert model.stats.policy_failures == 0


def test_a_file_names_the_path_and_is_read_now_and_then(bundle: Path, tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "path"
    policy = Signal(file, every_s=10, clock=clock)
    with SmartModel.load(bundle, policy=policy) as model:

        def after(content: bytes | None, seconds: float) -> str:
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
            clock.now += seconds
            model.run(FLOATS)
            return model.path

        assert after(b"robust\n", 9.9) == "clean"  # looked at when the model was loaded
        assert after(b"robust\n", 0.1) == "robust"
        assert after(b"clean", 9.9) == "robust"
        assert after(b"clean", 0.1) == "clean"
        for content in (None, b"", b" \n"):
            assert after(content, 10) == "clean"
        assert policy.status() == {"bad_total": 0}
        for content in (b"nowhere", b"\xff\xfe", b"robust" * 100, b"robust\0"):
            assert after(content, 10) == "clean"
        assert policy.status() == {"bad_total": 4}
        file.unlink()
        os.mkfifo(file)
        clock.now += 10
        assert model.run(FLOATS).path == "clean"
        assert (policy.status(), model.stats.policy_failures) == ({"bad_total": 5}, 0)


@pytest.fixture
def handler() -> Iterator[None]:
    """A handler of somebody else's, which must be there again at the end."""

    def theirs(*_: object) -> None: ...

    before = signal.signal(signal.SIGUSR1, theirs)
    yield
    assert signal.signal(signal.SIGUSR1, before) is theirs


@pytest.mark.usefixtures("handler")
def test_a_unix_signal_goes_to_and_fro(bundle: Path) -> None:
    with SmartModel.load(bundle, policy=Signal(signal.SIGUSR1, path="robust", otherwise="clean")) as model:
        found = []
        for _ in range(4):
            signal.raise_signal(signal.SIGUSR1)
            found.append(model.path)
        assert found == ["robust", "clean"] * 2
        assert model.stats.switch_counts == {("signal", "SIGUSR#"): 4}
        model.path = "clean"
        signal.raise_signal(signal.SIGUSR1)
        assert (model.path, model.stats.ignored_switches) == ("clean", 1)


@pytest.mark.usefixtures("handler")
def test_a_unix_signal_sets_a_path_on_demand_after_the_next_call(bundle: Path) -> None:
    with SmartModel.load(bundle, memory="on-demand", policy=Signal(signal.SIGUSR1, path="robust")) as model:
        for then in (["clean", "robust"], ["robust", "robust"]):
            signal.raise_signal(signal.SIGUSR1)
            assert [model.run(FLOATS).path for _ in range(2)] == then


@pytest.mark.usefixtures("handler")
def test_a_signal_that_another_thread_stopped_goes_where_it_went_before(bundle: Path) -> None:
    theirs = signal.getsignal(signal.SIGUSR1)
    model = SmartModel.load(bundle, policy=Signal(signal.SIGUSR1, path="robust"))
    Thread(model.close).outcome()
    signal.raise_signal(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is theirs


def test_a_signal_that_cannot_be_caught_here(bundle: Path) -> None:
    with pytest.raises(InputError, match="no handler can be set for the signal"):
        SmartModel.load(bundle, policy=Signal(signal.SIGKILL, path="robust"))
    with pytest.raises(InputError, match="load the model in the main thread"):
        Thread(lambda: SmartModel.load(bundle, policy=Signal(signal.SIGUSR1, path="robust"))).outcome()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Signal(3.5), "expected a function, a file's name or a signal's number, got 3.5"),
        (lambda: Signal(True, path="robust"), "got True"),
        (lambda: Signal(signal.SIGUSR1), "a signal needs the path"),
        (lambda: Signal(9999, path="robust"), "expected the number of a signal, got 9999"),
        (lambda: Signal("file", path="robust"), "go with a signal's number"),
        (lambda: Signal(lambda: None, every_s=1), "every_s goes with a file"),
        (lambda: Signal("file", every_s=float("nan")), "expected every_s in seconds, at least 0, got nan"),
    ],
)
def test_a_signal_that_makes_no_sense(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# Budget


def test_a_budget_goes_down_and_comes_back(bundle: Path) -> None:
    clock, reading = Clock(), [70.0]
    policy = Budget(lambda: reading[0], above=80, below=70, path="robust", unit="C", every_s=1, clock=clock)
    with SmartModel.load(bundle, policy=policy) as model:
        found = []
        for value in (80, 80.5, 75, 70, float("nan"), 69.9, 90):
            reading[0] = value
            clock.now += 1
            model.run(FLOATS)
            found.append(model.path)
        assert found == ["clean", "robust", "robust", "robust", "robust", "clean", "robust"]
        assert model.stats.last_reason == "90 C is above 80"
        reading[0] = 0
        clock.now += 0.9
        model.run(FLOATS)
        assert model.path == "robust"  # not read yet
        assert policy.status() == {"reading": 90, "above": 80, "below": 70, "path": "robust"}


def test_a_reading_that_raises_changes_nothing(bundle: Path) -> None:
    values = iter([0.0])
    with SmartModel.load(
        bundle, policy=Budget(lambda: next(values), above=2, below=1, path="robust", every_s=0)
    ) as one:
        assert [one.run(FLOATS).path for _ in range(3)] == ["clean"] * 3
        assert one.stats.policy_failures == 3


def test_the_cheaper_path_is_the_one_of_fewer_macs(bundle: Path) -> None:
    """Both paths of the bundle cost the same, so that one has to be named."""
    with SmartModel.load(bundle) as model:
        costs = {name: graph.macs for name, graph in model.manifest.paths.items()}
    assert costs["clean"] == costs["robust"]
    with pytest.raises(PathError, match="no path is cheaper than 'clean' by the manifest"):
        SmartModel.load(bundle, policy=Budget(lambda: 0.0, above=2, below=1))
    with pytest.raises(PathError, match="expected two paths, got 'clean' twice"):
        SmartModel.load(bundle, policy=Budget(lambda: 0.0, above=2, below=1, path="clean"))


@pytest.mark.parametrize(("above", "below"), [(1, 1), (1, 2), (float("nan"), 1), (1, float("nan"))])
def test_a_budget_without_room_between_its_levels(above: float, below: float) -> None:
    with pytest.raises(ValueError, match="expected below < above"):
        Budget(lambda: 0.0, above=above, below=below)


class FakeMeter:
    """Draws 5 W, then 9 W; fails once in between."""

    def __init__(self) -> None:
        self.joules = 0.0
        self.last: float | None = None

    def read(self, at_s: float) -> None:
        if at_s == 30:
            raise SensorError("it was unplugged")
        watts = 5 if at_s < 30 else 9
        self.joules += 0 if self.last is None else watts * (at_s - self.last)
        self.last = at_s


def test_watts_are_the_mean_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PowerSource(name="rapl", measures="a test", period_s=1, settle_s=0, new_meter=FakeMeter)
    monkeypatch.setattr(budget, "find_power", lambda **_: source)
    clock = Clock()
    watts = budget.machine_watts(clock=clock)
    found = []
    for now in (0, 10, 12, 30, 31, 33, 33):
        clock.now = now
        found.append(watts())
    np.testing.assert_equal(found, [np.nan, 5, 5, np.nan, np.nan, 9, np.nan])
    monkeypatch.setattr(budget, "find_power", lambda **_: NoPower(reason="there is no sensor"))
    with pytest.raises(InputError, match="no power can be read here: there is no sensor"):
        budget.machine_watts()


# First and Limit


class Asking:
    """Asks for what a test sets."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.seen = 0
        self.events: list[str] = []

    def start(self, model: PolicyModel) -> None:
        self.model = model
        self.events.append("start")
        if self.path == "refuses":
            raise ZeroDivisionError

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:  # noqa: ARG002  # only counted
        self.seen += 1
        if self.path == "fails":
            raise ZeroDivisionError
        return None if self.path is None else SwitchRequest(self.path, "asked")

    def reloaded(self, _: PolicyModel) -> None:
        self.events.append("reloaded")

    def status(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def stop(self) -> None:
        self.events.append("stop")


def test_the_first_that_asks_wins_and_its_wish_stands(bundle: Path) -> None:
    one, two = Asking(), Asking()
    policy = First([one, two], otherwise="clean")
    with SmartModel.load(bundle, policy=policy) as model:
        found = []
        for first, second in (
            (None, None),
            (None, "robust"),
            ("clean", None),  # has no wish of its own, and the second's stands
            (None, "clean"),
            ("robust", "clean"),
            (None, None),
            ("clean", None),
        ):
            one.path, two.path = first, second
            model.run(FLOATS)
            found.append(model.path)
        assert found == ["clean", "robust", "robust", "clean", "robust", "robust", "clean"]
        assert (one.seen, two.seen, model.stats.switches_by) == (7, 7, {"first": 4})
        two.model.switch("robust", "on a timer")
        assert (model.path, model.stats.last_reason) == ("robust", "asking: on a timer")
        assert policy.status() == {
            "1_asking": {"seen": 7, "wish": "clean"},
            "2_asking": {"seen": 7, "wish": "robust"},
        }
        model.reload(bundle)
    assert one.events == two.events == ["start", "reloaded", "stop"]


def test_one_that_fails_keeps_no_other_from_its_say(bundle: Path) -> None:
    with SmartModel.load(bundle, policy=First([Asking("fails"), Asking("robust")])) as model:
        assert [model.run(FLOATS).path for _ in range(3)] == ["clean", "robust", "robust"]
        assert model.stats.policy_failures == 3


def test_one_that_cannot_start_stops_those_before_it(bundle: Path) -> None:
    one, two, three = Asking(), Asking("refuses"), Asking()
    with pytest.raises(ZeroDivisionError):
        SmartModel.load(bundle, policy=First([one, two, three]))
    assert (one.events, two.events, three.events) == (["start", "stop"], ["start"], [])


def test_a_limit_holds_back_all_but_what_must_not_wait(bundle: Path) -> None:
    clock, inner = Clock(), Asking("clean")
    policy = Limit(inner, max_switches_per_hour=3, always_to="robust", clock=clock)
    with SmartModel.load(bundle, policy=policy) as model:

        def after(path: str, seconds: float = 1.0) -> str:
            clock.now += seconds
            inner.path = path
            model.run(FLOATS)
            return model.path

        assert [after(path) for path in ("robust", "clean", "robust")] == ["robust", "clean", "robust"]
        assert [after("clean") for _ in range(5)] == ["robust"] * 5
        assert policy.status() == {"seen": 8, "wish": "clean", "held_back_total": 1, "switches_last_hour": 3}
        assert after("clean", 3600) == "clean"
        assert after("robust") == "robust"


def test_wishes_that_a_hand_overrules_use_up_no_limit(bundle: Path) -> None:
    inner = Asking("robust")
    with SmartModel.load(bundle, policy=Limit(inner, max_switches_per_hour=1, clock=Clock())) as model:
        model.path = "clean"
        for _ in range(10):
            model.run(FLOATS)
        model.follow_policy()
        assert [model.run(FLOATS).path for _ in range(2)] == ["clean", "robust"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: First([]), "expected policies, the most important one first, got none"),
        (lambda: First([Asking]), "got <class"),
        (lambda: Limit(Asking, max_switches_per_hour=1), "expected a policy"),
        (lambda: Limit(Asking(), max_switches_per_hour=0), "expected max_switches_per_hour as a whole number"),
        (lambda: Limit(Asking(), max_switches_per_hour=1.5), "got 1.5"),
    ],
)
def test_a_policy_of_policies_that_makes_no_sense(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "policy",
    [
        Schedule([("07:00", "08:00", "nowhere")], otherwise="clean"),
        Signal(signal.SIGUSR1, path="nowhere"),
        Budget(lambda: 0.0, above=2, below=1, path="nowhere"),
        First([Asking()], otherwise="nowhere"),
        Limit(Asking(), max_switches_per_hour=1, always_to="nowhere"),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_a_path_that_the_bundle_does_not_have(bundle: Path, policy: Policy) -> None:
    with pytest.raises(PathError, match="unknown path 'nowhere'"):
        SmartModel.load(bundle, policy=policy)


@pytest.mark.parametrize(
    "policy",
    [
        Schedule([("07:00", "08:00", MIX)], otherwise="clean", clock=Clock()),
        Signal(signal.SIGUSR1, path=MIX),
        Hysteresis(lambda: 0.0, path=MIX, otherwise="clean", enter=1, leave=0),
        Budget(lambda: 0.0, above=2, below=1, path="robust", otherwise=MIX),
        First([Asking()], otherwise=MIX),
        Limit(Asking(), max_switches_per_hour=1, always_to=MIX),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_a_mix_on_demand_is_refused_before_it_is_asked_for(tmp_path: Path, policy: Policy) -> None:
    bundle = write_bundle(tmp_path / "mixed", change=add_mix)
    with pytest.raises(EngineError, match=f"the mix '{MIX}' needs every path loaded"):
        SmartModel.load(bundle, memory="on-demand", policy=policy)


def test_what_the_type_checker_holds() -> None:
    """All are policies: mypy reads this."""
    found: list[Policy] = [
        Schedule([("07:00", "08:00", "robust")], otherwise="clean"),
        Signal(lambda: None),
        Budget(lambda: 0.0, above=2, below=1),
        First([Asking()]),
        Limit(Hysteresis(lambda: 0.0, path="a", otherwise="b", enter=1, leave=0), max_switches_per_hour=1),
    ]
    assert len(found) == 5
