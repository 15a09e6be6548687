"""A policy that may not switch too often."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from smart_runtime.inputs import Images
from smart_runtime.policies.members import Member
from smart_runtime.policies.policy import Policy, PolicyModel, SwitchRequest, check_choice, is_policy
from smart_runtime.serving import Result

_HOUR_S = 3600.0


class Limit:
    """Holds back the switches of a policy beyond so many an hour, but for those to the path that must not wait.

        Limit(Hysteresis(...), max_switches_per_hour=6, always_to="robust")

    A wish that was held back is granted once an hour has room for it, if it still stands.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_switches_per_hour: int,
        always_to: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold ``policy`` back.

        Args:
            policy: Any.
            max_switches_per_hour: In any 3,600 seconds, at least 1.
            always_to: Switches to this path count, but are never held back: an attacker who makes a policy switch to
                and fro would else have it stay where it does harm.
            clock: Returns seconds that never decrease.

        Raises:
            ValueError: The policy is none, or ``max_switches_per_hour`` is below 1.
        """
        if not is_policy(policy):
            raise ValueError(f"expected a policy with start, observe and stop, got {policy!r:.100}")
        most = max_switches_per_hour
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"expected max_switches_per_hour as a whole number, at least 1, got {most!r:.40}")
        self._member = Member(policy, self._decide)
        self._most = most
        self._always_to = always_to
        self._clock = clock
        self._times: deque[float] = deque(maxlen=most + 1)
        self._asked: str | None = None  # the path that was granted last, until it is seen to answer
        self._held = 0
        self._holding: SwitchRequest | None = None
        self._model: PolicyModel | None = None
        self._lock = threading.RLock()  # re-entrant for the sake of signal handlers

    def start(self, model: PolicyModel) -> None:
        """Start the policy; raises as `check_choice`, and what the policy raises."""
        if self._always_to is not None:
            check_choice(self._always_to, model)
        self._model = model
        self._member.start(model)

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:
        """Show the policy the call; return what it asks for, if it may."""
        self._member.observe(result, images)
        return self._granted()

    def _granted(self) -> SwitchRequest | None:
        wish, model = self._member.wish, self._model
        if model is None:
            return None
        with self._lock:
            now, path = self._clock(), model.path
            if self._asked == path:  # a wish that a hand overrules never is, and counts as no switch
                self._times.append(now)
                self._asked = None
            if wish is None or wish.path == path:
                return None
            while self._times and self._times[0] <= now - _HOUR_S:
                self._times.popleft()
            if len(self._times) >= self._most and wish.path != self._always_to:
                if self._holding is None or self._holding.path != wish.path:  # once, not with every call
                    self._held += 1
                self._holding = wish
                return None
            self._holding, self._asked = None, wish.path
        return wish

    def _decide(self) -> None:
        """Switch outside of a call."""
        granted = self._granted()
        if granted is not None and self._model is not None:
            self._model.switch(granted.path, granted.reason, granted.details)

    def reloaded(self, model: PolicyModel) -> None:  # noqa: ARG002  # the policy has a model of its own
        """Tell the policy."""
        self._member.reloaded()

    def status(self) -> Mapping[str, Any]:
        """Return what the policy says, and how often it was held back."""
        return {**self._member.status(), "held_back_total": self._held, "switches_last_hour": len(self._times)}

    def stop(self) -> None:
        """Stop the policy."""
        self._member.policy.stop()
