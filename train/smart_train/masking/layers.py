"""Expert layers: the plain layers of a network with masks of one path over output channels and over single weights.

The channel mask multiplies the layer's own affine parameters, which is the same as multiplying its output (the output
is linear in them) and costs one small product instead of one over the whole feature map. In a network with batch norms
it sits at the batch norm and not at the convolution before it: a masked convolution followed by batch norm would leave
beta - gamma * mean / sigma behind in the masked channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_train.errors import NetworkError


class Expert(nn.Module):
    """What all expert layers share: a mask over output channels, and a gate to ask how much each channel matters.

    Attributes:
        mask: bool (out_channels,), or None where nothing is masked.
        gate: float (out_channels,) leaf that stands in for the mask while its gradient dL/dm is wanted, else None.
        weight_mask: bool of the weight's shape, or None where no single weight is masked.
        weight_gate: float leaf of that shape that stands in for it, likewise.
        effective: whether the gradient of the weight times its mask, as a path computes with it, is wanted.
        effective_gradient: that gradient, summed over backward passes since it was taken; None where there was none.
        held: weight and bias with the mask in them and no gradient, while :func:`masks_applied` is on; else None.
        noise: what the weight becomes anew before the masks each time the layer computes, or None; see
            :attr:`PathNetwork.randomised`.
    """

    mask: Tensor | None
    gate: Tensor | None
    weight_mask: Tensor | None
    weight_gate: Tensor | None
    effective: bool
    effective_gradient: Tensor | None
    held: tuple[Tensor, Tensor | None] | None
    noise: Callable[[Tensor], Tensor] | None

    def set_mask(self, mask: Tensor) -> None:
        """Keep the output channels where ``mask`` (bool, (out_channels,)) is true."""
        self.register_buffer("mask", mask, persistent=False)

    def set_weight_mask(self, mask: Tensor) -> None:
        """Keep the single weights where ``mask`` (bool, of the weight's shape) is true."""
        self.register_buffer("weight_mask", mask, persistent=False)

    def watch_gate(self, watched: bool, *, floor: float = 0.0) -> None:
        """Start or stop collecting dL/dm in ``gate.grad``.

        With a small ``floor`` above 0 a masked channel comes out as next to nothing instead of zero: a ReLU passes no
        gradient at exactly zero, so there the gradient of a masked channel's gate would be zero whatever it is worth.
        """
        self.gate = self.mask.float().clamp_(min=floor).requires_grad_() if watched and self.mask is not None else None

    def watch_weight_gate(self, watched: bool) -> None:
        """Start or stop collecting dL/dm of single weights in ``weight_gate.grad``.

        The layer is linear in its weights, so there the gradient of a masked one is not zero.
        """
        mask = self.weight_mask if watched else None
        self.weight_gate = None if mask is None else mask.float().requires_grad_()

    def watch_effective(self, watched: bool) -> None:
        """Start or stop collecting dL/dW, W the weight times the mask of single weights: masked ones have one too."""
        self.effective, self.effective_gradient = watched, None

    def take_effective_gradient(self) -> Tensor | None:
        """Return what has been collected since the last call."""
        found, self.effective_gradient = self.effective_gradient, None
        return found

    def _collect(self, gradient: Tensor) -> None:
        known = self.effective_gradient
        self.effective_gradient = gradient.detach() if known is None else known + gradient

    def masked_affine(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight and bias to compute with: the layer's own, times the gate or the mask if there is one."""
        if self.held is not None:
            return self.held
        weight, bias = self.weight, self.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        if self.noise is not None:
            weight = self.noise(weight)
        single = self.weight_gate if self.weight_gate is not None else self.weight_mask
        if single is not None:
            weight = weight * single
        if self.effective:
            weight = weight.view_as(weight)  # a tensor of this path's own, where the weight is shared by all
            if weight.requires_grad:  # not where no gradients are computed
                weight.register_hook(self._collect)  # type: ignore[no-untyped-call]  # of torch
        keep = self.gate if self.gate is not None else self.mask
        if keep is None:
            return weight, bias
        return weight * keep.view(-1, *[1] * (weight.dim() - 1)), None if bias is None else bias * keep


def batch_norm_parameters(network: nn.Module) -> set[str]:
    """Return the names of the parameters of batch norms, which every path has for itself."""
    return {
        f"{name}.{own}" if name else own
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for own, _ in module.named_parameters(recurse=False)
    }


def expert_at(network: nn.Module, name: str) -> Expert:
    """Return the expert layer ``name`` of ``network``."""
    layer = network.get_submodule(name)
    assert isinstance(layer, Expert)
    return layer


def weight_at(network: nn.Module, name: str) -> Tensor:
    """Return the weight of the layer ``name`` of ``network``."""
    weight = network.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


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


class _MaskedLayerNorm(Expert):
    """A layer norm over channels whose masked ones count as absent, in its statistics too: slicing takes them away.

    The paths share its scale and shift: it has no statistics that one path's images could move for the other.
    """

    channel_axis: int  # of the features
    eps: float

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each position of features over its kept channels, to the same shape; masked ones become zeros."""
        if self.mask is None:
            output: Tensor = super().forward(features)
            return output
        weight, bias = self.masked_affine()
        shape = [1] * features.dim()
        shape[self.channel_axis] = -1
        exact = features.to(torch.promote_types(features.dtype, torch.float32))  # sums in half precision are coarse
        keep, count = self.mask.to(exact.dtype).view(shape), self.mask.sum()
        centred = exact - (exact * keep).sum(self.channel_axis, keepdim=True) / count
        variance = (centred.square() * keep).sum(self.channel_axis, keepdim=True) / count
        result = centred * torch.rsqrt(variance + self.eps) * weight.view(shape)
        if bias is not None:
            result = result + bias.view(shape)
        return result.to(features.dtype)


class ExpertLayerNorm(_MaskedLayerNorm, nn.LayerNorm):
    """A layer norm over the last axis, whose channels a path may mask."""


class _MaskedOutput(Expert):
    """A batch norm that computes something of its own after it, an activation say: its output is masked."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W) with zeros in the masked channels."""
        output: Tensor = super().forward(features)
        keep = self.mask if self.held is not None or self.gate is None else self.gate
        return output if keep is None else output * keep.view(1, -1, 1, 1)


_EXPERT_OF: dict[type[nn.Module], type[Expert]] = {
    nn.Conv2d: ExpertConv2d,
    nn.Linear: ExpertLinear,
    nn.BatchNorm2d: ExpertBatchNorm2d,
    nn.LayerNorm: ExpertLayerNorm,
}
_PLAIN_OF: dict[type[Expert], type[nn.Module]] = {expert: plain for plain, expert in _EXPERT_OF.items()}


def _expert_of(module: nn.Module) -> type[Expert] | None:
    """Return the expert class of a layer, None for one that has none.

    A subclass computes something of its own: of a convolution or linear layer that may be anything; of a batch norm it
    is masked at its output, and of a layer norm it is known once it proves to be one over some axis.
    """
    plain = type(module)
    mask: type[Expert]
    if plain in _EXPERT_OF:
        return _EXPERT_OF[plain]
    if isinstance(module, nn.BatchNorm2d):
        mask = _MaskedOutput
    elif isinstance(module, nn.LayerNorm) and layer_norm_axis(module) is not None:
        mask = _MaskedLayerNorm
    else:
        return None
    # Kept, so that a class has one expert class and copies of a network are of the same types.
    expert = type(f"Expert{plain.__name__}", (mask, plain), {"__doc__": mask.__doc__})
    _EXPERT_OF[plain], _PLAIN_OF[expert] = expert, plain
    return expert


@torch.no_grad()
def layer_norm_axis(module: nn.LayerNorm) -> int | None:
    """Return the axis of images' features that a layer norm works on: -1, or 1 as those for (N, C, H, W) do.

    A subclass is tried on random features; None if it is no layer norm over one of the two axes.
    """
    if len(module.normalized_shape) != 1 or not module.elementwise_affine:
        return None
    if type(module) in {nn.LayerNorm, ExpertLayerNorm}:
        return -1
    trial, generator = copy.deepcopy(module).cpu(), torch.Generator().manual_seed(0)
    for parameter in (trial.weight, trial.bias):
        if parameter is not None:
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    channels = module.normalized_shape[0]
    height, width = [side for side in (2, 3, 4) if side != channels][:2]
    for axis, shape in ((1, (2, channels, height, width)), (-1, (2, height, width, channels))):
        features = torch.rand(shape, generator=generator).to(trial.weight.dtype)
        try:
            got = trial(features)
        except Exception:  # noqa: S112  # its own code, made for other shapes
            continue
        expected = F.layer_norm(features.movedim(axis, -1), (channels,), trial.weight, trial.bias, trial.eps)
        if got.shape == shape and torch.allclose(got, expected.movedim(-1, axis), rtol=1e-4, atol=1e-4):
            return axis
    return None


def check_weights(network: nn.Module) -> None:
    """Check that every layer that may be masked has weights of its own, which are what it computes with.

    Raises:
        NetworkError: if two layers share a parameter, on which both masks would act, or a weight is computed from
            others before each call, so that what a mask or a fold did to it would be lost; or if a part is a script,
            whose copies have weights of their own.
    """
    owners: dict[int, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(
                f"{name or type(network).__name__} is made by torch.jit.script, whose weights several paths cannot "
                f"share, since a copy copies them; give the module that it was made of"
            )
        if type(module) in _EXPERT_OF and "weight" not in module._parameters:
            raise NetworkError(
                f"expected layers with weights of their own, got {name} whose weight is computed (weight_norm or "
                f"spectral_norm); torch.nn.utils.remove_weight_norm makes it one"
            )
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            other = owners.setdefault(id(parameter), f"{name}.{key}")
            if other != f"{name}.{key}":
                raise NetworkError(
                    f"expected layers with weights of their own, got {other} and {name}.{key} that share one; give "
                    f"each its own, or call one layer twice"
                )


def make_expert_(network: nn.Module) -> None:
    """Turn every Conv2d, Linear, BatchNorm2d and LayerNorm of ``network`` into its expert, in place.

    Changing the class keeps every attribute and the very parameters of the layer, which copying them one by one could
    miss.
    """
    for module in list(network.modules()):
        expert = _expert_of(module)
        if expert is None:
            continue
        if isinstance(module, nn.LayerNorm):
            axis = layer_norm_axis(module)
            if axis is None:
                continue
            module.channel_axis = axis  # type: ignore[assignment]  # of Expert, which the module now is
        module.__class__ = expert
        module.register_buffer("mask", None, persistent=False)
        module.register_buffer("weight_mask", None, persistent=False)
        module.gate = module.weight_gate = module.held = module.noise = None  # type: ignore[assignment]
        module.effective, module.effective_gradient = False, None  # type: ignore[assignment]


@torch.no_grad()
def make_plain_(network: nn.Module, *, masked: bool = True) -> None:
    """Undo :func:`make_expert_`, multiplying every mask into its layer's parameters first if ``masked``, in place.

    Then the parameters must not be shared with another path: call it on a copy. Noise is dropped.
    """
    for module in network.modules():
        if not isinstance(module, Expert):
            continue
        if masked and module.weight_mask is not None:
            assert isinstance(module.weight, Tensor)
            module.weight *= module.weight_mask
        if masked and module.mask is not None:
            for parameter in (module.weight, module.bias):
                if isinstance(parameter, Tensor):
                    parameter.mul_(module.mask.view(-1, *[1] * (parameter.dim() - 1)))
        module.__class__ = _PLAIN_OF[type(module)]  # type: ignore[assignment]  # no expert from here on
        del module.mask, module.gate, module.held, module.weight_mask, module.weight_gate, module.noise
        del module.effective, module.effective_gradient
