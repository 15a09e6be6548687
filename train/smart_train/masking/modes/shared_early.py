"""One mask in early layers, disjoint ones in late layers."""

from __future__ import annotations

from smart_train.masking.mode import MaskMode, Masks, alike, disjoint


class SharedEarly(MaskMode):
    """In the first half of the masked groups or layers the paths have one mask, in the rest disjoint ones; all fixed.

    FLOAT's second release masks stages 3 and 4 of a ResNet-34 with complements and leaves the stem and stages 1 and 2
    to both paths. A network need not have stages, so what counts here is the order of its masked groups; those of the
    first half keep as much as the others.
    """

    name = "shared-early"
    summary = "random and fixed: one mask for all paths in the first half of the network, disjoint ones in the rest"
    origin = "FLOAT_v2 (Lu, an author of SMART): stem and stages 1 and 2 shared, complements in stages 3 and 4"
    least_paths = 2

    def start(self, masks: Masks) -> None:
        """See the class."""
        for place in range(masks.places):
            (alike if place < masks.places // 2 else disjoint)(masks, place)
