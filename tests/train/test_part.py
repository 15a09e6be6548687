from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import train_mode as oracle
from reference.bicubic import enlarged
from smart_train import Attack, ConfigError, NetworkError, Structure
from smart_train.masking.network import PathNetwork
from smart_train.methods import METHODS, load_method
from smart_train.methods.feature_layers import last_map
from smart_train.methods.interface import attacked
from smart_train.methods.part import BASES, Part, PartOptions, ReweightedAttack, importance, important
from train.networks import Functional, randomise_, resnet, setup, tiny_config
from train.one_step import arrays, half_masked_, some_batch, take

ATTACK = Attack(eps=0.1, steps=3)
PRESENT = [base for base in BASES if base in METHODS]


def training(*, density: float = 1.0, **options: Any) -> Part:
    made = setup("part", options=PartOptions(**options), structure=Structure(density=density, align=1))
    found = Part.build(resnet(), made)
    randomise_(found.net.path("robust"), seed=1)
    if density < 1:
        half_masked_(found.net)
    return found


def evaluated(found: Part) -> PathNetwork:
    return found.net.path("robust").eval()


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_importance_is_grad_cam_in_closed_form(density: float) -> None:
    """Behind the last map come an average and a linear layer: a gradient is a weight over the positions."""
    path = evaluated(training(density=density))
    images = some_batch().images
    seen: list[Tensor] = []
    with (
        torch.no_grad(),
        path.network.get_submodule("blocks").register_forward_hook(lambda *all_: seen.append(all_[2])),
    ):
        predicted = path(images).argmax(dim=1).numpy()
    features, weight = seen[0].double().numpy(), arrays(path.network)["fc.weight"]
    per_channel = weight[predicted] / features[0, 0].size
    maps = np.maximum(np.einsum("nc,nchw->nhw", per_channel, features), 0)
    found = importance(path, images, layer="blocks")
    assert found.shape == (8, 1, 8, 8)
    np.testing.assert_allclose(found[:, 0].numpy(), enlarged(maps, 8, 8), rtol=1e-4, atol=1e-6)
    assert not path.network.get_submodule("blocks")._forward_hooks
    assert all(parameter.grad is None for parameter in path.parameters())


def test_a_map_is_of_its_own_image() -> None:
    """The authors' code matches maps and images of two passes over shuffled data by their numbers."""
    path, images = evaluated(training()), some_batch().images
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    maps = importance(path, images, layer="blocks")
    assert len({tuple(one.flatten().tolist()) for one in maps}) == 8, "all are different"
    torch.testing.assert_close(importance(path, images[order], layer="blocks"), maps[order])
    for i in range(8):
        torch.testing.assert_close(importance(path, images[i : i + 1], layer="blocks"), maps[i : i + 1])


@given(st.integers(0, 1000), st.floats(0.01, 1))
def test_the_most_important_pixels_are_the_share_with_the_greatest_values(seed: int, share: float) -> None:
    maps = torch.randn(3, 1, 5, 4, generator=torch.Generator().manual_seed(seed))
    found = important(maps, share=share)
    count = max(1, round(share * 20))
    for one, keep in zip(maps.numpy().reshape(3, 20), found.numpy().reshape(3, 20), strict=True):
        wanted = [i for i in np.argsort(-one)[:count] if one[i] > 0]
        assert sorted(wanted) == np.flatnonzero(keep).tolist()


def test_where_nothing_matters_nothing_is_important() -> None:
    assert not important(torch.zeros(2, 1, 3, 3), share=0.25).any()


@pytest.mark.parametrize("base", PRESENT)
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_the_important_pixels_of_the_very_batch_get_the_full_radius(base: str, density: float) -> None:
    found, batch = training(base=base, low=0.0, share=0.25, warm_up=0.0, density=density), some_batch()
    keep = important(importance(evaluated(found), batch.images, layer="blocks"), share=0.25)
    step, _ = take(found, batch, ATTACK)
    assert 0 < float(keep.float().mean()) <= 0.25
    moved = (step.passes[-1].images - batch.images).abs()
    assert not moved[~keep].any(), "within a radius of 0 from the start on"
    assert float(moved[keep].max()) == pytest.approx(0.1, abs=1e-6)
    assert float((moved[keep] > 0).float().mean()) > 0.8, "but where a pixel is at 0 or 1 already"


