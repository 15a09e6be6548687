from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from smart_train import NetworkError, convert
from smart_train.masking.finding import find_groups
from smart_train.masking.groups import apply_mask_
from smart_train.masking.layers import make_expert_, make_plain_
from smart_train.masking.slicing import slice_network
from train.networks import Functional, different, resnet

EXAMPLE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(before: int, after: int, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, groups=groups, bias=bias)


def pooled(features: Tensor) -> Tensor:
    return features.mean(dim=(2, 3))


def plain_chain() -> nn.Module:
    return nn.Sequential(
        conv(3, 8, bias=True), nn.ReLU(), conv(8, 6, bias=True), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 5)
    )


def linear_layers() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5))


def inverted_residual() -> nn.Module:
    def forward(net: Functional, images: Tensor) -> Tensor:
        stem = torch.relu(net.call("bn0", net.call("stem", images)))
        wide = torch.relu(net.call("bn1", net.call("expand", stem)))
        wide = torch.relu(net.call("bn2", net.call("depthwise", wide)))
        return net.call("fc", pooled(stem + net.call("bn3", net.call("project", wide))))

    return Functional(
        forward,
        stem=conv(3, 4),
        bn0=nn.BatchNorm2d(4),
        expand=conv(4, 12),
        bn1=nn.BatchNorm2d(12),
        depthwise=conv(12, 12, groups=12),
        bn2=nn.BatchNorm2d(12),
        project=conv(12, 4),
        bn3=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 5),
    )


def concatenation() -> nn.Module:
    def forward(net: Functional, images: Tensor) -> Tensor:
        both = torch.cat([net.call("left", images), torch.relu(net.call("right", images))], dim=1)
        return net.call("fc", pooled(torch.relu(net.call("mix", torch.relu(net.call("bn", both))))))

    return Functional(
        forward, left=conv(3, 6), right=conv(3, 4), bn=nn.BatchNorm2d(10), mix=conv(10, 7), fc=nn.Linear(7, 5)
    )


NETWORKS = {
    "no batch norm, biases, flatten": (plain_chain, {"0", "2"}),
    "linear layers": (linear_layers, {"1", "3"}),
    "depthwise": (inverted_residual, {"expand"}),
    "concatenation": (concatenation, {"left", "right", "mix"}),
}


