from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from smart_train.masking.attack_mode import masks_applied
from smart_train.masking.layers import Expert, make_expert_, make_plain_
from train.networks import different, randomise_

GENERATOR_SEED = 3
KEEP = torch.tensor([True, False, True, True, False, True])


def expert_of(layer: nn.Module) -> nn.Module:
    copied = copy.deepcopy(layer)
    make_expert_(copied)
    return copied


def features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(GENERATOR_SEED))


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
@pytest.mark.parametrize("track", [True, False], ids=["tracked", "untracked"])
def test_a_batch_norm_that_keeps_all_is_the_plain_one_to_the_bit(momentum: float | None, track: bool) -> None:
    plain = nn.BatchNorm2d(6, momentum=momentum, track_running_stats=track)
    with torch.no_grad():
        plain.weight.copy_(features(6))
        plain.bias.copy_(features(6) + 1)
    expert = expert_of(plain)
    assert isinstance(expert, Expert)
    expert.set_mask(torch.ones(6, dtype=torch.bool))
    for i in range(4):
        plain.train(i < 3)
        expert.train(i < 3)
        images = features(5, 6, 4, 4) * (i + 1)
        assert torch.equal(expert(images), plain(images)), f"differs in call {i}"
    own = {k: v for k, v in expert.state_dict().items() if k != "mask"}
    assert not different(own, plain.state_dict())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 6, 3, padding=1), (2, 3, 5, 5)),
        (nn.Conv2d(3, 6, 1, bias=False), (2, 3, 5, 5)),
        (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5)),
        (nn.Linear(4, 6), (2, 4)),
        (nn.Linear(4, 6, bias=False), (2, 3, 4)),
        (nn.BatchNorm2d(6), (2, 6, 5, 5)),
    ],
    ids=["conv", "conv without bias", "depthwise", "linear", "linear without bias", "batch norm"],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_masked_channels_are_exactly_zero_and_the_others_untouched(
    layer: nn.Module, shape: tuple[int, ...], training: bool
) -> None:
    plain = copy.deepcopy(layer).train(training)
    randomise_(plain, seed=1)
    expert = expert_of(plain)
    assert isinstance(expert, Expert)
    expert.set_mask(KEEP)
    images = features(*shape)
    expected, got = plain(images), expert(images)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    keep, drop = torch.nonzero(KEEP).flatten(), torch.nonzero(~KEEP).flatten()
    assert got.index_select(axis, drop).abs().max() == 0
    torch.testing.assert_close(got.index_select(axis, keep), expected.index_select(axis, keep), rtol=1e-6, atol=1e-6)


def test_a_batch_norm_refuses_what_the_plain_one_refuses() -> None:
    expert = expert_of(nn.BatchNorm2d(6))
    assert isinstance(expert, Expert)
    expert.set_mask(KEEP)
    with pytest.raises(ValueError, match="4D"):
        expert(features(2, 6))


def test_the_gate_stands_in_for_the_mask_and_learns_where_it_is_zero() -> None:
    expert = expert_of(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    norm = expert.get_submodule("1")
    assert isinstance(norm, Expert)
    randomise_(expert, seed=1)
    norm.set_mask(KEEP)
    images = features(4, 3, 6, 6)
    before = expert.eval()(images)
    norm.watch_gate(True)
    got = expert(images)
    assert torch.equal(got, before)
    (got * features(*got.shape)).sum().backward()
    assert norm.gate is not None
    assert norm.gate.grad is not None
    assert (norm.gate.grad != 0).all(), f"no gradient in {int((norm.gate.grad == 0).sum())}/6 channels"
    convolution = expert.get_submodule("0")
    assert isinstance(convolution.weight, Tensor)
    assert convolution.weight.grad is not None
    assert convolution.weight.grad[~KEEP].abs().max() == 0
    norm.watch_gate(False)
    assert norm.gate is None


def test_a_gate_with_a_floor_learns_through_a_relu_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    randomise_(network, seed=1)
    expert = expert_of(network).eval()
    norm = expert.get_submodule("1")
    assert isinstance(norm, Expert)
    norm.set_mask(KEEP)
    images = features(4, 3, 6, 6)
    masked = expert(images)
    gradients = {}
    for floor in (0.0, 1e-6):
        norm.watch_gate(True, floor=floor)
        got = expert(images)
        torch.testing.assert_close(got, masked, rtol=1e-5, atol=1e-5)
        assert norm.gate is not None
        (gradients[floor],) = torch.autograd.grad((got * features(*got.shape)).sum(), norm.gate)
    assert (gradients[0.0][~KEEP] == 0).all(), "a ReLU passes a gradient at zero: the floor is no longer needed"
    assert (gradients[1e-6][~KEEP] != 0).all()
    torch.testing.assert_close(gradients[1e-6][KEEP], gradients[0.0][KEEP], rtol=1e-3, atol=1e-3)


def test_only_exact_types_become_experts() -> None:
    class Own(nn.Conv2d):
        pass

    network = nn.Sequential(Own(1, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm1d(2))
    make_expert_(network)
    assert [isinstance(m, Expert) for m in network] == [False, True, False]


def test_making_plain_again_multiplies_the_masks_in_and_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 6)).eval()
    randomise_(network, seed=2)
    expert = expert_of(network)
    for name in ("1", "3"):
        layer = expert.get_submodule(name)
        assert isinstance(layer, Expert)
        layer.set_mask(KEEP)
    images = features(2, 3, 6, 6)
    expected = expert(images)
    make_plain_(expert)
    assert [type(m) for m in expert.children()] == [type(m) for m in network]
    assert not any(hasattr(m, "mask") or hasattr(m, "gate") for m in expert.children())
    assert torch.equal(expert(images), expected)


