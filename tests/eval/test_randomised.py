"""Networks that draw random numbers: attacks follow the expectation, and a result can be had again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from eval.reports import Parsed, report
from smart_eval import EvalOptions, evaluate
from smart_eval.attacks.autoattack import AutoAttackParts
from smart_eval.attacks.base import DRAWS
from smart_eval.attacks.pgd import Pgd
from smart_eval.page.page import render
from smart_train import Attack, Checkpoint, ConfigError, load_checkpoint
from smart_train.masking.layers import Expert
from train.networks import image_set


class Noisy(nn.Module):
    """A linear classifier whose weight moves by ``noise`` in each call; ``randomised`` says so."""

    randomised = True

    def __init__(self, noise: float, *, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(classes, 12, generator=generator)
        self.noise = noise
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        drawn = self.noise * torch.randn_like(self.weight)
        return images.flatten(1) @ (self.weight + drawn).T


def test_pgd_goes_along_the_mean_gradient_of_many_draws() -> None:
    model, eps = Noisy(0.2), 0.01
    images = 0.4 + 0.2 * torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = (images.flatten(1) @ model.weight.T).argmax(dim=1)
    attack = Pgd(Attack(eps=eps, steps=1, step_size=2 * eps)).for_randomised()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        found = attack(model, images, labels, seed=3)
        assert model.calls == DRAWS
        torch.manual_seed(7)
        start = (
            images + torch.empty_like(images).uniform_(-eps, eps, generator=torch.Generator().manual_seed(3))
        ).numpy()
        gradient = np.zeros((5, 12))
        for _ in range(DRAWS):  # of the cross-entropy of a linear classifier: (softmax - one-hot) W
            weight = (model.weight + model.noise * torch.randn_like(model.weight)).numpy().astype(np.float64)
            scores = start.reshape(5, 12) @ weight.T
            softmax = np.exp(scores - scores.max(axis=1, keepdims=True))
            softmax /= softmax.sum(axis=1, keepdims=True)
            gradient += (softmax - np.eye(4)[labels.numpy()]) @ weight
    pixels = images.numpy()
    expected = np.clip(start + 2 * eps * np.sign(gradient).reshape(start.shape), pixels - eps, pixels + eps)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_autoattack_runs_in_its_version_for_randomised_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Watched(pyautoattack.AutoAttack):  # type: ignore[misc]
        def run_standard_evaluation(self, images: Tensor, labels: Tensor, **_: Any) -> Any:
            made.append(self)
            return images, labels

    theirs = Watched(Noisy(0.1), version="rand", eps=0.1, seed=5, device="cpu")
    monkeypatch.setattr(pyautoattack, "AutoAttack", Watched)
    attack = AutoAttackParts("autoattack", 0.1).for_randomised()
    attack(Noisy(0.1), torch.rand(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64), seed=5)
    (found,) = made
    assert found.attacks_to_run == theirs.attacks_to_run == ["apgd-ce", "apgd-dlr"]
    assert found.apgd.eot_iter == theirs.apgd.eot_iter == DRAWS == 20
    assert found.apgd.n_restarts == theirs.apgd.n_restarts
    assert found.apgd.n_iter == theirs.apgd.n_iter
    assert (attack.record()["parts"], attack.record()["draws"]) == (["apgd-ce", "apgd-dlr"], 20)
    assert "along the mean gradient of 20 calls" in attack.description
    assert not attack.uses_queries


@pytest.mark.parametrize("name", ["square", "fab-t", "apgd-t"])
def test_what_has_no_version_for_them_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no version for networks that draw random numbers"):
        AutoAttackParts(name, 0.1).for_randomised()


def test_two_classes_are_too_few_for_the_difference_of_logits_ratio() -> None:
    with pytest.raises(ConfigError, match=r"expected 3 or more classes for autoattack.* use --attack apgd-ce$"):
        AutoAttackParts("autoattack", 0.1).for_randomised().check_ready(classes=2)


@pytest.fixture
def noisy(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A checkpoint whose robust path adds noise to a weight in each call, as FLOAT's network does."""
    checkpoint = load_checkpoint(trained)
    last: Any = [m for m in checkpoint.net.path("robust").modules() if isinstance(m, Expert)][-1]
    last.noise = lambda weight: weight + 2 * torch.randn_like(weight)
    return checkpoint


OPTIONS = EvalOptions(attack="pgd2x1", eps=0.1, examples=6)


def test_a_randomised_subject_is_attacked_over_its_noise_and_can_be_measured_again(noisy: Checkpoint) -> None:
    first = evaluate(noisy, data=image_set(), options=OPTIONS)
    assert [attack.record()["draws"] for attack in first.attacks] == [DRAWS]
    assert first.randomised
    assert first.threats is None
    assert not first.checks
    state = torch.random.get_rng_state()
    again = evaluate(noisy, data=image_set(), options=OPTIONS)
    assert torch.equal(state, torch.random.get_rng_state()), "whoever asks keeps their own random numbers"
    for path, found in first.right.items():
        for attack, right in found.items():
            np.testing.assert_array_equal(right, again.right[path][attack])
    other = evaluate(noisy, data=image_set(), options=replace(OPTIONS, examples=None, seed=1, attack="clean"))
    same = evaluate(noisy, data=image_set(), options=replace(OPTIONS, examples=None, seed=2, attack="clean"))
    assert (other.right["robust"]["clean"] != same.right["robust"]["clean"]).any(), "each seed has noise of its own"
    document = first.document()
    assert document["randomised"] is True
    page = Parsed(render(report({**document, "model": "noisy.pt"}))).text
    assert "random in each call, attacked on the mean of many" in page
    assert "on the mean loss of 20 calls" in page


def test_square_is_refused_on_a_randomised_subject(noisy: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="square has no version"):
        evaluate(noisy, data=image_set(), options=replace(OPTIONS, attack="pgd,square"))


def test_any_other_subject_is_not_randomised(trained: Path) -> None:
    found = evaluate(trained, data=image_set(), options=replace(OPTIONS, attack="pgd1x1", checks=False))
    assert not found.randomised
    assert "draws" not in found.document()["attacks"][0]
