from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reference import train_mode as oracle
from smart_train import Attack, ConfigError, NetworkError, Structure, load_checkpoint
from smart_train.architectures.build import build_network
from smart_train.masking.passes import Pass
from smart_train.methods.ar_at import ArAt, ArAtOptions
from smart_train.methods.feature_layers import last_stage
from smart_train.methods.interface import Batch
from smart_train.training.loop import Trainer
from smart_train.training.state import state_path
from train.networks import Functional, different, image_set, resnet, setup, tiny_config
from train.one_step import Array, arrays, check_slope, half_masked_, masks, run_until, some_batch, take

ATTACK = Attack(eps=0.1, steps=2)
LAYERS = ("blocks.1.bn1", "blocks.1.bn2")


def training(*, density: float = 1.0, options: ArAtOptions | None = None) -> ArAt:
    found = ArAt.build(
        resnet(), setup("ar-at", options=options or ArAtOptions(), structure=Structure(density=density, align=1))
    )
    if density < 1:
        half_masked_(found.net)
    return found


def pooled(features: dict[str, Array]) -> list[Array]:
    return [np.maximum(features[name], 0).mean(axis=(2, 3)) for name in LAYERS]


def predicted(head: nn.Module, vectors: Array) -> Array:
    """Linear - batch norm - ReLU - linear, in train mode."""
    w = arrays(head)
    hidden = vectors @ w["layers.0.weight"].T
    hidden = np.maximum(oracle.batch_norm(hidden, w["layers.1.weight"], w["layers.1.bias"]), 0)
    return hidden @ w["layers.3.weight"].T + w["layers.3.bias"]


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_a_step_is_that_of_the_formula(density: float) -> None:
    found, given = training(density=density, options=ArAtOptions(weight=5.0)), some_batch()
    found.clean_accuracy = 0.3
    step, loss = take(found, given, ATTACK)
    assert [one.path for one in step.passes] == ["clean", "robust"]
    clean, robust = (one.images.double().numpy() for one in step.passes)
    labels = given.labels.numpy()
    network = {path: found.net.path(path).network for path in ("clean", "robust")}

    def of(path: str, images: Array) -> tuple[Array, dict[str, Array]]:
        return oracle.forward(arrays(network[path]), images, masks=masks(network[path]))

    targets = pooled(of("clean", clean)[1])  # held: no gradient goes through them

    def expected() -> float:
        scores, (robust_scores, features) = of("clean", clean)[0], of("robust", robust)
        assert found.extra is not None
        distances = [
            oracle.cosine_distance(predicted(head, vectors), target)
            for head, vectors, target in zip(found.extra.children(), pooled(features), targets, strict=True)
        ]
        natural = 0.3 * oracle.cross_entropy(robust_scores, labels) + 0.7 * oracle.cross_entropy(scores, labels)
        return natural + 5.0 / 2 * sum(distances)

    check_slope(found, loss.total, expected)
    if density < 1:
        off = ~masks(network["clean"])["blocks.1.bn1"]
        assert off.any()
        assert not targets[0][:, off].any(), "masked channels are zeros"


def test_nothing_draws_the_clean_features() -> None:
    found = training()
    found.clean_accuracy = 1.0  # so that the clean path's cross-entropy counts nothing
    _, loss = take(found, some_batch(), ATTACK)
    loss.total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in found.net.path("clean").network.named_parameters():
        if "bn" in name or "shortcut.1" in name:
            assert parameter.grad is None or not parameter.grad.any(), name
    assert found.extra is not None
    assert all(p.grad is not None and bool(p.grad.any()) for p in found.extra.parameters())


def test_the_clean_batch_is_clean_and_the_attack_stays_within_eps_of_it() -> None:
    """The authors' code adds the attack's start to the clean batch itself."""
    given = some_batch()
    step, _ = take(training(), given, ATTACK)
    clean, robust = (one.images for one in step.passes)
    assert torch.equal(clean, some_batch().images)
    assert 0.05 < float((robust - some_batch().images).abs().max()) <= 0.1 + 1e-6

    step, _ = take(training(options=ArAtOptions(clean_noise=0.1)), given, ATTACK)
    noised, robust = (one.images for one in step.passes)
    assert 0.09 < float((noised - given.images).abs().max()) <= 0.1 + 1e-6
    assert float(noised.min()) < 0, "not clamped"
    assert float(noised.max()) > 1, "not clamped"
    assert float((robust - given.images).abs().max()) <= 0.1 + 1e-6


