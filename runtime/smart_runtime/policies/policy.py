"""What decides by itself which path answers: it looks at every call and may ask for another path."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from smart_runtime.inputs import Images
from smart_runtime.serving import Result


@dataclass(frozen=True)
class SwitchRequest:
    """A policy's wish that ``path`` answer from now on; ``reason`` appears in the log and in `SmartModel.stats`."""

    path: str
    reason: str


class PolicyModel(Protocol):
    """The part of a `SmartModel` that a policy may use, from any thread."""

    @property
    def path(self) -> str:
        """The path that answers."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths to choose from."""

    def run(self, images: Images) -> Result:
        """Classify ``images``; a call from inside of `Policy.observe` is not observed itself."""

    def using(self, path: str) -> AbstractContextManager[object]:
        """Let ``path`` answer the calls of this thread until the block ends."""

    def switch(self, path: str, reason: str = "") -> None:
        """Let ``path`` answer, outside of `Policy.observe`: on a timer of the policy's own, for one."""


class Policy(Protocol):
    """Decides which path answers. `SmartModel.load(policy=...)` takes one object for each model."""

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
