"""Method oat: its loss, one whole step by a slow reference, its batch norms, and what is deployed of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_export import fold
from smart_train import Attack, NetworkError, Structure, convert
from smart_train.architectures.resnet import WIDE_STEM, PreactivationResNet
from smart_train.methods import load_method
from smart_train.methods.film import CODE, ConditionalNetwork, conditioned_batch_norms
from smart_train.methods.interface import Batch, Training
from smart_train.methods.oat import LAMBDAS, OAT, short_steps
from train.networks import Functional, different, randomise_, resnet, setup

ATTACK = Attack(eps=0.1, steps=2)
SIZE, FIRST = 14, 3  # a batch, and how many of it have lambda 0: a sixth, rounded up
FILMED = ["bn", "blocks.0.bn1", "blocks.0.bn2", "blocks.1.bn1", "blocks.1.bn2"]


def training(*, density: float = 1.0) -> Training:
    structure = Structure(density=density, align=1)
    built = load_method("oat").build(resnet(), setup("oat", structure=structure))
    randomise_(built.net, seed=1)
    if density < 1:
        for number, path in enumerate(built.net.path_names):
            for group in range(len(built.net.groups)):
                size = built.net.groups[group].size
                built.net.set_mask(path, group, torch.arange(size) % 2 == number)
    return built


def batch(*, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(SIZE, 1, 8, 8, generator=generator).to(dtype), torch.arange(SIZE) % 3
    return Batch(images, labels, labels, generator=generator, number=1, total=1)


def no_sample(images: int) -> Any:
    raise AssertionError(f"{images} images are asked for, and none are needed")


def cross_entropies(scores: Tensor, labels: Tensor) -> np.ndarray:
    values = scores.detach().double().numpy()
    logs = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return np.asarray(-logs[np.arange(len(values)), labels.numpy()])


def test_the_loss_weighs_the_clean_and_the_attacked_image_by_lambda_and_leaves_lambda_0_alone() -> None:
    oat, given = training(), batch()
    oat.modules.train()
    step = oat.step(given, ATTACK)
    easy, clean, robust = step.passes
    assert [one.path for one in step.passes] == ["clean", "robust", "robust"]
    assert torch.equal(easy.images, given.images[:FIRST]), "images of lambda 0 are not attacked"
    assert torch.equal(clean.images, given.images[FIRST:])
    assert 0 < float((robust.images - clean.images).abs().max()) <= ATTACK.eps + 1e-6
    assert easy.condition is not None
    assert clean.condition is not None
    assert easy.condition.tolist() == [0] * FIRST
    assert clean.condition is robust.condition
    assert set(clean.condition.tolist()) <= {1, 2, 3, 4, 5}
    assert len(set(clean.condition.tolist())) > 1
    outs = oat.modules(step.passes)
    before = cross_entropies(torch.cat([outs[0].scores, outs[1].scores]), given.labels)
    after = np.concatenate([np.zeros(FIRST), cross_entropies(outs[2].scores, given.labels[FIRST:])])
    weights = np.array([0.0] * FIRST + [LAMBDAS[row] for row in clean.condition])
    expected = ((1 - weights) * before + weights * after).mean()
    assert float(step.loss(outs).total.detach()) == pytest.approx(expected, rel=1e-5)


def slow_forward(
    parts: dict[str, Tensor], films: nn.Module, codes: Tensor, images: Tensor, rows: list[int], *, train: bool
) -> Tensor:
    """Score images with the tensors of a path, written out layer by layer, FiLM image by image."""
    films_of: dict[str, Any] = dict(zip(FILMED, films.children(), strict=True))

    def norm(name: str, features: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        mean, variance = parts[f"{name}.running_mean"], parts[f"{name}.running_var"]
        if train:
            mean, variance = features.mean(dim=(0, 2, 3)), features.var(dim=(0, 2, 3), unbiased=False)
        normal = (features - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        result = parts[f"{name}.weight"].view(shape) * normal + parts[f"{name}.bias"].view(shape)
        if name not in films_of:
            return result
        done = []
        for image, row in zip(result, rows, strict=True):
            film, channels = films_of[name], image.shape[0]
            hidden = F.leaky_relu(film.hidden.weight @ codes[row] + film.hidden.bias, 0.01)
            both = F.leaky_relu(film.out.weight @ hidden + film.out.bias, 0.01)
            done.append(both[:channels].view(-1, 1, 1) * image + both[channels:].view(-1, 1, 1))
        return torch.stack(done)

    def conv(name: str, features: Tensor, *, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(features, parts[f"{name}.weight"], stride=stride, padding=padding)

    features = norm("bn", conv("conv", images)).relu()
    for block, stride in (("blocks.0", 1), ("blocks.1", 2)):
        inner = norm(f"{block}.bn1", conv(f"{block}.conv1", features, stride=stride)).relu()
        inner = norm(f"{block}.bn2", conv(f"{block}.conv2", inner))
        if stride == 2:
            features = norm(f"{block}.shortcut.1", conv(f"{block}.shortcut.0", features, stride=2, padding=0))
        features = (inner + features).relu()
    return features.mean(dim=(2, 3)) @ parts["fc.weight"].T + parts["fc.bias"]


def test_a_whole_step_is_that_of_a_slow_reference_to_every_gradient() -> None:
    oat = training()
    oat.modules.double().train()
    given = batch(dtype=torch.float64)
    films, codes = oat.extra.films, oat.extra.codes  # type: ignore[union-attr]
    assert isinstance(films, nn.Module)
    assert isinstance(codes, Tensor)
    clean, robust = (dict(oat.net.path(p).network.state_dict(keep_vars=True)) for p in ("clean", "robust"))
    rows = torch.randint(1, 6, (SIZE - FIRST,), generator=given.generator).tolist()
    images, labels = given.images[FIRST:], given.labels[FIRST:]
    adversarial = images + torch.empty_like(images).uniform_(-0.1, 0.1, generator=given.generator)
    adversarial = adversarial.clamp(0, 1)
    for _ in range(2):
        adversarial.requires_grad_()
        scores = slow_forward(robust, films, codes, adversarial, rows, train=False)
        (slope,) = torch.autograd.grad(F.cross_entropy(scores, labels), adversarial)
        moved = adversarial.detach() + min(0.125, 0.1 + 4 / 255) / 2 * slope.sign()
        adversarial = torch.min(torch.max(moved, images - 0.1), images + 0.1).clamp(0, 1)
    easy = slow_forward(clean, films, codes, given.images[:FIRST], [0] * FIRST, train=True)
    before = slow_forward(robust, films, codes, images, rows, train=True)
    after = slow_forward(robust, films, codes, adversarial, rows, train=True)
    expected = torch.zeros((), dtype=torch.float64)
    for scores, label in zip(easy, given.labels[:FIRST], strict=True):
        expected = expected - scores.log_softmax(0)[label] / SIZE
    for one, other, row, label in zip(before, after, rows, labels, strict=True):
        mixed = (1 - LAMBDAS[row]) * one.log_softmax(0)[label] + LAMBDAS[row] * other.log_softmax(0)[label]
        expected = expected - mixed / SIZE
    parameters = dict(oat.modules.named_parameters())
    gradients = torch.autograd.grad(expected, list(parameters.values()))

    step = oat.step(batch(dtype=torch.float64), ATTACK)
    torch.testing.assert_close(step.passes[2].images, adversarial, rtol=0, atol=1e-12)
    total = step.loss(oat.modules(step.passes)).total
    total.backward()  # type: ignore[no-untyped-call]
    # Losses are computed from scores in float32, whatever the network computes in.
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert gradient.any(), name
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_shortcuts_and_a_batch_norm_alone_before_the_head_have_no_film() -> None:
    net = convert(resnet(), example_input=torch.zeros(2, 1, 8, 8), align=1)
    assert conditioned_batch_norms(net.path("clean"), torch.zeros(2, 1, 8, 8)) == FILMED
    with torch.random.fork_rng(devices=[]):
        wide = PreactivationResNet(num_classes=3, in_channels=1, blocks=(1, 1, 1), width=4, stem=WIDE_STEM)
    net = convert(wide, example_input=torch.zeros(2, 1, 8, 8), align=1)
    found = conditioned_batch_norms(net.path("clean"), torch.zeros(2, 1, 8, 8))
    assert found == [f"blocks.{i}.bn{j}" for i in range(3) for j in (1, 2)]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_network_without_batch_norms_is_refused_in_a_sentence() -> None:
    plain = Functional(
        lambda net, x: net.call("fc", net.call("second", net.call("first", x).relu()).relu().mean(dim=(2, 3))),
        first=nn.Conv2d(1, 8, 3),
        second=nn.Conv2d(8, 8, 3),
        fc=nn.Linear(8, 3),
    )
    with pytest.raises(NetworkError, match=r"^no batch norm of Functional can follow a condition: .* --method smart"):
        load_method("oat").build(plain, setup("oat"))


def test_statistics_of_the_robust_path_move_twice_a_step_and_in_no_attack() -> None:
    oat = training()
    before = {name: tensor.clone() for name, tensor in oat.net.state_dict().items()}
    oat.modules.train()
    step = oat.step(batch(), ATTACK)
    assert not different(oat.net.state_dict(), before)
    oat.modules(step.passes)
    counts = [
        {int(t) for n, t in oat.net.path(path).state_dict().items() if n.endswith("num_batches_tracked")}
        for path in ("clean", "robust")
    ]
    assert counts == [{1}, {2}]


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_each_deployed_path_is_the_network_at_its_lambda_folded(density: float) -> None:
    oat = training(density=density)
    net = oat.deployable(no_sample)
    assert net.path_names == tuple(OAT.roles) == ("clean", "lambda-02", "robust")
    assert isinstance(oat.modules, ConditionalNetwork)
    oat.modules.eval()
    images = batch().images
    scores = {}
    for name, (path, weight) in {
        "clean": ("clean", 0.0),
        "lambda-02": ("robust", 0.2),
        "robust": ("robust", 1),
    }.items():
        rows = torch.full((SIZE,), LAMBDAS.index(weight))
        with torch.no_grad(), oat.modules.conditions.applied(oat.net.path(path), rows):
            expected = oat.net.path(path)(images)
        with torch.no_grad():
            scores[name] = net.path(name)(images)
            torch.testing.assert_close(scores[name], expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(fold(net, path=name)(images), expected, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(net.masks(name), oat.net.masks(path), strict=True))
    assert not torch.allclose(scores["lambda-02"], scores["robust"], atol=1e-3)
    shared = {id(p) for n, p in oat.net.path("clean").network.named_parameters() if n not in oat.net.own_parameters()}
    assert shared <= {id(p) for p in net.parameters()}, "weights are stored once"


def test_codes_are_orthogonal_and_steps_reach_little_beyond_eps() -> None:
    codes = training().extra.codes  # type: ignore[union-attr]
    assert isinstance(codes, Tensor)
    assert codes.shape == (6, CODE)
    torch.testing.assert_close(codes @ codes.T, torch.eye(6), rtol=0, atol=1e-5)
    assert short_steps(Attack(eps=8 / 255, steps=7)).step * 255 == pytest.approx(10 / 7)
    assert short_steps(Attack(eps=0.3, steps=7)).step == pytest.approx((0.3 + 4 / 255) / 7)
    assert short_steps(Attack(eps=0.3, steps=7, step_size=0.02)).step == 0.02
    assert short_steps(Attack(eps=0)).step == 0
