"""The patterns of single weights that masks may have: a row each, by what help pages call it."""

from __future__ import annotations

PATTERNS: dict[str, str] = {
    "N:M (2:4)": "smart_train.masking.n_of_m:NOfM",
    "unstructured": "smart_train.masking.pattern:Unstructured",
}
"""Where the :class:`~smart_train.masking.pattern.WeightPattern` of each row is, so that the names cost no torch."""


def structure_names() -> str:
    """Return what ``--structure`` may be, for people."""
    return f"{', '.join(['channel', *PATTERNS])} or channel+ one with a density of its own (channel+2:4)"
