"""Deep networks refused with "the fold is wrong" where float32 rounds; a fold that is wrong is found all the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from networks import NETWORKS
from smart_export.build import build_bundle
from smart_export.check import check_bundle
from smart_export.errors import VerificationError
from smart_export.folding import ChannelAffine, fold
from smart_export.precision import MAX_TOLERANCE, TOLERANCE_FP32
from smart_export.proof import PROVEN, prove
from smart_export.verify import Images
from smart_train import SmartNetwork, convert
from users.own_networks import CLASSES, SHAPE, Small, checkpoint_of

# As torchvision's and timm's are built; tests/networks has the same families in small.
DEEP = ("resnet18", "mobilenet_v3_large", "efficientnet_b0", "densenet121")


def waves(steepness: float) -> SmartNetwork:
    """A network that makes its own rounding in float32 so many times larger, as many layers do."""
    torch.manual_seed(0)
    network = Small(after=lambda scores: torch.sin(steepness * scores))
    return convert(network, example_input=torch.zeros(2, *SHAPE), align=1, scope="all")


def test_a_network_that_rounds_more_than_most_is_exported(tmp_path: Path) -> None:
    found, bundle = checkpoint_of(waves(1e4)), tmp_path / "bundle"
    built = build_bundle(found, output=bundle, target="cpu", baseline=False)
    agreements = [graph.agreement for graph in built.paths.values()]
    assert max(agreement.max_rel_diff for agreement in agreements) > TOLERANCE_FP32, "refused before"
    assert all(agreement.tolerance <= MAX_TOLERANCE for agreement in agreements)
    assert check_bundle(bundle, source=found).agreements.keys() == {"clean", "robust"}


def test_where_float32_decides_nothing_the_refusal_says_so(tmp_path: Path) -> None:
    words = r"^rounding to float32 changes the scores of 'clean' by [0-9.]+ of the largest before any export"
    with pytest.raises(VerificationError, match=words):
        build_bundle(checkpoint_of(waves(1e7)), output=tmp_path / "bundle", target="cpu", baseline=False)
    assert not (tmp_path / "bundle").exists()


@functools.cache
def folded(name: str) -> tuple[nn.Module, fx.GraphModule, Images]:
    torch.manual_seed(0)
    side = 64 if name in DEEP else 16
    if name in NETWORKS:
        plain, structure = NETWORKS[name](num_classes=CLASSES, in_channels=3), "channel"
    else:
        models = pytest.importorskip("torchvision.models", reason="pip install torchvision")
        plain, structure = getattr(models, name)(num_classes=CLASSES), "unstructured"  # groups take minutes to find
    net = convert(plain, example_input=torch.zeros(2, 3, side, side), align=1, structure=structure, density=0.9)
    images = torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        net.path("clean").train()(images)
    net.eval()
    return net.path("clean"), fold(net, path="clean", dtype=torch.float64), images.numpy()


def layer(module: nn.Module) -> nn.Conv2d:
    """A convolution in the middle."""
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    return convolutions[len(convolutions) // 2]


def nudged(tensor: Tensor) -> None:
    """Put the largest weight off by a thousandth."""
    flat = tensor.view(-1)
    flat[flat.abs().argmax()] *= 1.001


def swapped(tensor: Tensor) -> None:
    """Take one channel for another."""
    tensor[[0, 1]] = tensor[[1, 0]]


def without_batch_norm(module: nn.Module) -> None:
    """Leave out the shift that a batch norm left in a convolution, or the scale and shift of one on its own."""
    affine = next((m for m in module.modules() if isinstance(m, ChannelAffine)), None)
    if affine is not None:
        affine.scale.fill_(1)
        affine.shift.zero_()
        return
    bias = layer(module).bias
    assert bias is not None
    bias.zero_()


FAULTS: dict[str, Callable[[nn.Module], None]] = {
    "one weight off by a thousandth": lambda module: nudged(layer(module).weight),
    "a batch norm left out": without_batch_norm,
    "one wrong channel": lambda module: swapped(layer(module).weight),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "name",
    ["residual", "inverted residual", "dense", "convnext", *[pytest.param(n, marks=pytest.mark.slow) for n in DEEP]],
)
def test_a_planted_fault_is_found(name: str, fault: str) -> None:
    reference, module, images = folded(name)
    assert prove(module, reference, [images], name="clean").difference < PROVEN
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    try:
        with torch.no_grad():
            FAULTS[fault](module)
        with pytest.raises(VerificationError, match=r"^the fold of 'clean' is not the network it was made from: in f"):
            prove(module, reference, [images], name="clean")
    finally:
        module.load_state_dict(before)
