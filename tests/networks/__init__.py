"""Compact networks of every family that people bring, written as their authors write them: adapted to nothing of ours.

Each factory takes ``num_classes`` and ``in_channels`` beside its own arguments, as `--model` asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from networks.convnext import ConvNeXt
from networks.dense import DenseNet
from networks.functional import FunctionalNet
from networks.mobile import MobileNet
from networks.residual import Wide, basic, bottleneck, grouped
from networks.shuffle import ShuffleNet
from networks.vgg import Vgg, bare

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "residual": basic,
    "bottleneck": bottleneck,
    "wide": Wide,
    "vgg": Vgg,
    "vgg without batch norm": bare,
    "dense": DenseNet,
    "inverted residual": MobileNet,
    "grouped": grouped,
    "convnext": ConvNeXt,
    "shuffle": ShuffleNet,
    "functional": FunctionalNet,
}

ACCEPTED: Mapping[str, tuple[int, int]] = {
    "residual": (3, 5),
    "bottleneck": (6, 8),
    "wide": (4, 6),
    "vgg": (5, 5),
    "vgg without batch norm": (5, 5),
    "dense": (10, 10),
    "inverted residual": (7, 9),
    "grouped": (3, 5),
    "convnext": (3, 5),
    "shuffle": (5, 5),
    "functional": (3, 4),
}
"""How many groups each has that may be masked at scope ``block`` and ``all``."""

KEPT_WHOLE: Mapping[str, tuple[int, str]] = {"shuffle": (1, "its channels do not fit")}
"""How many groups are never masked at scope ``all``, and why; none of the networks that are not here."""

PLAIN = {"residual", "bottleneck", "wide", "vgg", "vgg without batch norm", "grouped"}
"""Networks of operators that one of the others has too: converting each takes seconds, so only slow tests do."""
