"""The named networks: as large and as costly as published, fully maskable, trainable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from reference import costs
from smart_export.layers import network_cost
from smart_train import Attack, ConfigError, SmartNetwork, convert
from smart_train.architectures.build import ARCHITECTURES, MAX_WIDTH, build_network
from smart_train.choices import Scope
from smart_train.masking.accounting import densities
from smart_train.methods.interface import Batch
from smart_train.methods.smart import Smart
from train.networks import setup


@dataclass(frozen=True)
class Published:
    """What others say of a network on colour images.

    Attributes:
        side, classes: of the images.
        parameters: exactly.
        gmacs: multiply-accumulates of one image, as rounded by the source.
        source: who says so.
        count: our own arithmetic for the family.
        blocks: of that arithmetic.
        width: channels of the first stage.
    """

    side: int
    classes: int
    parameters: int
    gmacs: float
    source: str
    count: Callable[..., costs.Count]
    blocks: tuple[int, ...]
    width: int


PUBLISHED = {
    "resnet18": Published(
        32, 10, 11_173_962, 0.56, "kuangliu/pytorch-cifar as torchsummary counts it: 11,173,962; issue 3: 0.56 GMAC",
        costs.resnet, (2, 2, 2, 2), 64,
    ),
    "resnet34": Published(
        32, 10, 21_282_122, 1.16, "kuangliu/pytorch-cifar, counted by its users: 21,282,122; issue 3: 1.16 GMAC",
        costs.resnet, (3, 4, 6, 3), 64,
    ),
    "wrn16-8": Published(
        32, 10, 10_961_370, 1.55, "arXiv 1605.07146, table 4: 11.0 M parameters; MACs by our arithmetic",
        costs.wide_resnet, (2, 2, 2), 128,
    ),
    "preact-resnet18": Published(
        32, 10, 11_172_170, 0.56, "kuangliu/pytorch-cifar: 11,171,146 without a last batch norm, which adds 1,024",
        costs.preactivation_resnet, (2, 2, 2, 2), 64,
    ),
    "preact-resnet18-raw": Published(
        32, 10, 11_171_146, 0.56, "kuangliu/pytorch-cifar, counted by its users: 11,171,146",
        partial(costs.preactivation_resnet, last_norm=False), (2, 2, 2, 2), 64,
    ),
    "wrn28-10": Published(
        32, 10, 36_479_194, 5.24, "arXiv 1605.07146, table 4: 36.5 M parameters; MACs by our arithmetic",
        costs.wide_resnet, (4, 4, 4), 160,
    ),
    "wrn40-2": Published(
        32, 10, 2_243_546, 0.33, "arXiv 1605.07146, table 4: 2.2 M parameters; MACs by our arithmetic",
        costs.wide_resnet, (6, 6, 6), 32,
    ),
    "resnet50": Published(
        224, 1000, 25_557_032, 4.09, "torchvision, ResNet50_Weights: num_params 25557032, GFLOPS 4.09",
        costs.bottleneck_resnet, (3, 4, 6, 3), 64,
    ),
}  # fmt: skip
NEW = tuple(PUBLISHED)
NARROW = 8
# Where deeper ones are the same blocks in the same row as another's, they are slow.
DEEPER = {"resnet34", "wrn28-10", "wrn40-2"}


def each_of(names: Iterable[str]) -> pytest.MarkDecorator:
    cases = [pytest.param(name, marks=pytest.mark.slow if name in DEEPER else ()) for name in names]
    return pytest.mark.parametrize("name", cases)


def narrow(name: str, *, scope: Scope = "block", density: float = 0.5, side: int = 16) -> SmartNetwork:
    plain = build_network(name, num_classes=4, in_channels=3, arguments={"width": NARROW}, generator_seed=0)
    return convert(plain, example_input=torch.zeros(1, 3, side, side), scope=scope, density=density, align=1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    told = PUBLISHED[name]
    with torch.device("meta"):  # shapes are enough
        network = build_network(name, num_classes=told.classes, in_channels=3, arguments={}, generator_seed=0)
        cost = network_cost(network, dense=network, input_shape=(3, told.side, told.side))
    ours = told.count(blocks=told.blocks, width=told.width, side=told.side, classes=told.classes)
    assert ours.parameters == told.parameters, told.source
    assert round(ours.macs / 1e9, 2) == told.gmacs, told.source
    assert sum(p.numel() for p in network.parameters()) == cost.parameters == ours.parameters
    assert cost.macs == ours.macs


@each_of(PUBLISHED)
def test_a_path_uses_as_many_parameters_as_the_arithmetic_says(name: str) -> None:
    told, net = PUBLISHED[name], narrow(name, density=0.25)
    for i, group in enumerate(net.groups):
        net.set_mask("robust", i, torch.arange(group.size) < net.structure.kept(group.size))
    count = {
        path: told.count(blocks=told.blocks, width=NARROW, side=16, classes=4, kept=kept).parameters
        for path, kept in {"clean": lambda size: size, "robust": net.structure.kept}.items()
    }
    assert densities(net).parameters == {path: count[path] / count["clean"] for path in count}


# Block scope masks what one layer makes: block interiors, and a stem that feeds no residual stream.
GROUPS = {
    "resnet18": (8, {"conv", "blocks.2.shortcut.0", "blocks.4.shortcut.0", "blocks.6.shortcut.0"}),
    "preact-resnet18": (8, {"blocks.1.conv2", "blocks.3.conv2", "blocks.5.conv2", "blocks.7.conv2"}),
    "wrn16-8": (6 + 1, {"blocks.1.conv2", "blocks.3.conv2", "blocks.5.conv2"}),
    "wrn40-2": (18 + 1, {"blocks.5.conv2", "blocks.11.conv2", "blocks.17.conv2"}),
    "resnet50": (
        2 * 16 + 1,
        {"blocks.0.shortcut.0", "blocks.3.shortcut.0", "blocks.7.shortcut.0", "blocks.13.shortcut.0"},
    ),
}


@each_of(GROUPS)
def test_every_channel_but_those_of_residual_streams_may_be_masked_and_at_scope_all_those_too(name: str) -> None:
    number, streams = GROUPS[name]
    block, everything = narrow(name), narrow(name, scope="all")
    assert len(block.groups) == number
    assert block.kept_whole == dict.fromkeys(streams, "residual stream (scope block)")
    assert len(everything.groups) == number + len(streams)
    assert everything.kept_whole == {}


@each_of(GROUPS)
def test_one_training_step_moves_every_parameter_of_both_paths(name: str) -> None:
    net = narrow(name).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 3, 16, 16, generator=generator), torch.arange(8) % 4
    step = Smart(net, setup("smart")).step(
        Batch(images, labels, labels, generator=generator, number=1, total=1), Attack(eps=0.1, steps=1)
    )
    loss = step.loss(net(step.passes))
    loss.total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert torch.isfinite(loss.total)
    still = [key for key, p in net.named_parameters() if torch.equal(p, before[key])]
    assert not still


class Watched(nn.Module):
    """Notes what a layer reads."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.read: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self.read = features
        result: Tensor = self.layer(features)
        return result


