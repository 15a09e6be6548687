"""One call on every path."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from smart_runtime.engines import Scores
from smart_runtime.inputs import Images
from smart_runtime.path_state import PathState
from smart_runtime.serving import Call
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


def _all_paths() -> str:
    return ALL


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
        # As in `SmartModel.run`, the first thing is that the call leaves.
        if call.loaded is not None:
            call.loaded.calls.discard(call)
            call.loaded.close_if_idle()
    latency_ms = (time.perf_counter_ns() - start_ns) / 1e6
    for name, (scores, nanoseconds) in found.items():
        state.recorder.call(name, images=len(scores), latency_ns=nanoseconds)
    return Both(MappingProxyType({name: scores for name, (scores, _) in found.items()}), latency_ms)
