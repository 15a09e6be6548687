"""What published files call the tensors of networks that are of ours too.

Two ways of naming are common. One has the stages as ``layer1`` to ``layer4`` (torchvision, the many CIFAR networks that
follow it, RobustBench's ResNets), the other as ``block1.layer`` to ``block3.layer`` (the wide networks of TRADES and of
RobustBench). Ours has all blocks in one row: ``blocks.0``, ``blocks.1`` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_BLOCK = re.compile(r"(?:layer|block)(\d{1,3})\.(?:layer\.)?(\d{1,3})\.(.+)")
_OUTSIDE = {"conv1": "conv", "bn1": "bn", "linear": "fc"}  # of the blocks; what else is there has our names
_SHORTCUT = re.compile(r"(?:downsample|shortcut|convShortcut)\b")
_UNUSED = "sub_block1."
"""A second first stage that the code of TRADES makes and never calls; many wide networks of RobustBench have it."""


def in_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the ``tensors`` of a published residual network by the names that ours have; other names stay."""
    found = {name: _BLOCK.fullmatch(name) for name in tensors if not name.startswith(_UNUSED)}
    places = {(int(match[1]), int(match[2])) for match in found.values() if match}
    row = {place: number for number, place in enumerate(sorted(places))}
    result: dict[str, Tensor] = {}
    for name, match in found.items():
        if match is None:
            module, dot, rest = name.partition(".")
            ours = f"{_OUTSIDE.get(module, module)}{dot}{rest}"
        else:
            ours = f"blocks.{row[int(match[1]), int(match[2])]}.{_SHORTCUT.sub('shortcut', match[3])}"
        result[ours] = tensors[name]
    if not any(".shortcut.1." in name for name in result):  # a convolution without a batch norm, in a row of its own
        result = {name.replace(".shortcut.0.", ".shortcut."): tensor for name, tensor in result.items()}
    return result
