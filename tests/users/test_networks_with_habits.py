"""Networks that people have, refused for reasons that are none, or lost on the way through a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_export.build import build_bundle
from smart_train import CheckpointError, NetworkError, convert, load_checkpoint
from smart_train.checkpoint.format import save_checkpoint
from users.own_networks import SHAPE, Small, checkpoint_of

EXAMPLE = torch.zeros(2, *SHAPE)


def blurred(images: Tensor) -> Tensor:
    """A kernel made in forward, float32 whatever the images are."""
    return F.conv2d(images, torch.full((3, 1, 3, 3), 1 / 9), padding=1, groups=3)


def squashed(features: Tensor) -> Tensor:
    """As careful code does for half precision: in float32, and back."""
    return torch.tanh(features.float()).to(features.dtype)


class Keeping(Small):
    """Keeps activations for a plot, in a list."""

    seen: list[dict[str, Tensor]]

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.seen = []
        self._pooled = self._keep

    def _keep(self, features: Tensor) -> Tensor:
        self.seen = [{"pooled": features}]
        return features


HABITS: dict[str, Callable[[], nn.Module]] = {
    "casts its input to float32": lambda: Small(before=lambda images: images.float()),
    "makes a float32 kernel": lambda: Small(before=blurred),
    "casts to float32 and back": lambda: Small(pooled=squashed),
    "keeps an activation": Keeping,
}


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["channel", "2:4"])
@pytest.mark.parametrize("habit", HABITS)
def test_a_network_that_insists_on_float32_or_keeps_something_goes_all_the_way(
    tmp_path: Path, habit: str, structure: str
) -> None:
    torch.manual_seed(0)
    plain = HABITS[habit]()
    net = convert(
        plain, example_input=EXAMPLE, structure=structure, align=1 if structure == "channel" else 4, scope="all"
    )
    assert [group.name for group in net.groups] == (["first", "second"] if structure == "channel" else [])
    net.path("robust").train()(torch.rand(2, *SHAPE)).sum().backward()  # what is kept belongs to a graph now
    built = build_bundle(
        checkpoint_of(net), output=tmp_path / "bundle", target="cpu", random_images=4, allow_slow_structure=True
    )
    assert all(graph.agreement.holds for graph in built.paths.values())


def test_a_refusal_says_what_the_forward_said() -> None:
    def picky(features: Tensor) -> Tensor:
        if features.shape[1] != 16:
            raise ValueError("16 features, please")
        return features

    found = convert(Small(pooled=picky), example_input=EXAMPLE, align=1, scope="all")
    assert found.kept_whole == {"second": "slicing it stops the forward (ValueError: 16 features, please)"}


class Reparameterised(nn.Module):
    """A block of RepVGG before it is fused: a 3x3, a 1x1 and the identity, each with a batch norm, are summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.large = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.small = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.same = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = (self.large(features) + self.small(features) + self.same(features)).relu()
        return result


def reparameterised(*, head: nn.Module) -> nn.Module:
    blocks = [Reparameterised(8) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def test_a_network_without_block_interiors_is_told_whether_scope_all_would_do() -> None:
    network = reparameterised(head=nn.Linear(8, 5))
    with pytest.raises(NetworkError, match=r"at scope block \(.*\); use --scope all, which masks some \(1\)$"):
        convert(network, example_input=EXAMPLE, align=1)
    assert len(convert(network, example_input=EXAMPLE, align=1, scope="all").groups) == 1

    class Doubled(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return 2 * super().forward(features.sigmoid().flip(1))

    hopeless = reparameterised(head=Doubled(8, 5))
    with pytest.raises(NetworkError, match=r"at scope block \(.*\); nor at scope all \(.*\), so use another network$"):
        convert(hopeless, example_input=EXAMPLE, align=1)


class Versioned(nn.Conv2d):
    """A layer whose state has a version, as torchvision's MNASNet has: older weights are another network's."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") not in {1, 2}:
            raise ValueError(f"version must be 1 or 2, got {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def versioned(*, num_classes: int, in_channels: int) -> nn.Module:
    network = Small(num_classes=num_classes, in_channels=in_channels)
    network.second = Versioned(16, 16, 3, 2, 1)
    return network


def test_the_versions_of_a_networks_state_come_through_the_checkpoint(tmp_path: Path) -> None:
    found = checkpoint_of(convert(versioned(num_classes=5, in_channels=3), example_input=EXAMPLE, align=1))
    file = tmp_path / "ckpt.pt"
    save_checkpoint(found, file)
    again = load_checkpoint(file, factory=versioned)
    raw = torch.load(file, weights_only=True)
    assert raw["state"]["versions"]["second"] == 2
    images = torch.rand(2, *SHAPE)
    assert torch.equal(found.net.path("clean")(images), again.net.path("clean")(images))

    del raw["state"]["versions"]  # as older checkpoints are
    torch.save(raw, file)
    assert load_checkpoint(file, factory=versioned).arguments == {}

    for wrong in ({"third": 1}, {"second": "2"}, {"second": True}, {2: 2}):
        raw["state"]["versions"] = wrong
        torch.save(raw, file)
        with pytest.raises(CheckpointError, match=r"^expected (versions|a value|an integer)"):
            load_checkpoint(file, factory=versioned)


def test_a_factory_that_loads_its_own_weights_is_quiet_and_the_checkpoint_wins(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pretrained = Small().state_dict()

    def factory(*, num_classes: int, in_channels: int) -> nn.Module:
        network = Small(num_classes=num_classes, in_channels=in_channels)
        network.load_state_dict(pretrained)
        return network

    net = convert(factory(num_classes=5, in_channels=3), example_input=EXAMPLE, align=1)
    with torch.no_grad():
        net.path("clean").get_parameter("network.head.weight").mul_(3)
    save_checkpoint(checkpoint_of(net), tmp_path / "ckpt.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_checkpoint(tmp_path / "ckpt.pt", factory=factory)
    got = found.net.path("clean").get_parameter("network.head.weight")
    assert torch.equal(got, 3 * pretrained["head.weight"])
