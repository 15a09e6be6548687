"""Fold a path into a plain, smaller network: masks into weights, batch norms into convolutions, channels out."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from smart_train import SmartNetwork
from smart_train.groups import apply_mask_
from smart_train.layers import ExpertBatchNorm2d, make_plain_
from smart_train.network import PathNetwork
from smart_train.slicing import slice_network


class ChannelAffine(nn.Module):
    """scale * x + shift per channel: what is left of a batch norm that no convolution can take in."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.scale = nn.Parameter(scale.detach().view(1, -1, 1, 1))
        self.shift = nn.Parameter((norm.bias - norm.running_mean * scale).detach().view(1, -1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return features * self.scale + self.shift

    def as_convolution(self) -> nn.Conv2d:
        """Return a depthwise 1x1 convolution that computes the same."""
        channels = self.scale.shape[1]
        result = nn.Conv2d(channels, channels, 1, groups=channels)
        result.weight = nn.Parameter(self.scale.detach().view(-1, 1, 1, 1).clone())
        result.bias = nn.Parameter(self.shift.detach().flatten().clone())
        return result


def affines_to_convolutions_(folded: nn.Module) -> None:
    """Turn every :class:`ChannelAffine` of ``folded`` into a depthwise convolution, in place.

    ONNX Runtime on a CPU multiplies and adds per channel only in the plain layout, so that in a pre-activation network
    the features leave the blocked layout of the convolutions and come back at every block; a convolution stays in it
    and takes the ReLU in. Measured on AVX-512: WRN-40-2 at density 0.5 in 1.82 instead of 2.04 ms. Engines of GPUs fuse
    multiplication, addition and ReLU by themselves.
    """
    for name, module in list(folded.named_modules()):
        if isinstance(module, ChannelAffine):
            _replace_(folded, name, module.as_convolution())


def padded(mask: Tensor, *, align: int) -> Tensor:
    """Return ``mask`` (bool, (size,)) with channels added until a multiple of ``align`` is kept, or all of them.

    An added channel computes zeros, so the function stays the same; dropping channels instead would change it.
    """
    keep = mask.clone()
    missing = min(math.ceil(int(mask.sum()) / align) * align, mask.numel()) - int(mask.sum())
    keep[torch.nonzero(~mask).flatten()[:missing]] = True
    return keep


def _without_batch_norm(network: nn.Module) -> fx.GraphModule:
    """Take every batch norm into the convolution before it, or into a scale and shift, in float64 for exactness."""
    traced = fx.symbolic_trace(network.double().eval())
    modules = dict(traced.named_modules())
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        # A layer that is called twice serves two places, so nothing of one place may go into it.
        once = calls[str(before.target)] == calls[str(node.target)] == len(before.users) == 1
        if isinstance(convolution, nn.Conv2d) and once:
            _replace_(traced, str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
        else:
            _replace_(traced, str(node.target), ChannelAffine(norm))
    traced.delete_all_unused_submodules()
    traced.recompile()
    traced.float().eval()
    return traced


def _replace_(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def fold(net: SmartNetwork, *, path: str, keeps: Sequence[Tensor] | None = None) -> fx.GraphModule:
    """Return ``path`` as a plain module without masks and batch norms; normalisation stays inside.

    Args:
        net: the trained network; it is not changed.
        path: which path.
        keeps: bool (size,) for each group, a superset of the path's masks (see :func:`padded`); the masks by default.

    Returns:
        A module in eval mode that maps images (N, C, H, W) in [0, 1] to scores (N, classes).
    """
    tree = copy.deepcopy(net.path(path)).cpu()
    make_plain_(tree)
    sliced = slice_network(tree.network, net.groups, list(keeps) if keeps is not None else net.masks(path))
    return _without_batch_norm(PathNetwork(sliced, normalise=tree.normalise))


def unmasked(net: SmartNetwork, *, path: str) -> PathNetwork:
    """Return a copy of ``path`` with nothing masked: the dense network that latency is compared with.

    It has the weights of that path but was never trained to be used whole: it is no classifier to rely on.
    """
    tree = copy.deepcopy(net.path(path)).cpu().eval()
    for group in net.groups:
        for point in group.points:
            norm = tree.network.get_submodule(point.layer)
            if point.producer is None and isinstance(norm, ExpertBatchNorm2d):
                _fill_statistics_(norm)
        apply_mask_(tree.network, group, torch.ones(group.size, dtype=torch.bool))
    return tree


@torch.no_grad()
def _fill_statistics_(norm: ExpertBatchNorm2d) -> None:
    """Give the masked channels of a batch norm the average statistics of its kept ones, in place.

    One that reads a masked residual stream has seen nothing but zeros in them. Their variance is 0 then, and features
    would grow 300 times at each such norm, to infinity in a deep network.
    """
    keep = norm.mask
    if keep is None or norm.running_mean is None or norm.running_var is None:
        return
    for statistic in (norm.running_mean, norm.running_var):
        statistic[~keep] = statistic[keep].mean()


def fold_dense(dense: PathNetwork) -> fx.GraphModule:
    """Return what :func:`unmasked` returned with its batch norms folded; ``dense`` is not changed."""
    tree = copy.deepcopy(dense)
    make_plain_(tree)
    return _without_batch_norm(tree)
