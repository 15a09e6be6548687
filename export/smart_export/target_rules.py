"""What a target decides about its bundle: the structures that pay there, its engines, and memory for their builder."""

from __future__ import annotations

from typing import Any

from smart_devices import Profile, Target, engine_names
from smart_export.errors import ExportError
from smart_train.masking.structure import Structure

_SHARE_OF_SHARED, _SHARE_OF_OWN = 8, 4
_MAX_WORKSPACE_BYTES = 4 * 2**30


def check_structure(structure: Structure, *, target: Target, allow_slow: bool) -> None:
    """Refuse zeros in a pattern that ``target`` gains nothing from: they cost accuracy, and nobody gets speed for it.

    Zeros anywhere gain no speed on any device, which is no reason to refuse one of them.

    Raises:
        ExportError: the target gains nothing from the pattern, and ``allow_slow`` is not set.
    """
    slow = structure.pattern.why_refused(target)
    if slow is not None and not allow_slow:
        raise ExportError(
            f"{structure.name} does not pay on {target.name}: {slow}; train with --structure "
            f"channel, or export it as it is with --allow-slow-structure"
        )


def workspace_bytes(profile: Profile) -> int | None:
    """Return how much memory an engine's builder should be allowed for its own work, None where nobody knows.

    TensorRT takes all of the device's memory unless it is told otherwise (``setMemoryPoolLimit`` in NvInfer.h). On a
    board where the host's programs live in the same memory that ends with the builder killed (TensorRT issue 1404,
    ultralytics issue 17338 on a board of 4 GB). The rule is ours: an eighth of shared memory, since the builder also
    holds the network's weights several times over beside everything else that runs; a quarter of a card's own; 4 GiB at
    most, which no kernel of a classifier needs.
    """
    size_gb = profile.memory.size.value
    if profile.kind == "cpu" or size_gb is None:
        return None
    share = _SHARE_OF_SHARED if profile.memory.shared_with_host else _SHARE_OF_OWN
    return min(_MAX_WORKSPACE_BYTES, int(size_gb * 2**30) // share)


def target_record(target: Target) -> dict[str, Any]:
    """Return what the manifest says of the target.

    ``engines`` are all that can run a graph there, best first, and which of them this version of smart-edge drives.
    """
    profile = target.profile
    return {
        "name": target.name,
        "profile": profile.name,
        "kind": profile.kind,
        "jetpack": target.jetpack,
        "engines": [{"name": name, "driven": name in engine_names(driven=True)} for name in profile.engines],
        "workspace_bytes": workspace_bytes(profile),
    }
