"""A policy under a hand: who may switch, what the policy may do with its model, and who is counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hardened.striking import places, struck
from runtime.bundles import as_float, graph_files, random_images
from runtime.fakes import Thread
from smart_runtime import ClosedError, InputError, Result, SmartModel, SwitchRequest, policies
from smart_runtime.inputs import Images
from smart_runtime.policies.policy import PolicyModel

FLOATS = as_float(random_images(2))
TIGHT = max(sum(len(data) for data in graph_files(name)) for name in ("clean", "robust"))
MEMORY = pytest.mark.parametrize("memory", ["resident", "on-demand", TIGHT])


class Asking:
    """Asks for ``path`` with every call, if that is not None."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.seen = 0
        self.reloads = 0
        self.on_reload: Callable[[], object] = lambda: None

    def start(self, model: PolicyModel) -> None:
        self.model = model

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:  # noqa: ARG002  # only counted
        self.seen += 1
        return None if self.path is None else SwitchRequest(self.path, f"call {self.seen}")

    def reloaded(self, model: PolicyModel) -> None:
        assert model is self.model
        self.reloads += 1
        self.on_reload()

    def status(self) -> Mapping[str, Any]:
        return {"seen": self.seen}

    def stop(self) -> None: ...


@MEMORY
def test_a_hand_wins_until_the_policy_is_followed_again(
    bundle: Path, memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Asking("robust")
    with SmartModel.load(bundle, memory=memory, policy=policy) as model:
        assert [model.run(FLOATS).path for _ in range(2)] == ["clean", "robust"]
        assert not model.stats.overridden
        model.path = "clean"
        assert [model.run(FLOATS).path for _ in range(3)] == ["clean"] * 3
        policy.model.switch("robust", "outside of a call")
        stats = model.stats
        assert (model.path, policy.seen) == ("clean", 5)
        assert (stats.overridden, stats.ignored_switches, stats.switches, stats.policy_failures) == (True, 4, 2, 0)
        assert stats.switches_by == {"asking": 1, "hand": 1}
        assert stats.switch_counts == {("asking", "call #"): 1, ("hand", ""): 1}
        model.path = "clean"
        warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
        assert [one for one in warnings if "by hand" in one] == [
            "the path 'clean' was set by hand: what the policy asking asks for is ignored until follow_policy()"
        ]
        model.follow_policy()
        assert (model.path, model.stats.overridden) == ("clean", False)
        assert [model.run(FLOATS).path for _ in range(2)] == ["clean", "robust"]
        assert model.stats.switches_by == {"asking": 2, "hand": 1}


def test_the_same_path_by_hand_is_by_hand(bundle: Path) -> None:
    with SmartModel.load(bundle, policy=Asking("robust")) as model:
        model.path = "clean"
        assert [model.run(FLOATS).path for _ in range(2)] == ["clean"] * 2
        assert (model.stats.switches, model.stats.overridden, model.stats.ignored_switches) == (0, True, 2)


def test_a_hand_that_names_no_path_leaves_the_policy_in_charge(bundle: Path) -> None:
    with SmartModel.load(bundle, policy=Asking("robust")) as model:
        with pytest.raises(Exception, match="unknown path"):
            model.path = "nowhere"
        assert [model.run(FLOATS).path for _ in range(2)] == ["clean", "robust"]
        assert not model.stats.overridden


def test_a_hand_against_a_policy_in_many_threads(bundle: Path) -> None:
    """Once a hand's switch has returned no policy changes the path, however many of its wishes were on their way."""
    policy = Asking("robust")
    with SmartModel.load(bundle, threads=1, policy=policy) as model:
        over = threading.Event()

        def call() -> None:
            while not over.is_set():
                model.run(FLOATS)

        threads = [Thread(call) for _ in range(4)]
        for _ in range(200):
            model.switch("clean")
            assert [model.path for _ in range(20)] == ["clean"] * 20
            model.follow_policy()
        over.set()
        for thread in threads:
            thread.outcome()
        assert model.stats.policy_failures == 0


def test_blocks_keep_their_path_under_a_policy(bundle: Path) -> None:
    with SmartModel.load(bundle, policy=Asking("robust")) as model:
        with model.using("clean"):
            assert [model.run(FLOATS).path for _ in range(3)] == ["clean"] * 3
        assert model.path == "robust"


def test_a_policy_sees_the_model_and_not_its_own_calls(bundle: Path) -> None:
    policy = Asking()
    with SmartModel.load(bundle, policy=policy) as model:
        assert model.policy is policy
        facade = policy.model
        assert (facade.path, facade.paths, facade.manifest) == ("clean", model.paths, model.manifest)
        assert facade.memory().mode == "resident"
        with facade.using("robust"):
            assert (facade.run(FLOATS).path, facade.path) == ("robust", "clean")
        assert policy.seen == 0
        assert model.stats.paths["robust"].calls == 0
        assert model.stats.paths["robust"].policy_calls == 1
    for refused in (lambda: facade.path, lambda: facade.run(FLOATS), lambda: facade.switch("robust")):
        with pytest.raises(ClosedError):
            refused()


def test_a_policy_hears_of_a_reload_and_its_failure_costs_nothing(bundle: Path) -> None:
    policy = Asking()
    with SmartModel.load(bundle, policy=policy) as model:
        model.reload(bundle)
        assert (policy.reloads, model.stats.policy_failures) == (1, 0)
        policy.on_reload = lambda: 1 / 0
        model.reload(bundle)
        assert (policy.reloads, model.stats.policy_failures, model.stats.reloads) == (2, 1, 2)
        assert model.run(FLOATS).path == "clean"


def test_without_a_policy_there_is_nothing_to_follow(bundle: Path) -> None:
    with SmartModel.load(bundle) as model:
        model.path = "robust"
        assert (model.policy, model.stats.overridden, model.stats.switches_by) == (None, False, {"hand": 1})
        with pytest.raises(InputError, match="no policy to follow"):
            model.follow_policy()


def test_a_policy_by_its_name(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "POLICIES", {**policies.POLICIES, "Asking": __name__})
    monkeypatch.setattr(policies, "Asking", Asking, raising=False)
    with SmartModel.load(bundle, policy="asking") as model:
        model.run(FLOATS)
        assert isinstance(model.policy, Asking)
        assert model.policy.seen == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "hysteresis",
            "needs arguments, signal, path, .*; make one, as in policy=Hysteresis",
        ),
        ("hysterisis", "unknown policy 'hysterisis'; did you mean hysteresis?"),
        ("Hysteresis", "unknown policy 'Hysteresis'"),
    ],
)
def test_a_name_that_makes_no_policy(bundle: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        SmartModel.load(bundle, policy=name)


def test_reasons_without_end_are_counted_in_bounded_room(bundle: Path) -> None:
    with SmartModel.load(bundle) as model:
        for number in range(200):
            model.switch("robust", "x" * number)
            model.switch("clean", f"{number} of {number / 7}")
        counts = model.stats.switch_counts
    assert sum(counts.values()) == 400
    assert len(counts) <= 33
    assert counts["hand", "# of #"] == 200
    assert max(len(reason) for _, reason in counts) <= 80


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("memory", ["resident", "on-demand"])
def test_an_interrupt_at_any_place_of_an_observed_call(bundle: Path, memory: Any) -> None:
    """The policy goes on seeing calls afterwards, in this thread too, and a hand still wins."""
    logging.disable()
    policy = Asking("robust")
    try:
        with SmartModel.load(bundle, memory=memory, policy=policy) as model:

            def work() -> None:
                model.follow_policy()
                model.run(FLOATS)
                model.switch("clean")

            for at in places(work)[::3]:
                struck(work, at=at)
                seen = policy.seen
                model.switch("clean")
                assert model.run(FLOATS).path == "clean"
                assert (model.path, policy.seen) == ("clean", seen + 1), at
    finally:
        logging.disable(logging.NOTSET)
