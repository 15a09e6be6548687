"""The sequential test: a sum of log-likelihood ratios that never falls below 0 (Page 1954, Biometrika 41)."""

from __future__ import annotations

import math


class Cusum:
    """S = clip(S + llr, 0, cap); the alarm is on from S >= ``threshold``.

    The cap bounds how long S takes to come down again once an attack is over.
    """

    def __init__(self, threshold: float, *, cap: float | None = None) -> None:
        """Begin at 0.

        Args:
            threshold: In nats, above 0.
            cap: In nats, at least ``threshold``, which it is by default.

        Raises:
            ValueError: One of them is out of range.
        """
        cap = threshold if cap is None else cap
        if not (threshold > 0 and threshold <= cap < math.inf):
            raise ValueError(f"expected 0 < threshold <= cap, got threshold {threshold:g} and cap {cap:g}")
        self.threshold, self.cap, self.value = threshold, cap, 0.0

    def add(self, llr: float) -> bool:
        """Add one frame's log-likelihood ratio in nats; say whether S is at the threshold now."""
        if math.isnan(llr):
            raise ValueError("expected a log-likelihood ratio, got NaN")
        self.value = min(max(self.value + llr, 0.0), self.cap)
        return self.alarm

    @property
    def alarm(self) -> bool:
        """Whether S is at the threshold."""
        return self.value >= self.threshold

    def reset(self) -> None:
        """Begin at 0 again."""
        self.value = 0.0
