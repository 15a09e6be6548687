"""Masks that stay as they start."""

from __future__ import annotations

from smart_train.masking.mode import MaskMode, Masks


class Static(MaskMode):
    """Each path starts with a random mask of its own, or the strongest of trained weights, and keeps it."""

    name = "static"
    summary = "random and fixed, each path its own"
    origin = "the control for masks that learn"

    def start(self, masks: Masks) -> None:
        """See the class."""
        for path, place in masks.each:
            masks.keep(path, place, masks.first(path, place))