def test_the_start_and_every_step_stay_within_the_map() -> None:
    found, batch = training(), some_batch()
    path = evaluated(found)
    keep = important(importance(path, batch.images, layer="blocks"), share=0.25)
    radius = torch.where(keep, 0.1, 0.05)
    seen: list[Tensor] = []
    with path.normalise.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach())):
        attack = ReweightedAttack(eps=0.1, steps=3, layer="blocks", low=0.5, share=0.25)
        last = attack.run(path, batch.images, batch.labels, generator=batch.generator)
    _map, *iterates = seen
    assert len(iterates) == 3
    for one in [*iterates, last]:
        assert bool(((one - batch.images).abs() <= radius + 1e-6).all())
    assert float((iterates[0] - batch.images).abs()[~keep].max()) > 0.04


@pytest.mark.parametrize("base", PRESENT)
def test_a_step_is_the_base_s_against_that_attack(base: str) -> None:
    options = {"beta": 3.0} if base != "pgd-at" else {}
    found = training(base=base, warm_up=0.5, **options)
    method = load_method(base)
    alone = method.build(resnet(), setup(base, options=method.options(**options)))
    alone.net.load_state_dict(found.net.state_dict())

    early, loss = take(found, some_batch(number=5, total=10), ATTACK)
    expected, wanted = take(alone, some_batch(), ATTACK)
    for mine, theirs in zip(early.passes, expected.passes, strict=True):
        assert torch.equal(mine.images, theirs.images), "warm-up is the base alone"
    assert torch.equal(loss.total, wanted.total)

    keep = important(importance(evaluated(found), some_batch().images, layer="blocks"), share=0.25)
    late, loss = take(found, some_batch(number=6, total=10), ATTACK)
    moved = (late.passes[-1].images - some_batch().images).abs()
    assert float(moved[~keep].max()) == pytest.approx(0.0875, abs=1e-6)
    assert float(moved[keep].max()) == pytest.approx(0.1, abs=1e-6)
    if base == "pgd-at":
        tensors, images = arrays(found.net.path("robust").network), late.passes[0].images.double().numpy()
        scores, _ = oracle.forward(tensors, images, masks={})
        np.testing.assert_allclose(
            float(loss.total.detach()), oracle.cross_entropy(scores, some_batch().labels.numpy()), rtol=2e-5
        )


def test_neither_the_map_nor_the_attack_moves_statistics() -> None:
    found = training(warm_up=0.0)
    found.modules.train()
    before = {name: value.clone() for name, value in found.net.state_dict().items()}
    found.step(some_batch(), ATTACK)
    assert all(torch.equal(before[name], value) for name, value in found.net.state_dict().items())


def test_restarts_and_the_strength_of_the_attack_are_kept() -> None:
    found = training(warm_up=0.0)
    given_attack = Attack(eps=0.2, steps=2, restarts=2, step_size=0.07)
    made: list[Attack] = []

    def step(_batch: object, attack: Attack) -> Any:
        made.append(attack)

    found.base.step = step  # type: ignore[method-assign,assignment]
    found.step(some_batch(), given_attack)
    assert isinstance(made[0], ReweightedAttack)
    for name in ("eps", "steps", "restarts", "step_size"):
        assert getattr(made[0], name) == getattr(given_attack, name)
    assert replace(made[0], restarts=1).layer == "blocks", "as trades does it"
    batch = some_batch()
    assert attacked(found.net.path("robust"), batch, made[0]).shape == batch.images.shape


class LateMap(nn.Module):
    """Features at one position after those that count, and a layer that works in place behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)
        self.pool, self.last, self.fc = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        features += 1
        scores: Tensor = self.fc(self.last(self.pool(self.relu(features))).flatten(1))
        return scores


def test_the_last_map_has_more_than_one_position_and_may_be_changed_in_place() -> None:
    example = torch.zeros(2, 1, 8, 8)
    assert last_map(LateMap(), example) == "relu"
    found = Part.build(LateMap(), setup("part", options=PartOptions(warm_up=0.0)))
    found.layer = "conv"  # which is changed in place twice
    take(found, some_batch(), ATTACK)[1].total.backward()  # type: ignore[no-untyped-call]
    flat = Functional(lambda net, images: net.call("fc", images.flatten(1)), fc=nn.Linear(64, 3))
    with pytest.raises(NetworkError, match="no module of Functional gives features"):
        last_map(flat, example)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "smart"}, "unknown base of part 'smart'"),
        ({"low": 1.5}, r"expected low and warm_up in \[0, 1\]"),
        ({"share": 0.0}, r"share in \(0, 1\]"),
        ({"beta": 1.0}, r"base pgd-at has no beta, got 1\.0; leave it out, or name another base"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(method="part", method_options=options)
