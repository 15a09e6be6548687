"""The values that a network's convolutions start from."""

from __future__ import annotations

from torch import nn


def initialise_(network: nn.Module) -> None:
    """Draw every convolution's weights from the global random state, in place (He et al. 2015, arXiv 1502.01852, 2.2).

    Scaled by the outputs of a filter, as the authors of both residual families do.
    """
    for module in network.modules():
        # On the meta device there are no values, and drawing them would import torch's compiler: a second for nothing.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
