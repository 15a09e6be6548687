"""Method float: noise in attack and victim, one whole step by a slow reference, and the frozen draws it deploys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_export import build_bundle, fold
from smart_runtime import Bundle, SmartModel
from smart_train import Attack, CheckpointError, NetworkError, Structure, load_checkpoint, save_checkpoint
from smart_train.masking.accounting import densities
from smart_train.masking.attack_mode import attack_mode
from smart_train.methods import load_method
from smart_train.methods.float_noise import ALPHA, FLOAT, STRENGTHS, Float, randomised
from smart_train.methods.interface import Batch
from smart_train.training.loop import Trainer
from train.networks import Functional, different, image_set, randomise_, resnet, setup, tiny_config

ATTACK = Attack(eps=0.1, steps=2)
CONVOLUTIONS = ["conv", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.shortcut.0"]


def training(*, structure: Structure | None = None) -> Float:
    built = FLOAT.build(resnet(), setup("float", structure=structure))
    assert isinstance(built, Float)
    randomise_(built.net, seed=1)
    return built


def batch(*, dtype: torch.dtype = torch.float32, number: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 1, 8, 8, generator=generator).to(dtype), torch.arange(8) % 3
    return Batch(images, labels, labels, generator=generator, number=number, total=9)


def sample(images: int) -> Iterator[Batch]:
    assert images >= 8
    yield batch()
    yield batch()


def alphas(built: Float) -> nn.Parameter:
    found = built.modules.get_parameter("noise.alpha")
    assert isinstance(found, nn.Parameter)
    return found


class Noise:
    """The noise of a step as the specification has it, drawn in the order of the passes and their layers."""

    def __init__(self, alpha: Tensor, *numbers: int) -> None:
        self.alpha = alpha
        seed = np.random.SeedSequence(numbers).generate_state(1)
        self.generator = torch.Generator().manual_seed(int(seed[0]))

    def __call__(self, layer: int, weight: Tensor) -> Tensor:
        noise = torch.empty_like(weight).normal_(generator=self.generator)
        deviation = float(np.std(weight.detach().numpy()))
        return weight + 1.0 * self.alpha[layer] * deviation * noise


def slow_forward(parts: dict[str, Tensor], images: Tensor, *, noise: Noise | None, train: bool) -> Tensor:
    """Score images with the tensors of a path, written out layer by layer."""

    def norm(name: str, features: Tensor) -> Tensor:
        mean, variance = parts[f"{name}.running_mean"], parts[f"{name}.running_var"]
        if train:
            mean, variance = features.mean(dim=(0, 2, 3)), features.var(dim=(0, 2, 3), unbiased=False)
        shape = (1, -1, 1, 1)
        normal = (features - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        return parts[f"{name}.weight"].view(shape) * normal + parts[f"{name}.bias"].view(shape)

    def conv(name: str, features: Tensor, *, stride: int = 1, padding: int = 1) -> Tensor:
        weight = parts[f"{name}.weight"]
        if noise is not None:
            weight = noise(CONVOLUTIONS.index(name), weight)
        return F.conv2d(features, weight, stride=stride, padding=padding)

    features = norm("bn", conv("conv", images)).relu()
    for block, stride in (("blocks.0", 1), ("blocks.1", 2)):
        inner = norm(f"{block}.bn1", conv(f"{block}.conv1", features, stride=stride)).relu()
        inner = norm(f"{block}.bn2", conv(f"{block}.conv2", inner))
        if stride == 2:
            features = norm(f"{block}.shortcut.1", conv(f"{block}.shortcut.0", features, stride=2, padding=0))
        features = (inner + features).relu()
    return features.mean(dim=(2, 3)) @ parts["fc.weight"].T + parts["fc.bias"]


def test_a_whole_step_is_that_of_a_slow_reference_to_every_gradient() -> None:
    built, given = training(), batch(dtype=torch.float64, number=5)
    built.modules.double().train()
    parameters = dict(built.modules.named_parameters())
    clean, robust = (dict(built.net.path(p).network.state_dict(keep_vars=True)) for p in ("clean", "robust"))
    noise = Noise(alphas(built), 0, 1, 5)  # the seed of the set-up, a step's, and its number
    images, labels = given.images[4:], given.labels[4:]
    adversarial = images + torch.empty_like(images).uniform_(-0.1, 0.1, generator=given.generator)
    adversarial = adversarial.clamp(0, 1)
    for _ in range(2):
        adversarial.requires_grad_()
        scores = slow_forward(robust, adversarial, noise=noise, train=False)
        (slope,) = torch.autograd.grad(F.cross_entropy(scores, labels), adversarial)
        moved = adversarial.detach() + (0.1 + 4 / 255) / 2 * slope.sign()
        adversarial = torch.min(torch.max(moved, images - 0.1), images + 0.1).clamp(0, 1)
    halves = (
        F.cross_entropy(slow_forward(clean, given.images[:4], noise=None, train=True), given.labels[:4]),
        F.cross_entropy(slow_forward(robust, adversarial, noise=noise, train=True), labels),
    )
    expected = sum(halves, torch.zeros((), dtype=torch.float64)) / 2
    gradients = torch.autograd.grad(expected, list(parameters.values()))

    step = built.step(batch(dtype=torch.float64, number=5), ATTACK)
    torch.testing.assert_close(step.passes[1].images, adversarial, rtol=0, atol=1e-12)
    total = step.loss(built.modules(step.passes)).total
    total.backward()  # type: ignore[no-untyped-call]
    # Losses are computed from scores in float32, whatever the network computes in.
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert gradient.any(), name
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_every_pass_of_the_robust_path_draws_its_noise_in_attacks_too_and_the_clean_path_has_none() -> None:
    built, images = training(), batch().images
    clean, robust = built.net.path("clean").eval(), built.net.path("robust").eval()
    assert (clean.randomised, robust.randomised) == (False, True)
    assert torch.equal(clean(images), clean(images))
    with attack_mode(robust):  # in which other layers hold their weights
        first, second = robust(images), robust(images)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("name", ["channel", "unstructured"])
def test_noise_leaves_masked_weights_at_zero(name: str) -> None:
    built = training(structure=Structure(name, density=0.5, align=1))
    path, layer = built.net.path("robust"), "blocks.0.conv2"
    if name == "channel":
        for group in range(len(built.net.groups)):
            built.net.set_mask("robust", group, torch.arange(built.net.groups[group].size) % 2 == 0)
    else:
        for each in built.net.weight_layers:
            shape = path.network.get_parameter(f"{each}.weight").shape
            built.net.set_weight_mask("robust", each, torch.rand(shape, generator=torch.Generator()) < 0.5)
        convolution: Any = path.network.get_submodule(layer)
        weight, _ = convolution.masked_affine()
        assert not weight[~built.net.weight_mask("robust", layer)].any()
    net = built.deployable(sample)
    with torch.no_grad():
        for frozen in net.path_names:
            expected = net.path(frozen)(batch().images)
            torch.testing.assert_close(fold(net, path=frozen)(batch().images), expected, rtol=1e-4, atol=1e-4)


def test_every_deployed_path_has_one_draw_in_weights_of_its_own_and_statistics_of_them() -> None:
    built = training()
    built.net.train()
    before = {name: tensor.clone() for name, tensor in built.modules.state_dict().items()}
    net = built.deployable(sample)
    assert net.path_names == tuple(FLOAT.roles) == tuple(STRENGTHS)
    assert not different(built.modules.state_dict(), before)
    assert not different(built.deployable(sample).state_dict(), net.state_dict()), "the draw is the same each time"
    assert not any(net.path(name).randomised or net.path(name).training for name in net.path_names)
    plain = dict(built.net.path("clean").network.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for name, strength in STRENGTHS.items():
        network = net.path(name).network
        for layer in CONVOLUTIONS:
            weight = plain[f"{layer}.weight"].detach().numpy()
            noise = torch.randn(weight.shape, generator=generator).numpy() if strength else np.zeros(1)
            expected = weight + strength * ALPHA * weight.std() * noise
            found = network.get_parameter(f"{layer}.weight").detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(network.get_parameter("fc.weight"), plain["fc.weight"])
        norm: Any = network.get_submodule("bn")
        assert norm.momentum == 0.1
        assert int(norm.num_batches_tracked) == (2 if strength else 0)
    assert len({id(p) for p in net.parameters()}) == 4 * len(plain)
    total = sum(p.numel() for p in plain.values())
    norms = sum(plain[n].numel() for n in plain if ".bn" in n or n.startswith("bn.") or "shortcut.1" in n)
    assert densities(net).union == 4 * total / (total + 3 * norms)


def test_frozen_statistics_are_the_means_over_attacked_training_images() -> None:
    built = training()
    seen: list[Tensor] = []
    net = built.deployable(sample)
    network = net.path("robust").network
    network.get_submodule("bn").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    built._noise.restart(0)
    for one in sample(1000):
        attack = Attack(eps=0.1, steps=2, step_size=(0.1 + 4 / 255) / 2)
        with attack_mode(built.net.path("robust")):
            images = attack.run(built.net.path("robust"), one.images, one.labels, generator=one.generator)
        with torch.no_grad():
            net.path("robust")(images)
    norm: Any = network.get_submodule("bn")
    means = np.mean([features.numpy().mean(axis=(0, 2, 3)) for features in seen], axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), means, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_keeps_weights_a_path_says_so_and_gives_back_the_network_that_draws_noise(tmp_path: Path) -> None:
    config = tiny_config(method="float", epochs=1, structure=Structure(density=1.0, align=1))
    trainer = Trainer(config, image_set(), output=tmp_path / "ckpt.pt")
    deployed = trainer.deployed()
    samples = trainer._measurement.samples(deployed, trainer.data.validation, attack=Attack(eps=0.1, steps=1))
    save_checkpoint(trainer.checkpoint(deployed, samples), tmp_path / "ckpt.pt")
    raw = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert (raw["format_version"], raw["shares"], raw["state"]["shared"]) == (2, "nothing", {})
    found = load_checkpoint(tmp_path / "ckpt.pt")
    assert found.net.shares == "nothing"
    record = found.training["noise"]
    assert (record["kind"], record["strength"]) == ("frozen", STRENGTHS)
    modules = found.net.path("clean").network.named_modules()
    assert list(record["alpha"]) == [name for name, module in modules if isinstance(module, nn.Conv2d)]
    assert set(record["alpha"].values()) == {ALPHA}
    assert type(record["seed"]) is int

    build_bundle(found, target="cpu", output=tmp_path / "bundle", baseline=False)
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert (manifest.shares, manifest.training["noise"]) == ("nothing", record)
    with SmartModel.load(tmp_path / "bundle") as model:
        for name in model.paths:
            model.path = name
            with torch.no_grad():
                expected = found.net.path(name)(batch().images).numpy()
            np.testing.assert_allclose(model.run(batch().images.numpy()).scores, expected, rtol=1e-4, atol=1e-4)

    net, images = randomised(found), batch().images
    assert [net.path(name).randomised for name in net.path_names] == [False, True, True, True]
    with torch.no_grad():
        assert torch.equal(net.path("clean")(images), found.net.path("clean")(images))
        assert not torch.equal(net.path("robust")(images), net.path("robust")(images))
        apart = [float((net.path(n)(images) - net.path(n)(images)).abs().mean()) for n in ("lambda-02", "robust")]
    assert apart[0] < apart[1]

    raw["shares"] = "everything"
    torch.save(raw, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="one of weights, nothing as what the paths share"):
        load_checkpoint(tmp_path / "other.pt")
    strengths_of_others = {"alpha": dict.fromkeys(CONVOLUTIONS, 0.1), "strength": {**STRENGTHS, "clean": 0.1, "x": 0.0}}
    for broken, message in (
        ({}, "no record of noise"),
        ({"alpha": {}, "strength": STRENGTHS}, "damaged"),
        (strengths_of_others, "damaged"),
    ):
        found.training["noise"] = broken
        with pytest.raises(CheckpointError, match=message):
            randomised(found)


def test_a_network_without_convolutions_is_refused_in_a_sentence() -> None:
    plain = Functional(
        lambda net, x: net.call("out", net.call("hidden", x.flatten(1)).relu()),
        hidden=nn.Linear(64, 16),
        out=nn.Linear(16, 3),
    )
    with pytest.raises(NetworkError, match=r"^Functional has no convolution whose weights could carry noise; .* smart"):
        load_method("float").build(plain, setup("float"))
