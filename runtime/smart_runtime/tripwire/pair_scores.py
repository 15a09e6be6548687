"""How far two paths are apart about a frame, and how sure the clean one is: what the tripwire looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Logits: TypeAlias = NDArray[np.floating[Any]]
"""(N, classes), finite, at least two classes."""

Values: TypeAlias = NDArray[np.float64]
PairScore: TypeAlias = Callable[[Logits, Logits], Values]
"""Takes the logits of the clean and of the robust path, by their temperatures already; returns (N,), higher: further
apart."""

_LEAST = -700.0  # of a difference of logits: its exponential is still a normal float64


def disagreement(clean: Logits, robust: Logits) -> Values:
    """Return 1 - p_robust[label of the clean path], (N,) in [0, 1]: the score of PID (arXiv 2506.03765)."""
    others = np.exp(_log_probabilities(robust))
    others[_labels(clean)] = 0.0  # a sum of what is left keeps the digits that 1 - p loses near 0
    return np.asarray(np.minimum(others.sum(axis=1), 1.0), dtype=np.float64)


def kl(clean: Logits, robust: Logits) -> Values:
    """Return KL(p_clean || p_robust), (N,) in nats, 0 or more."""
    log_clean, log_robust = _log_probabilities(clean), _log_probabilities(robust)
    return np.asarray(np.maximum((np.exp(log_clean) * (log_clean - log_robust)).sum(axis=1), 0.0), dtype=np.float64)


def log_ratio(clean: Logits, robust: Logits) -> Values:
    """Return log p_clean[label] - log p_robust[label], (N,) in nats, with the clean path's label."""
    label = _labels(clean)
    return np.asarray(_log_probabilities(clean)[label] - _log_probabilities(robust)[label], dtype=np.float64)


def margin(clean: Logits, robust: Logits) -> Values:
    """Return max log p_robust[other] - log p_robust[label], (N,) in nats: above 0 where the robust path disagrees."""
    label = _labels(clean)
    logs = _log_probabilities(robust)
    of_label = logs[label]
    logs[label] = -np.inf
    return np.asarray(logs.max(axis=1) - of_label, dtype=np.float64)


SCORES: Mapping[str, PairScore] = MappingProxyType(
    {"disagreement": disagreement, "kl": kl, "log-ratio": log_ratio, "margin": margin}
)
"""The scores to choose from, by name."""


def confidence(clean: Logits) -> Values:
    """Return the log-odds of the clean path's largest probability, (N,) in nats: log(p / (1 - p))."""
    differences = _differences(clean)
    differences[_labels(clean)] = -np.inf
    return np.asarray(-np.log(np.exp(differences).sum(axis=1)), dtype=np.float64)


def at_temperature(logits: Logits, temperature: float) -> NDArray[np.float64]:
    """Return ``logits`` divided by ``temperature`` as float64, each row shifted so that its largest is 0."""
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"expected logits (N, classes) of 2 or more classes, got shape {values.shape}; add a batch")
    with np.errstate(over="ignore"):  # to -inf, which `_differences` bounds
        shifted = (values - values.max(axis=1, keepdims=True)) / temperature
    return np.asarray(np.maximum(shifted, _LEAST), dtype=np.float64)


def _differences(logits: Logits) -> NDArray[np.float64]:
    return at_temperature(logits, 1.0)


def _log_probabilities(logits: Logits) -> NDArray[np.float64]:
    shifted = _differences(logits)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def _labels(clean: Logits) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the index of each row's largest logit, the first of equal ones."""
    return np.arange(len(clean)), np.argmax(clean, axis=1)
