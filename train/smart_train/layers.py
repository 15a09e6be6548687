"""Expert layers: the plain layers of a network with a mask of one path over their output channels.

The mask multiplies the layer's own affine parameters, which is the same as multiplying its output (the output is linear
in them) and costs one small product instead of one over the whole feature map. In a network with batch norms the mask
sits at the batch norm and not at the convolution before it: a masked convolution followed by batch norm would leave
beta - gamma * mean / sigma behind in the masked channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn


class Expert(nn.Module):
    """What all expert layers share: a mask over output channels, and a gate to ask how much each channel matters.

    Attributes:
        mask: bool (out_channels,), or None where nothing is masked.
        gate: float (out_channels,) leaf that stands in for the mask while its gradient dL/dm is wanted, else None.
        held: weight and bias with the mask in them and no gradient, while :func:`holding` is on; else None.
    """

    mask: Tensor | None
    gate: Tensor | None
    held: tuple[Tensor, Tensor | None] | None

    def set_mask(self, mask: Tensor) -> None:
        """Keep the output channels where ``mask`` (bool, (out_channels,)) is true."""
        self.register_buffer("mask", mask, persistent=False)

    def watch_gate(self, watched: bool, *, floor: float = 0.0) -> None:
        """Start or stop collecting dL/dm in ``gate.grad``.

        With a small ``floor`` above 0 a masked channel comes out as next to nothing instead of zero: a ReLU passes no
        gradient at exactly zero, so there the gradient of a masked channel's gate would be zero whatever it is worth.
        """
        self.gate = self.mask.float().clamp_(min=floor).requires_grad_() if watched and self.mask is not None else None

    def masked_affine(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight and bias to compute with: the layer's own, times the gate or the mask if there is one."""
        if self.held is not None:
            return self.held
        weight, bias = self.weight, self.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        keep = self.gate if self.gate is not None else self.mask
        if keep is None:
            return weight, bias
        return weight * keep.view(-1, *[1] * (weight.dim() - 1)), None if bias is None else bias * keep


class ExpertConv2d(Expert, nn.Conv2d):
    """A convolution whose output channels a path may mask."""

    def forward(self, images: Tensor) -> Tensor:
        """Convolve (N, in, H, W) to (N, out, H', W') with zeros in the masked channels."""
        output: Tensor = self._conv_forward(images, *self.masked_affine())
        return output


class ExpertLinear(Expert, nn.Linear):
    """A linear layer whose output features a path may mask."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., in) to (..., out) with zeros in the masked features."""
        return F.linear(features, *self.masked_affine())


class ExpertBatchNorm2d(Expert, nn.BatchNorm2d):
    """A batch norm of one path only, whose channels that path may mask (it must be affine for that)."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (N, C, H, W); masked channels come out as zeros, their statistics go on being tracked."""
        if self.mask is None and self.held is None:
            return super().forward(features)
        self._check_input_dim(features)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average, as torch documents it
                momentum = 1.0 / float(self.num_batches_tracked)
        use_batch = self.training or self.running_mean is None
        tracked = not self.training or self.track_running_stats
        return F.batch_norm(
            features,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            *self.masked_affine(),
            use_batch,
            momentum,
            self.eps,
        )


@contextmanager
def holding(network: nn.Module) -> Iterator[None]:
    """Run a block with every expert layer's masked parameters computed once, and without a gradient to them.

    For attacks: they run a path many times over on the same parameters and want the gradient of the input only. The
    parameters and masks must not change inside the block.
    """
    layers = [module for module in network.modules() if isinstance(module, Expert) and module.weight is not None]
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


_EXPERT_OF: dict[type[nn.Module], type[Expert]] = {
    nn.Conv2d: ExpertConv2d,
    nn.Linear: ExpertLinear,
    nn.BatchNorm2d: ExpertBatchNorm2d,
}
_PLAIN_OF: dict[type[Expert], type[nn.Module]] = {expert: plain for plain, expert in _EXPERT_OF.items()}


def make_expert_(network: nn.Module) -> None:
    """Turn every plain Conv2d, Linear and BatchNorm2d of ``network`` into its expert, in place.

    Only exact types are turned: a subclass computes something of its own. Changing the class keeps every attribute and
    the very parameters of the layer, which copying them one by one could miss.
    """
    for module in network.modules():
        expert = _EXPERT_OF.get(type(module))
        if expert is not None:
            module.__class__ = expert
            module.register_buffer("mask", None, persistent=False)
            module.gate = module.held = None  # type: ignore[assignment]  # of Expert, which the module now is


def make_plain_(network: nn.Module) -> None:
    """Undo :func:`make_expert_`, multiplying every mask into its layer's parameters first, in place.

    The parameters must not be shared with another path: call it on a copy.
    """
    for module in network.modules():
        if not isinstance(module, Expert):
            continue
        if module.mask is not None:
            with torch.no_grad():
                for name in ("weight", "bias"):
                    parameter = getattr(module, name)
                    if parameter is not None:
                        parameter *= module.mask.view(-1, *[1] * (parameter.dim() - 1))
        module.__class__ = _PLAIN_OF[type(module)]  # type: ignore[assignment]  # no expert from here on
        del module.mask, module.gate, module.held
