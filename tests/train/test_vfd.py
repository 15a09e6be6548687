from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reference import train_mode as oracle
from reference.resnet import forward as evaluated_forward
from smart_train import Attack, ConfigError, NetworkError, Structure, load_checkpoint
from smart_train.methods import load_method
from smart_train.methods.feature_layers import classifier
from smart_train.methods.vfd import BASES, Vfd, VfdOptions
from smart_train.training.loop import Trainer
from smart_train.training.state import state_path
from train.networks import Functional, different, image_set, randomise_, resnet, setup, tiny_config
from train.one_step import Array, arrays, check_slope, half_masked_, masks, run_until, some_batch, take

ATTACK = Attack(eps=0.1, steps=2)


def teacher(*, width: int = 4) -> nn.Module:
    """A network as `read_teacher` gives it: frozen, in eval mode."""
    found = resnet(width=width, seed=7)
    randomise_(found, seed=2)
    return found.eval().requires_grad_(False)


def training(*, width: int = 4, density: float = 1.0, **options: Any) -> Vfd:
    structure = Structure(density=density, align=1)
    made = setup("vfd", options=VfdOptions(**options), structure=structure, teacher=teacher(width=width))
    found = Vfd.build(resnet(), made)
    if density < 1:
        half_masked_(found.net)
    return found


def divergence(p: Array, q: Array) -> float:
    """Return the mean of KL(softmax p || softmax q)."""
    first, second = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    return float((np.exp(first) * (first - second)).sum(axis=1).mean())


def taught(found: nn.Module, images: Tensor) -> Array:
    """What the teacher's classifier is given in eval mode: its scores with a classifier that changes nothing."""
    tensors = arrays(found)
    width = tensors["fc.weight"].shape[1]
    tensors |= {"fc.weight": np.eye(width), "fc.bias": np.zeros(width)}
    return evaluated_forward(tensors, images.double().numpy(), mean=(0.0,), std=(1.0,), masks={})


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("width", "density"), [(4, 1.0), (6, 0.5)], ids=["as wide", "wider"])
def test_a_step_is_that_of_the_formula(base: str, width: int, density: float) -> None:
    own: dict[str, Any] = {"beta": 3.0} if base == "trades" else {}
    found = training(base=base, width=width, density=density, a=0.7, b=1.9, **own)
    step, loss = take(found, some_batch(), ATTACK)
    images, labels = some_batch().images, some_batch().labels.numpy()
    (clean_at,) = [i for i, one in enumerate(step.passes) if torch.equal(one.images, images)]
    clean, attacked = (step.passes[i].images.double().numpy() for i in (clean_at, 1 - clean_at))
    target = taught(teacher(width=width), images)
    network = found.net.path("robust").network

    def adapted(vectors: Array) -> Array:
        if found.extra is None:
            return vectors
        w = arrays(found.extra)
        return vectors @ w["weight"].T + w["bias"]

    def expected() -> float:
        (clean_scores, clean_features), (scores, features) = (
            oracle.forward(arrays(network), x, masks=masks(network)) for x in (clean, attacked)
        )
        natural = (
            oracle.cross_entropy(scores, labels)
            if base == "pgd-at"
            else oracle.cross_entropy(clean_scores, labels) + 3.0 * divergence(clean_scores, scores)
        )
        apart, clean_apart = (
            oracle.cosine_distance(adapted(one["pooled"]), target) for one in (features, clean_features)
        )
        return natural + 0.7 * apart + 1.9 * clean_apart

    check_slope(found, loss.total, expected)
    assert set(loss.parts) >= {"distance", "clean_distance"}


def test_the_attack_is_the_base_s() -> None:
    found = training()
    step, _ = take(found, some_batch(), ATTACK)
    alone = load_method("pgd-at").build(resnet(), setup("pgd-at"))
    expected, _ = take(alone, some_batch(), ATTACK)
    assert torch.equal(step.passes[0].images, expected.passes[0].images)


def test_only_the_network_and_its_adapter_learn() -> None:
    found = training(width=6)
    before = {name: value.clone() for name, value in found.teacher.state_dict().items()}
    _, loss = take(found, some_batch(), ATTACK)
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in found.modules.parameters())
    assert all(parameter.grad is None for parameter in found.teacher.parameters())
    assert not different(before, found.teacher.state_dict()), "no statistics move"
    learning = {id(parameter) for parameter in found.modules.parameters()}
    assert not learning & {id(parameter) for parameter in found.teacher.parameters()}
    for name, value in found.net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert int(value) == 2, "once for each pass"


def test_there_is_an_adapter_only_where_widths_differ() -> None:
    assert training().extra is None
    adapter = training(width=6).extra
    assert isinstance(adapter, nn.Linear)
    assert (adapter.in_features, adapter.out_features) == (8, 12)


def test_a_network_without_a_vector_before_its_scores_is_refused() -> None:
    example = torch.zeros(2, 1, 8, 8)
    convolution = Functional(lambda net, x: net.call("conv", x).mean(dim=(2, 3)), conv=nn.Conv2d(1, 3, 3))
    by_position = Functional(lambda net, x: net.call("fc", x).mean(dim=(1, 2)), fc=nn.Linear(8, 3))
    assert classifier(resnet(), example) == ("fc", 8)
    for network in (convolution, by_position):
        with pytest.raises(NetworkError, match="Functional has no linear layer that is given a vector for each image"):
            classifier(network, example)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "mart"}, "unknown base of vfd 'mart'"),
        ({"a": -1.0}, "a and b"),
        ({"beta": 1.0}, "base pgd-at has no beta"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(method="vfd", method_options=options)


def test_at_half_density_it_resumes_to_the_bit_with_its_adapter(tmp_path: Path) -> None:
    config = tiny_config(method="vfd", epochs=2)
    whole = Trainer(config, image_set(), output=tmp_path / "whole.pt", teacher=teacher(width=6))
    run_until(whole, epoch=2)
    run_until(Trainer(config, image_set(), output=tmp_path / "parts.pt", teacher=teacher(width=6)), epoch=1)
    assert torch.load(state_path(tmp_path / "parts.pt"), weights_only=True)["extra"]
    parts = Trainer(config, image_set(), output=tmp_path / "parts.pt", resume=True, teacher=teacher(width=6))
    run_until(parts, epoch=2)
    assert not different(whole._modules.state_dict(), parts._modules.state_dict())
    assert whole.history[-1]["robust_density"] == 0.5
    found = load_checkpoint(tmp_path / "whole.pt")
    assert not [name for name in found.net.state_dict() if "adapter" in name], "it is not deployed"
    assert "reconstruction" in load_method("vfd").describe()
