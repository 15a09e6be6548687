"""What decides by itself which path answers: it looks at every call and may ask for another path."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import Manifest, check_path
from smart_runtime.causes import HAND
from smart_runtime.inputs import Images
from smart_runtime.memory import RESIDENT, MemoryReport, refuse_on_demand
from smart_runtime.serving import Result

_MOST_OF_NAME = 40  # characters


@dataclass(frozen=True)
class SwitchRequest:
    """A policy's wish that ``path`` answer from now on.

    ``reason`` appears in the log and in `SmartModel.stats`. ``details``, such as scores and counters, are kept in the
    audit log; without them it keeps what the policy's ``status`` says as the line is written.
    """

    path: str
    reason: str
    details: Mapping[str, Any] | None = None


def is_policy(one: object) -> bool:
    """Say whether ``one`` has what a `Policy` must have."""
    return not isinstance(one, type) and all(
        callable(getattr(one, name, None)) for name in ("start", "observe", "stop")
    )


class PolicyModel(Protocol):
    """The part of a `SmartModel` that a policy may use, from any thread."""

    @property
    def path(self) -> str:
        """The path that answers, outside of blocks of `using`."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths to choose from, and the mixes between them, which need all paths resident."""

    @property
    def manifest(self) -> Manifest:
        """What the bundle that is served says about itself."""

    @property
    def bundle(self) -> Bundle:
        """The bundle that is served, another object after each reload."""

    def memory(self) -> MemoryReport:
        """Return what each path costs, and whether it is loaded."""

    def run(self, images: Images) -> Result:
        """Classify ``images``; the call is not observed itself, and counted as `PathStats.policy_calls` only."""

    def using(self, path: str) -> AbstractContextManager[object]:
        """Let ``path`` answer the calls of this thread until the block ends."""

    def switch(self, path: str, reason: str = "", details: Mapping[str, Any] | None = None) -> None:
        """Let ``path`` answer, outside of `Policy.observe`: on a timer of the policy's own, for one.

        Arguments are those of `SwitchRequest`. Where a hand has set the path, nothing happens. Hold no lock that
        ``status`` takes.
        """


class Policy(Protocol):
    """Decides which path answers. `SmartModel.load(policy=...)` takes one object for each model.

    Two more methods are optional:

    - ``status(self) -> Mapping[str, Any]`` says what the policy sees, for people, `SmartModel.metrics` and the audit
      log; it may be called in any thread. Names are keys, numbers and texts are values.
    - ``reloaded(self, model: PolicyModel) -> None`` is called when `SmartModel.reload` has put another bundle in place,
      whose manifest may hold other parameters. What it raises is counted; calls go on.
    """

    def start(self, model: PolicyModel) -> None:
        """Prepare for ``model``, which has just been loaded; what this raises, `SmartModel.load` raises."""

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:
        """Look at a call that has succeeded and return what to switch to, or None to leave the path as it is.

        It runs in the thread of the call, so in several at once, before the caller gets the result: be quick. The
        latency of the call does not include it. An exception, or a request that cannot be met, is logged and counted
        in `Stats.policy_failures`; the caller gets the result all the same.

        Args:
            result: The caller's own; do not change its scores.
            images: What was passed to the call, which may be an array on a GPU; do not change them either, nor use them
                after returning.
        """

    def stop(self) -> None:
        """Give back what `start` took; the model is closed. Calls that were in flight may still be observed."""


def check_choice(path: str, model: PolicyModel) -> str:
    """Return ``path`` if ``model`` can answer by it; for `Policy.start`, of each path that a policy may ask for.

    Raises:
        PathError: The bundle has no such path.
        EngineError: It is a mix, and paths are loaded on demand.
    """
    check_path(path, model.paths)
    if path in model.manifest.mixes and model.memory().mode != RESIDENT:
        refuse_on_demand(f"the mix {path!r}")
    return path


def name_of(policy: object) -> str:
    """Return the name by which a policy appears in stats, metrics and the audit log: its class's, in lower case."""
    name = type(policy).__name__.lower()[:_MOST_OF_NAME]
    return f"{name} (policy)" if name == HAND else name
