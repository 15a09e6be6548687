"""What a trained network's masks are and leave, for manifests and people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smart_common.mask_info import MaskInfo
from smart_train.choices import MASK_MODES
from smart_train.masking.accounting import densities
from smart_train.masking.mode import load_mode
from smart_train.masking.network import SmartNetwork


def describe_masks(net: SmartNetwork, *, training: Mapping[str, Any]) -> MaskInfo:
    """Return what the masks of ``net`` leave and have in common, and how they were found.

    Of a network of which nothing is removed no mode has found masks, and they have nothing to compare.

    Args:
        net: the network.
        training: the record of its training, which names the mode; it may be empty, or a stranger's.
    """
    plan, masked = training.get("masks"), not net.structure.removes_nothing
    mode = plan.get("mode") if isinstance(plan, Mapping) else None
    known = masked and isinstance(mode, str) and mode in MASK_MODES
    found = densities(net)
    return MaskInfo(
        mode=mode if known else None,
        origin=load_mode(str(mode)).origin if known else None,
        budget=net.structure.budget,
        union_density=found.union,
        overlap=found.overlap if masked else None,
    )
