"""Fold a path into a plain, smaller network: masks into weights, batch norms into convolutions, channels out."""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from smart_train import Checkpoint, SmartNetwork, load_checkpoint
from smart_train.masking.groups import Group, apply_mask_, may_be_padded
from smart_train.masking.layers import Expert, ExpertBatchNorm2d, make_plain_
from smart_train.masking.network import PathNetwork
from smart_train.masking.slicing import slice_network
from smart_train.masking.weight_masks import pattern_holds


class ChannelAffine(nn.Module):
    """scale * x + shift per channel: what is left of a batch norm that no convolution can take in."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = (norm.weight, norm.bias) if norm.affine else (1, 0)
        scale = weight / torch.sqrt(norm.running_var + norm.eps)
        self.scale = nn.Parameter(scale.detach().view(1, -1, 1, 1))
        self.shift = nn.Parameter((bias - norm.running_mean * scale).detach().view(1, -1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return features * self.scale + self.shift


def affines_to_convolutions_(folded: nn.Module) -> None:
    """Turn every :class:`ChannelAffine` of ``folded`` into a depthwise convolution, in place.

    ONNX Runtime on a CPU multiplies and adds per channel only in the plain layout, so that in a pre-activation network
    the features leave the blocked layout of the convolutions and come back at every block; a convolution stays in it
    and takes the ReLU in. Measured on AVX-512: WRN-40-2 at density 0.5 in 1.82 instead of 2.04 ms. Engines of GPUs fuse
    multiplication, addition and ReLU by themselves.
    """
    for name, module in list(folded.named_modules()):
        if isinstance(module, ChannelAffine):
            channels = module.scale.shape[1]
            convolution = nn.Conv2d(channels, channels, 1, groups=channels)
            convolution.weight = nn.Parameter(module.scale.detach().view(-1, 1, 1, 1).clone())
            convolution.bias = nn.Parameter(module.shift.detach().flatten().clone())
            folded.set_submodule(name, convolution)


def to_half_(folded: fx.GraphModule) -> None:
    """Let ``folded`` compute in fp16 between float32 images and float32 scores, in place.

    The weights are rounded, so zeros stay zero. What a type cannot hold becomes infinite, which verification finds.
    """
    graph = folded.graph
    (image,) = graph.find_nodes(op="placeholder")
    with graph.inserting_after(image):
        half = graph.call_method("half", (image,))
    image.replace_all_uses_with(half, delete_user_cb=lambda user: user is not half)
    output = graph.output_node()
    (scores,) = output.args
    assert isinstance(scores, fx.Node)
    with graph.inserting_before(output):
        output.args = (graph.call_method("float", (scores,)),)
    folded.half()
    folded.recompile()


def padded(mask: Tensor, *, align: int, block: int = 1) -> Tensor:
    """Return ``mask`` (bool, (size,)) with channels added until a multiple of ``align`` is kept, or all of them.

    An added channel computes zeros, so the function stays the same; dropping channels instead would change it. Where
    single weights are masked by blocks of ``block`` kept channels, a whole number of blocks is added before the last
    channel of each, so that no block is torn; ``mask`` stays as it is where its dropped channels do not allow that.
    """
    keep = mask.clone()
    kept = torch.nonzero(mask).flatten()
    missing = min(math.ceil(len(kept) / align) * align, len(mask)) - len(kept)
    ends = [*(kept[block - 1 : len(kept) - 1 : block] + 1).tolist(), len(mask)]
    start = 0
    for end in ends:
        dropped = start + torch.nonzero(~mask[start:end]).flatten()
        added = min(len(dropped), missing) // block * block
        keep[dropped[:added]] = True
        missing -= added
        start = end
    return keep if missing == 0 else mask.clone()


def padded_masks(net: SmartNetwork, *, path: str, align: int) -> list[Tensor]:
    """Return the masks of ``path`` with what :func:`padded` adds, so that ``align`` channels fit.

    A group whose channels a layer norm sees gets nothing: it would count the zeros. Nothing is added at all where that
    would move the blocks in which single weights are masked.
    """
    network, masks = net.path(path).network, net.masks(path)
    structure = net.structure

    def fit(group: Group, mask: Tensor) -> Tensor:
        if not may_be_padded(network, group):
            return mask
        block = structure.pattern.block // math.gcd(structure.pattern.block, group.bundle)
        return padded(mask, align=align // math.gcd(align, group.bundle), block=block)

    keeps = [fit(group, mask) for group, mask in zip(net.groups, masks, strict=True)]
    inputs = net.kept_inputs(path, keeps=keeps)
    whole = (
        pattern_holds(mask.cpu(), keep_in=inputs[layer], structure=structure)
        for layer, mask in net.weight_masks(path).items()
    )
    return keeps if all(whole) else masks


class _Tracer(fx.Tracer):
    """Traces what it can: a module whose forward cannot be followed, as one that looks at a shape, stays one call."""

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._opaque or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # its own code met a stand-in for a tensor
            if not any(inner in self._opaque for inner in m.modules()):  # the innermost only
                self._opaque.add(m)
            raise


def _traced(network: nn.Module) -> fx.GraphModule:
    opaque: set[nn.Module] = set()
    while True:
        known = len(opaque)
        try:
            return fx.GraphModule(network, _Tracer(opaque).trace(network))
        except Exception:  # whatever the network's own code raises: tried again while there is one more to leave whole
            if len(opaque) == known:
                raise


def _batch_norms_to_layers_(traced: fx.GraphModule, network: nn.Module) -> None:
    """Make a layer of each batch norm that is a call of the function, as in one with an activation inside, in place.

    ``network`` is what was traced, and still has the layer around the call.
    """
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    for number, node in enumerate([n for n in traced.graph.nodes if n.target is F.batch_norm]):
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        tensors = [given.get(name) for name in names[1:5]]
        if given.get("training") or not all(isinstance(t, fx.Node) and t.op == "get_attr" for t in tensors):
            continue
        owner = network.get_submodule(str(tensors[0].target).rpartition(".")[0])
        if not isinstance(owner, nn.BatchNorm2d):
            continue
        norm = nn.BatchNorm2d(owner.num_features, eps=given.get("eps", owner.eps)).to(owner.weight.dtype).eval()
        own = owner.state_dict()
        norm.load_state_dict({name: own[name] for name in norm.state_dict()})
        traced.add_submodule(f"batch_norm_{number}", norm)
        with traced.graph.inserting_before(node):
            call = traced.graph.call_module(f"batch_norm_{number}", (given["input"],))
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
    for node in list(traced.graph.nodes):
        if node.target is torch._assert:  # of a shape: it ends up in no graph, and would look like a second reader
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()


def _without_batch_norm(network: nn.Module) -> fx.GraphModule:
    """Take every batch norm into the convolution before it, or into a scale and shift, in float64 for exactness."""
    traced = _traced(network.double().eval())
    _batch_norms_to_layers_(traced, network)
    modules = dict(traced.named_modules())
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not _is_batch_norm(norm):
            continue
        before = node.args[0]
        layer = modules.get(str(before.target)) if before.op == "call_module" else None
        # A layer that is called twice serves two places, so nothing of one place may go into it.
        once = calls[str(before.target)] == calls[str(node.target)] == len(before.users) == 1
        fused = _fused(layer, norm) if once else None
        if fused is not None:
            traced.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    for name, module in list(traced.named_modules()):
        if _is_batch_norm(module) and isinstance(module, nn.BatchNorm2d):
            traced.set_submodule(name, ChannelAffine(module))
    traced.recompile()
    traced.float().eval()
    return traced


def _is_batch_norm(module: nn.Module | None) -> TypeGuard[nn.BatchNorm1d | nn.BatchNorm2d]:
    """Whether a batch norm is one and nothing else, with statistics of its own."""
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return False
    return type(module) in {nn.BatchNorm1d, nn.BatchNorm2d} and module.track_running_stats


def _fused(layer: nn.Module | None, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module | None:
    """Return ``layer`` with ``norm``, which reads it, taken in; None where it cannot be.

    Exact types only: a subclass may compute with another weight than it holds.
    """
    if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
        return fuse_conv_bn_eval(layer, norm)
    if type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d and layer.out_features == norm.num_features:
        # torch's fusion for linear layers needs a scale and a shift: 1 and 0 where the norm has none.
        affine = nn.BatchNorm1d(norm.num_features, eps=norm.eps, dtype=torch.float64).eval()
        affine.load_state_dict(norm.state_dict(), strict=False)
        return fuse_linear_bn_eval(layer, affine)
    return None


def fold(
    model: str | os.PathLike[str] | Checkpoint | SmartNetwork, *, path: str, keeps: Sequence[Tensor] | None = None
) -> fx.GraphModule:
    """Return ``path`` as a plain module without masks and batch norms; normalisation stays inside.

    What stays of batch norms: one over (N, C) features that no linear layer makes, and any that keeps no statistics.

    Args:
        model: the trained network, which is not changed, its checkpoint, or that one's file.
        path: which path.
        keeps: bool (size,) for each group, a superset of the path's masks (see :func:`padded_masks`); by default the
            masks themselves.

    Returns:
        A module in eval mode that maps images (N, C, H, W) in [0, 1] to scores (N, classes).

    Raises:
        CheckpointError: if the file is missing or no checkpoint.
    """
    if isinstance(model, str | os.PathLike):
        model = load_checkpoint(model)
    net = model.net if isinstance(model, Checkpoint) else model
    tree = copy.deepcopy(net.path(path)).cpu()
    make_plain_(tree)
    sliced = slice_network(tree.network, net.groups, list(keeps) if keeps is not None else net.masks(path))
    return _without_batch_norm(PathNetwork(sliced, normalise=tree.normalise))


def unmasked(net: SmartNetwork, *, path: str) -> PathNetwork:
    """Return a copy of ``path`` with nothing masked: the dense network that latency is compared with.

    It has the weights of that path but was never trained to be used whole: it is no classifier to rely on.
    """
    tree = copy.deepcopy(net.path(path)).cpu().eval()
    for module in tree.modules():
        if isinstance(module, Expert):
            module.weight_mask = None
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
    for statistic in (norm.running_mean, norm.running_var):
        if norm.mask is not None and statistic is not None:
            statistic[~norm.mask] = statistic[norm.mask].mean()


def fold_dense(dense: PathNetwork) -> fx.GraphModule:
    """Return what :func:`unmasked` returned with its batch norms folded; ``dense`` is not changed."""
    tree = copy.deepcopy(dense)
    make_plain_(tree)
    return _without_batch_norm(tree)