@pytest.mark.parametrize(
    ("name", "block", "activated"),
    [
        *(("wrn16-8", block, True) for block in (0, 2, 4)),
        ("preact-resnet18", 2, True),
        ("preact-resnet18-raw", 2, False),
    ],
)
def test_which_shortcuts_read_the_activated_input(name: str, block: int, *, activated: bool) -> None:
    network = build_network(name, num_classes=4, in_channels=3, arguments={"width": 8}, generator_seed=0).eval()
    layer = network.get_submodule(f"blocks.{block}")
    shortcut, convolution = Watched(layer.get_submodule("shortcut")), Watched(layer.get_submodule("conv1"))
    layer.add_module("shortcut", shortcut)
    layer.add_module("conv1", convolution)
    with torch.no_grad():
        network(torch.rand(1, 3, 16, 16))
    assert shortcut.read is not None
    assert (shortcut.read is convolution.read) == activated
    assert bool((shortcut.read >= 0).all()) == activated


def test_the_stride_of_a_bottleneck_is_in_its_3x3() -> None:
    network = build_network("resnet50", num_classes=4, in_channels=3, arguments={"width": 4}, generator_seed=0)
    strides = {
        name.removeprefix("blocks.3."): module.stride
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and name.startswith("blocks.3.")
    }
    assert strides == {"conv1": (1, 1), "conv2": (2, 2), "conv3": (1, 1), "shortcut.0": (2, 2)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_width_sets_the_first_stage_and_small_or_odd_images_of_any_channels_do(name: str) -> None:
    network = build_network(name, num_classes=5, in_channels=1, arguments={"width": 6}, generator_seed=0).eval()
    first = network.get_submodule("blocks.0.conv1")
    assert isinstance(first, nn.Conv2d)
    assert first.out_channels == 6
    with torch.no_grad():
        assert network(torch.rand(2, 1, 11, 8)).shape == (2, 5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_follow_from_the_seed_and_the_global_random_state_stays(name: str) -> None:
    state = torch.get_rng_state()
    one, same, other = (
        build_network(name, num_classes=3, in_channels=1, arguments={"width": 4}, generator_seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["conv.weight"], other["conv.weight"])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("width", [0, -1, MAX_WIDTH + 1, 2**31])
def test_a_width_that_would_fill_the_memory_is_refused(name: str, width: int) -> None:
    with pytest.raises(ConfigError, match=rf"^expected a width from 1 to {MAX_WIDTH}, got {width}"):
        build_network(name, num_classes=3, in_channels=1, arguments={"width": width}, generator_seed=0)
