from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import attacks as oracle
from reference.intervals import wilson
from smart_train import Attack, ConfigError
from smart_train.accuracy import Z_95, Accuracy, evaluate_path, to_tensor
from smart_train.attacks import AttackKind, gaussian_start, margin
from smart_train.choices import ATTACKS
from smart_train.data.images import Split
from train.networks import image_set, smart

RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.rand(32, 1, 5, 4, generator=RANDOM)
WEIGHT = torch.randn(7, 20, generator=RANDOM)
LABELS = (IMAGES.flatten(1) @ WEIGHT.T).argmax(dim=1)
EPS = st.floats(0, 1, width=32)


def linear(images: Tensor) -> Tensor:
    return images.flatten(1) @ WEIGHT.to(images.dtype).T


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attacked(attack: Attack, *, seed: int = 5) -> Tensor:
    return attack.run(linear, IMAGES, LABELS, generator=seeded(seed))


def accuracy(images: Tensor) -> float:
    return float((linear(images).argmax(dim=1) == LABELS).float().mean())


def mean_loss(images: Tensor) -> float:
    return float(nn.functional.cross_entropy(linear(images), LABELS))


@pytest.mark.parametrize(
    "attack",
    [Attack(eps=0.1, steps=7), Attack(eps=0.3, steps=20, step_size=0.02), Attack(name="fgsm-rs", eps=0.2, steps=1)],
    ids=lambda attack: attack.label,
)
def test_steps_are_those_of_the_closed_form_on_a_linear_network(attack: Attack) -> None:
    images = IMAGES.double()
    noise = torch.empty_like(images).uniform_(-attack.eps, attack.eps, generator=seeded())
    step = attack.step_size or (1.25 * attack.eps if attack.name == "fgsm-rs" else 2.5 * attack.eps / attack.steps)
    expected = oracle.pgd_linear(
        images.flatten(1).numpy(),
        LABELS.numpy(),
        (images + noise).clamp(0, 1).flatten(1).numpy(),
        weight=WEIGHT.double().numpy(),
        eps=attack.eps,
        step=step,
        steps=attack.steps,
    )

    def in_double(images: Tensor) -> Tensor:
        return images.flatten(1) @ WEIGHT.double().T

    got = attack.run(in_double, images, LABELS, generator=seeded())
    np.testing.assert_allclose(got.flatten(1).numpy(), expected, rtol=0, atol=1e-12)


def test_n_fgsm_is_a_step_from_twice_the_noise_and_nothing_is_taken_back() -> None:
    attack = Attack(name="n-fgsm", eps=0.2, steps=1)
    assert (attack.label, attack.step) == ("n-fgsm", 0.2)
    start = IMAGES + 2 * 0.2 * torch.empty_like(IMAGES).uniform_(-1, 1, generator=seeded())
    assert not bool(((start >= 0) & (start <= 1)).all()), "the start is not clamped"
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(linear(start.requires_grad_()), LABELS, reduction="sum"), start
    )
    expected = (start.detach() + 0.2 * gradient.sign()).clamp(0, 1)
    got = attacked(attack)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert 0.4 < float((got - IMAGES).abs().max()) <= 0.6 + 1e-6, "it leaves the radius"


@given(eps=EPS, steps=st.integers(1, 4), restarts=st.integers(1, 3), step=st.none() | st.floats(0.01, 1))
def test_adversarial_images_stay_within_eps_and_range(
    eps: float, steps: int, restarts: int, step: float | None
) -> None:
    got = attacked(Attack(eps=eps, steps=steps, restarts=restarts, step_size=step))
    assert got.shape == IMAGES.shape
    assert not got.requires_grad
    assert 0 <= float(got.min()) <= float(got.max()) <= 1
    assert float((got - IMAGES).abs().max()) <= eps + 1e-7  # one rounding of float32


def test_eps_zero_is_the_clean_image() -> None:
    assert torch.equal(attacked(Attack(eps=0.0, steps=3, restarts=2)), IMAGES)


def test_a_large_eps_drives_accuracy_to_zero_and_more_steps_never_help_the_defender() -> None:
    by_eps = [accuracy(attacked(Attack(eps=eps, steps=20))) for eps in (0, 0.05, 0.1, 0.2, 0.4)]
    assert by_eps == sorted(by_eps, reverse=True)
    assert (by_eps[0], by_eps[-1]) == (1.0, 0.0)
    by_steps = [mean_loss(attacked(Attack(eps=0.05, steps=steps))) for steps in (1, 2, 5, 20)]
    assert by_steps == sorted(by_steps), f"mean loss {by_steps} falls with more steps"


def test_the_same_generator_gives_the_same_images_and_another_gives_others() -> None:
    attack = Attack(eps=0.1, steps=1, step_size=0.01)
    assert torch.equal(attacked(attack), attacked(attack))
    assert not torch.equal(attacked(attack), attacked(attack, seed=6))


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1])
def test_an_image_that_one_start_breaks_stays_broken_with_more_restarts(eps: float) -> None:
    few, many = (attacked(Attack(eps=eps, steps=1, step_size=0.01, restarts=n)) for n in (1, 5))
    broken = linear(few).argmax(dim=1) != LABELS
    assert 0 < broken.sum() < len(broken) or eps != 0.05, "the test needs some of both"
    healed = broken & (linear(many).argmax(dim=1) == LABELS)
    assert not healed.any(), f"{int(healed.sum())} of {int(broken.sum())} broken images came back right"


