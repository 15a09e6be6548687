from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from reference import masks as oracle
from smart_train import ConfigError, Structure
from smart_train.architectures.build import build_network
from smart_train.masking.n_of_m import NOfM
from smart_train.masking.permutation import permute_channels_, search_order
from train.networks import randomise_

EXAMPLE = torch.zeros(2, 1, 8, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(columns: torch.Tensor, order: list[int], pattern: NOfM) -> float:
    rows = oracle.blocks(columns[order].T.numpy(), [True] * len(order), pattern.m)
    return sum(sum(sorted(row)[-pattern.n :]) for row in rows)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_the_best_order_of_few_channels(seed: int) -> None:
    pattern = NOfM(1, 2)
    columns = torch.rand((6, 5), generator=generator(seed))
    order = search_order(columns, pattern=pattern, generator=generator(seed)).tolist()
    assert sorted(order) == list(range(6))
    best = max(kept(columns, list(every), pattern) for every in itertools.permutations(range(6)))
    assert kept(columns, list(range(6)), pattern) <= kept(columns, order, pattern) + 1e-5
    assert kept(columns, order, pattern) >= 0.97 * best  # greedy: near the best


@pytest.mark.parametrize("name", ["resnet8", "wrn40-2"])
def test_a_permuted_network_computes_the_same_and_keeps_more(name: str) -> None:
    network = build_network(name, num_classes=5, in_channels=1, arguments={"width": 8}, generator_seed=0)
    randomise_(network, seed=1)
    before = copy.deepcopy(network)
    gains = permute_channels_(network, EXAMPLE, structure=Structure(name="2:4"), generator=generator())
    images = torch.rand(4, 1, 8, 8, generator=generator(2))
    torch.testing.assert_close(network.eval()(images), before.eval()(images), rtol=1e-3, atol=1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    for layer, gain in gains.items():
        for net, fraction in ((before, gain.before), (network, gain.after)):
            weight = net.get_submodule(layer).weight
            assert isinstance(weight, torch.Tensor)
            rows = oracle.blocks(weight.detach().abs().numpy(), [True] * weight.shape[1], 4)
            total = sum(sum(row) for row in rows)
            assert fraction == pytest.approx(sum(sum(sorted(row)[-2:]) for row in rows) / total, rel=1e-5)
    assert sum(g.after - g.before for g in gains.values()) > 0
    assert all(0.5 <= g.before <= 1 and 0.5 <= g.after <= 1 for g in gains.values())


def test_planted_blocks_are_taken_apart() -> None:
    """Where all large weights read the same four channels, 2:4 loses half of them unless these are spread."""
    network = nn.Sequential(
        nn.Conv2d(1, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * 64, 3)
    )
    weight = network[2].weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        weight.copy_(torch.rand(weight.shape, generator=generator()) * 0.01)
        weight[:, :4] += 1
    gains = permute_channels_(network, EXAMPLE, structure=Structure(name="2:4"), generator=generator())
    assert gains["2"].before < 0.55
    assert gains["2"].after > 0.97


@pytest.mark.parametrize("name", ["channel", "channel+2:4", "unstructured"])
def test_structures_without_blocks_of_their_own_are_refused(name: str) -> None:
    network = build_network("resnet8", num_classes=5, in_channels=1, arguments={"width": 8}, generator_seed=0)
    with pytest.raises(
        ConfigError, match=r"^channels (cannot be permuted for channel|in another order gain nothing for unstructured)"
    ):
        permute_channels_(network, EXAMPLE, structure=Structure(name=name), generator=generator())
