"""What each mask mode promises beside its counts, which `test_masks.py` and `test_weight_masks.py` hold."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from smart_train import ConfigError, SmartNetwork
from smart_train.choices import MASK_MODES
from smart_train.masking.accounting import overlap
from smart_train.masking.layers import Expert, weight_at
from smart_train.masking.learner import MaskLearner
from smart_train.masking.mode import load_mode
from smart_train.masking.passes import Pass
from smart_train.masking.plan import MaskPlan
from smart_train.masking.wanted import readers
from train.loop import IMAGES, LABELS, Loop
from train.networks import smart

STRUCTURES = ["channel", "2:4", "channel+2:4", "unstructured"]


def started(net: SmartNetwork, mode: str, *, from_weights: bool = False, seed: int = 0) -> SmartNetwork:
    generator = torch.Generator().manual_seed(seed)
    plan = MaskPlan(mode=mode)
    MaskLearner(net, plan=plan, total_steps=4, steps_per_epoch=1, generator=generator, from_weights=from_weights)
    return net


def all_masks(net: SmartNetwork, path: str) -> list[Tensor]:
    return [*net.masks(path), *net.weight_masks(path).values()]


@pytest.mark.parametrize("name", MASK_MODES)
def test_a_mode_says_what_it_is_and_whose(name: str) -> None:
    mode = load_mode(name)
    assert mode.name == name
    assert mode.summary
    assert mode.origin
    assert 0 <= mode.closed <= mode.frozen <= 1


def test_the_default_says_that_it_is_ours_and_regrow_that_it_is_the_authors() -> None:
    assert load_mode(MaskPlan().mode).origin.startswith("smart-edge's own")
    assert "not the rule of the SMART paper" in load_mode(MaskPlan().mode).origin
    assert "DNR" in load_mode("regrow").origin


@pytest.mark.parametrize("mode", ["complementary", "shared", "shared-early"])
def test_modes_that_tell_paths_apart_want_two(mode: str) -> None:
    from smart_train import convert  # noqa: PLC0415
    from train.networks import resnet  # noqa: PLC0415

    for density in (0.5, 1.0):  # also where nothing is masked and no mode would do anything
        net = convert(resnet(), example_input=IMAGES[:2], paths=["robust"], density=density, align=1)
        with pytest.raises(ConfigError, match=rf"^masks {mode} .* the network has 1 path; use gradual"):
            started(net, mode)


@pytest.mark.parametrize("from_weights", [False, True])
@pytest.mark.parametrize("structure", ["channel", "2:4", "unstructured"])
def test_at_one_half_the_robust_mask_is_the_complement_of_the_clean_one(structure: str, from_weights: bool) -> None:
    net = started(smart(width=8, structure=structure), "complementary", from_weights=from_weights)
    for clean, robust in zip(all_masks(net, "clean"), all_masks(net, "robust"), strict=True):
        assert torch.equal(robust, ~clean)


@pytest.mark.parametrize(("structure", "density"), [("channel", 0.25), ("1:4", None), ("unstructured", 0.1)])
def test_below_one_half_masks_are_disjoint(structure: str, density: float | None) -> None:
    net = started(smart(width=8, structure=structure, density=density), "complementary")
    found = overlap(net)
    assert found is not None
    assert found.value == 0


@pytest.mark.parametrize(("structure", "density"), [("channel", 0.75), ("3:4", None), ("unstructured", 0.75)])
def test_above_one_half_masks_share_as_little_as_they_can(structure: str, density: float | None) -> None:
    net = started(smart(width=8, structure=structure, density=density), "complementary")
    for clean, robust in zip(all_masks(net, "clean"), all_masks(net, "robust"), strict=True):
        assert bool((clean | robust).all()), "a half of each is the other's rest"


def test_where_channels_are_disjoint_so_are_the_weights_in_them() -> None:
    net = started(smart(width=8, structure="channel+2:4", align=4), "complementary")
    for name in net.weight_layers:
        clean, robust = net.weight_mask("clean", name), net.weight_mask("robust", name)
        assert not bool((clean & robust).any()), name


@pytest.mark.parametrize("structure", STRUCTURES)
def test_shared_masks_are_one_at_every_step(structure: str) -> None:
    net = smart(width=8, structure=structure, align=4)
    loop = Loop(net, MaskPlan(mode="shared"), epochs=10, per_epoch=1)
    for number in range(1, loop.total + 1):
        loop.step(number)
        pairs = zip(all_masks(net, "clean"), all_masks(net, "robust"), strict=True)
        assert all(torch.equal(clean, robust) for clean, robust in pairs), number
    found = overlap(net)
    assert found is not None
    assert found.value == 1
    assert [int(mask.sum()) for mask in net.masks("clean")] == list(net.kept)


def test_both_paths_have_a_say_in_a_shared_mask() -> None:
    net = smart(width=8)
    with torch.no_grad():  # the robust path holds the first four for better by more than the clean one for worse
        for path, value in (("clean", 0.3), ("robust", 9.0)):
            weight_at(net.path(path).network, "blocks.0.bn1").fill_(1.0)[:4] = value
    loop = Loop(net, MaskPlan(mode="shared"), epochs=2, per_epoch=1)
    loop.optimizer.param_groups[0]["lr"] = 0.0
    loop.step(1)
    assert net.mask("clean", 0).tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("structure", ["channel", "unstructured"])
def test_shared_early_masks_are_one_in_the_first_half_and_disjoint_in_the_rest(structure: str) -> None:
    net = started(smart(width=8, structure=structure, scope="all"), "shared-early")
    pairs = list(zip(all_masks(net, "clean"), all_masks(net, "robust"), strict=True))
    half = len(pairs) // 2
    assert half >= 1
    assert all(torch.equal(clean, robust) for clean, robust in pairs[:half])
    assert not any(bool((clean & robust).any()) for clean, robust in pairs[half:])


def effective(net: SmartNetwork, path: str) -> SmartNetwork:
    """The same network unmasked on ``path``, with zeros where its masks are, so that weights are the effective ones."""
    plain = copy.deepcopy(net)
    for layer in plain.modules():
        if isinstance(layer, Expert):
            layer.watch_gate(False)
    with torch.no_grad():
        for i, group in enumerate(net.groups):
            for name, indices in readers(net, i).items():
                weight_at(plain.path(path).network, name)[:, indices[~net.mask(path, i)].flatten()] = 0.0
            plain.set_mask(path, i, torch.ones(group.size, dtype=torch.bool))
        for name, mask in net.weight_masks(path).items():
            weight_at(plain.path(path).network, name).mul_(mask)
            plain.set_weight_mask(path, name, torch.ones_like(mask))
    return plain


@pytest.mark.parametrize("structure", ["channel", "2:4", "unstructured"])
def test_what_a_path_wants_back_is_the_gradient_of_the_weight_it_computes_with(structure: str) -> None:
    net = smart(width=8, structure=structure)
    loop = Loop(net, MaskPlan(mode="regrow"), epochs=8, per_epoch=3)
    plain = effective(net, "clean").train()
    (clean,) = plain([Pass("clean", IMAGES[:4])])
    (0.5 * nn.functional.cross_entropy(clean.scores, LABELS[:4])).backward()  # type: ignore[no-untyped-call]
    loop.step(1)
    network = plain.path("clean").network
    for i in range(len(net.groups)):
        ((name, indices),) = readers(net, i).items()
        gradient = weight_at(network, name).grad
        assert gradient is not None
        norms = gradient.movedim(1, 0).flatten(1).norm(dim=1)[indices[:, 0]]
        torch.testing.assert_close(loop.wanted.of_channels("clean", i), norms, rtol=1e-3, atol=1e-6)
    for name in net.weight_layers:
        gradient = weight_at(network, name).grad
        assert gradient is not None
        torch.testing.assert_close(loop.wanted.of_weights("clean", name), gradient.abs(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("structure", ["channel", "2:4", "channel+2:4", "unstructured"])
def test_what_is_exactly_zero_can_come_back_and_what_comes_starts_at_zero(structure: str) -> None:
    net = smart(width=16, structure=structure, align=4)
    loop = Loop(net, MaskPlan(mode="regrow"), epochs=4, per_epoch=2)
    used = {name: in_use(net, name) for name in layers(net)}
    with torch.no_grad():
        for name, mask in used.items():
            weight_at(net.path("clean").network, name).mul_(mask)
    loop.step(1)
    values = {name: weight_at(net.path("clean").network, name).detach().clone() for name in used}
    loop.step(2)
    back = 0
    for name, before in used.items():
        weight, now = weight_at(net.path("clean").network, name), in_use(net, name)
        grown = now & ~before
        back += int(grown.sum())
        assert not weight[grown].any(), name
        momentum = loop.optimizer.state[weight]["momentum_buffer"]
        assert not momentum[grown].any(), name
        kept = now & before
        assert bool((weight[kept] != 0).any()), name
        torch.testing.assert_close(weight[kept], values[name][kept], rtol=0, atol=0.05)  # one step away, not reset
    assert back > 0


def layers(net: SmartNetwork) -> list[str]:
    found = [name for i in range(len(net.groups)) for name in readers(net, i)]
    return list(dict.fromkeys([*found, *net.weight_layers]))


def in_use(net: SmartNetwork, name: str) -> Tensor:
    """Which weights of a layer any path reads."""
    weight = weight_at(net.path("clean").network, name)
    found = torch.zeros_like(weight, dtype=torch.bool)
    for path in net.path_names:
        own = torch.ones_like(found)
        if name in net.weight_layers:
            own &= net.weight_mask(path, name)
        for i in range(len(net.groups)):
            indices = readers(net, i).get(name)
            if indices is not None:
                own[:, indices[~net.mask(path, i)].flatten()] = False
        found |= own
    return found


def test_regrown_masks_move_until_the_last_epoch_and_every_epoch_counts() -> None:
    net = smart(width=32, density=0.5)
    loop = Loop(net, MaskPlan(mode="regrow"), epochs=8, per_epoch=1)
    assert (loop.learner.closed_from, loop.learner.frozen_from) == (0, loop.total)
    moved = []
    for number in range(1, loop.total + 1):
        before = all_masks(net, "clean")
        loop.step(number)
        moved.append(sum(int((a != b).sum()) // 2 for a, b in zip(before, all_masks(net, "clean"), strict=True)))
        rate = 0.5 * (1 - number / loop.total)
        assert moved[-1] <= sum(int(rate * kept) for kept in net.kept)
    assert moved[-1] == 0
    assert any(moved[loop.total * 3 // 4 - 1 : -1]), "nothing moved in the last quarter"


def test_a_network_of_one_path_is_trained_by_gradual_masks() -> None:
    from smart_train import convert  # noqa: PLC0415
    from train.networks import resnet  # noqa: PLC0415

    net = started(convert(resnet(), example_input=IMAGES[:2], paths=["robust"], align=1), "static")
    assert overlap(net) is None
    assert [int(mask.sum()) for mask in net.masks("robust")] == list(net.kept)