@pytest.mark.parametrize(("build", "names"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_slicing_every_group_at_once_is_masking_them(build: type[nn.Module], names: set[str], seed: int) -> None:
    torch.manual_seed(seed)
    network = build().double().eval()
    generator = torch.Generator().manual_seed(seed)
    groups = find_groups(network.float(), EXAMPLE, scope="block").groups
    assert {group.name for group in groups} == names
    keeps = [torch.rand(group.size, generator=generator) > 0.5 for group in groups]
    for keep in keeps:
        keep[0] = True
    masked = copy.deepcopy(network.double())
    make_expert_(masked)
    for group, keep in zip(groups, keeps, strict=True):
        apply_mask_(masked, group, keep)
    images = EXAMPLE.double()
    expected = masked(images)
    make_plain_(masked)
    sliced = slice_network(masked, groups, keeps)
    assert sum(p.numel() for p in sliced.parameters()) < sum(p.numel() for p in network.parameters())
    torch.testing.assert_close(sliced(images), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scope", ["block", "all"])
def test_images_and_classes_are_in_no_group_and_no_channel_is_in_two(scope: str) -> None:
    network = resnet()
    groups = find_groups(network, torch.zeros(2, 1, 8, 8), scope=scope).groups  # type: ignore[arg-type]
    assert [g.size for g in groups] == ([4, 8] if scope == "block" else [4, 4, 8, 8])
    seen = [
        (m.module, side, int(i))
        for g in groups
        for m in g.members
        for side in (("in", "out") if m.axis == "channel" else (m.axis,))
        for i in m.indices.flatten()
    ]
    assert len(seen) == len(set(seen))
    assert not {("conv", "in", 0), ("fc", "out", 0)} & set(seen)


def test_finding_groups_leaves_the_network_as_it_was() -> None:
    network = resnet().train()
    network.conv.weight.requires_grad_(False)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    network.bn.eval()
    find_groups(network, torch.zeros(2, 1, 8, 8), scope="all")
    assert not different(network.state_dict(), before)
    assert [network.training, network.bn.training, network.fc.training] == [True, False, True]
    assert [network.conv.weight.requires_grad, network.fc.weight.requires_grad] == [False, True]
    assert not network._forward_hooks


def shuffled(*, zero_head: bool) -> nn.Module:
    def forward(net: Functional, images: Tensor) -> Tensor:
        first = torch.relu(net.call("first", images))
        mixed = first.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
        return net.call("fc", pooled(torch.relu(net.call("third", torch.relu(net.call("second", mixed))))))

    network = Functional(forward, first=conv(3, 8), second=conv(8, 8), third=conv(8, 6), fc=nn.Linear(6, 5))
    if zero_head:
        for name in ("fc.weight", "fc.bias"):
            nn.init.zeros_(network.get_parameter(name))
    return network


@pytest.mark.parametrize("zero_head", [False, True], ids=["usual start", "classifier starting at zero"])
def test_a_channel_shuffle_is_not_believed(zero_head: bool) -> None:
    found = find_groups(shuffled(zero_head=zero_head), EXAMPLE, scope="block")
    assert "first" in found.kept_whole, found.kept_whole
    assert {group.name for group in found.groups} == {"second", "third"}


def test_layers_that_compute_something_of_their_own_are_kept_whole() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return 2 * super().forward(images)

    network = nn.Sequential(
        Doubled(3, 8, 1), nn.ReLU(), conv(8, 6), nn.GroupNorm(2, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 5)
    )  # fmt: skip
    with pytest.raises(NetworkError, match=r"Doubled.*cannot be sliced"):
        find_groups(network, EXAMPLE, scope="block")


def test_an_activation_that_makes_zeros_into_something_is_kept_whole() -> None:
    network = nn.Sequential(
        conv(3, 8), nn.Sigmoid(), conv(8, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    found = find_groups(network, EXAMPLE, scope="block")
    assert ([group.name for group in found.groups], list(found.kept_whole)) == (["2"], ["0"])


def test_a_depthwise_layer_on_the_image_is_kept_whole() -> None:
    network = nn.Sequential(
        conv(3, 3, groups=3), conv(3, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    found = find_groups(network, EXAMPLE, scope="all")
    assert [group.name for group in found.groups] == ["1"]


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "no hidden channels"),
        (nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 4)), r"scores \(N, classes\), got \(2, 4, 8, 8\)"),
        (nn.Sequential(conv(4, 5)), "takes images of shape"),
    ],
    ids=["nothing hidden", "no classifier", "other channels"],
)
def test_a_network_that_cannot_be_masked_is_refused_with_the_reason(network: nn.Module, why: str) -> None:
    with pytest.raises(NetworkError, match=why):
        convert(network, example_input=EXAMPLE)


def grouped(before: int = 8, after: int = 8, groups: int = 4) -> nn.Module:
    return nn.Sequential(
        conv(3, before), nn.BatchNorm2d(before), nn.ReLU(), conv(before, after, groups=groups), nn.ReLU(),
        conv(after, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "groups", "size", "bundle"),
    [(8, 8, 4, 4, 2), (8, 12, 4, 4, 3), (12, 8, 4, 4, 3), (4, 8, 4, 4, 2)],
    ids=["as many", "more", "fewer", "two filters a channel"],
)
def test_a_grouped_convolution_loses_whole_filter_groups(
    *, before: int, after: int, groups: int, size: int, bundle: int
) -> None:
    network = grouped(before, after, groups)
    found = find_groups(network, EXAMPLE, scope="block").groups
    assert [(g.name, g.size, g.bundle) for g in found] == [("0", size, bundle), ("5", 6, 1)]
    keep = torch.tensor([True, False, True, False])
    sliced = slice_network(network, [found[0]], [keep])
    layer = sliced.get_submodule("3")
    assert isinstance(layer, nn.Conv2d)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (before // 2, after // 2, groups // 2)
    assert sliced(EXAMPLE).shape == (2, 5)


def test_alignment_counts_channels_and_not_filter_groups() -> None:
    net = convert(grouped(16, 16, 8), example_input=EXAMPLE, density=0.3, align=8)
    assert net.groups[0].bundle == 2
    assert net.structure.kept(8, bundle=2) == 4  # 8 channels: 5 of 16, rounded up


def test_a_grouped_convolution_on_the_image_or_on_a_part_is_kept_whole() -> None:
    def forward(net: Functional, images: Tensor) -> Tensor:
        left, right = net.call("left", images), net.call("right", images)
        mixed = net.call("mix", torch.relu(torch.cat([left, right], dim=1)))
        return net.call("fc", pooled(torch.relu(net.call("last", torch.relu(mixed)))))

    network = Functional(
        forward, left=conv(3, 6, groups=3), right=conv(3, 6), mix=conv(12, 12, groups=2), last=conv(12, 4),
        fc=nn.Linear(4, 5),
    )  # fmt: skip
    found = find_groups(network, EXAMPLE, scope="all")
    assert [g.name for g in found.groups] == ["last"]
    assert "unequal shares of left" in found.kept_whole["mix"]
