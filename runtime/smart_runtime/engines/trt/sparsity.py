"""What TensorRT says of 2:4 weights: which layers have them, and which of those compute with them.

It takes a sparse kernel only where that is the fastest, and it is silent about it unless one reads its log or asks its
inspector, so a network can be pruned for nothing.
"""

from __future__ import annotations

import json
import re

_MARK = "(Sparsity)"
# 8.6 lists names in one line even if there are none; later ones count. Both sentences are in the libraries themselves.
_NAMES = {
    "eligible": "(Sparsity) Layers eligible for sparse math:",
    "chosen": "(Sparsity) TRT inference plan picked sparse implementation for layers:",
}
_COUNTS = {
    "eligible": re.compile(r"\(Sparsity\) Found (\d+) layer\(s\) eligible"),
    "chosen": re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\)"),
}
_SPARSE_TACTIC = re.compile("sparse|sptensor", re.IGNORECASE)  # in names of NVIDIA's kernels


class SparsityLog:
    """Counts layers by what the library logs while it builds; None for what it has not said.

    Attributes:
        eligible: Layers with 2:4 weights.
        chosen: Layers that compute with them.
    """

    def __init__(self) -> None:
        self.eligible: int | None = None
        self.chosen: int | None = None

    def heard(self, text: str) -> None:
        """Take note of one message, on any thread."""
        if _MARK not in text:
            return
        for name in ("eligible", "chosen"):
            _, found, names = text.partition(_NAMES[name])
            counted = _COUNTS[name].search(text)
            if found:
                setattr(self, name, len([layer for layer in names.split(",") if layer.strip()]))
            elif counted:
                setattr(self, name, int(counted[1]))


def layers_of(information: str) -> tuple[int | None, int | None]:
    """Return the layers of a plan, and how many of them have a sparse kernel.

    Args:
        information: What the engine inspector says in JSON, with detailed verbosity.

    Returns:
        None for either that it does not tell.
    """
    try:
        layers = json.loads(information)["Layers"]
        tactics = [layer["TacticName"] for layer in layers if isinstance(layer, dict) and "TacticName" in layer]
        return len(layers), sum(bool(_SPARSE_TACTIC.search(name)) for name in tactics) if tactics else None
    except (ValueError, KeyError, TypeError):
        return None, None
