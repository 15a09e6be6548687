"""Masks that have as little in common as their density allows."""

from __future__ import annotations

from smart_train.masking.mode import MaskMode, Masks, disjoint


class Complementary(MaskMode):
    """The first path's mask is random, or the strongest of trained weights, and fixed; a further path takes the rest.

    At density 0.5 the second mask is the complement of the first, as in RLNet's dual-mask convolutions; below they are
    disjoint, above they share as little as they can.
    """

    name = "complementary"
    summary = "random and fixed, as disjoint as the density allows: at 0.5 robust is the complement of clean"
    origin = "RLNet (Sarkar et al.), an author of SMART: the robust mask is the complement of the clean one"
    least_paths = 2

    def start(self, masks: Masks) -> None:
        """See the class."""
        for place in range(masks.places):
            disjoint(masks, place)
