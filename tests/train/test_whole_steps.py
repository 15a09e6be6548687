"""One whole step of each method against a slow reference: image by image, in plain formulas, the optimiser too.

The reference knows nothing of passes, attacks and losses of ours. Both are in double precision, so that what differs is
a mistake and not rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smart_train import Attack
from smart_train.methods import METHODS, load_method
from smart_train.methods.interface import Batch, Training
from train.networks import resnet, setup

EPS, STEPS, LR, MOMENTUM, DECAY = 0.1, 2, 0.1, 0.9, 5e-4
IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(8) % 3


def training(name: str) -> tuple[Training, Attack]:
    """Return a training in train mode, and the attack that it trains against."""
    method = load_method(name)
    one_step = method.attack is not None
    attack = Attack(method.attack or "pgd", eps=EPS, steps=1 if one_step else STEPS)
    teacher = resnet(seed=1).eval().requires_grad_(False) if method.needs_teacher else None
    found = method.build(resnet(), setup(name, attack=attack, teacher=teacher))
    found.modules.train()
    return found, attack


def batch(images: Tensor) -> Batch:
    return Batch(images, LABELS, LABELS, generator=torch.Generator().manual_seed(3), number=1, total=1)


def shares(scores: Tensor) -> Tensor:
    """Softmax of one image's scores, (classes,)."""
    return (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([-shares(one)[label].log() for one, label in zip(scores, labels, strict=True)]).mean()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Of one image's shares, (classes,)."""
    return (p * (p / q).log()).sum()


def climb(
    path: nn.Module,
    starts: Tensor,
    images: Tensor,
    height: Callable[[int, Tensor], Tensor],
    *,
    steps: int,
    step: float,
    reach: float = EPS,
) -> Tensor:
    """Attack image by image in eval mode: ``height`` of an image's number and its scores is increased."""
    path.eval()
    found = []
    for i, (start, image) in enumerate(zip(starts, images, strict=True)):
        current = start.clone()
        for _ in range(steps):
            current.requires_grad_()
            (slope,) = torch.autograd.grad(height(i, path(current[None])[0]), current)
            moved = current.detach() + step * slope.sign()
            current = torch.minimum(torch.maximum(moved, image - reach), image + reach).clamp(0, 1)
        found.append(current)
    path.train()
    return torch.stack(found)


def against_labels(labels: Tensor) -> Callable[[int, Tensor], Tensor]:
    return lambda i, scores: -shares(scores)[labels[i]].log()


def uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    return (images + torch.empty_like(images).uniform_(-EPS, EPS, generator=generator)).clamp(0, 1)


def pgd(path: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    start = uniform(images, generator)
    return climb(path, start, images, against_labels(labels), steps=STEPS, step=2.5 * EPS / STEPS)


def fgsm_rs(path: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    return climb(path, uniform(images, generator), images, against_labels(labels), steps=1, step=1.25 * EPS)


def n_fgsm(path: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    start = images + 2 * EPS * torch.empty_like(images).uniform_(-1, 1, generator=generator)
    return climb(path, start, images, against_labels(labels), steps=1, step=EPS, reach=1.0)


def gaussian(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + 0.001 * torch.empty_like(images).normal_(generator=generator)


def standard(net: Any, generator: torch.Generator) -> Tensor:
    del generator
    return cross_entropy(net.path("clean")(IMAGES), LABELS)


def by_attack(attack: Callable[..., Tensor]) -> Callable[[Any, torch.Generator], Tensor]:
    def loss(net: Any, generator: torch.Generator) -> Tensor:
        path = net.path("robust")
        return cross_entropy(path(attack(path, IMAGES, LABELS, generator)), LABELS)

    return loss


def mixed(net: Any, generator: torch.Generator) -> Tensor:
    path = net.path("robust")
    adversarial = pgd(path, IMAGES, LABELS, generator)
    first = cross_entropy(path(adversarial), LABELS)  # before the clean ones: the statistics remember the last more
    return (first + cross_entropy(path(IMAGES), LABELS)) / 2


def halves(net: Any, generator: torch.Generator) -> Tensor:
    adversarial = pgd(net.path("robust"), IMAGES[4:], LABELS[4:], generator)
    clean = cross_entropy(net.path("clean")(IMAGES[:4]), LABELS[:4])
    return (clean + cross_entropy(net.path("robust")(adversarial), LABELS[4:])) / 2


def trades(net: Any, generator: torch.Generator) -> Tensor:
    path = net.path("robust").eval()
    with torch.no_grad():
        reference = [shares(path(image[None])[0]) for image in IMAGES]
    start = gaussian(IMAGES, generator)

    def apart(i: int, scores: Tensor) -> Tensor:
        return kl(reference[i], shares(scores))

    adversarial = climb(path, start, IMAGES, apart, steps=STEPS, step=2.5 * EPS / STEPS)
    z, z_attacked = path(IMAGES), path(adversarial)
    divergence = torch.stack([kl(shares(a), shares(b)) for a, b in zip(z, z_attacked, strict=True)]).mean()
    return cross_entropy(z, LABELS) + 6 * divergence


def mart(net: Any, generator: torch.Generator) -> Tensor:
    path = net.path("robust")
    start = gaussian(IMAGES, generator)
    adversarial = climb(path, start, IMAGES, against_labels(LABELS), steps=STEPS, step=2.5 * EPS / STEPS)
    z, z_attacked = path(IMAGES), path(adversarial)
    images = []
    for label, p, q in zip(LABELS, map(shares, z), map(shares, z_attacked), strict=True):
        wrong = torch.stack([q[k] for k in range(3) if k != label]).max()
        images.append(-q[label].log() - (1.0001 - wrong).log() + 6 * kl(p, q) * (1.0000001 - p[label]))
    return torch.stack(images).mean()


REFERENCES: dict[str, Callable[[Any, torch.Generator], Tensor]] = {
    "smart": halves,
    "dual-bn": halves,
    "standard": standard,
    "pgd-at": by_attack(pgd),
    "pgd-at-mixed": mixed,
    "fgsm-rs": by_attack(fgsm_rs),
    "n-fgsm": by_attack(n_fgsm),
    "trades": trades,
    "mart": mart,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_step_is_that_of_a_slow_reference(name: str) -> None:
    ours, attack = training(name)
    ours.modules.double()
    theirs = copy.deepcopy(ours.net)
    parameters = list(ours.modules.parameters())
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    step = ours.step(batch(IMAGES), attack)
    loss = step.loss(ours.modules(step.passes)).total
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    expected = REFERENCES[name](theirs, torch.Generator().manual_seed(3))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    weights = dict(theirs.named_parameters())
    slopes = torch.autograd.grad(expected, list(weights.values()))
    with torch.no_grad():  # the first step of momentum is the gradient itself
        for weight, slope in zip(weights.values(), slopes, strict=True):
            weight.sub_(LR * (slope + DECAY * weight))
    for (key, found), wanted in zip(ours.net.state_dict().items(), theirs.state_dict().values(), strict=True):
        close = torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)  # the loss is in single precision
        assert close, f"{key} differs by {float((found - wanted).abs().max())}"


def counted(net: nn.Module) -> set[int]:
    """How many passes the statistics of each batch norm have taken in."""
    return {int(value) for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(("name", "passes"), [("trades", 2), ("mart", 2), ("pgd-at-mixed", 2), ("pgd-at", 1)])
def test_statistics_move_once_a_pass_and_never_in_the_attack(name: str, passes: int) -> None:
    """TRADES' clean batch through the network twice in train mode, and once more a step, is how copies of it err."""
    ours, attack = training(name)
    step = ours.step(batch(IMAGES.float()), attack)
    assert counted(ours.net) == {0}
    ours.modules(step.passes)
    assert counted(ours.net) == {passes}


@pytest.mark.parametrize("name", METHODS)
def test_no_attack_moves_statistics_or_leaves_gradients_or_eval_mode(name: str) -> None:
    ours, attack = training(name)
    ours.epoch_start(1, lambda _: iter([batch(IMAGES.float())]))
    before = {key: value.clone() for key, value in ours.modules.state_dict().items()}
    modes = {key: module.training for key, module in ours.modules.named_modules()}
    ours.step(batch(IMAGES.float()), attack)
    moved = [key for key, value in ours.modules.state_dict().items() if not torch.equal(value, before[key])]
    assert [key for key in moved if "running" in key or key.endswith("num_batches_tracked")] == []
    assert all(parameter.grad is None for parameter in ours.modules.parameters())
    assert {key: module.training for key, module in ours.modules.named_modules()} == modes
