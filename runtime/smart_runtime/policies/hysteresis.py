"""A signal of the user's own decides, without flapping."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from smart_runtime.inputs import Images
from smart_runtime.policies.policy import PolicyModel, SwitchRequest, check_choice
from smart_runtime.serving import Result


class Hysteresis:
    """Lets ``path`` answer once a signal is high, and ``otherwise`` once it has been low for long enough.

        policy = Hysteresis(detector.suspicion, path="robust", otherwise="clean", enter=0.8, leave=0.5, hold_s=10)
        model = SmartModel.load("bundle/", policy=policy)

    The signal is read when the model is loaded and after each call. Between ``leave`` and ``enter``, and where it is
    NaN, nothing changes.
    """

    def __init__(
        self,
        signal: Callable[[], float],
        *,
        path: str,
        otherwise: str,
        enter: float,
        leave: float,
        hold_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decide by ``signal``.

        Args:
            signal: Returns a number; called from several threads at once if the model is.
            path: Answers from when the signal is above ``enter``.
            otherwise: Answers from when the signal is below ``leave``.
            enter: In the signal's own unit.
            leave: At most ``enter``.
            hold_s: ``path`` goes on answering for this many seconds after the signal was last above ``enter``.
            clock: Returns seconds that never decrease.

        Raises:
            ValueError: ``leave`` is above ``enter``, or ``hold_s`` is negative, or one of them is NaN.
        """
        if not leave <= enter:
            raise ValueError(f"expected leave <= enter, got leave {leave:g} and enter {enter:g}; swap them")
        if not hold_s >= 0:
            raise ValueError(f"expected hold_s in seconds, at least 0, got {hold_s:g}; 0 does not wait")
        self._signal = signal
        self._path, self._otherwise = path, otherwise
        self._enter, self._leave = enter, leave
        self._hold_s = hold_s
        self._clock = clock
        self._held_until = float("-inf")
        self._last = float("nan")

    def start(self, model: PolicyModel) -> None:
        """Switch ``model`` to what the signal asks for now; raises as `check_choice`."""
        for path in (self._path, self._otherwise):
            check_choice(path, model)
        request = self._read()
        if request is not None:
            model.switch(request.path, request.reason)

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:  # noqa: ARG002  # only the signal counts
        """Return what the signal asks for now, which may be the path that answers already."""
        return self._read()

    def _read(self) -> SwitchRequest | None:
        value, now = self._signal(), self._clock()
        self._last = value
        if value > self._enter:
            self._held_until = now + self._hold_s
            return SwitchRequest(self._path, f"signal {value:g} above {self._enter:g}")
        if value < self._leave and now >= self._held_until:
            return SwitchRequest(self._otherwise, f"signal {value:g} below {self._leave:g}")
        return None

    def status(self) -> Mapping[str, Any]:
        """Return the signal as it was read last, and the levels."""
        return {"signal": self._last, "enter": self._enter, "leave": self._leave}

    def stop(self) -> None:
        """Nothing to give back."""
