"""One call: on the path that answers, or on every path."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from smart_runtime.engines import Scores
from smart_runtime.inputs import Images
from smart_runtime.path_state import PathState
from smart_runtime.serving import Call, Result
from smart_runtime.together import ALL, LoadedTogether


@dataclass(frozen=True)
class Both:
    """What one call gave on every path.

    ``scores`` are by path, in the bundle's order, each as those of a `Result`; ``latency_ms`` is the time of the whole
    call, checks and conversion included.
    """

    scores: Mapping[str, Scores]
    latency_ms: float

    def __repr__(self) -> str:
        shape = next(iter(self.scores.values())).shape
        return f"Both(scores of shape {shape} of {', '.join(self.scores)}, {self.latency_ms:.3g} ms)"


def run_on_one(state: PathState, images: Images, *, scope: Callable[[], str | None], of_policy: bool = False) -> Result:
    """Run ``images`` on the path that ``scope`` names, else on the one that answers: see `SmartModel.run`.

    ``of_policy`` says that a policy makes the call for itself; no policy is shown any call here.
    """
    start_ns = time.perf_counter_ns()
    call = Call()
    try:
        loaded = state.enter(call, scope)
        try:
            scores = loaded.scores_of(images)
        except BaseException:  # whatever it was, it is counted and goes on to the caller
            (state.recorder.policy_call if of_policy else state.recorder.error)(loaded.name)
            raise
    finally:
        # Nothing of Python's may come before the call has left: an exception that is sent to this thread, by Ctrl-C
        # for one, strikes where a function begins or has ended, and a call that never leaves keeps its engine.
        if call.loaded is not None:
            call.loaded.calls.discard(call)
            call.loaded.close_if_idle()
    latency_ns = time.perf_counter_ns() - start_ns
    if of_policy:
        state.recorder.policy_call(loaded.name)
    else:
        state.recorder.call(loaded.name, images=len(scores), latency_ns=latency_ns)
    return Result(scores, loaded.name, latency_ns / 1e6, loaded.temperature)


def run_on_all(state: PathState, images: Images) -> Both:
    """Run ``images`` on every path of a model: see `SmartModel.both`."""
    start_ns = time.perf_counter_ns()
    call = Call()
    try:
        loaded = cast("LoadedTogether", state.enter(call, _all_paths))
        try:
            found = loaded.all_scores_of(images)
        except BaseException:  # whatever it was, it is counted and goes on to the caller
            for part in loaded.parts:
                state.recorder.error(part.name)
            raise
    finally:
        # As in `run_on_one`, the first thing is that the call leaves.
        if call.loaded is not None:
            call.loaded.calls.discard(call)
            call.loaded.close_if_idle()
    latency_ms = (time.perf_counter_ns() - start_ns) / 1e6
    for name, (scores, nanoseconds) in found.items():
        state.recorder.call(name, images=len(scores), latency_ns=nanoseconds)
    return Both(MappingProxyType({name: scores for name, (scores, _) in found.items()}), latency_ms)


def _all_paths() -> str:
    return ALL