def test_a_wrong_answer_of_lower_loss_outranks_a_right_one() -> None:
    """One pixel decides: above 0.5 a close call for the wrong class, below it many classes nearly as likely."""

    def model(images: Tensor) -> Tensor:
        x = images.flatten(1)[:, :1]
        wrong = torch.cat([0.0 * x, 0.0 * x + 0.1, 0.0 * x - 9, 0.0 * x - 9], dim=1)
        close = torch.cat([0.0 * x, 0.0 * x - 0.1, 0.0 * x - 0.1, 0.0 * x - 0.1], dim=1)
        return torch.where(x > 0.5, wrong, close)

    images, labels = torch.full((64, 1, 1, 1), 0.5), torch.zeros(64, dtype=torch.int64)
    attack = Attack(eps=0.2, steps=1, step_size=1e-6, restarts=12)
    assert not correct_of(model, attack.run(model, images, labels, generator=seeded()), labels)


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
def test_of_several_networks_the_start_that_fools_most_counts(eps: float) -> None:
    """Each restart fools as many networks, image by image, as the ones before it, or more."""
    other = torch.randn(WEIGHT.shape, generator=seeded(1))

    def both(images: Tensor) -> Tensor:
        return torch.stack([linear(images), images.flatten(1) @ other.T], dim=2)

    fooled = []
    for restarts in (1, 2, 4):
        attack = Attack(eps=eps, steps=1, step_size=0.01, restarts=restarts)
        found = attack.run(both, IMAGES, LABELS, generator=seeded())
        fooled.append((both(found).argmax(dim=1) != LABELS.unsqueeze(1)).sum(dim=1))
    assert bool((fooled[0] <= fooled[1]).all())
    assert bool((fooled[1] <= fooled[2]).all())
    assert bool((fooled[0] < fooled[2]).any())


def correct_of(model: object, images: Tensor, labels: Tensor) -> int:
    assert callable(model)
    return int((model(images).argmax(dim=1) == labels).sum())


@pytest.mark.parametrize(
    "options",
    [
        {"eps": -0.1},
        {"eps": 1.5},
        {"eps": float("nan")},
        {"steps": 0},
        {"restarts": 0},
        {"step_size": 0.0},
        {"step_size": float("nan")},
        {"step_size": float("inf")},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^expected .* got .*"):
        Attack(**options)  # type: ignore[arg-type]


def test_more_steps_than_an_attack_of_one_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^fgsm-rs has 1 step, 3 were asked for; use --attack pgd for more$"):
        Attack(name="fgsm-rs", steps=3)


def test_an_unknown_attack_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^unknown attack 'cw'; there are pgd, fgsm-rs, n-fgsm$"):
        Attack(name="cw")


MARGIN = AttackKind(usual_step=lambda eps, steps: 2 * eps / steps, loss=margin, start=gaussian_start)


def test_an_attack_from_outside_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast("dict[str, str]", ATTACKS), "margin", f"{__name__}:MARGIN")
    attack = Attack(name="margin", eps=0.1, steps=5)
    assert (attack.label, attack.step) == ("margin5x1", 0.04)
    same = Attack(eps=0.1, steps=5, step_size=0.04)
    expected = same.run(linear, IMAGES, LABELS, generator=seeded(), loss=margin, start=gaussian_start)
    assert torch.equal(attacked(attack), expected)
    assert not torch.equal(attacked(same), expected)


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("restarts", [1, 3])
def test_every_image_and_every_pixel_may_have_a_radius_of_its_own(restarts: int, early_stop: bool) -> None:
    attack = Attack(eps=0.1, steps=5, restarts=restarts)

    def run(radius: Tensor) -> Tensor:
        return attack.run(linear, IMAGES, LABELS, generator=seeded(), radius=radius, early_stop=early_stop)

    by_image = torch.linspace(0, 0.2, len(IMAGES))[:, None, None, None]
    by_pixel = by_image * torch.rand(IMAGES.shape, generator=seeded())
    for radius in (by_image, by_pixel):
        moved = (run(radius) - IMAGES).abs()
        assert bool((moved <= radius + 1e-7).all())
        assert torch.equal(moved[0], torch.zeros_like(moved[0]))
        assert float(moved[-1].max()) > attack.eps or radius is by_pixel
    everywhere = run(torch.full((len(IMAGES), 1, 1, 1), attack.eps))
    plain = attack.run(linear, IMAGES, LABELS, generator=seeded(), early_stop=early_stop)
    torch.testing.assert_close(everywhere, plain, rtol=0, atol=1e-6)  # eps * u is drawn in another way


@given(total=st.integers(1, 10_000), data=st.data())
def test_the_interval_is_wilsons(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    low, high = Accuracy(right, total).interval
    np.testing.assert_allclose((low, high), wilson(right, total, z=Z_95), rtol=0, atol=1e-6)
    assert 0 <= low <= right / total <= high <= 1


def test_evaluation_counts_in_chunks_and_leaves_the_flag() -> None:
    data = image_set(train=60)
    many = Split(np.concatenate([data.test.images] * 14), np.concatenate([data.test.labels] * 14))
    model = smart().train().path("clean")
    done: list[int] = []
    found = evaluate_path(model, many, attack=Attack(eps=0.0, steps=1), generator=seeded(), done=done.append)
    assert (sum(done), len(done), model.training) == (294, 2, True)
    model.eval()
    with torch.no_grad():
        predicted = model(to_tensor(torch.from_numpy(many.images))).argmax(dim=1).numpy()
    expected = int(np.sum(predicted == many.labels))
    assert (found.clean.correct, found.clean.total) == (expected, 294)
    assert found.robust == found.clean, "an attack of eps 0 is no attack"


def test_pixels_become_fractions_channels_first() -> None:
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 3)
    got = to_tensor(pixels)
    assert got.is_contiguous()
    np.testing.assert_array_equal(got.numpy(), np.moveaxis(pixels.numpy().astype(np.float32) / np.float32(255), -1, 1))