def test_the_attack_moves_no_statistics_and_each_pass_moves_them_once() -> None:
    found = training()
    found.modules.train()
    before = {name: value.clone() for name, value in found.modules.state_dict().items()}
    step = found.step(some_batch(), ATTACK)
    assert not different(before, found.modules.state_dict())
    assert all(module.training for module in found.modules.modules())
    found.modules(step.passes)
    for name, value in found.modules.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert int(value) == 1, name


def test_before_an_epoch_the_clean_path_is_measured_in_eval_mode() -> None:
    found, asked, given = training(), [], [some_batch(), some_batch(6)]
    assert found.clean_accuracy == 1 / 3

    def sample(images: int) -> Iterator[Batch]:
        asked.append(images)
        yield from given

    found.modules.train()
    found.epoch_start(1, sample)
    assert asked == [1000]
    assert found.net.path("clean").training
    path = found.net.path("clean").eval()
    with torch.no_grad():
        right = sum(int((path(one.images).argmax(dim=1) == one.labels).sum()) for one in given)
    assert found.clean_accuracy == right / 14


def test_the_last_stage_is_what_comes_after_the_last_reduction() -> None:
    example = torch.zeros(2, 3, 32, 32)

    def named(model: str) -> list[str]:
        network = build_network(model, num_classes=2, in_channels=3, arguments={"width": 16}, generator_seed=0)
        return list(last_stage(network, example))

    assert named("resnet18") == [f"blocks.{i}.bn{j}" for i in (6, 7) for j in (1, 2)], "without the shortcut's"
    assert named("wrn16-8") == ["blocks.4.bn2", "blocks.5.bn1", "blocks.5.bn2", "bn"], "the last one after the blocks"


def test_a_network_without_batch_norms_is_refused() -> None:
    plain = Functional(
        lambda net, images: net.call("fc", net.call("conv", images).relu().mean(dim=(2, 3))),
        conv=nn.Conv2d(1, 4, 3),
        fc=nn.Linear(4, 3),
    )
    with pytest.raises(NetworkError, match="Functional has no batch norms, whose outputs the two paths are to align"):
        ArAt.build(plain, setup("ar-at"))


class InPlace(nn.Module):
    """A residual block whose sum is made in the place of its batch norm's output, as torchvision's are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.bn(self.conv(self.inner(images).relu()))
        features += images
        scores: Tensor = self.fc(features.relu_().mean(dim=(2, 3)))
        return scores


def test_what_comes_after_a_tapped_layer_may_work_in_place() -> None:
    found = ArAt.build(InPlace(), setup("ar-at"))
    images, path = some_batch().images, found.net.path("robust").eval()
    bn, seen = path.network.get_submodule("bn"), []
    with bn.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach().clone())):
        (out,) = found.net([Pass("robust", images, tap=("bn",))])
    assert torch.equal(out.features["bn"], seen[0])
    assert float(seen[0].min()) < 0, "before the sum and the ReLU"
    take(found, some_batch(), ATTACK)[1].total.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"clean_noise": 2.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"expected a {next(iter(options))} "):
        tiny_config(method="ar-at", method_options=options)


def test_at_half_density_it_resumes_to_the_bit_with_its_predictors(tmp_path: Path) -> None:
    config = tiny_config(method="ar-at", epochs=2)
    whole = Trainer(config, image_set(), output=tmp_path / "whole.pt")
    run_until(whole, epoch=2)
    run_until(Trainer(config, image_set(), output=tmp_path / "parts.pt"), epoch=1)
    assert torch.load(state_path(tmp_path / "parts.pt"), weights_only=True)["extra"]
    parts = Trainer(config, image_set(), output=tmp_path / "parts.pt", resume=True)
    run_until(parts, epoch=2)
    assert not different(whole._modules.state_dict(), parts._modules.state_dict())
    assert whole.history == parts.history
    assert {whole.history[-1][f"{path}_density"] for path in ("clean", "robust")} == {0.5}
    found = load_checkpoint(tmp_path / "whole.pt").net
    assert not [name for name in found.state_dict() if "predictor" in name], "they are not deployed"
