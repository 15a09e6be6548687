"""How a path is put while images are attacked on it or its accuracy is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from smart_train.masking.layers import Expert


@contextmanager
def masks_applied(network: nn.Module) -> Iterator[None]:
    """Run a block with every expert layer's masked parameters computed once, and without a gradient to them.

    For attacks: they run a path many times over on the same parameters and want the gradient of the input only. The
    parameters and masks must not change inside the block. Layers with noise go on drawing it for each pass.
    """
    experts = [module for module in network.modules() if isinstance(module, Expert)]
    layers = [expert for expert in experts if expert.weight is not None and expert.noise is None]
    before = [layer.held for layer in layers]  # held already inside another such block
    try:
        with torch.no_grad():
            for layer in layers:
                weight, bias = layer.masked_affine()
                layer.held = weight.detach(), None if bias is None else bias.detach()
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            layer.held = held


@contextmanager
def attack_mode(module: nn.Module) -> Iterator[None]:
    """Run a block with ``module`` in eval mode, its masks applied once, and no gradient to its expert layers.

    So an attack neither sees nor moves batch statistics, and pays for the input's gradient only.
    """
    was = module.training
    module.eval()
    try:
        with masks_applied(module):
            yield
    finally:
        module.train(was)