HELD = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 4)]


def held_network() -> nn.Sequential:
    network = nn.Sequential(*copy.deepcopy(HELD))
    randomise_(network, seed=1)
    make_expert_(network)
    for layer, size in ((network[0], 6), (network[1], 6), (network[4], 4)):
        assert isinstance(layer, Expert)
        layer.set_mask(torch.arange(size) % 3 != 1)
    return network.eval()


def scores_and_gradient(network: nn.Module) -> tuple[Tensor, Tensor]:
    images = features(2, 3, 5, 5).requires_grad_()
    scores = network(images)
    (gradient,) = torch.autograd.grad(scores.square().sum(), images)
    return scores.detach(), gradient


def test_held_parameters_change_no_bit_of_scores_and_gradients_and_get_no_gradient_themselves() -> None:
    network = held_network()
    expected = scores_and_gradient(network)
    with masks_applied(network):
        got = scores_and_gradient(network)
        network(features(2, 3, 5, 5).requires_grad_()).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert all(p.grad is None for p in network.parameters())


def test_parameters_are_held_to_the_end_of_the_outermost_block_whatever_ends_it() -> None:
    network = held_network()
    layer = network[0]
    assert isinstance(layer, Expert)
    with masks_applied(network):
        before = layer.held
        with masks_applied(network):
            pass
        assert layer.held is before is not None
    with pytest.raises(ZeroDivisionError), masks_applied(network):
        raise ZeroDivisionError
    assert layer.held is None


def test_masks_are_multiplied_in_once_for_all_steps_of_an_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    network = held_network()
    counted = 0
    multiply = Tensor.mul

    def count(tensor: Tensor, other: object) -> Tensor:
        nonlocal counted
        counted += isinstance(other, Tensor) and other.dtype == torch.bool
        return multiply(tensor, other)  # type: ignore[arg-type]  # whatever was passed

    monkeypatch.setattr(Tensor, "__mul__", count)
    with masks_applied(network):
        for _ in range(5):
            scores_and_gradient(network)
    assert counted == 6, "weight and bias of three layers"


def test_a_live_gate_is_held_with_its_present_value_and_still_learns_afterwards() -> None:
    network = held_network()
    layer = network[1]
    assert isinstance(layer, Expert)
    layer.watch_gate(True, floor=0.25)
    expected = scores_and_gradient(network)
    with masks_applied(network):
        assert torch.equal(scores_and_gradient(network)[0], expected[0])
        assert layer.gate is not None
        assert layer.gate.grad is None
    network(features(2, 3, 5, 5)).sum().backward()
    assert layer.gate.grad is not None
    assert bool((layer.gate.grad != 0).any())


class FirstAxisNorm(nn.LayerNorm):
    """A layer norm over the channels of (N, C, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        moved = super().forward(features.permute(0, 2, 3, 1))
        return moved.permute(0, 3, 1, 2)


class Halved(nn.LayerNorm):
    """No layer norm, whatever its base says."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) / 2


@pytest.mark.parametrize(("kind", "axis"), [(nn.LayerNorm, -1), (FirstAxisNorm, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_norm_takes_its_statistics_over_the_kept_channels(
    kind: type[nn.LayerNorm], axis: int, bias: bool
) -> None:
    plain = kind(6, bias=bias)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(features(6) + 1)
    expert = expert_of(plain)
    assert isinstance(expert, Expert)
    given = features(4, 5, 3, 6).movedim(-1, axis)
    assert torch.equal(expert(given), plain(given))
    expert.set_mask(KEEP)
    small = kind(4, bias=bias)
    with torch.no_grad():
        for parameter, whole in zip(small.parameters(), plain.parameters(), strict=True):
            parameter.copy_(whole[KEEP])
    got = expert(given).movedim(axis, -1)
    expected = small(given.movedim(axis, -1)[..., KEEP].movedim(-1, axis)).movedim(axis, -1)
    torch.testing.assert_close(got[..., KEEP], expected, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    assert not got[..., ~KEEP].any()
    with masks_applied(expert):
        assert torch.equal(expert(given).movedim(axis, -1), got)
    plain_again = copy.deepcopy(expert)
    make_plain_(plain_again)
    assert type(plain_again).__name__ == kind.__name__


def test_what_is_no_layer_norm_over_channels_is_no_expert() -> None:
    for layer in (Halved(6), nn.LayerNorm((5, 6)), nn.LayerNorm(6, elementwise_affine=False)):
        assert not isinstance(expert_of(layer), Expert)


def test_a_batch_norm_with_an_activation_inside_is_masked_at_its_output() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, features: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(features))

    plain = Activated(6)
    randomise_(plain, seed=1)
    expert = expert_of(plain)
    assert isinstance(expert, Expert)
    images = features(3, 6, 4, 4)
    expert.set_mask(KEEP)
    expert.watch_gate(True)
    got = expert.eval()(images)
    assert torch.equal(got, plain.eval()(images) * KEEP.view(1, -1, 1, 1))
    got.sum().backward()
    assert expert.gate is not None
    assert expert.gate.grad is not None
